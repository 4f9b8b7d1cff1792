"""A pipeline in another runtime draws what the original pipeline draws."""

import json
import shutil
import sys

import numpy as np
import pytest
import torch
from diffusers import FirstBlockCacheConfig, FlowMatchEulerDiscreteScheduler
from fresh_process import run_elsewhere
from sampling_parts import picture, scheduler_by_name, seeded, tiny_model, tiny_pipeline
from switches import ALL, SWITCHES
from torch.testing import assert_close

from dit_hf import DiTPipeline
from dit_hf.blocks import BLOCKS
from dit_hf.finetuning import add_lora
from dit_hf.generation.from_pipeline import pipeline_settings
from dit_hf.image_pipelines import DiTImg2ImgPipeline, DiTInpaintPipeline
from dit_hf.runtime.engines import ENGINES

pytestmark = pytest.mark.slow  # exports for three runtimes

CLOSE = {"atol": 2e-4, "rtol": 1e-3}  # other kernels, whose rounding the steps carry on


def drawn(pipeline, *args, **arguments):
    arguments = {"num_inference_steps": 4, "output_type": "pt", "generator": seeded(0), **arguments}
    return pipeline(*args, **arguments).images


def test_images_are_those_of_the_original(original, exported):
    assert_close(drawn(exported, ["goldfish", 2, 9]), drawn(original, ["goldfish", 2, 9]), **CLOSE)


@pytest.mark.parametrize(
    "arguments",
    [
        {"guidance_scale": 1.0},
        {"guidance_interval": (0.25, 0.75)},
        {"height": 24, "width": 16, "position_policy": "extend"},
        {"height": 32, "width": 32, "position_policy": "interpolate"},
    ],
    ids=str,
)
def test_arguments_of_a_call_mean_the_same(arguments, original, exported):
    assert_close(drawn(exported, [3], **arguments), drawn(original, [3], **arguments), **CLOSE)


@pytest.mark.parametrize("name", ["DDIMScheduler", "DPMSolverMultistepScheduler", "EulerDiscreteScheduler"])
def test_other_schedulers_follow_the_same_path(name, original, exported):
    parts = {"scheduler": scheduler_by_name(name)}
    pair = [DiTPipeline.from_pipe(each, **parts) for each in (exported, original)]
    assert_close(*(drawn(each, [1, 4]) for each in pair), **CLOSE)


def test_images_to_begin_with_are_encoded_alike(original, exported):
    ours, theirs = (DiTImg2ImgPipeline.from_pipe(each) for each in (exported, original))
    assert_close(drawn(ours, picture(), [5]), drawn(theirs, picture(), [5]), **CLOSE)
    ours, theirs = (DiTInpaintPipeline.from_pipe(each) for each in (exported, original))
    mask = picture(1)
    assert_close(drawn(ours, picture(), mask, [5]), drawn(theirs, picture(), mask, [5]), **CLOSE)


def test_an_export_may_guide_another_model(original, exported):
    strong = tiny_pipeline(tiny_model(num_hidden_layers=3))
    weak = [each.transformer for each in (exported, original)]
    assert_close(*(drawn(strong, [5], guide_model=each) for each in weak), **CLOSE)


SWITCHED = dict(zip(BLOCKS, (ALL, {**ALL, "position_embedding": "both"}, SWITCHES["rope"], {}), strict=True))


@pytest.mark.parametrize("format", ["openvino", "onnx", "torch"])
@pytest.mark.parametrize("block_type", [*BLOCKS])
def test_every_block_design_with_switches_and_unconditional_models_of_pixels_export(block_type, format, tmp_path):
    """With x_0 predicted under flow matching, which the pipeline has to know, and on another size of images."""
    pytest.importorskip(ENGINES[format].package)
    fields = {"num_classes": 0, "in_channels": 3, "learn_sigma": False, "patch_size": 4, **SWITCHED[block_type]}
    flow = {"scheduler": FlowMatchEulerDiscreteScheduler(shift=2.0), "prediction_type": "flow_sample"}
    pipeline = tiny_pipeline(tiny_model(block_type=block_type, **fields), vae=None, **flow)
    pipeline.export(tmp_path / "export", format=format)
    exported = DiTPipeline.from_pretrained(tmp_path / "export")
    for size in ({}, {"height": 12, "width": 8, "position_policy": "interpolate"}):
        arguments = {"num_images": 2, "guidance_scale": 1.0, **size}
        assert_close(drawn(exported, **arguments), drawn(pipeline, **arguments), **CLOSE)


def test_folder_says_what_it_is(folder):
    record = json.loads((folder / "transformer" / "export.json").read_text())
    assert (record["format"], record["dtype"]) == (folder.name, "float32")
    card = (folder / "README.md").read_text()
    assert "DiTPipeline.from_pretrained" in card
    assert ENGINES[folder.name].package in card


def test_settings_of_many_images_tell_an_export_from_its_original(original, exported):
    ours, theirs = (pipeline_settings(each)["weights_sha256"] for each in (exported, original))
    assert ours != theirs


