"""Saved folders: by every route they load with and without the package, and are saved again the same."""

import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
from diffusers import FlowMatchEulerDiscreteScheduler
from fresh_process import WITHOUT_PACKAGE, run_elsewhere
from huggingface_hub._tree_cache import TreeCacheEntry, write_tree_cache
from safetensors.torch import load_file, save_file
from sampling_parts import ID2LABEL, ROOT, picture, seeded, tiny_model, tiny_pipeline, variant

from dit_hf import DiTImg2ImgPipeline, DiTInpaintPipeline, DiTModel, DiTPipeline
from dit_hf.hub.flatten import flatten
from dit_hf.saved_code import import_for


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("hub") / "dit-tiny"
    pipe = tiny_pipeline(id2label=ID2LABEL, guidance_channels="first_three")
    pipe.save_pretrained(folder)
    np.save(folder.parent / "image.npy", sample(pipe))
    return folder


def sample(pipe) -> np.ndarray:
    pipe.set_progress_bar_config(disable=True)
    return pipe(["tench", 7], num_inference_steps=5, generator=seeded(5), output_type="np").images


def test_pipeline_comes_back_as_it_was_saved(saved, tmp_path):
    pipe = DiTPipeline.from_pretrained(saved)
    assert type(pipe) is DiTPipeline
    assert type(pipe.transformer) is DiTModel
    assert pipe.config.id2label == ID2LABEL
    assert pipe.config.guidance_channels == "first_three"
    np.testing.assert_array_equal(sample(pipe), np.load(saved.parent / "image.npy"))
    pipe.save_pretrained(tmp_path)
    for file in sorted(path for path in saved.rglob("*") if path.is_file()):
        assert (tmp_path / file.relative_to(saved)).read_bytes() == file.read_bytes(), file.name


def test_flow_model_comes_back_with_its_prediction_type(tmp_path):
    pipe = tiny_pipeline(
        tiny_model(learn_sigma=False), FlowMatchEulerDiscreteScheduler(), prediction_type="flow_prediction"
    )
    pipe.save_pretrained(tmp_path)
    assert DiTPipeline.from_pretrained(tmp_path).config.prediction_type == "flow_prediction"


def test_saved_folder_has_the_form_of_the_hub(saved):
    index = json.loads((saved / "model_index.json").read_text())
    assert index["_class_name"] == ["pipeline_dit", "DiTPipeline"]
    assert index["transformer"] == ["modeling_dit", "DiTModel"]
    assert index["id2label"] == {str(key): value for key, value in ID2LABEL.items()}
    assert index["guidance_channels"] == "first_three"
    assert "_name_or_path" not in index
    config = json.loads((saved / "transformer" / "config.json").read_text())
    assert config["auto_map"] == {"AutoConfig": "modeling_dit.DiTConfig", "AutoModel": "modeling_dit.DiTModel"}
    assert not [file for file in saved.rglob("*.json") if "_name_or_path" in file.read_text()]
    code = {path.relative_to(saved).as_posix(): path.read_text() for path in saved.rglob("*.py")}
    model, pipeline = (flatten(ROOT / "src" / "dit_hf" / f"{name}.py") for name in ("modeling_dit", "image_pipelines"))
    assert code == {"pipeline_dit.py": pipeline, "modeling_dit.py": model, "transformer/modeling_dit.py": model}


def test_cached_repository_loads_offline_by_its_id(saved, tmp_path):
    commit = "0" * 40
    repository = tmp_path / "models--somebody--dit-tiny"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    (repository / "snapshots").mkdir()
    (repository / "snapshots" / commit).symlink_to(saved, target_is_directory=True)
    files = {path.relative_to(saved).as_posix(): path for path in saved.rglob("*") if path.is_file()}
    entries = {name: TreeCacheEntry(size=path.stat().st_size, blob_id="0" * 40) for name, path in files.items()}
    write_tree_cache(str(repository), commit, entries)  # the listing that a download leaves behind
    pipe = DiTPipeline.from_pretrained("somebody/dit-tiny", cache_dir=tmp_path, local_files_only=True)
    np.testing.assert_array_equal(sample(pipe), np.load(saved.parent / "image.npy"))


