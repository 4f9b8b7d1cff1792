"""Streaming from a Hub that interrupts: order kept, nothing lost or repeated, version pinned, errors in one line."""

import importlib.util
import io
import json
import sys
import tarfile
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from accelerate import PartialState
from datasets import ClassLabel, Features, config
from datasets import Image as ImageFeature
from diffusers import AutoencoderKL
from huggingface_hub import HfFileSystem
from PIL import Image

from dit_hf.data.moments import hash_vae
from dit_hf.data.retries import SourceError
from dit_hf.data.sources import open_images
from dit_hf.data.streaming import ImageStream, Position
from dit_hf.training.batches import open_source
from dit_hf.training.saving.resume import _check_files
from dit_hf.training.settings import TrainSettings

specification = importlib.util.spec_from_file_location(
    "hub_conftest", Path(__file__).parents[1] / "hub" / "conftest.py"
)
hub_conftest = importlib.util.module_from_spec(specification)
specification.loader.exec_module(hub_conftest)
hub = hub_conftest.hub

EXAMPLE = Path(__file__).parents[2] / "examples" / "extract_latents.py"
NAMES = [f"class {k}" for k in range(1000)]
SHARDS = r"resolve/.*parquet$"


def noisy(k: int) -> bytes:
    """An image of a few kB whose first pixel tells its number."""
    pixels = np.random.default_rng(k).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    pixels[:8, :8] = [k, 0, 0]
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def shards(numbers: list[int]) -> dict[str, bytes]:
    schema = Features({"image": ImageFeature(), "label": ClassLabel(names=NAMES)}).arrow_schema
    files = {}
    for shard, part in enumerate(np.array_split(numbers, 3)):
        rows = [{"image": {"bytes": noisy(k), "path": f"{k}.png"}, "label": k} for k in part.tolist()]
        buffer = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(rows, schema=schema), buffer, row_group_size=4)
        files[f"data/train-{shard:05d}-of-00003.parquet"] = buffer.getvalue()
    return files


@pytest.fixture(scope="module")
def files() -> dict[str, bytes]:
    return shards(list(range(120)))


@pytest.fixture
def images(hub, files, monkeypatch):
    """ImageNet's names and columns, gated, with 120 small images in 30 row groups."""
    module = hub_conftest.LocalHub.__init__.__globals__
    repository = module["Repository"]("datasets", "ILSVRC/imagenet-1k", gated=True, granted={"user"})
    repository.commit("main", "data", {name: module["Blob"](content, lfs=True) for name, content in files.items()})
    hub.repositories["datasets", repository.name] = repository
    monkeypatch.setattr(config, "HF_ENDPOINT", hub.url)
    HfFileSystem.clear_instance_cache()
    yield repository
    HfFileSystem.clear_instance_cache()


def open_imagenet(**options):
    return open_images("ILSVRC/imagenet-1k", **options)


def read(source, count: int, **options) -> list[int]:
    options = {"batch_size": 12, "resolution": 8, "random_flip": False, "num_streams": 3, "window": 12, **options}
    return [k for batch in islice(ImageStream(source, **options), count) for k in batch.class_labels.tolist()]


def test_order_is_that_of_the_same_files_on_the_disk(hub, images, files, tmp_path: Path):
    for name, content in files.items():
        (tmp_path / "local" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "local" / name).write_bytes(content)
    source = open_imagenet()
    assert source.revision == images.refs["main"].oid
    assert source.classes.names == NAMES
    numbers = read(source, 15)
    assert sorted(numbers[:120]) == list(range(120))
    assert numbers == read(open_images(str(tmp_path / "local")), 15)


