"""Many images: the same ones whatever stops the run, whoever draws them and however they are kept."""

import json
import os
import random
import shutil
import signal
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from fresh_process import code_of
from warm_process import run_two, run_warm

from dit_hf import DiTConfig, DiTModel, DiTPipeline
from dit_hf.generation import draw_labels, generate_images, generate_with_pipeline, iterate_batches, pipeline_sampler
from dit_hf.generation.draws import image_seed
from dit_hf.generation.from_pipeline import choose_labels, pipeline_settings
from dit_hf.provenance import weights_sha256

ROOT = Path(__file__).parents[2]
FORMS = ["folder", "file.npz"]


def pixels(labels: list[int] | None, generators: list[torch.Generator]) -> np.ndarray:
    """A sampler without a model: noise, with the label in a corner."""
    images = torch.stack([torch.randint(256, (4, 6, 3), generator=each) for each in generators]).numpy()
    images[:, 0, 0, 0] = 0 if labels is None else labels
    return images.astype(np.uint8)


def tiny_pipeline(scheduler=None, num_classes: int = 3) -> DiTPipeline:
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "sample_size": 8, "in_channels": 3}
    model = DiTModel(DiTConfig(**sizes, num_classes=num_classes, learn_sigma=False)).eval()
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator)
    names = {0: "cat", 1: "dog", 2: "cow"} if num_classes else None
    return DiTPipeline(model, None, scheduler or DDIMScheduler(clip_sample=False), id2label=names)


def contents(place: Path) -> dict[str, bytes]:
    """All files of an output, by name."""
    files = [place, *place.parent.glob(f"{place.stem}.json")] if place.suffix else place.rglob("*")
    files = [*files, *place.parent.glob(".*.partial"), *place.parent.glob(f"{place.name}.parts/*")]
    return {str(file.relative_to(place.parent)): file.read_bytes() for file in files if file.is_file()}


def arrays_of(place: Path) -> np.ndarray:
    if place.suffix:
        return np.load(place)["arr_0"]
    from PIL import Image

    return np.stack([np.asarray(Image.open(file)) for file in sorted(place.glob("*.png"))])


# --- which image is which ----------------------------------------------------------------------------------------


def test_every_image_has_a_seed_of_its_own():
    same = [torch.randn(4, generator=torch.Generator().manual_seed(5 + top)) for top in (0, 2**32)]
    assert torch.equal(*same)  # torch keeps 32 bits: hashes of so few collide
    seeds, others = ({image_seed(seed, index) for index in range(50_000)} for seed in (0, 1))
    assert len(seeds) == len(others) == 50_000
    assert 0 <= min(seeds) < max(seeds) < 2**32
    assert len(seeds & others) < 6  # 0.58 are expected of two independent draws


def test_seeds_of_neighbours_share_no_bits():
    words = np.array([[image_seed(seed, index) for index in range(4000)] for seed in (0, 1)], dtype=np.uint32)
    for changed in (words[0, 1:] ^ words[0, :-1], words[1] ^ words[0]):
        ones = np.unpackbits(changed.view(np.uint8)).reshape(len(changed), 32).mean(axis=0)
        np.testing.assert_allclose(ones, 0.5, atol=0.04)  # five deviations of 4000 coin tosses


def test_random_labels_are_even_and_do_not_depend_on_how_many_follow():
    labels = draw_labels("random", 50_000, 10, seed=3)
    assert labels[:100] == draw_labels("random", 100, 10, seed=3)
    assert labels != draw_labels("random", 50_000, 10, seed=4)
    np.testing.assert_allclose(np.bincount(labels, minlength=10), 5000, atol=5 * 67)  # five binomial deviations


def test_balanced_labels_take_each_class_as_often():
    assert np.bincount(draw_labels("balanced", 1003, 10)).tolist() == [101] * 3 + [100] * 7


def test_batches_in_memory_are_the_files(tmp_path: Path):
    arguments = {"labels": draw_labels("random", 10, 200), "seed": 7, "batch_size": 4}
    batches = list(iterate_batches(pixels, 10, **arguments))
    assert [len(batch) for batch in batches] == [4, 4, 2]
    for form in FORMS:
        generate_images(pixels, tmp_path / form, 10, **arguments)
        np.testing.assert_array_equal(arrays_of(tmp_path / form), np.concatenate(batches))
    np.testing.assert_array_equal(np.load(tmp_path / "file.npz")["arr_1"], arguments["labels"])


