"""A call of the demo: its bounds, its steps, its end, and the code that makes the same images."""

import dataclasses
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dit_hf import DiTPipeline
from dit_hf.demo.drawing import Step, draw
from dit_hf.demo.limits import MAX_SEED, Call, Limits, check_call
from dit_hf.demo.page import read_editor
from dit_hf.demo.snippet import write_code

CALL = Call("draw", (1,), 2, 2.0, 5, 7, "DDIMScheduler")
PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 255, (8, 8, 3), dtype=np.uint8))
MASK = Image.new("L", (8, 8))
MASK.paste(255, (0, 0, 8, 4))

TASKS = {
    "draw": (CALL, ()),
    "change": (dataclasses.replace(CALL, task="change", strength=0.6, num_images=1), (PICTURE,)),
    "inpaint": (dataclasses.replace(CALL, task="inpaint", strength=1.0, num_images=1), (PICTURE, MASK)),
    "between": (dataclasses.replace(CALL, task="between", labels=(0, 3), num_images=3), ()),
}


def changed(**fields: Any) -> Call:
    return dataclasses.replace(CALL, **fields)


@pytest.mark.parametrize(
    "fields",
    [
        {"num_inference_steps": 10**6},
        {"num_inference_steps": 0},
        {"num_inference_steps": 2.5},
        {"num_inference_steps": "5"},
        {"num_images": 10**4},
        {"num_images": True},
        {"guidance_scale": float("nan")},
        {"guidance_scale": float("inf")},
        {"guidance_scale": None},
        {"guidance_scale": 1e6},
        {"seed": -1},
        {"seed": MAX_SEED + 1},
        {"scheduler": "../../etc/passwd"},
        {"scheduler": "DiffusionPipeline"},
        {"labels": (4,)},
        {"labels": (-1,)},
        {"labels": ("cat",)},
        {"labels": (None,)},
        {"labels": ()},
        {"labels": (0, 1)},
        {"task": "between"},  # with one label
        {"task": "change", "strength": 0},
        {"task": "change", "strength": float("nan")},
        {"task": "inpaint", "strength": None},
    ],
    ids=str,
)
def test_value_outside_its_bounds_is_refused_before_anything_is_drawn(fields: dict[str, Any]):
    check_call(CALL, Limits(), 4)
    with pytest.raises(ValueError, match="choose"):
        check_call(changed(**fields), Limits(), 4)


@pytest.mark.parametrize("task", TASKS)
def test_call_takes_its_steps_with_pictures_on_the_way_and_ends_with_images(pipeline: DiTPipeline, task: str):
    call, pictures = TASKS[task]
    *steps, images = draw(pipeline, call, Limits(), *pictures)
    assert [step.number for step in steps] == [*range(1, steps[0].total + 1)]
    assert steps[0].total == (3 if task == "change" else 5)
    assert {step.preview.size for step in steps} == {(8, 8)}
    assert len(images) == call.num_images
    assert all(image.size == (8, 8) for image in images)


def test_pictures_on_the_way_are_few_however_many_steps_there_are(pipeline: DiTPipeline):
    *steps, _ = draw(pipeline, changed(num_inference_steps=50), Limits())
    assert sum(step.preview is not None for step in steps) <= 8
    assert len(steps) == 50


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("scheduler", ["DDPMScheduler", "DDIMScheduler"])  # the pipeline's own, and another
def test_code_of_a_call_makes_the_same_images(
    pipeline: DiTPipeline, tmp_path, monkeypatch: pytest.MonkeyPatch, task: str, scheduler: str
):
    call, pictures = TASKS[task]
    call = dataclasses.replace(call, scheduler=scheduler)
    *_, images = draw(pipeline, call, Limits(), *pictures)
    pipeline.save_pretrained(tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    for name, picture in zip(("image.png", "mask.png"), pictures, strict=False):
        picture.save(name)
    names = {0: '"cat"', 1: '"dog"', 3: '"crane, machine"'}
    code = write_code(call, "model", "DDPMScheduler", [names[label] for label in call.labels])
    exec(compile(code, "code", "exec"), {})
    for k, image in enumerate(images):
        np.testing.assert_array_equal(np.asarray(Image.open(f"{k}.png")), np.asarray(image))


def test_call_that_takes_too_long_is_stopped(pipeline: DiTPipeline):
    with pytest.raises(ValueError, match="stopped after 0 seconds: choose fewer steps or fewer images"):
        list(draw(pipeline, CALL, Limits(max_seconds=0)))


def test_pipeline_stops_if_nobody_waits_for_the_images(pipeline: DiTPipeline):
    running = draw(pipeline, changed(num_inference_steps=60), Limits())
    assert next(running).number == 1
    running.close()  # returns only after the pipeline has stopped
    with pytest.raises(StopIteration):
        next(running)
    assert isinstance(next(draw(pipeline, CALL, Limits())), Step)


def break_weights(pipeline: DiTPipeline) -> None:
    raise RuntimeError("weights are broken")


def test_error_of_the_pipeline_reaches_the_caller(pipeline: DiTPipeline, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(pipeline.transformer, "forward", break_weights)
    monkeypatch.setattr(pipeline.transformer, "condition", lambda *arguments, **more: break_weights(pipeline))
    with pytest.raises(RuntimeError, match="weights are broken"):
        list(draw(pipeline, CALL, Limits()))


@pytest.mark.parametrize(
    ("call", "pictures", "message"),
    [
        (TASKS["change"][0], (), "no picture to begin with"),
        (TASKS["change"][0], (Image.new("RGB", (5000, 2)),), "5000 x 2: choose one of at most 4096"),
        (TASKS["inpaint"][0], (PICTURE, Image.new("L", (8, 8))), "nothing is marked"),
    ],
)
def test_picture_that_cannot_serve_is_refused(pipeline: DiTPipeline, call: Call, pictures: tuple, message: str):
    with pytest.raises(ValueError, match=message):
        list(draw(pipeline, call, Limits(), *pictures))


def test_inpainting_keeps_what_is_not_painted_to_the_byte(pipeline: DiTPipeline):
    call, pictures = TASKS["inpaint"]
    *_, (image,) = draw(pipeline, call, Limits(), *pictures)
    np.testing.assert_array_equal(np.asarray(image)[4:], np.asarray(PICTURE)[4:])
    assert (np.asarray(image)[:4] != np.asarray(PICTURE)[:4]).any()


def paint(box: tuple[int, int, int, int]) -> Image.Image:
    layer = Image.new("RGBA", (16, 16))
    layer.paste((255, 51, 102, 255), box)
    return layer


def test_mask_is_white_where_a_client_painted():
    image, mask = read_editor({"background": Image.new("RGB", (16, 16)), "layers": [paint((0, 0, 4, 16))]})
    assert image.size == (16, 16)
    assert np.asarray(mask).tolist() == [[255] * 4 + [0] * 12] * 16
    assert read_editor({"background": None, "layers": []}) == (None, None)
    assert read_editor(None) == (None, None)