PIPELINE_IMAGE = """
import numpy as np, torch
pipe.set_progress_bar_config(disable=True)
image = pipe(["tench", 7], num_inference_steps=5, generator=seeded(5), output_type="np").images
np.testing.assert_allclose(image, np.load(FOLDER + "/../image.npy"), rtol=0, atol=1e-5)
"""


MODEL_OUTPUT = """
import numpy as np, torch
golden = {key: torch.from_numpy(value) for key, value in np.load(GOLDEN + "/dit_p2_c4.npz").items()}
with torch.no_grad():
    out = model.eval()(golden["x"], golden["t"], golden["y"]).sample
torch.testing.assert_close(out, golden["out"], rtol=1e-5, atol=1e-5)
"""


ROUTES = {
    "1 the package": "from dit_hf import DiTPipeline\npipe = DiTPipeline.from_pretrained(FOLDER)" + PIPELINE_IMAGE,
    "2 diffusers without the package": WITHOUT_PACKAGE
    + "from diffusers import DiffusionPipeline\n"
    + "pipe = DiffusionPipeline.from_pretrained(FOLDER, trust_remote_code=True)"
    + PIPELINE_IMAGE,
    "3 transformers without the package": WITHOUT_PACKAGE
    + "from transformers import AutoModel\n"
    + "model = AutoModel.from_pretrained(FOLDER, subfolder='transformer', trust_remote_code=True)"
    + MODEL_OUTPUT,
    "4 transformers with the package": "import dit_hf\nfrom transformers import AutoModel\n"
    + "model = AutoModel.from_pretrained(FOLDER, subfolder='transformer')\n"
    + "assert type(model) is dit_hf.DiTModel"
    + MODEL_OUTPUT,
}


@pytest.mark.slow
@pytest.mark.parametrize("code", ROUTES.values(), ids=ROUTES)
def test_saved_folder_loads_by_every_route(code, saved, tmp_path):
    run_elsewhere(code, saved, tmp_path)


@pytest.mark.slow
def test_pipeline_of_images_comes_back_by_its_class_with_and_without_the_package(tmp_path):
    folder = tmp_path / "dit-tiny"
    pipe = variant(DiTImg2ImgPipeline, id2label=ID2LABEL)
    pipe.save_pretrained(folder)
    assert json.loads((folder / "model_index.json").read_text())["_class_name"] == [
        "pipeline_dit",
        "DiTImg2ImgPipeline",
    ]
    arguments = {"strength": 0.5, "num_inference_steps": 4, "output_type": "np"}
    expected = pipe(picture(), "tench", generator=seeded(5), **arguments).images
    for cls in (DiTImg2ImgPipeline, DiTPipeline, DiTInpaintPipeline):
        assert type(cls.from_pretrained(folder)) is cls
    picture().save(tmp_path / "picture.png")
    np.save(tmp_path / "expected.npy", expected)
    code = f"""
import numpy as np, torch
from PIL import Image
from diffusers import DiffusionPipeline
pipe = DiffusionPipeline.from_pretrained(FOLDER, trust_remote_code=True)
assert type(pipe).__name__ == "DiTImg2ImgPipeline"
generator = torch.Generator().manual_seed(5)
found = pipe(Image.open(FOLDER + "/../picture.png"), "tench", generator=generator, **{arguments!r}).images
np.testing.assert_allclose(found, np.load(FOLDER + "/../expected.npy"), rtol=0, atol=1e-5)
"""
    run_elsewhere(WITHOUT_PACKAGE + code, folder, tmp_path)