def test_another_batch_size_only_rounds_otherwise():
    # the ancestral sampler draws noise at each step, which must come from the image's own generator
    sample = pipeline_sampler(tiny_pipeline(DDPMScheduler(clip_sample=False)), num_inference_steps=5)
    one, seven = (
        np.concatenate(list(iterate_batches(sample, 14, labels=[0, 1] * 7, batch_size=size))) for size in (1, 7)
    )
    difference = np.abs(one.astype(int) - seven)
    assert one.std() > 30
    assert difference.max() <= 1  # a value that lies between two numbers may go to either
    assert (difference > 0).mean() < 1e-3


def test_unconditional_pipeline_needs_no_labels(tmp_path: Path):
    pipeline = tiny_pipeline(num_classes=0)
    arguments = {"guidance_scale": 1.0, "num_inference_steps": 1}
    generate_with_pipeline(pipeline, tmp_path / "a.npz", 3, batch_size=2, **arguments)
    assert list(np.load(tmp_path / "a.npz")) == ["arr_0"]
    with pytest.raises(ValueError, match="unconditional, leave the labels out"):
        generate_with_pipeline(pipeline, tmp_path / "b", 3, labels="random", **arguments)


# --- what is written ---------------------------------------------------------------------------------------------


def test_npz_is_what_numpy_writes(tmp_path: Path):
    labels = draw_labels("random", 9, 200)
    generate_images(pixels, tmp_path / "ours.npz", 9, labels=labels, batch_size=4)
    ours = np.load(tmp_path / "ours.npz")
    np.savez(tmp_path / "numpy.npz", ours["arr_0"], np.asarray(labels))
    assert (ours["arr_0"].dtype, ours["arr_0"].shape) == (np.uint8, (9, 4, 6, 3))
    assert (tmp_path / "ours.npz").read_bytes() == (tmp_path / "numpy.npz").read_bytes()


@pytest.mark.parametrize("form", FORMS)
def test_memory_holds_one_batch(tmp_path: Path, form: str):
    def large(labels: None, generators: list[torch.Generator]) -> np.ndarray:
        return np.full((len(generators), 128, 128, 3), 7, dtype=np.uint8)  # 0.4 MB

    tracemalloc.start()
    try:
        generate_images(large, tmp_path / form, 400, batch_size=8)  # 20 MB in all
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 3e6


def test_folder_loads_as_a_labelled_data_set(tmp_path: Path):
    from datasets import load_dataset

    labels = [5, 3, 5]
    generate_images(pixels, tmp_path / "images", 3, labels=labels, batch_size=2)
    data = load_dataset("imagefolder", data_dir=str(tmp_path / "images"), split="train", cache_dir=str(tmp_path))
    assert data["label"][:] == labels
    assert [np.asarray(image)[0, 0, 0] for image in data["image"]] == labels


def test_settings_beside_the_images_say_all(tmp_path: Path):
    pipeline = tiny_pipeline()
    generate_with_pipeline(pipeline, tmp_path / "a", 3, labels="balanced", seed=4, batch_size=2, num_inference_steps=1)
    settings = json.loads((tmp_path / "a" / "generation.json").read_text())["settings"]
    expected = {"num_images": 3, "labels": "balanced", "seed": 4, "batch_size": 2, "num_inference_steps": 1}
    expected |= {"scheduler": "DDIMScheduler", "dtype": "float32", "guidance_channels": "all", "rounding": "nearest"}
    assert expected.items() <= settings.items()
    assert settings["scheduler_config"]["num_train_timesteps"] == 1000
    assert settings["guidance_scale"] == 4.0
    assert settings["weights_sha256"] == weights_sha256(pipeline.transformer)


@pytest.mark.parametrize(("scheduler", "num_steps"), [(DDIMScheduler, 50), (DDPMScheduler, 250)])
def test_settings_name_the_number_of_steps_that_the_scheduler_usually_takes(scheduler, num_steps):
    pipeline, seen = tiny_pipeline(scheduler(clip_sample=False)), []
    pipeline.set_progress_bar_config(disable=True)
    pipeline(0, callback_on_step_end=lambda _, step, *rest: seen.append(step) or {})
    assert pipeline_settings(pipeline)["num_inference_steps"] == len(seen) == num_steps
    assert "num_inference_steps" not in pipeline_settings(pipeline, timesteps=[500, 0])
    assert pipeline_settings(pipeline, num_inference_steps=7)["num_inference_steps"] == 7


# --- interrupted -------------------------------------------------------------------------------------------------

STEPS = [(os, "replace"), (shutil, "rmtree"), (json, "dumps")]