@pytest.mark.slow
@pytest.mark.parametrize(
    "arrange",
    [
        lambda hub: hub.fail("GET", SHARDS, 503, times=3),
        lambda hub: hub.fail("GET", SHARDS, 429, times=2, headers={"Retry-After": "0"}),
        lambda hub: hub.fail("GET", SHARDS, 500, times=30),
        lambda hub: hub.cut("GET", SHARDS, after=1000, times=3),
        lambda hub: hub.cut("GET", SHARDS, after=0, times=2),
        lambda hub: [hub.cut("GET", SHARDS, 5000), hub.fail("GET", SHARDS, 504), hub.cut("GET", SHARDS, 9)],
    ],
    ids=["503", "429", "500 for long", "cut in a body", "no body", "mixed"],
)
def test_interruptions_lose_and_repeat_nothing(hub, images, arrange):
    source = open_imagenet()
    expected = read(source, 10)
    arrange(hub)
    assert read(open_imagenet(), 10) == expected  # at the footers
    source = open_imagenet()
    stream = iter(ImageStream(source, batch_size=12, resolution=8, random_flip=False, num_streams=3, window=12))
    numbers = next(stream).class_labels.tolist()
    arrange(hub)  # at the row groups
    numbers += [k for batch in islice(stream, 9) for k in batch.class_labels.tolist()]
    assert numbers == expected
    assert not any(fault.times for fault in hub.faults)


def test_interruption_that_stays_ends_with_the_shard_and_why(hub, images):
    source = open_imagenet()
    hub.fail("GET", SHARDS, 503, times=10_000)
    message = (
        r"row group \d of hf://datasets/ILSVRC/imagenet-1k@\w+/data/train-0000\d-of-00003.parquet cannot be read after"
    )
    with pytest.raises(SourceError, match=message):
        read(source, 1)


@pytest.mark.parametrize("place", ["Hub", "disk"])
def test_run_notices_that_its_file_of_class_names_or_its_label_map_has_changed(
    hub, images, files, tmp_path: Path, monkeypatch, place: str
):
    monkeypatch.chdir(tmp_path)
    PartialState(cpu=True)  # which the log of a run asks for
    for name, content in files.items():
        (tmp_path / "local" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "local" / name).write_bytes(content)
    name = {"Hub": "ILSVRC/imagenet-1k", "disk": "local"}[place]

    def version(**files_of_classes: str) -> str:
        settings = TrainSettings(dataset_name=name, output_dir="out", **files_of_classes)
        assert open_source(settings).num_parts > 0
        return settings.dataset_revision

    plain = version()
    (tmp_path / "names.txt").write_text("class 1\nclass 2\n")
    first = version(class_names_file="names.txt")
    assert first == version(class_names_file="names.txt")
    (tmp_path / "names.txt").write_text("class 2\nclass 1\n")
    second = version(class_names_file="names.txt")
    (tmp_path / "map.json").write_text('{"class 1": "one"}')
    third = version(label_map_file="map.json")
    (tmp_path / "map.json").write_text('{"class 2": "one"}')
    fourth = version(label_map_file="map.json")
    versions = [plain, first, second, third, fourth]
    assert len(set(versions)) == 5
    if place == "Hub":
        assert all(each.startswith(images.refs["main"].oid) for each in versions)
    with pytest.raises(ValueError, match="was trained on other classes than"):
        _check_files(Path("step-1"), TrainSettings(dataset_name=name), first, second)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "settings.yaml").write_text(f"dataset_name: {name}\ndataset_revision: {fourth}\n")
    assert version(label_map_file="map.json") == fourth  # a resumed run, which takes the recorded commit


@pytest.mark.slow
def test_version_is_pinned_while_the_hub_has_a_newer_one(hub, images):
    source = open_imagenet()
    first = source.revision
    module = hub_conftest.LocalHub.__init__.__globals__
    newer = shards(list(range(130, 190)))
    images.commit("main", "other data", {name: module["Blob"](content, lfs=True) for name, content in newer.items()})
    assert sorted(read(source, 10)) == list(range(120))
    HfFileSystem.clear_instance_cache()
    assert open_imagenet().revision == images.refs["main"].oid != first
    pinned = open_imagenet(revision=first)
    assert pinned.revision == first
    assert sorted(read(pinned, 10)) == list(range(120))