DOORS = {
    "enable_cache": "pipe.enable_cache(None)",
    "load_lora_weights": "pipe.load_lora_weights('adapter')",
    "fuse_lora": "pipe.fuse_lora()",
    "unload_lora_weights": "pipe.unload_lora_weights()",
    "push_to_hub": "pipe.push_to_hub('user/name')",
    "format='diffusers'": "pipe.save_pretrained('folder', format='diffusers')",
    "saving this code": "pipe.transformer = older; pipe.save_pretrained('folder')",
}


@pytest.mark.slow
def test_what_needs_the_package_says_so_where_it_is_not_installed(saved, tmp_path):
    calls = "".join(
        f"""
try:
    {call}
except ImportError as error:
    assert str(error) == {f"{purpose} needs the package dit-hf: pip install dit-hf"!r}, error
else:
    raise AssertionError({purpose!r})
pipe.transformer.peft_config = {{'default': None}} if {purpose!r} == 'fuse_lora' else {{}}
"""
        for purpose, call in DOORS.items()
    )
    load = """
from diffusers import DiffusionPipeline
from transformers import AutoModel
older = GOLDEN + "/pipeline_0.1.0"
older = AutoModel.from_pretrained(older, subfolder="transformer", trust_remote_code=True)
pipe = DiffusionPipeline.from_pretrained(FOLDER, trust_remote_code=True)
"""
    run_elsewhere(WITHOUT_PACKAGE + load + calls, saved, tmp_path)


def test_what_the_package_itself_lacks_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "dit_hf.caches", None)
    with pytest.raises(ImportError, match="enable_cache needs the package dit-hf"):
        import_for("enable_cache", "dit_hf.caches")
    monkeypatch.delitem(sys.modules, "dit_hf.caches")
    monkeypatch.setitem(sys.modules, "diffusers.hooks._helpers", None)
    with pytest.raises(ImportError, match="diffusers.hooks"):
        import_for("enable_cache", "dit_hf.caches")


@pytest.mark.slow
def test_remote_code_is_refused_unless_it_is_trusted(saved, tmp_path):
    code = """
from diffusers import DiffusionPipeline
try:
    DiffusionPipeline.from_pretrained(FOLDER)
except ValueError as error:
    assert "trust_remote_code" in str(error)
else:
    raise AssertionError("it loaded")
"""
    run_elsewhere(WITHOUT_PACKAGE + code, saved, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("route", ["diffusers", "transformers"])
def test_folder_saved_by_remote_code_is_the_same_again(route, saved, tmp_path):
    again = tmp_path / "again"
    load = {
        "diffusers": "pipe = DiffusionPipeline.from_pretrained(FOLDER, trust_remote_code=True)\n",
        "transformers": "model = AutoModel.from_pretrained(FOLDER, subfolder='transformer', trust_remote_code=True)\n"
        "pipe = DiffusionPipeline.from_pretrained(FOLDER, trust_remote_code=True)\npipe.transformer = model\n",
    }[route]
    imports = "from diffusers import DiffusionPipeline\nfrom transformers import AutoModel\n"
    run_elsewhere(WITHOUT_PACKAGE + imports + load + f"pipe.save_pretrained({str(again)!r})\n", saved, tmp_path)
    # the same bytes load by the same routes
    files = {path.relative_to(saved) for path in saved.rglob("*") if path.is_file()}
    assert {path.relative_to(again) for path in again.rglob("*") if path.is_file()} == files
    for file in sorted(files):
        assert (again / file).read_bytes() == (saved / file).read_bytes(), file


@pytest.mark.parametrize(
    ("damage", "message"),
    [("cut", "safetensors is cut short"), ("infinite", "1 weights are not finite: pos_embed")],
)
def test_pipeline_with_damaged_weights_is_refused(tmp_path, damage, message):
    tiny_pipeline().save_pretrained(tmp_path)
    file = tmp_path / "transformer" / "model.safetensors"
    if damage == "cut":
        file.write_bytes(file.read_bytes()[:-100])
    else:
        weights = load_file(file)
        weights["pos_embed"][0, 0, 0] = math.inf
        save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=message):
        DiTPipeline.from_pretrained(tmp_path)