def run_until(step: int, after: bool, run: Callable[[], object]) -> bool:
    """Stop a run before or after its given call of a function in STEPS; whether it got there."""
    calls = 0

    def stopping(function: Callable) -> Callable:
        def wrapped(*args, **kwargs):
            nonlocal calls
            calls += 1
            result = None if calls == step and not after else function(*args, **kwargs)
            if calls == step:
                raise KeyboardInterrupt
            return result

        return wrapped

    with pytest.MonkeyPatch.context() as patch:
        for owner, name in STEPS:
            patch.setattr(owner, name, stopping(getattr(owner, name)))
        try:
            run()
        except KeyboardInterrupt:
            return True
    return False


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_run_cut_short_at_any_step_goes_on_to_the_same_bytes(tmp_path: Path, form: str, after: bool):
    arguments = {"labels": [1, 2, 3, 4, 5], "seed": 7, "batch_size": 2}
    undisturbed = tmp_path / "undisturbed" / form
    generate_images(pixels, undisturbed, 5, **arguments)
    for step in range(1, 100):
        place = tmp_path / str(step) / form
        stopped = run_until(step, after, lambda place=place: generate_images(pixels, place, 5, **arguments))
        generate_images(pixels, place, 5, **arguments)
        assert contents(place) == contents(undisturbed), step
        if not stopped:
            break
    assert step > 6


@pytest.mark.parametrize("form", FORMS)
def test_finished_run_draws_nothing_again(tmp_path: Path, form: str):
    generate_images(pixels, tmp_path / form, 5, batch_size=2)
    before = contents(tmp_path / form)
    generate_images(lambda *_: pytest.fail("it drew"), tmp_path / form, 5, batch_size=2)
    assert contents(tmp_path / form) == before


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"seed": 1}, "seed 0 -> 1"),
        ({"batch_size": 3}, "batch_size 2 -> 3"),
        ({"labels": [0, 0, 0, 0, 1]}, "labels_sha256"),
        ({"settings": {"guidance_scale": 4.0}}, "guidance_scale 1.5 -> 4.0"),
        ({"settings": {}}, "guidance_scale 1.5 -> None"),
    ],
)
def test_other_settings_are_refused(tmp_path: Path, form: str, changed: dict, message: str):
    arguments = {"labels": [0] * 5, "seed": 0, "batch_size": 2, "settings": {"guidance_scale": 1.5}}
    generate_images(pixels, tmp_path / form, 5, **arguments)
    before = contents(tmp_path / form)
    with pytest.raises(ValueError, match=f"begun with other settings.*{message}"):
        generate_images(pixels, tmp_path / form, 5, **{**arguments, **changed})
    assert contents(tmp_path / form) == before


def test_other_environment_is_said(tmp_path: Path):
    generate_images(pixels, tmp_path / "a", 2)
    file = tmp_path / "a" / "generation.json"
    file.write_text(file.read_text().replace('"device": "', '"device": "other '))
    with pytest.warns(UserWarning, match="may round otherwise: device 'other "):
        generate_images(pixels, tmp_path / "a", 2)


def test_files_of_others_are_left_alone(tmp_path: Path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "holiday.png").write_bytes(b"mine")
    (tmp_path / "b.npz").write_bytes(b"mine")
    with pytest.raises(ValueError, match=r"holds files but no generation\.json: choose an empty folder"):
        generate_images(pixels, tmp_path / "a", 2)
    with pytest.raises(ValueError, match=r"exists but no b\.json"):
        generate_images(pixels, tmp_path / "b.npz", 2)
    assert [file.read_bytes() for file in tmp_path.rglob("*.*")] == [b"mine"] * 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_images": 0}, "num_images=0: pass a whole number of at least 1"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"batch_size": 2.0}, r"batch_size=2\.0"),
        ({"seed": -1}, "seed=-1: pass a whole number of at least 0"),
        ({"labels": [1]}, "1 labels for num_images=2"),
        ({"sample": lambda *_: np.zeros((2, 4, 4, 3))}, r"float64 \(2, 4, 4, 3\): it must return uint8 \(2, H, W, 3\)"),
        ({"sample": lambda *_: np.zeros((1, 4, 4, 3), np.uint8)}, r"uint8 \(1, 4, 4, 3\)"),
        ({"sample": lambda *_: [1]}, "sample returned list: it must return uint8"),
    ],
)
def test_bad_argument_is_refused(tmp_path: Path, arguments: dict, message: str):
    with pytest.raises(ValueError, match=message):
        generate_images(**{"sample": pixels, "output": tmp_path / "a", "num_images": 2, **arguments})


