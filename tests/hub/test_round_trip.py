"""From a gated data set on a Hub to images of a model pushed there, by the example as it is and the real clients."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features, Image
from fresh_process import SOURCE, run_script
from PIL import Image as PILImage
from warm_process import run_warm

TRAIN = Path(__file__).parents[2] / "examples" / "train_dit.py"
NUM_CLASSES = 1000

LOAD = """
import json, sys
import numpy as np, torch
{block}
def image(pipe):
    pipe.set_progress_bar_config(disable=True)
    arguments = {{"num_inference_steps": 4, "generator": torch.Generator().manual_seed(0), "output_type": "np"}}
    return pipe(class_labels=[207], **arguments).images
{load}
np.save({file!r}, image(pipe))
print(json.dumps({{"type": f"{{type(pipe).__module__}}.{{type(pipe).__name__}}", "labels": len(pipe.labels)}}))
"""


def jpeg(k: int) -> bytes:
    buffer = io.BytesIO()
    PILImage.fromarray(np.full((20, 24, 3), 40 * k % 255, np.uint8)).save(buffer, "JPEG")
    return buffer.getvalue()


def shards() -> dict[str, bytes]:
    """Parquet files with the features of ILSVRC/imagenet-1k; labels of the test split are -1."""
    features = Features({"image": Image(), "label": ClassLabel(names=[f"class {k}, name {k}" for k in range(1000)])})
    files = {}
    for split, labels in {"train": [207, 0, 999, 5, 207, 3], "validation": [1], "test": [-1, -1]}.items():
        rows = [{"image": {"bytes": jpeg(k), "path": f"{k}.JPEG"}, "label": label} for k, label in enumerate(labels)]
        buffer = io.BytesIO()
        Dataset.from_list(rows, features=features).to_parquet(buffer)
        files[f"data/{split}-00000-of-00001.parquet"] = buffer.getvalue()
    return files


@pytest.fixture
def imagenet(hub):
    """The gated data set, which the user "user" may read."""
    from local_hub import Blob, Repository

    repository = Repository("datasets", "ILSVRC/imagenet-1k", gated=True)
    repository.commit("main", "data", {name: Blob(content, lfs=True) for name, content in shards().items()})
    hub.repositories["datasets", repository.name] = repository
    return repository


@pytest.mark.slow
def test_imagenet_is_streamed_trained_on_and_pushed_and_the_model_loads_with_and_without_the_package(
    hub, imagenet, pipeline, hub_environment, tmp_path
):
    pipeline.vae.save_pretrained(tmp_path / "vae")
    flags = {
        "output_dir": "out", "dataset_name": "ILSVRC/imagenet-1k", "vae_name_or_path": "vae", "resolution": 16,
        "model": "DiT-S/4", "train_batch_size": 4, "max_train_steps": 4, "checkpointing_steps": 2, "logging_steps": 1,
        "model_overrides": '{"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}', "ema_decay": 0.1,
        "validation_steps": 100, "validation_inference_steps": 2, "validation_labels": 207, "report_to": "none",
        "push_to_hub": True, "hub_model_id": "user/dit-imagenet", "num_threads": 1, "hub_license": "cc-by-nc-4.0",
    }  # fmt: skip
    words = [str(word) for name in flags for word in (f"--{name}", flags[name])]

    refused = run_script(TRAIN, *words, cwd=tmp_path, environment={**hub_environment, "HF_TOKEN": ""})
    assert refused.returncode == 1
    assert refused.stderr.splitlines()[-1].startswith("error: user/dit-imagenet at http://127.0.0.1")
    assert "there is no token: log in with `hf auth login`" in refused.stderr.splitlines()[-1]
    assert not (tmp_path / "out" / "checkpoints").exists()

    imagenet.granted.add("user")
    hub.fail("POST", "/commit/", 500, times=8)  # of a checkpoint and of the end; neither ends the training
    trained = run_script(TRAIN, *words, cwd=tmp_path, environment=hub_environment)
    assert trained.stderr.count("the push failed, the training continues") == 2
    assert trained.returncode == 1
    last = trained.stderr.splitlines()[-1]
    assert last.startswith("error: the training is finished and its files are whole, but user/dit-imagenet does not")
    status = json.loads((tmp_path / "out" / "status.json").read_text())
    assert (status["state"], status["step"]) == ("failed", 4)
    assert "user/dit-imagenet does not have them" in status["reason"]
    assert (tmp_path / "out" / "pipeline" / "README.md").exists()

    again = run_script(TRAIN, *words, cwd=tmp_path, environment=hub_environment)
    assert again.returncode == 0, again.stderr[-3000:]
    assert "nothing to do" in again.stderr
    assert json.loads((tmp_path / "out" / "status.json").read_text())["state"] == "finished"
    repository = hub.repository("user/dit-imagenet")
    assert repository.private
    assert repository.refs["main"].message == "End of training"
    assert {"README.md", "samples.png", "loss.png", "pipeline_dit.py"} <= set(repository.files())
    card = repository.files()["README.md"].decode()
    assert "- ILSVRC/imagenet-1k" in card
    assert "license: cc-by-nc-4.0" in card
    assert "| classes | 1000 |" in card
    assert "  output:\n    url: samples/00.png" in card
    assert "samples/00.png" in repository.files()
    token = hub_environment["HF_TOKEN"]
    assert token not in again.stderr + again.stdout
    written = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert not [path for path in written if token.encode() in path.read_bytes()]
    assert token not in trained.stderr + trained.stdout

    ways = {
        "with": ("", 'from dit_hf import DiTPipeline\npipe = DiTPipeline.from_pretrained("user/dit-imagenet")'),
        "without": (
            "sys.modules['dit_hf'] = None",
            "from diffusers import DiffusionPipeline\n"
            'pipe = DiffusionPipeline.from_pretrained("user/dit-imagenet", trust_remote_code=True)',
        ),
    }
    images, types = {}, {}
    for way, (block, load) in ways.items():
        file = str(tmp_path / f"{way}.npy")
        code = LOAD.format(block=block, load=load, file=file)
        result = run_warm(code, cwd=tmp_path, environment={**hub_environment, "PYTHONPATH": SOURCE})
        assert result.returncode == 0, result.stderr[-3000:]
        images[way], types[way] = np.load(file), json.loads(result.stdout.splitlines()[-1])
    assert types["with"]["type"] == "dit_hf.pipeline_dit.DiTPipeline"
    assert types["without"]["type"].startswith("diffusers_modules.")
    assert types["with"]["labels"] == NUM_CLASSES
    assert images["with"].shape == (1, 16, 16, 3)
    assert images["with"].std() > 0
    np.testing.assert_array_equal(images["with"], images["without"])
