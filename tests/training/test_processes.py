"""Two processes: split by FSDP2 or DeepSpeed, resumed as one, losing one of them, met over two machines' launchers."""

import importlib.util
import json
import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

sys.path.insert(0, str(Path(__file__).parent))  # the forked processes find the module by its name

import trainer

from dit_hf.training.run import run
from dit_hf.training.settings import parse_settings

ROOT = Path(__file__).parents[2]
FSDP = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
}
ZERO = [{"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": stage} for stage in "23"]

# How Accelerate has wrapped the model, and whether this process holds but a part of its weights.
WRAPPERS = {
    False: ("DistributedDataParallel", "whole"),
    True: ("FSDPDiTModel", "split"),
    "2": ("DeepSpeedEngine", "whole"),
    "3": ("DeepSpeedEngine", "split"),
}

needs_deepspeed = pytest.mark.skipif(not importlib.util.find_spec("deepspeed"), reason="DeepSpeed is not installed")
splits = pytest.mark.parametrize(
    "split",
    [
        pytest.param(FSDP, id="fsdp2"),
        pytest.param(ZERO[0], id="zero2", marks=needs_deepspeed),
        pytest.param(ZERO[1], id="zero3", marks=needs_deepspeed),
    ],
)


def arguments(tiny: Path, out: Path, *flags: str) -> list[str]:
    clipped = ("--max_grad_norm", "0.1")  # below each step's norm, so that clipping counts
    return [str(tiny / "tiny.yaml"), "--output_dir", str(out), "--validation_steps", "4", *clipped, *flags]


def train_two(tiny: Path, folder: Path, *flags: str, events: dict | None = None, **environment: str) -> Path:
    port = trainer.free_port()
    command = arguments(tiny, folder / "out", "--train_batch_size", "3", *flags)
    processes = [
        trainer.start(folder / "journal", command, rank=rank, port=port, events=events, **environment)
        for rank in range(2)
    ]
    trainer.finish(processes, folder / "journal")
    for rank in range(2):
        used = [line.split() for line in trainer.lines(folder / "journal", rank) if line.startswith("model ")]
        wrapper = WRAPPERS[environment.get("ACCELERATE_DEEPSPEED_ZERO_STAGE", "FSDP_VERSION" in environment)]
        assert used[-1] == ["model", *wrapper]
    return folder / "out"


def train_one(tiny: Path, folder: Path, *flags: str, **environment: str) -> Path:
    folder.mkdir(exist_ok=True)
    process = trainer.start(folder / "journal", arguments(tiny, folder / "out", *flags), **environment)
    trainer.finish([process], folder / "journal")
    return folder / "out"


def losses(out: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (out / "metrics.jsonl").read_text().splitlines()]


def weights(out: Path, step: int, name: str) -> dict[str, torch.Tensor]:
    return load_file(out / "checkpoints" / f"step-{step:08d}" / f"{name}.safetensors")


def moments(out: Path, step: int) -> dict[str, dict[str, torch.Tensor]]:
    saved = torch.load(out / "checkpoints" / f"step-{step:08d}" / "optimizer.pt", weights_only=True)
    return saved["optimizer"]["state"]