@pytest.mark.parametrize(
    ("text", "arguments", "message"),
    [
        ("cat\nlion\n", {}, "line 2: no class is named 'lion'"),
        ("cat\n4\n", {}, r"line 2: label 4 is outside 0\.\.2, or 3 for no class"),
        ("cat\n", {"num_images": 2}, "has 1 labels for num_images=2"),
        ("", {}, "has no labels: write a class id or name on each line"),
    ],
)
def test_bad_file_of_labels_is_refused(tmp_path: Path, text: str, arguments: dict, message: str):
    (tmp_path / "labels.txt").write_text(text)
    with pytest.raises(ValueError, match=message):
        generate_with_pipeline(tiny_pipeline(), tmp_path / "a", labels=str(tmp_path / "labels.txt"), **arguments)


def test_file_of_labels_may_have_a_mark_of_utf8_and_empty_lines(tmp_path: Path):
    file = tmp_path / "labels.txt"
    file.write_bytes("\ufeffcat\n\n2\ndog\n\n".encode())
    assert choose_labels(tiny_pipeline(), str(file), None, seed=0) == ([0, 2, 1], 3)
    file.write_bytes("cat\nKätzchen\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"labels\.txt is no text in UTF-8"):
        choose_labels(tiny_pipeline(), str(file), None, seed=0)


def test_file_of_labels_takes_the_null_class_with_a_warning_as_the_pipeline_does(tmp_path: Path, caplog):
    diffusers.utils.logging.enable_propagation()
    file = tmp_path / "labels.txt"
    file.write_text("cat\n3\n")
    assert choose_labels(tiny_pipeline(), str(file), None, seed=0) == ([0, 3], 2)
    assert "class 3 is the null class" in caplog.text


# For each argument "N before" or "N after" this starts the same run in a child, which kills itself before or after it
# gives the Nth file its name.
WARM = """
import os, signal, sys
import torch
torch.set_num_threads(1)
from dit_hf import DiTPipeline
from dit_hf.generation import generate_with_pipeline
model, output, *ends = sys.argv[1:]

def kill_at(number, when):
    rename = os.replace
    left = [number]
    def replace(*paths):
        left[0] -= 1
        if left[0] == 0 and when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        rename(*paths)
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
    os.replace = replace

for end in ends:
    number, when = end.split()
    child = os.fork()
    if child == 0:
        kill_at(int(number), when)
        pipeline = DiTPipeline.from_pretrained(model)
        generate_with_pipeline(pipeline, output, 40, labels="random", batch_size=2, num_inference_steps=5)
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
def test_run_killed_ten_times_ends_with_the_same_bytes(tmp_path: Path, form: str):
    tiny_pipeline().save_pretrained(tmp_path / "model")
    undisturbed = tmp_path / "undisturbed" / form
    arguments = {"labels": "random", "batch_size": 2, "num_inference_steps": 5}
    generate_with_pipeline(DiTPipeline.from_pretrained(tmp_path / "model"), undisturbed, 40, **arguments)
    place, draw = tmp_path / "killed" / form, random.Random(0)
    # Two kills at the settings file, then eight at one of the next two of 20 parts or 40 images.
    kills = [(1, "before"), (1, "after")]
    kills += [(draw.choice([1, 2]), ("before", "after")[number % 2]) for number in range(8)]
    ends = [f"{number} {when}" for number, when in [*kills, (1000, "after")]]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    result = run_warm(WARM, str(tmp_path / "model"), str(place), *ends, environment=environment)
    assert result.stdout.split() == [*[str(-signal.SIGKILL)] * 10, "0"], result.stderr[-3000:]
    assert contents(place) == contents(undisturbed)


@pytest.mark.slow
def test_two_processes_write_the_files_of_one(tmp_path: Path):
    tiny_pipeline(DDPMScheduler(clip_sample=False)).save_pretrained(tmp_path / "model")
    example = ["--model", str(tmp_path / "model"), "--num_images", "23"]
    few = ["--num_inference_steps", "3", "--batch_size", "2", "--seed", "5"]
    example += ["--output", str(tmp_path / "two" / "images")]
    results = run_two(code_of(ROOT / "examples" / "sample_dit.py"), *example, *few)
    assert "".join(result.stdout for result in results).count("wrote") == 1
    arguments = {"labels": "random", "seed": 5, "batch_size": 2, "guidance_scale": 1.5, "num_inference_steps": 3}
    generate_with_pipeline(
        DiTPipeline.from_pretrained(tmp_path / "model"), tmp_path / "one" / "images", 23, **arguments
    )
    one, two = (contents(tmp_path / processes / "images") for processes in ("one", "two"))
    assert len(one) == 23 + 2  # the settings, the labels
    assert one == two