def test_only_what_is_needed_is_downloaded(hub, images, files):
    total = sum(map(len, files.values()))
    source = open_imagenet()
    opened = sum(entry.sent for entry in hub.requests("GET", SHARDS))
    assert opened < total  # the ends of the files, of which arrow asks 64 kB at least
    hub.log.clear()
    read(source, 1, start=Position(4, 60))
    assert sum(entry.sent for entry in hub.requests("GET", SHARDS)) < 0.45 * total  # three streams, a group or two each
    hub.log.clear()
    read(source, 10, batch_size=4, world_size=3, rank=1)
    assert sum(entry.sent for entry in hub.requests("GET", SHARDS)) < 0.55 * total  # a third, and where streams are cut


def test_tars_of_the_hub_are_read_in_order_although_the_connection_is_cut(hub, images, tmp_path: Path):
    module = hub_conftest.LocalHub.__init__.__globals__
    tars = {}
    for shard, numbers in enumerate(np.array_split(np.arange(24), 2)):
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as tar:
            for k in numbers.tolist():
                for suffix, data in {"png": noisy(k), "cls": str(k).encode()}.items():
                    member = tarfile.TarInfo(f"{k:04d}.{suffix}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
        tars[f"train-{shard}.tar"] = buffer.getvalue()
        (tmp_path / f"train-{shard}.tar").write_bytes(buffer.getvalue())
    repository = module["Repository"]("datasets", "user/tars")
    repository.commit("main", "data", {name: module["Blob"](content, lfs=True) for name, content in tars.items()})
    hub.repositories["datasets", repository.name] = repository
    options = {"image_column": "png", "label_column": "cls", "class_names": NAMES}
    expected = read(open_images(str(tmp_path / "*.tar"), **options), 4)
    source = open_images("user/tars", **options)
    assert source.revision == repository.refs["main"].oid
    hub.cut("GET", r"resolve/.*tar$", after=9000, times=2)
    assert read(source, 4) == expected
    assert not any(fault.times for fault in hub.faults)


def test_gate_and_missing_names_are_one_line(hub, images):
    images.granted.clear()
    with pytest.raises(SourceError, match="^the data set ILSVRC/imagenet-1k cannot be read: .* is a gated dataset"):
        open_imagenet()
    with pytest.raises(
        SourceError, match="^the data set user/nothing cannot be read: .* the Hub has no data set of this name"
    ):
        open_images("user/nothing")


@pytest.mark.slow
def test_latents_are_extracted_from_the_hub_and_pushed_there_privately(hub, images, tmp_path: Path, monkeypatch):
    """The example, end to end; the latents train under their name on the Hub."""
    torch.manual_seed(0)
    vae = AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, latent_channels=2)
    vae.save_pretrained(tmp_path / "vae")
    specification = importlib.util.spec_from_file_location("extract_latents", EXAMPLE)
    example = importlib.util.module_from_spec(specification)
    monkeypatch.setitem(sys.modules, "extract_latents", example)
    specification.loader.exec_module(example)
    settings = {"dataset_name": "ILSVRC/imagenet-1k", "vae_name_or_path": str(tmp_path / "vae"), "resolution": 8}
    settings |= {"output_dir": str(tmp_path / "latents"), "num_workers": 1, "push_to_hub": True}
    hub.fail("POST", "/commit/", 503, times=1)
    example.run(example.ExtractSettings(**settings))
    pushed = hub.repository("user/latents", "datasets")
    assert pushed.private
    assert {"README.md", "latents.json", "data/train-00000-of-00001.parquet"} <= set(pushed.files())
    assert json.loads(pushed.files()["latents.json"])["source_revision"] == images.refs["main"].oid
    HfFileSystem.clear_instance_cache()
    source = open_images("user/latents")
    assert source.classes.names == NAMES
    assert source.latents.vae_sha256 == hash_vae(vae)
    assert sorted(read(source, 10)) == list(range(120))
    pushed.private = False
    with pytest.raises(ValueError, match="user/latents is public: pass --hub_private_repo false"):
        example.run(example.ExtractSettings(**settings))
