"""Loading and saving: what comes back is what was written, and nothing wrong is loaded silently."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler
from safetensors.torch import load_file, save_file
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.testing import assert_close
from transformers import AutoConfig, AutoModel, Trainer, TrainingArguments

from dit_hf import DiTConfig, DiTModel, DiTPipeline
from dit_hf.blocks import BLOCKS

each_block = pytest.mark.parametrize("block_type", BLOCKS)


@each_block
@torch.no_grad()
def test_saving_and_loading_keeps_every_weight(tiny_model, block_type, tmp_path):
    model = tiny_model(block_type=block_type, sample_size=(8, 4))
    model.pos_embed += 4e-4  # weights of the original carry one that has drifted: it is loaded, not recomputed
    model.save_pretrained(tmp_path, max_shard_size="50KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    loaded, info = DiTModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert_close(loaded.state_dict(), model.state_dict(), atol=0, rtol=0)
    assert not loaded.training
    assert not loaded.pos_embed.requires_grad
    assert loaded.config.sample_size == [8, 4]


def test_auto_classes_know_the_model(tiny_config, tiny_model, tmp_path):
    model = tiny_model()
    model.save_pretrained(tmp_path)
    assert type(AutoConfig.from_pretrained(tmp_path)) is DiTConfig
    assert type(AutoModel.from_config(tiny_config())) is DiTModel
    loaded = AutoModel.from_pretrained(tmp_path)
    assert type(loaded) is DiTModel
    assert_close(loaded.state_dict(), model.state_dict(), atol=0, rtol=0)


@torch.no_grad()
def test_loading_takes_dtype_device_map_and_attention(tiny_model, tmp_path):
    model = tiny_model()
    model.save_pretrained(tmp_path)
    loaded = DiTModel.from_pretrained(tmp_path, dtype=torch.bfloat16, device_map="cpu", attn_implementation="eager")
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.bfloat16}
    assert (loaded.dtype, loaded.device.type) == (torch.bfloat16, "cpu")
    assert loaded.config._attn_implementation == "eager"


@each_block
@pytest.mark.filterwarnings("ignore:The following device_map keys do not match any submodules:UserWarning")  # pos_embed
@torch.no_grad()
def test_blocks_may_be_offloaded(tiny_model, tiny_inputs, block_type, tmp_path):
    model = tiny_model(block_type=block_type)
    model.save_pretrained(tmp_path / "model")
    device_map = dict.fromkeys(["x_embedder", "pos_embed", "y_embedder", "t_embedder", "blocks.0"], "cpu")
    device_map.update({"blocks.1": "disk", "final_layer": "disk"})
    loaded = DiTModel.from_pretrained(tmp_path / "model", device_map=device_map, offload_folder=tmp_path / "offload")
    assert loaded.blocks[1].mlp.fc1.weight.device.type == "meta"
    x, t, y = tiny_inputs()
    assert_close(loaded(x, t, y).sample, model(x, t, y).sample)
    assert_close(loaded(x, conditioning=loaded.condition(t, y)).sample, model(x, t, y).sample)


def test_device_maps_never_split_a_block(tiny_model):
    accelerate = pytest.importorskip("accelerate")
    model = tiny_model(num_hidden_layers=8)
    block_bytes = sum(p.nbytes for p in model.blocks[0].parameters())
    budget = {0: int(5.5 * block_bytes), "cpu": 10**9}
    device_map = accelerate.infer_auto_device_map(model, budget, no_split_module_classes=model._no_split_modules)
    assert set(map(str, device_map.values())) == {"0", "cpu"}
    assert not [name for name in device_map if name.startswith("blocks.") and name.count(".") > 1]


def edit_weights(folder, change) -> None:
    file = folder / "model.safetensors"
    weights = load_file(file)
    change(weights)
    save_file(weights, file, metadata={"format": "pt"})


WRONG_WEIGHTS = {
    "model.safetensors of .*: 1 weights are missing: blocks.1.mlp": lambda weights: weights.pop(
        "blocks.1.mlp.fc1.bias"
    ),
    "1 weights are left over: blocks.9.mlp.fc1.bias": lambda weights: weights.update(
        {"blocks.9.mlp.fc1.bias": torch.zeros(3)}
    ),
    "1 weights are not finite: blocks.0.attn.proj.weight": lambda weights: (
        weights["blocks.0.attn.proj.weight"].view(-1)[5:6].fill_(float("nan"))
    ),
}


@pytest.mark.parametrize("message", WRONG_WEIGHTS)
def test_weights_that_do_not_make_the_model_whole_are_refused_by_name(tiny_config, tmp_path, message):
    DiTModel(tiny_config()).save_pretrained(tmp_path)
    edit_weights(tmp_path, WRONG_WEIGHTS[message])
    with pytest.raises(ValueError, match=message):
        DiTModel.from_pretrained(tmp_path)
    assert isinstance(DiTModel.from_pretrained(tmp_path, strict=False), DiTModel)


def test_weights_of_another_shape_are_refused(tiny_config, tmp_path):
    DiTModel(tiny_config()).save_pretrained(tmp_path)
    edit_weights(tmp_path, lambda weights: weights.update({"final_layer.linear.bias": torch.zeros(3)}))
    with pytest.raises(ValueError, match="1 weights are of another shape: final_layer.linear.bias"):
        DiTModel.from_pretrained(tmp_path)
    assert isinstance(DiTModel.from_pretrained(tmp_path, ignore_mismatched_sizes=True), DiTModel)


@pytest.mark.parametrize("dtype", [torch.int64, torch.int8, torch.uint8, torch.bool])
@pytest.mark.parametrize("safe", [True, False])
def test_whole_numbers_are_refused_as_weights_by_file_and_key(tiny_config, tmp_path, dtype, safe):
    DiTModel(tiny_config()).save_pretrained(tmp_path)
    edit_weights(tmp_path, lambda weights: weights.update(pos_embed=weights["pos_embed"].to(dtype)))
    file = tmp_path / "model.safetensors"
    if not safe:
        torch.save(load_file(file), tmp_path / "pytorch_model.bin")
        file.unlink()
        file = tmp_path / "pytorch_model.bin"
    with pytest.raises(ValueError, match=f"{file}: pos_embed is {dtype}, weights are floating point numbers"):
        DiTModel.from_pretrained(tmp_path)


def test_folder_without_configuration_is_refused(tiny_config, tmp_path):
    DiTModel(tiny_config()).save_pretrained(tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(ValueError, match=r"has no config\.json"):
        DiTModel.from_pretrained(tmp_path)


def test_loading_information_is_returned_when_asked_for(tiny_config, tmp_path):
    DiTModel(tiny_config()).save_pretrained(tmp_path)
    model, info = DiTModel.from_pretrained(tmp_path, output_loading_info=True)
    assert isinstance(model, DiTModel)
    assert not info["missing_keys"]


# What other programs write.


class FourImages(torch.utils.data.Dataset):
    def __len__(self):
        return 4

    def __getitem__(self, index):
        x = torch.full((4, 8, 8), float(index))
        return {"hidden_states": x, "timestep": torch.tensor(100 * index), "class_labels": torch.tensor(index)}


class TrainerOfSquares(Trainer):
    def compute_loss(self, model, inputs, return_outputs=False, **options):
        return (model(**inputs).sample - 1).square().mean()


@pytest.mark.slow
def test_model_that_transformers_trainer_saved_loads_with_its_configuration(tiny_model, tmp_path):
    model = tiny_model()
    arguments = TrainingArguments(tmp_path / "run", max_steps=2, save_steps=1, report_to=[], use_cpu=True)
    trainer = TrainerOfSquares(model=model, args=arguments, train_dataset=FourImages())
    trainer.train()
    trainer.save_model(tmp_path / "saved")
    written = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert "use_cache" in written
    for folder in (tmp_path / "saved", tmp_path / "run" / "checkpoint-2"):
        for load in (DiTModel, AutoModel):
            loaded = load.from_pretrained(folder)
            assert_close(loaded.state_dict(), model.state_dict(), atol=0, rtol=0)
            assert loaded.config.use_cache == written["use_cache"]
    TrainerOfSquares(model=loaded, args=arguments, train_dataset=FourImages()).train(resume_from_checkpoint=True)


class Shell(torch.nn.Module):
    """Stands for FSDP's first generation, which needs a process group: the same name of the module inside."""

    def __init__(self, module):
        super().__init__()
        self._fsdp_wrapped_module = module


