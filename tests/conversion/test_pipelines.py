"""Whole pipelines from others' packaging, and back for diffusers' own pipeline, which runs in a process of its own."""

import json
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, DDPMScheduler
from fresh_process import WITHOUT_PACKAGE, run_elsewhere
from huggingface_hub._tree_cache import TreeCacheEntry, write_tree_cache
from safetensors.torch import load_file, save_file

from dit_hf import DiTConfig, DiTModel, DiTPipeline
from dit_hf.conversion import from_original, to_diffusers, to_original
from dit_hf.conversion.diffusers_format import TRAINED_AS

HEADS = {"num_attention_heads": 4}
ID2LABEL = {0: "tench, Tinca tinca", 1: "goldfish", 2: "white shark"}
ARGUMENTS = {"num_inference_steps": 5, "guidance_scale": 4.0, "output_type": "np"}


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def tiny_vae(**config) -> AutoencoderKL:
    torch.manual_seed(3)
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    sizes = {"block_out_channels": (8, 8), "norm_num_groups": 4, "layers_per_block": 1, "latent_channels": 4}
    return AutoencoderKL(**{**blocks, **sizes, **config}).eval()


def quiet(pipe):
    pipe.set_progress_bar_config(disable=True)
    return pipe


def as_published(model: DiTModel, folder: Path, **options) -> Path:
    """Save a pipeline with diffusers, then write the index and configuration as facebook/DiT-XL-2-256 has them."""
    parts = {"transformer": to_diffusers(model), "vae": tiny_vae(), "scheduler": DDIMScheduler(clip_sample=False)}
    diffusers.DiTPipeline(**parts).save_pretrained(folder, **options)
    index = {
        "_class_name": "DiTPipeline",
        "_diffusers_version": "0.12.0.dev0",
        "id2label": {str(key): value for key, value in ID2LABEL.items()},
        "scheduler": ["diffusers", "DDIMScheduler"],
        "transformer": ["diffusers", "Transformer2DModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    (folder / "model_index.json").write_text(json.dumps(index, indent=2))
    file = folder / "transformer" / "config.json"
    config = json.loads(file.read_text())
    for field in (TRAINED_AS, "norm_eps"):
        del config[field]
    legacy = {"_class_name": "Transformer2DModel", "cross_attention_dim": None, "num_vector_embeds": None}
    legacy |= {"only_cross_attention": False, "use_linear_projection": False}
    file.write_text(json.dumps(config | legacy))
    return folder


@pytest.fixture(scope="module")
def golden_pipe(golden_dir) -> DiTPipeline:
    """What the published weights' pipeline should be."""
    model = from_original(golden_dir / "dit_p2_c4.safetensors", **HEADS)
    arguments = {"id2label": ID2LABEL, "guidance_channels": "first_three"}
    return quiet(DiTPipeline(model, tiny_vae(), DDIMScheduler(clip_sample=False), **arguments))


@pytest.fixture(scope="module")
def published(golden_pipe, tmp_path_factory) -> Path:
    return as_published(golden_pipe.transformer, tmp_path_factory.mktemp("hub") / "DiT-XL-2-256")


def image(pipe) -> np.ndarray:
    return quiet(pipe)([1, 7], generator=seeded(5), **ARGUMENTS).images


# --- diffusers' form ---------------------------------------------------------------------------------------------


def test_published_folder_is_run_as_the_original_trained_it(published, golden_pipe):
    pipe = DiTPipeline.from_pretrained(published)
    assert type(pipe) is DiTPipeline
    assert type(pipe.transformer) is DiTModel
    assert pipe.config.guidance_channels == "first_three"
    assert pipe.config.id2label == ID2LABEL
    assert type(pipe.scheduler) is DDIMScheduler
    assert not pipe.transformer.training
    np.testing.assert_array_equal(image(pipe), image(golden_pipe))


def test_published_folder_loads_where_it_was_saved_again(published, tmp_path, golden_pipe):
    DiTPipeline.from_pretrained(published).save_pretrained(tmp_path)
    pipe = DiTPipeline.from_pretrained(tmp_path)
    assert pipe.config.guidance_channels == "first_three"
    np.testing.assert_array_equal(image(pipe), image(golden_pipe))


def test_model_trained_in_diffusers_keeps_its_numbers_and_equals_the_stock_pipeline(published):
    pipe = DiTPipeline.from_pretrained(published, timestep_freq_shift=1.0)
    assert pipe.config.guidance_channels == "all"
    assert pipe.transformer.config.mlp_norm_eps == 1e-5
    stock = quiet(diffusers.DiTPipeline.from_pretrained(published))
    arguments = {**ARGUMENTS, "guidance_scale": 1.0}  # it guides with 1000 classes only
    expected = stock(class_labels=[1, 7], generator=seeded(5), **arguments).images
    ours = quiet(pipe)([1, 7], generator=seeded(5), **arguments).images
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-5)


def test_usual_arguments_behave(published, golden_pipe, tmp_path):
    half = DiTPipeline.from_pretrained(published, dtype=torch.bfloat16)
    assert {half.transformer.dtype, half.vae.dtype} == {torch.bfloat16}
    mixed = DiTPipeline.from_pretrained(published, torch_dtype={"transformer": torch.bfloat16})
    assert (mixed.transformer.dtype, mixed.vae.dtype) == (torch.bfloat16, torch.float32)
    placed = DiTPipeline.from_pretrained(published, device_map="cpu", local_files_only=True, token=False)
    np.testing.assert_array_equal(image(placed), image(golden_pipe))
    scheduler = DDIMScheduler(clip_sample=False, beta_end=0.01)
    swapped = DiTPipeline.from_pretrained(published, scheduler=scheduler, guidance_channels="all", id2label={0: "one"})
    assert swapped.scheduler is scheduler
    assert swapped.config.guidance_channels == "all"
    assert swapped.config.id2label == {0: "one"}
    passed = DiTPipeline.from_pretrained(published, transformer=golden_pipe.transformer)
    assert passed.transformer is golden_pipe.transformer
    with pytest.raises(ValueError, match="device_map='balanced'"):
        DiTPipeline.from_pretrained(published, device_map="balanced")


def test_files_of_other_kinds_are_taken_as_asked_for(golden_pipe, tmp_path):
    pickled = as_published(golden_pipe.transformer, tmp_path / "bin", safe_serialization=False)
    np.testing.assert_array_equal(image(DiTPipeline.from_pretrained(pickled)), image(golden_pipe))
    with pytest.raises(ValueError, match="safetensors"):
        DiTPipeline.from_pretrained(pickled, use_safetensors=True)
    variant = as_published(golden_pipe.transformer, tmp_path / "fp16", variant="fp16")
    np.testing.assert_array_equal(image(DiTPipeline.from_pretrained(variant, variant="fp16")), image(golden_pipe))


def test_cached_repository_loads_offline_by_its_id(published, golden_pipe, tmp_path):
    commit = "0" * 40
    repository = tmp_path / "models--facebook--DiT-XL-2-256"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    (repository / "snapshots").mkdir()
    (repository / "snapshots" / commit).symlink_to(published, target_is_directory=True)
    files = {path.relative_to(published).as_posix(): path for path in published.rglob("*") if path.is_file()}
    entries = {name: TreeCacheEntry(size=path.stat().st_size, blob_id="0" * 40) for name, path in files.items()}
    write_tree_cache(str(repository), commit, entries)  # the listing that a download leaves behind
    arguments = {"cache_dir": tmp_path, "local_files_only": True}
    pipe = DiTPipeline.from_pretrained("facebook/DiT-XL-2-256", **arguments)
    np.testing.assert_array_equal(image(pipe), image(golden_pipe))
    with pytest.raises(OSError, match="model_index.json"):
        DiTPipeline.from_pretrained("facebook/DiT-XL-2-256", revision="v2", **arguments)


@pytest.mark.parametrize("form", ["ours", "diffusers", "checkpoint"])
@pytest.mark.parametrize("fault", ["missing", "not finite"])
def test_autoencoder_that_is_not_whole_is_refused_by_key(form, fault, golden_pipe, golden_file, tmp_path):
    if form == "diffusers":
        as_published(golden_pipe.transformer, tmp_path)
    else:
        golden_pipe.save_pretrained(tmp_path)
    file = tmp_path / "vae" / "diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    spoilt = weights.pop("decoder.conv_in.bias")
    if fault == "not finite":
        weights["decoder.conv_in.bias"] = spoilt * float("nan")
    save_file(weights, file, metadata={"format": "pt"})
    source, arguments = tmp_path, {}
    if form == "checkpoint":
        source, arguments = golden_file, {"vae": str(tmp_path / "vae"), **HEADS}
    with pytest.raises(ValueError, match=f"the vae of .*: 1 weights are {fault}: decoder.conv_in.bias"):
        DiTPipeline.from_pretrained(source, **arguments)


# --- an original checkpoint --------------------------------------------------------------------------------------


@pytest.fixture
def checkpoint(golden_dir, tmp_path) -> Path:
    state = load_file(golden_dir / "dit_p2_c4.safetensors")
    torch.save({"model": {key: value * 0 for key, value in state.items()}, "ema": state}, tmp_path / "0400000.pt")
    return tmp_path / "0400000.pt"


def test_checkpoint_with_a_vae_is_a_pipeline_of_the_paper(checkpoint, golden_pipe, tmp_path):
    pipe = DiTPipeline.from_pretrained(checkpoint, vae=tiny_vae(), id2label=ID2LABEL, **HEADS)
    assert type(pipe.scheduler) is DDPMScheduler
    assert pipe.scheduler.config.variance_type == "learned_range"
    assert pipe.config.guidance_channels == "first_three"
    pipe.scheduler = DDIMScheduler(clip_sample=False)
    np.testing.assert_array_equal(image(pipe), image(golden_pipe))
    tiny_vae().save_pretrained(tmp_path / "vae")
    arguments = {"vae": str(tmp_path / "vae"), "scheduler": "DDIMScheduler", "dtype": torch.bfloat16}
    other = DiTPipeline.from_pretrained(checkpoint, weights="model", guidance_channels="all", **arguments, **HEADS)
    assert {other.transformer.dtype, other.vae.dtype} == {torch.bfloat16}
    assert other.config.guidance_channels == "all"
    assert other.transformer.final_layer.linear.weight.abs().max() == 0
    pixels = DiTPipeline.from_pretrained(checkpoint, vae=None, **HEADS)
    assert pixels.vae is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "0400000.pt holds a transformer only: name its autoencoder by folder or id, as in vae="),
        ({"vae": None, "scheduler": "Euler", **HEADS}, "'Euler' is no scheduler of diffusers"),
        (
            {"vae": None, "scheduler": "FlowMatchEulerDiscreteScheduler", **HEADS},
            "no scheduler of diffusers with betas",
        ),
        ({"vae": None, "hidden_sise": 3, **HEADS}, "'hidden_sise' has no meaning"),
        ({"vae": None}, "pass num_attention_heads"),
    ],
)
def test_checkpoint_without_what_it_needs_is_refused(arguments, message, checkpoint):
    with pytest.raises(ValueError, match=message):
        DiTPipeline.from_pretrained(checkpoint, **arguments)


