"""Latents made beforehand: the same as the VAE makes in training, whole after a kill, read by `datasets`."""

import json
import os
import signal
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from accelerate import Accelerator
from datasets import load_dataset
from diffusers import AutoencoderKL
from warm_process import SOURCE, run_two, run_warm

from dit_hf.data.extract import extract_latents, plan_shards
from dit_hf.data.latents import LatentEncoder
from dit_hf.data.moments import LatentsInfo, hash_vae, unpack
from dit_hf.data.sources import open_images
from dit_hf.data.streaming import ImageStream

EXAMPLE = Path(__file__).parents[2] / "examples" / "extract_latents.py"


@pytest.fixture(scope="module")
def vae() -> AutoencoderKL:
    torch.manual_seed(0)
    return AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, latent_channels=2, scaling_factor=0.5).eval()


def information(vae: AutoencoderKL, **changes) -> LatentsInfo:
    known = {"vae": "local", "vae_sha256": hash_vae(vae), "scaling_factor": 0.5, "shape": (4, 8, 8), "resolution": 8}
    known |= {"dtype": "float16", "mirrored": True, "source": "local", "source_revision": "files-0"}
    return LatentsInfo(**(known | changes))


def extract(colours: Path, vae: AutoencoderKL, folder: Path, info: LatentsInfo | None = None, **options) -> dict:
    options = {"accelerator": Accelerator(cpu=True), "num_workers": 1, "batch_size": 4, **options}
    return extract_latents(open_images(str(colours)), vae, info or information(vae), folder, **options)