def test_labels_and_guidance_channels_come_along(original, exported):
    assert exported.labels == original.labels
    assert exported.config.guidance_channels == "first_three"


def test_what_an_export_cannot_do_is_refused(exported, tmp_path):
    with pytest.raises(ValueError, match="cannot be moved to"):
        exported.to("meta")
    with pytest.raises(ValueError, match="stays in float32"):
        exported.to(torch.bfloat16)
    with pytest.raises(ValueError, match="is an export"):
        exported.save_pretrained(tmp_path / "again")
    with pytest.raises(ValueError, match="is an export"):
        exported.export(tmp_path / "again")
    with pytest.raises(ValueError, match="no layers to change"):
        exported.enable_cache(FirstBlockCacheConfig())
    with pytest.raises(ValueError, match="no layers to change"):
        add_lora(exported.transformer, rank=2)


def test_damaged_or_newer_folders_are_named(folder, tmp_path):
    engine = ENGINES[folder.name]
    folder = shutil.copytree(folder, tmp_path / "export")
    file = folder / "transformer" / "export.json"
    record = json.loads(file.read_text())
    file.write_text(json.dumps({**record, "runtime_version": "9999.1"}))
    with pytest.raises(ValueError, match=f"was exported with {engine.package} 9999.1, and .* is installed"):
        DiTPipeline.from_pretrained(folder)
    file.write_text(json.dumps(record))
    graph = folder / "transformer" / f"denoise{engine.suffix}"
    graph.write_text("<net")
    with pytest.raises(ValueError, match=f"{graph.name} cannot be loaded by {engine.package}"):
        DiTPipeline.from_pretrained(folder)
    graph.unlink()
    with pytest.raises(ValueError, match=f"{graph.name} is missing"):
        DiTPipeline.from_pretrained(folder)
    file.unlink()
    with pytest.raises(ValueError, match="has no export.json"):
        DiTPipeline.from_pretrained(folder)


def test_requests_that_no_runtime_serves_are_refused(original, tmp_path):
    with pytest.raises(ValueError, match="choose from openvino, onnx, torch"):
        original.export(tmp_path / "a", format="tflite")
    with pytest.raises(ValueError, match="onnx computes in float32"):
        original.export(tmp_path / "a", format="onnx", dtype="bfloat16")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").touch()
    with pytest.raises(ValueError, match="nothing is overwritten"):
        original.export(tmp_path / "taken")


@pytest.mark.parametrize("format", ["openvino", "torch"])
def test_bfloat16_stays_near_float32(format, original, tmp_path):
    pytest.importorskip(ENGINES[format].package)
    original.export(tmp_path / "export", format=format, dtype="bfloat16")
    try:
        exported = DiTPipeline.from_pretrained(tmp_path / "export")
    except ValueError as error:
        pytest.skip(str(error))  # a processor without the instructions
    latents = torch.randn(2, 4, 8, 8, generator=seeded(1))
    conditioning = original.transformer.condition(999, torch.tensor([3]))
    expected = original.transformer(latents, conditioning=conditioning).sample
    conditioning = exported.transformer.condition(999, torch.tensor([3]))
    made = exported.transformer(latents, conditioning=conditioning).sample.float()
    error = (made - expected).norm() / expected.norm()
    assert 0 < error < 0.02  # bfloat16 has 8 bits: 1/256 for a number, more after several products


SIGNAL = """
import gc, os, signal
from dit_hf import DiTPipeline
for _ in range(2):  # one is loaded while another is still there
    pipe = DiTPipeline.from_pretrained(FOLDER)
pipe([1], num_inference_steps=2, generator=seeded(0))
del pipe
gc.collect()
received = []
signal.signal(signal.SIGUSR1, lambda number, frame: received.append(number))
os.kill(os.getpid(), signal.SIGUSR1)
assert received == [signal.SIGUSR1]
"""


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_signal_is_handled_after_an_openvino_export_is_gone(dtype, original, tmp_path):
    """OpenVINO gives the process a stack for signals on a CPU with AMX; a stack that is freed too early is a crash."""
    pytest.importorskip("openvino")
    original.export(tmp_path / "export", format="openvino", dtype=dtype)
    run_elsewhere(SIGNAL, tmp_path / "export", tmp_path)


def test_folder_without_its_runtime_says_what_to_install(folder, monkeypatch):
    engine = ENGINES[folder.name]
    if engine.extra is None:
        pytest.skip("torch is always there")
    monkeypatch.setitem(sys.modules, engine.package, None)  # as Python treats a package that is not installed
    expected = (
        f"{engine.name} needs the package {engine.package}, which is not installed: run `pip install {engine.package}`"
    )
    with pytest.raises(ImportError, match=expected):
        DiTPipeline.from_pretrained(folder)


def test_numbers_of_threads_draw_from_one_export(exported):
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(2) as pool:
        both = list(pool.map(lambda _: drawn(exported, [1], output_type="np"), range(2)))
    np.testing.assert_array_equal(*both)