@pytest.fixture(scope="module")
def alone(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_one(tiny, tmp_path_factory.mktemp("alone"), "--extra_ema_decays", "0.2")


@pytest.mark.slow
@splits
def test_split_model_trains_saves_samples_and_goes_on_like_a_whole_one(
    tiny: Path, tmp_path: Path, alone: Path, split: dict[str, str]
):
    more = ("--extra_ema_decays", "0.2")
    out = train_two(tiny, tmp_path, *more, "--max_train_steps", "5", **split)
    train_two(tiny, tmp_path, *more, "--train_batch_size", "1", "--gradient_accumulation_steps", "3", **split)
    np.testing.assert_allclose(losses(out), losses(alone), rtol=1e-4)  # sums in another order
    for name in ("model", "ema", "ema_0.2"):
        split, whole = weights(out, 8, name), weights(alone, 8, name)
        assert split.keys() == whole.keys()
        torch.testing.assert_close(split, whole, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(moments(out, 8), moments(alone, 8), rtol=1e-2, atol=1e-5)
    pipeline = load_file(next((out / "pipeline" / "transformer").glob("*.safetensors")))
    torch.testing.assert_close(pipeline, weights(out, 8, "ema"), rtol=0, atol=0)
    assert (out / "previews" / "step-00000004.png").is_file()


@pytest.mark.slow
@splits
def test_blocks_that_techniques_change_train_alike_where_they_are_split(
    tiny: Path, tmp_path: Path, split: dict[str, str]
):
    routed = ("--tread_share", "0.5", "--tread_first_block", "1", "--tread_last_block", "1", "--max_train_steps", "3")
    synced = ("--layer_sync_weight", "0.3", "--layer_sync_block", "1", "--layer_sync_target", "2", "--ema_decay", "0.1")
    whole = train_one(tiny, tmp_path / "one", *routed, *synced)
    (tmp_path / "two").mkdir()
    out = train_two(tiny, tmp_path / "two", *routed, *synced, **split)
    np.testing.assert_allclose(losses(out), losses(whole), rtol=1e-4)  # sums in another order
    torch.testing.assert_close(weights(out, 3, "model"), weights(whole, 3, "model"), rtol=1e-3, atol=1e-4)


@pytest.mark.slow
@splits
def test_checkpoint_of_one_process_goes_on_split_over_two_and_back(
    tiny: Path, tmp_path: Path, alone: Path, split: dict[str, str]
):
    more = ("--extra_ema_decays", "0.2")
    for steps in ("2", "4", "6", "8"):
        if steps in "26":
            out = train_one(tiny, tmp_path, *more, "--max_train_steps", steps)
        else:
            train_two(tiny, tmp_path, *more, "--max_train_steps", steps, **(split if steps == "4" else {}))
    np.testing.assert_allclose(losses(out), losses(alone), rtol=1e-4)
    torch.testing.assert_close(weights(out, 8, "ema"), weights(alone, 8, "ema"), rtol=1e-3, atol=1e-4)


@pytest.mark.slow
@splits
def test_step_whose_loss_is_not_finite_on_one_process_changes_no_split_weights(
    tiny: Path, tmp_path: Path, split: dict[str, str]
):
    flags = ("--max_train_steps", "3", "--checkpointing_steps", "1", "--validation_steps", "100", "--ema_decay", "0.01")
    out = train_two(tiny, tmp_path, *flags, events={"at_batch": {"1:2": "spoil"}}, **split)
    message = "step 2 was skipped: the loss on ranks [1] is not finite"
    assert all(message in (tmp_path / f"journal.{rank}.out").read_text() for rank in range(2))
    torch.testing.assert_close(weights(out, 2, "model"), weights(out, 1, "model"), rtol=0, atol=0)
    torch.testing.assert_close(weights(out, 2, "ema"), weights(out, 1, "ema"), rtol=0, atol=0)
    last = "final_layer.linear.weight"
    assert not torch.equal(weights(out, 3, "model")[last], weights(out, 2, "model")[last])


@pytest.mark.slow
@splits
def test_split_weights_stay_float32_in_bfloat16(tiny: Path, tmp_path: Path, alone: Path, split: dict[str, str]):
    out = train_two(tiny, tmp_path, "--mixed_precision", "bf16", "--max_train_steps", "4", **split)
    np.testing.assert_allclose(losses(out), losses(alone)[:4], rtol=0.02)
    assert not np.allclose(losses(out), losses(alone)[:4], rtol=1e-6)  # in float32, they are as near
    streams = set(re.findall("^stream (.*)", (tmp_path / "journal.0").read_text(), flags=re.MULTILINE))
    assert streams == {"torch.float32"}
    for name in ("model", "ema"):
        assert {tensor.dtype for tensor in weights(out, 4, name).values()} == {torch.float32}
        assert any((tensor != tensor.bfloat16()).any() for tensor in weights(out, 4, name).values())


@pytest.mark.slow
def test_skipped_images_are_counted_and_limited_over_both_processes(tiny: Path, three_bad: Path, tmp_path: Path):
    flags = ("--dataset_name", str(three_bad), "--train_batch_size", "3", "--max_train_steps", "4")
    flags += ("--validation_steps", "100", "--ema_decay", "0.01")
    port = trainer.free_port()
    command = arguments(tiny, tmp_path / "out", *flags)
    for limit, code in (("0.1", 1), ("0.15", 0)):  # of 20 images: two, three
        ranks = [
            trainer.start(tmp_path / limit, [*command, "--max_bad_images", limit], rank=rank, port=port)
            for rank in range(2)
        ]
        trainer.finish(ranks, tmp_path / limit, code)
        printed = [(tmp_path / f"{limit}.{rank}.out").read_text() for rank in range(2)]
        if code:
            assert all("3 images cannot be decoded, more than --max_bad_images 0.1 allows" in text for text in printed)
    assert all(0 < len(set(re.findall(r"skipped (row .*?):", text))) < 3 for text in printed)  # no process has met all
    last = json.loads((tmp_path / "out" / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["images_skipped"] == 3


@pytest.mark.slow
def test_second_of_two_runs_in_a_folder_is_refused_on_every_process(tiny: Path, tmp_path: Path):
    first = trainer.start(tmp_path / "first", arguments(tiny, tmp_path / "out"), "step")
    pid = trainer.wait_for("begin step", tmp_path / "first")
    port, command = trainer.free_port(), arguments(tiny, tmp_path / "out", "--train_batch_size", "3")
    second = [trainer.start(tmp_path / "second", command, rank=rank, port=port) for rank in range(2)]
    trainer.finish(second, tmp_path / "second", code=1)
    for rank in range(2):
        message = f"error: rank {rank}: .* belongs to a run that is alive: process {pid} on "
        assert re.search(message, trainer.output(tmp_path / "second", rank))
    trainer.release(tmp_path / "first")
    trainer.finish([first], tmp_path / "first")


@pytest.mark.slow
@pytest.mark.parametrize("lost", [0, 1])
def test_process_that_is_lost_ends_the_other_and_the_same_command_goes_on(
    tiny: Path, tmp_path: Path, alone: Path, lost: int
):
    command = arguments(tiny, tmp_path / "out", "--train_batch_size", "3", "--checkpointing_steps", "1")
    port = trainer.free_port()
    processes = [trainer.start(tmp_path / "journal", command, rank=rank, port=port) for rank in range(2)]
    trainer.wait_for("end step 1", tmp_path / "journal")
    processes[lost].kill()
    processes[1 - lost].join(trainer.HANG_SECONDS)
    assert processes[1 - lost].exitcode not in (None, 0)
    out = train_two(tiny, tmp_path, "--checkpointing_steps", "1")
    np.testing.assert_allclose(losses(out), losses(alone), rtol=1e-4)


@pytest.mark.long
def test_launcher_ends_a_job_that_lost_a_process_and_says_which(tiny: Path, tmp_path: Path):
    torchrun = ["torch.distributed.run", "--nproc_per_node", "2", "--master_port", str(trainer.free_port())]
    command = [sys.executable, "-m", *torchrun, trainer.__file__, str(tmp_path / "journal"), "step"]
    command += arguments(tiny, tmp_path / "out", "--train_batch_size", "3")
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    os.kill(trainer.wait_for("begin step", tmp_path / "journal", rank=1), signal.SIGKILL)
    output, _ = process.communicate(timeout=trainer.HANG_SECONDS)
    assert process.returncode != 0
    assert re.search(r"rank\s*: 1", output)
    assert "Signal 9" in output


@pytest.mark.slow
def test_two_machines_meet_and_train_as_one(tiny: Path, tmp_path: Path, alone: Path):
    port = trainer.free_port()
    meeting = ["--nnodes", "2", "--nproc_per_node", "1", "--rdzv_backend", "c10d", "--rdzv_id", "1"]
    end = ["--rdzv_endpoint", f"127.0.0.1:{port}", str(ROOT / "examples" / "train_dit.py")]
    flags = arguments(tiny, tmp_path / "out", "--train_batch_size", "3", "--extra_ema_decays", "0.2")
    command = [sys.executable, "-m", "torch.distributed.run", *meeting, *end, *flags]
    machines = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) for _ in "ab"]
    outputs = [machine.communicate(timeout=trainer.HANG_SECONDS)[0] for machine in machines]
    assert [machine.returncode for machine in machines] == [0, 0], outputs
    assert any("2 processes on cpu" in output for output in outputs)
    np.testing.assert_allclose(losses(tmp_path / "out"), losses(alone), rtol=1e-4)


@pytest.mark.parametrize("path", sorted((ROOT / "examples" / "accelerate").glob("*.yaml")), ids=lambda path: path.stem)
def test_launch_files_are_what_accelerate_reads(path: Path):
    from accelerate.commands.config.config_args import load_config_from_file

    config = load_config_from_file(str(path))
    assert config.num_processes == yaml.safe_load(path.read_text())["num_processes"] == 8
    assert str(config.distributed_type).removeprefix("DistributedType.") in ("MULTI_GPU", "FSDP", "DEEPSPEED")
    if "FSDP" in str(config.distributed_type):
        assert config.fsdp_config["fsdp_version"] == 2
    if "DEEPSPEED" in str(config.distributed_type):
        assert path.stem == f"deepspeed_zero{config.deepspeed_config['zero_stage']}"


@pytest.mark.skipif(bool(importlib.util.find_spec("deepspeed")), reason="DeepSpeed is installed")
def test_deepspeed_that_is_missing_is_told_with_the_files_that_split_the_same(tiny: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    with pytest.raises(ValueError, match="DeepSpeed is not installed: .*fsdp2_keep_weights.yaml.* ZeRO-2.* fsdp2.yaml"):
        run(parse_settings(arguments(tiny, tmp_path / "out")))
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@needs_deepspeed
def test_what_was_never_run_with_deepspeed_is_refused(tiny: Path, tmp_path: Path):
    cases = [
        (["--mixed_precision", "fp16"], {}, "DeepSpeed with fp16 is not supported"),
        (["--torch_compile", "True"], {}, "DeepSpeed with torch_compile is not supported"),
        ([], {"ACCELERATE_DEEPSPEED_ZERO_STAGE": "1"}, "DeepSpeed with zero_stage=1 is not supported"),
        ([], {"ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE": "cpu"}, "DeepSpeed with offload is not supported"),
        (
            [],
            {"ACCELERATE_GRADIENT_CLIPPING": "0.5"},
            "the launcher sets gradient_clipping=0.5, the settings max_grad_nor",
        ),
    ]
    for number, (flags, environment, message) in enumerate(cases):
        journal, port = tmp_path / str(number), trainer.free_port()
        command = arguments(tiny, tmp_path / "out", *flags)
        ranks = [trainer.start(journal, command, rank=rank, port=port, **(ZERO[0] | environment)) for rank in range(2)]
        trainer.finish(ranks, journal, code=1)
        assert all(message in trainer.output(journal, rank) for rank in range(2))
    assert not (tmp_path / "out").exists()


def launch_lines() -> list[str]:
    """The commands of docs/launch.md that start several processes, without what continues them."""
    text = (ROOT / "docs" / "launch.md").read_text().replace("\\\n", " ")
    lines = [line.split("#")[0].strip() for line in text.splitlines()]
    return [line for line in lines if line.startswith(("torchrun", "accelerate launch -")) and "examples/" in line]


@pytest.mark.long
@pytest.mark.parametrize("line", launch_lines())
def test_documented_line_starts_the_processes_that_it_says(tiny: Path, tmp_path: Path, line: str):
    words = shlex.split(line.replace("--nproc_per_node 8", "--nproc_per_node 2").replace("--num_processes 8", ""))
    words = words[: words.index("examples/train_dit.py")]
    program = {"torchrun": ["torch.distributed.run"], "accelerate": ["accelerate.commands.launch"]}[words[0]]
    rest = words[1 if words[0] == "torchrun" else 2 :]
    if "accelerate" in words[0]:
        rest = [*rest, "--num_processes", "2", "--mixed_precision", "no"]
    if "$HEAD" in line:
        pytest.skip("needs two machines: test_two_machines_meet_and_train_as_one")
    if "deepspeed" in line and not importlib.util.find_spec("deepspeed"):
        pytest.skip("DeepSpeed is not installed")
    command = [sys.executable, "-m", *program, *rest, "examples/train_dit.py"]
    flags = arguments(tiny, tmp_path / "out", "--train_batch_size", "3", "--max_train_steps", "1", "--ema_decay", "0")
    result = subprocess.run([*command, *flags], capture_output=True, text=True, cwd=ROOT, timeout=trainer.HANG_SECONDS)
    assert result.returncode == 0, result.stderr[-3000:]
    assert "2 processes on cpu" in result.stdout + result.stderr


@pytest.mark.slow
@pytest.mark.parametrize("split", [{}, FSDP], ids=["ddp", "fsdp2"])
def test_muon_on_two_processes_trains_like_on_one_and_goes_on_as_one(tiny: Path, tmp_path: Path, split: dict[str, str]):
    muon = ("--optimizer", "muon", "--muon_learning_rate", "0.02", "--adam_weight_decay", "0.1")
    alone = train_one(tiny, tmp_path / "alone", *muon)
    (tmp_path / "two").mkdir()
    for steps in ("3", "6"):
        out = train_two(tiny, tmp_path / "two", *muon, "--max_train_steps", steps, **split)
    out = train_one(tiny, tmp_path / "two", *muon)
    np.testing.assert_allclose(losses(out), losses(alone), rtol=1e-4)
    for name in ("model", "ema"):
        two, one = weights(out, 8, name), weights(alone, 8, name)
        for key in one:  # Muon's bfloat16 rounds sums that are taken in another order otherwise; it moves a fifth
            assert (two[key] - one[key]).norm() <= 0.01 * one[key].norm(), key
    for key, momenta in moments(alone, 8).items():
        for kind, one in momenta.items():
            assert (moments(out, 8)[key][kind] - one).norm() <= 0.02 * one.norm(), (key, kind)


@pytest.mark.slow
def test_moments_of_8_bits_go_on_from_one_process_to_two_and_back(tiny: Path, tmp_path: Path):
    flags = ("--optimizer", "adamw_8bit", "--adam_weight_decay", "0.1")
    alone = train_one(tiny, tmp_path / "alone", *flags)
    (tmp_path / "two").mkdir()
    train_one(tiny, tmp_path / "two", *flags, "--max_train_steps", "3")
    train_two(tiny, tmp_path / "two", *flags, "--max_train_steps", "6")
    out = train_one(tiny, tmp_path / "two", *flags)
    np.testing.assert_allclose(losses(out), losses(alone), rtol=1e-4)
    for name in ("model", "ema"):
        two, one = weights(out, 8, name), weights(alone, 8, name)
        for key in one:  # gradients summed in another order may fall to the other side between two levels
            assert (two[key] - one[key]).norm() <= 0.001 * one[key].norm(), key