@pytest.fixture(scope="module")
def latents(colours: Path, vae: AutoencoderKL, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("latents")
    report = extract(colours, vae, folder, rows_of_a_shard=8)
    assert report["num_images"] == 23
    assert report["skipped"] == []
    return folder


def test_latents_train_as_the_images_do_at_the_same_keys(colours, vae, latents):
    """Same order, labels, mirroring and posterior draws; the latents differ by what float16 rounds."""
    streams = [ImageStream(open_images(str(path)), batch_size=5, resolution=8, seed=3) for path in (colours, latents)]
    encoder = LatentEncoder(vae, seed=3)
    for images, moments in islice(zip(*streams, strict=True), 12):
        assert moments.are_moments
        assert not images.are_moments
        assert moments.positions == images.positions
        assert moments.class_labels.tolist() == images.class_labels.tolist()
        x, y = encoder(images), encoder(moments)
        torch.testing.assert_close(y, x, rtol=2**-10, atol=2**-10)
        assert not torch.equal(x, y)


def test_posterior_is_sampled_anew_in_every_epoch(vae, latents):
    stream = ImageStream(open_images(str(latents)), batch_size=23, resolution=8, random_flip=False)
    encoder = LatentEncoder(vae)
    first, second = islice(stream, 2)
    order = [first.identities.index(identity) for identity in second.identities]
    torch.testing.assert_close(first.images[order], second.images, rtol=0, atol=0)
    assert not torch.allclose(encoder(first)[order], encoder(second))


def test_datasets_reads_the_shards_with_their_labels(colours, vae, latents):
    names = sorted(path.name for path in (latents / "data").iterdir())
    assert names == [f"train-{k:05d}-of-00003.parquet" for k in range(3)]
    rows = list(load_dataset(str(latents), split="train", streaming=True))
    assert [row["label"] for row in rows] == [k % 4 for k in range(23)]
    assert rows[9]["key"] == "row 1 of train-00001-of-00003.parquet"
    image = next(iter(ImageStream(open_images(str(colours)), batch_size=1, resolution=8, random_flip=False)))
    where = image.identities[0][:2]
    moments = [unpack(row["moments"], information(vae)) for row in rows]
    expected = vae.encode(image.images).latent_dist.parameters.detach()[0]
    row = next(row for row in rows if row["key"] == f"row {where[1]} of train-{where[0]:05d}-of-00003.parquet")
    torch.testing.assert_close(moments[rows.index(row)], expected, rtol=2**-10, atol=1e-5)


def test_int8_states_its_error_and_it_is_true(colours, vae, tmp_path):
    info = information(vae, dtype="int8", mirrored=False)
    report = extract(colours, vae, tmp_path, info)
    source = open_images(str(tmp_path))
    exact = {}
    for batch in islice(ImageStream(open_images(str(colours)), batch_size=23, resolution=8, random_flip=False), 1):
        exact = dict(zip(batch.positions, vae.encode(batch.images).latent_dist.mean.detach(), strict=True))
    (batch,) = islice(ImageStream(source, batch_size=23, resolution=8, random_flip=False), 1)
    errors = torch.stack([batch.images[k][:2] - exact[position] for k, position in enumerate(batch.positions)]) * 0.5
    assert report["latent_error_max"] == pytest.approx(errors.abs().max().item(), rel=1e-3)
    assert report["latent_error_rms"] == pytest.approx(errors.square().mean().sqrt().item(), rel=1e-3)
    assert "moments_mirrored" not in pq.read_schema(next((tmp_path / "data").iterdir())).names


def test_other_latents_in_the_folder_are_refused(colours, vae, latents, tmp_path):
    with pytest.raises(ValueError, match="holds other latents: dtype was 'float16' and is 'int8'"):
        extract(colours, vae, latents, information(vae, dtype="int8"), rows_of_a_shard=8)
    with pytest.raises(ValueError, match="holds train-00000-of-00003.parquet, which this run would not make"):
        extract(colours, vae, latents, rows_of_a_shard=100)


def test_finished_latents_are_not_made_again(colours, vae, latents, monkeypatch):
    before = {path: path.stat().st_mtime_ns for path in (latents / "data").iterdir()}
    monkeypatch.setattr(vae, "encode", None)
    assert extract(colours, vae, latents, rows_of_a_shard=8)["num_images"] == 23
    assert {path: path.stat().st_mtime_ns for path in (latents / "data").iterdir()} == before


def test_shards_are_planned_from_the_source_alone():
    source = SimpleNamespace(group_sizes=np.array([10] * 7), num_parts=7)
    assert plan_shards(source, 20) == [range(0, 2), range(2, 4), range(4, 6), range(6, 7)]
    assert plan_shards(source, 1) == [range(k, k + 1) for k in range(7)]


def contents(folder: Path) -> dict[str, list]:
    return {path.name: pq.read_table(path).to_pylist() for path in sorted((folder / "data").glob("*.parquet"))}


SMALL_SHARDS = f"""
import os, signal, sys
sys.path.insert(0, {str(EXAMPLE.parent)!r})
import extract_latents as example
from dit_hf.data import extract
from dit_hf.files import watched

def die_before_the_second_shard_has_its_name(operation, path):
    shards = list(path.parent.glob("*.parquet"))
    if "KILLED" in os.environ and operation == "rename" and shards:
        os.kill(os.getpid(), signal.SIGKILL)

extract.extract_latents.__kwdefaults__["rows_of_a_shard"] = 8
(settings,) = example.HfArgumentParser(example.ExtractSettings).parse_args_into_dataclasses()
with watched(die_before_the_second_shard_has_its_name):
    example.run(settings)
"""


@pytest.mark.slow
def test_two_processes_killed_and_started_again_make_what_one_makes(colours, vae, latents, tmp_path):
    vae.save_pretrained(tmp_path / "vae")
    flags = {
        "output_dir": tmp_path / "out",
        "dataset_name": colours,
        "vae_name_or_path": tmp_path / "vae",
        "resolution": 8,
    }
    flags = [str(word) for name, value in flags.items() for word in (f"--{name}", value)]
    alone = run_warm(SMALL_SHARDS, *flags, environment={**os.environ, "KILLED": "1", "PYTHONPATH": SOURCE})
    assert alone.returncode == -signal.SIGKILL, alone.stderr[-3000:]
    left = contents(tmp_path / "out")
    assert len(left) == 1
    run_two(SMALL_SHARDS, *flags)
    made = contents(tmp_path / "out")
    assert {name: made[name] for name in left} == left
    assert made.keys() == contents(latents).keys()
    for name, rows in contents(latents).items():
        assert [row["key"] for row in rows] == [row["key"] for row in made[name]]
        for row, other in zip(rows, made[name], strict=True):
            x, y = (unpack(each["moments"], information(vae)) for each in (row, other))
            torch.testing.assert_close(x, y, rtol=2**-9, atol=1e-4)  # batches of another size round otherwise
    report = json.loads((tmp_path / "out" / "latents.json").read_text())["report"]
    assert report["num_images"] == 23
    assert not list((tmp_path / "out").rglob("*.partial"))