def test_own_form_takes_no_arguments_of_conversion(golden_pipe, tmp_path):
    golden_pipe.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="timestep_freq_shift=1.0: the pipeline in .* says it already"):
        DiTPipeline.from_pretrained(tmp_path, timestep_freq_shift=1.0)


# --- for diffusers' own pipeline ---------------------------------------------------------------------------------


@pytest.fixture
def thousand(make_model):
    """A pipeline that diffusers' own could run."""

    def make(model=None, vae=None, scheduler=None, guidance_channels="all", **config) -> DiTPipeline:
        sizes = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "sample_size": 8}
        model = make_model(**{**sizes, "num_classes": 1000, "timestep_freq_shift": 1.0, **config})
        scheduler = scheduler or DDIMScheduler(clip_sample=False)
        arguments = {"id2label": ID2LABEL, "guidance_channels": guidance_channels}
        return quiet(DiTPipeline(model, tiny_vae() if vae is None else vae, scheduler, **arguments))

    return make


STOCK = """
import numpy as np
from diffusers import DiTPipeline
pipe = DiTPipeline.from_pretrained(FOLDER)
pipe.set_progress_bar_config(disable=True)
assert pipe.get_label_ids(["goldfish"]) == [1]
images = pipe(class_labels=[1, 7], num_inference_steps=5, guidance_scale=4.0, output_type="np",
              generator=torch.Generator().manual_seed(5)).images
expected = np.load(FOLDER + "/../image.npy")
print(abs(images - expected).max(), expected.std())
"""