def wrap(model: DiTModel) -> DiTModel:
    model.blocks[0] = torch.compile(checkpoint_wrapper(model.blocks[0]), backend="eager")
    model.blocks[1].attn = Shell(torch.nn.DataParallel(model.blocks[1].attn))
    model.final_layer = torch.compile(model.final_layer, backend="eager")
    return model


@pytest.mark.parametrize("options", [{}, {"max_shard_size": "50KB"}])
def test_wrapped_layers_leave_no_trace_in_a_saved_model(options, tiny_model, tmp_path):
    model = tiny_model()
    expected = model.state_dict()
    wrapped = wrap(tiny_model())
    assert any("._orig_mod." in key for key in wrapped.state_dict())
    wrapped.save_pretrained(tmp_path, **options)
    keys = {key for file in tmp_path.glob("*.safetensors") for key in load_file(file)}
    assert keys == expected.keys()
    assert_close(DiTModel.from_pretrained(tmp_path).state_dict(), expected, atol=0, rtol=0)


@pytest.mark.slow
@torch.no_grad()
def test_model_with_compiled_and_checkpointed_blocks_gives_the_same_output(tiny_model, tiny_inputs):
    expected = tiny_model()(*tiny_inputs()).sample
    model = tiny_model()
    model.blocks[0] = torch.compile(checkpoint_wrapper(model.blocks[0]), backend="eager")
    x, t, y = tiny_inputs()
    assert_close(model(x, t, y).sample, expected)
    assert_close(model(x, conditioning=model.condition(t, y)).sample, expected)


@pytest.mark.parametrize("form", ["safetensors", "bin", "state_dict"])
def test_keys_of_wrappers_are_read(form, tiny_model, tmp_path):
    model = tiny_model()
    model.config.save_pretrained(tmp_path)
    weights = {f"module.{key}": weight.clone() for key, weight in wrap(tiny_model()).state_dict().items()}
    if form == "safetensors":
        save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    elif form == "bin":
        torch.save(weights, tmp_path / "pytorch_model.bin")
    source = (None, model.config, weights) if form == "state_dict" else (tmp_path, None, None)
    options = {"config": source[1], "state_dict": source[2]} if form == "state_dict" else {}
    loaded = DiTModel.from_pretrained(source[0], **options)
    assert_close(loaded.state_dict(), model.state_dict(), atol=0, rtol=0)
    loaded.save_pretrained(tmp_path / "again")
    assert load_file(tmp_path / "again" / "model.safetensors").keys() == model.state_dict().keys()


# One folder, several saves.

SHARDED = {"max_shard_size": "50KB"}
ORDERS = {
    "shards over a file": ({}, SHARDED),
    "a file over shards": (SHARDED, {}),
    "fewer shards over more": (SHARDED, {"max_shard_size": "100KB"}),
    "more shards over fewer": ({"max_shard_size": "100KB"}, SHARDED),
}


def names_of(folder: Path) -> set[str]:
    return {file.relative_to(folder).as_posix() for file in folder.rglob("*")}