@pytest.mark.slow
@pytest.mark.parametrize("shift", [1.0, 0.0])
def test_stock_pipeline_gives_the_same_images_without_the_package(shift, thousand, tmp_path):
    pipe = thousand(timestep_freq_shift=shift)
    pipe.save_pretrained(tmp_path / "stock", format="diffusers")
    np.save(tmp_path / "image.npy", image(pipe))
    result = run_elsewhere(WITHOUT_PACKAGE + STOCK, tmp_path / "stock", tmp_path)
    assert "not expected" not in result.stderr
    difference, scale = map(float, result.stdout.split())
    print(f"timestep_freq_shift={shift}: up to {difference:.2g} in images of standard deviation {scale:.2g}")
    if shift == 1:
        assert difference < 1e-5
    else:
        assert 1e-5 < difference < 1


def test_folder_for_the_stock_pipeline_has_its_form_and_comes_back(thousand, tmp_path, caplog):
    pipe = thousand(scheduler=DDPMScheduler(clip_sample=False, beta_end=0.01))
    pipe.save_pretrained(tmp_path, format="diffusers")
    assert "gets a deterministic DDIMScheduler in place of DDPMScheduler" in caplog.text
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index["transformer"] == ["diffusers", "DiTTransformer2DModel"]
    assert index["id2label"] == {str(key): value for key, value in ID2LABEL.items()}
    assert not {"guidance_channels", "prediction_type"} & index.keys()
    scheduler = json.loads((tmp_path / "scheduler" / "scheduler_config.json").read_text())
    expected = {"_class_name": "DDIMScheduler", "timestep_spacing": "leading", "clip_sample": False, "beta_end": 0.01}
    assert scheduler == scheduler | expected
    assert json.loads((tmp_path / "transformer" / "config.json").read_text())["norm_eps"] == 1e-6
    assert not list(tmp_path.rglob("*.py"))
    again = DiTPipeline.from_pretrained(tmp_path)
    assert again.config.guidance_channels == "all"
    assert again.transformer.config.timestep_freq_shift == 1
    for key, tensor in to_original(pipe.transformer).items():
        assert torch.equal(tensor, again.transformer.state_dict()[key])


def test_channels_that_the_stock_pipeline_guides_otherwise_are_warned_about(thousand, tmp_path, caplog):
    thousand(guidance_channels="first_three").save_pretrained(tmp_path, format="diffusers")
    assert "guides all channels, this one has guidance_channels='first_three'" in caplog.text
    assert DiTPipeline.from_pretrained(tmp_path).config.guidance_channels == "first_three"


REFUSED = {
    "other classes": ({"num_classes": 10}, "num_classes=10"),
    "rectangular": ({"sample_size": (4, 8)}, r"sample_size=\[4, 8\]"),
    "another block": ({"block_type": "cross_attention"}, "block_type='cross_attention'"),
    "no null class": ({"class_dropout_prob": 0.0}, "class_dropout_prob=0.0"),
    "a sampler that uses the variance": (
        {"scheduler": DDPMScheduler(clip_sample=False, variance_type="learned_range")},
        "DDPMScheduler with variance_type='learned_range'.*use a DDIMScheduler",
    ),
    "a shifted VAE": ({"vae": tiny_vae(shift_factor=0.5)}, "shift_factor=0.5"),
}


@pytest.mark.parametrize(("config", "message"), REFUSED.values(), ids=REFUSED)
def test_what_the_stock_pipeline_cannot_run_is_refused_by_name(config, message, thousand, tmp_path):
    with pytest.raises(ValueError, match=message):
        thousand(**config).save_pretrained(tmp_path / "stock", format="diffusers")
    assert not (tmp_path / "stock").exists()


def test_scheduler_made_from_one_that_uses_the_variance_is_taken(thousand, tmp_path):
    drawn = DDPMScheduler(clip_sample=False, variance_type="learned_range", timestep_spacing="leading")
    thousand(scheduler=DDIMScheduler.from_config(drawn.config)).save_pretrained(tmp_path, format="diffusers")
    assert type(diffusers.DiTPipeline.from_pretrained(tmp_path).scheduler) is DDIMScheduler


def test_unknown_format_and_a_model_of_pixels_are_refused(tmp_path):
    config = DiTConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, sample_size=4)
    pipe = DiTPipeline(DiTModel(config), None, DDIMScheduler(clip_sample=False))
    with pytest.raises(ValueError, match="format='onnx': choose from dit_hf, diffusers"):
        pipe.save_pretrained(tmp_path, format="onnx")
    with pytest.raises(ValueError, match="vae=None"):
        pipe.save_pretrained(tmp_path, format="diffusers")


def test_folder_that_diffusers_saved_again_comes_back_and_goes_every_way_again(thousand, tmp_path):
    pipe = thousand()
    pipe.save_pretrained(tmp_path / "stock", format="diffusers")
    diffusers.DiTPipeline.from_pretrained(tmp_path / "stock").save_pretrained(tmp_path / "stock again")
    loaded = DiTPipeline.from_pretrained(tmp_path / "stock again")
    pipe.save_pretrained(tmp_path / "ours")
    loaded.save_pretrained(tmp_path / "ours again")
    for part in ("transformer/model.safetensors", "transformer/modeling_dit.py", "pipeline_dit.py"):
        assert (tmp_path / "ours again" / part).read_bytes() == (tmp_path / "ours" / part).read_bytes()
    np.testing.assert_array_equal(image(DiTPipeline.from_pretrained(tmp_path / "ours again")), image(pipe))


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (["os", "system"], "cannot be loaded"),
        (["subprocess", "Popen"], "cannot be loaded"),
        (["somebody_s_library", "DiTModel"], "is not one of the libraries"),
        (["modeling_other", "DiTModel"], "contains custom code in modeling_other.py"),
    ],
)
def test_index_that_names_code_of_others_is_refused(golden_pipe, tmp_path, entry, message):
    golden_pipe.save_pretrained(tmp_path)
    file = tmp_path / "model_index.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "scheduler": entry}))
    (tmp_path / "scheduler" / "modeling_other.py").write_text(f"open({str(tmp_path / 'canary')!r}, 'w')")
    with pytest.raises(ValueError, match=message):
        DiTPipeline.from_pretrained(tmp_path)
    assert not (tmp_path / "canary").exists()