@pytest.mark.parametrize("order", ORDERS.values(), ids=ORDERS)
@pytest.mark.parametrize("variant", [None, "fp16"])
def test_second_save_into_a_folder_is_what_loads(order, variant, tiny_model, tmp_path):
    first, second = tiny_model(seed=0), tiny_model(seed=1)
    first.save_pretrained(tmp_path / "model", variant=variant, **order[0])
    second.save_pretrained(tmp_path / "model", variant=variant, **order[1])
    second.save_pretrained(tmp_path / "alone", variant=variant, **order[1])
    assert names_of(tmp_path / "model") == names_of(tmp_path / "alone")
    loaded = DiTModel.from_pretrained(tmp_path / "model", variant=variant)
    assert_close(loaded.state_dict(), second.state_dict(), atol=0, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("order", ORDERS.values(), ids=ORDERS)
def test_second_save_of_a_pipeline_is_what_loads_its_vae_included(order, tiny_model, tmp_path):
    pipelines = [make_pipeline(tiny_model(seed=seed)) for seed in (0, 1)]
    for pipeline, options in zip(pipelines, order, strict=True):
        pipeline.save_pretrained(tmp_path / "pipeline", **options)
    pipelines[1].save_pretrained(tmp_path / "alone", **order[1])
    assert names_of(tmp_path / "pipeline") == names_of(tmp_path / "alone")
    loaded = DiTPipeline.from_pretrained(tmp_path / "pipeline")
    for part in ("vae", "transformer"):
        expected = getattr(pipelines[1], part).state_dict()
        assert_close(getattr(loaded, part).state_dict(), expected, atol=0, rtol=0)


def make_pipeline(model: DiTModel) -> DiTPipeline:
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(32, 32),
        norm_num_groups=4,
    )
    return DiTPipeline(model, vae, DDIMScheduler(clip_sample=False))


def test_save_that_fails_leaves_the_folder_as_it_was(tiny_model, tmp_path):
    tiny_model().save_pretrained(tmp_path, **SHARDED)
    before = {name: (tmp_path / name).read_bytes() for name in names_of(tmp_path)}
    weights = tiny_model(seed=1).state_dict()
    weights["final_layer.linear.bias"] = weights["final_layer.linear.bias"].to("meta")  # the last has no bytes to write
    with pytest.raises(NotImplementedError, match="meta"):
        tiny_model(seed=1).save_pretrained(tmp_path, state_dict=weights, max_shard_size="100KB")
    assert {name: (tmp_path / name).read_bytes() for name in names_of(tmp_path)} == before


def test_folder_that_holds_the_weights_twice_is_refused_with_the_remedy(tiny_model, tmp_path):
    pipeline = make_pipeline(tiny_model())
    pipeline.save_pretrained(tmp_path / "one")
    pipeline.save_pretrained(tmp_path / "two", **SHARDED)
    for part in ("transformer", "vae"):
        shutil.copytree(tmp_path / "one", tmp_path / part)
        shutil.copytree(tmp_path / "two" / part, tmp_path / part / part, dirs_exist_ok=True)
        message = r"holds the weights twice.*delete (diffusion_pytorch_)?model\.safetensors, or delete .*\.index\.json"
        with pytest.raises(ValueError, match=message):
            DiTPipeline.from_pretrained(tmp_path / part)
    with pytest.raises(ValueError, match=message):
        DiTModel.from_pretrained(tmp_path / "transformer", subfolder="transformer")
    (tmp_path / "transformer" / "transformer" / "model.safetensors").unlink()
    assert isinstance(DiTPipeline.from_pretrained(tmp_path / "transformer"), DiTPipeline)


def test_pipeline_is_refused_as_a_model_with_the_subfolder_to_pass(tiny_model, tmp_path):
    make_pipeline(tiny_model()).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r'is a pipeline: pass subfolder="transformer"'):
        DiTModel.from_pretrained(tmp_path)
    assert isinstance(DiTModel.from_pretrained(tmp_path, subfolder="transformer"), DiTModel)


def test_saving_never_pushes_in_passing(tiny_model, tmp_path):
    with pytest.raises(ValueError, match="call the method push_to_hub instead"):
        tiny_model().save_pretrained(tmp_path / "model", push_to_hub=True)
    assert not (tmp_path / "model").exists()
