"""Every kind of data set by name or path, its faults named, and the Hub's interruptions survived."""

import gzip
import io
import os
import tarfile
import time
from collections import Counter
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, IterableDataset
from datasets import Image as ImageFeature
from huggingface_hub.errors import HTTPError
from PIL import Image

from dit_hf import network
from dit_hf.data import retries
from dit_hf.data.labels import Classes
from dit_hf.data.retries import SourceError, retried
from dit_hf.data.sources import FilesSource, SequentialSource, open_images
from dit_hf.data.streaming import ImageBatch, ImageStream


def one_colour(k: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (10 * k, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def indices(batch: ImageBatch) -> list[int]:
    return ((batch.images[:, 0, 0, 0] + 1) * 12.75).round().int().tolist()


def read(source, count: int, **options) -> list[int]:
    options = {"batch_size": 1, "resolution": 8, "random_flip": False, **options}
    return [k for batch in islice(ImageStream(source, **options), count) for k in indices(batch)]


def shard_bytes(numbers: list[int], labels: list | None = None, row_group_size: int = 2) -> bytes:
    features = Features({"image": ImageFeature(), "label": ClassLabel(names=["a", "b", "c", "d"])})
    labels = labels or [k % 4 for k in numbers]
    rows = [
        {"image": {"bytes": one_colour(k), "path": None}, "label": label}
        for k, label in zip(numbers, labels, strict=True)
    ]
    table = Dataset.from_list(rows, features=features).data.table if rows else features.arrow_schema.empty_table()
    buffer = io.BytesIO()
    pq.write_table(table.cast(features.arrow_schema), buffer, row_group_size=row_group_size)
    return buffer.getvalue()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "data").mkdir()
    for shard, numbers in enumerate(([0, 1, 2, 3, 4], [], [5, 6, 7], [8])):  # the second is empty
        (tmp_path / "data" / f"train-{shard:05d}-of-00004.parquet").write_bytes(shard_bytes(numbers))
    return tmp_path


# ---- kinds of sources ------------------------------------------------------------------------------------------------


def test_uneven_and_empty_shards_are_read_whole(folder: Path):
    source = open_images(str(folder))
    assert source.group_sizes.tolist() == [2, 2, 1, 2, 1, 1]
    assert sorted(read(source, 9)) == list(range(9))


def test_pattern_of_files_is_a_data_set(folder: Path):
    assert sorted(read(open_images(str(folder / "data" / "*.parquet")), 9)) == list(range(9))


def test_parquet_without_the_note_of_datasets(tmp_path: Path):
    """Written by other tools: bytes, or {bytes, path}, and a number or a name."""
    images = [one_colour(k) for k in range(4)]
    for name, column in {
        "bytes": pa.array(images, pa.binary()),
        "struct": pa.array([{"bytes": image, "path": "x.png"} for image in images]),
    }.items():
        table = pa.table({"jpg": column, "cls": [0, 1, 0, 1], "name": ["a", "b", "a", "b"]})
        (tmp_path / name).mkdir()
        pq.write_table(table, tmp_path / name / "train.parquet")
        by_number = open_images(str(tmp_path / name), "train", "jpg", "cls", class_names=["even", "odd"])
        by_name = open_images(str(tmp_path / name), "train", "jpg", "name", class_names=["b"])
        assert sorted(read(by_number, 4)) == [0, 1, 2, 3]
        assert sorted(read(by_name, 2)) == [1, 3]


def write_tars(folder: Path, shards: list[list[int]]) -> None:
    for shard, numbers in enumerate(shards):
        with tarfile.open(folder / f"train-{shard:03d}.tar", "w") as tar:
            for k in numbers:
                for suffix, data in {"png": one_colour(k), "cls": str(k % 4).encode()}.items():
                    member = tarfile.TarInfo(f"{k:04d}.{suffix}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))


def test_webdataset_tars_are_exact_too_and_say_what_they_cost(tmp_path: Path, caplog):
    write_tars(tmp_path, [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9, 10, 11, 12]])
    names = ["a", "b", "c", "d"]

    def open_tars():
        return open_images(str(tmp_path / "*.tar"), "train", "png", "cls", class_names=names)

    source = open_tars()
    assert isinstance(source, SequentialSource)
    assert "no row groups: every process and worker reads all of its bytes" in caplog.text
    alone = list(islice(ImageStream(source, batch_size=4, resolution=8, window=5), 7))  # two epochs
    samples = [k for batch in alone for k in indices(batch)]
    for epoch in range(2):
        assert Counter(samples[13 * epoch : 13 * epoch + 13]) == Counter(range(13))
    assert samples[:13] != samples[13:26] != sorted(samples[13:26])
    for batch in alone:
        assert batch.class_labels.tolist() == [k % 4 for k in indices(batch)]
    resumed = ImageStream(open_tars(), batch_size=4, resolution=8, window=5, start=alone[3].next_position)
    workers = ImageStream(open_tars(), batch_size=4, resolution=8, window=5, num_workers=2)
    for others, expected in ((resumed, alone[4:]), (workers, alone)):
        for batch, whole in zip(others, expected, strict=False):
            torch.testing.assert_close(batch.images, whole.images, rtol=0, atol=0)
            assert batch.positions == whole.positions
            assert batch.next_position == whole.next_position
    ranks = [
        ImageStream(open_tars(), batch_size=2, resolution=8, window=5, rank=rank, world_size=2) for rank in range(2)
    ]
    for left, right, whole in zip(*ranks, alone, strict=False):
        assert sorted(indices(left) + indices(right)) == sorted(indices(whole))


def tar_of(path: Path, members: list[tuple[str, bytes]], end: bool = True) -> list[int]:
    """Write a tar, and return where the header of each member begins; without the end, it was cut at a member."""
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    with tarfile.open(path) as tar:
        headers = [member.offset for member in tar]
        size = tar.offset
    if not end:
        os.truncate(path, size)
    return headers


def samples(count: int) -> list[tuple[str, bytes]]:
    return [
        (f"{k:04d}.{suffix}", data)
        for k in range(count)
        for suffix, data in (("png", one_colour(k)), ("cls", str(k % 4).encode()))
    ]


def read_tar(path: Path, **options) -> list[int]:
    source = open_images(str(path), "train", "png", "cls", class_names=["a", "b", "c", "d"])
    return read(source, 20, batch_size=2, **options)


def test_truncated_tar_is_an_error_that_names_shard_and_row(tmp_path: Path):
    path = tmp_path / "train-000.tar"
    headers = tar_of(path, samples(20))
    os.truncate(path, headers[2 * 12] + 600)  # in the picture of row 12
    with pytest.raises(SourceError, match=r"^row 1[12] of .*/train-000.tar cannot be read: ReadError: unexpected end"):
        read_tar(path)
    os.truncate(path, headers[2 * 12] + 100)  # in its header
    with pytest.raises(SourceError, match=r"^row 1[12] of .*/train-000.tar cannot be read: ReadError: no header"):
        read_tar(path)
    with pytest.raises(SourceError, match="^row 1[12] of "):  # whole, out of a worker too
        read_tar(path, num_workers=1)


def test_tar_that_was_cut_between_two_members_is_an_error_and_not_a_short_shard(tmp_path: Path):
    tar_of(tmp_path / "train-000.tar", samples(20), end=False)
    with pytest.raises(SourceError, match=r"^row (19|20) of .*/train-000.tar cannot be read: ReadError: no header"):
        read_tar(tmp_path / "train-000.tar")


def test_damaged_header_in_the_middle_of_a_tar_is_an_error_and_not_its_end(tmp_path: Path):
    path = tmp_path / "train-000.tar"
    headers = tar_of(path, samples(20))
    content = bytearray(path.read_bytes())
    content[headers[2 * 15] + 148 : headers[2 * 15] + 156] = b"99999999"  # the checksum of row 15
    path.write_bytes(content)
    with pytest.raises(SourceError, match=r"^row 1[45] of .*/train-000.tar cannot be read: ReadError: no header"):
        read_tar(path)


def test_first_tar_that_cannot_be_read_is_named_when_the_data_are_opened(tmp_path: Path):
    path = tmp_path / "train-000.tar"
    tar_of(path, samples(3))
    os.truncate(path, 700)
    with pytest.raises(SourceError, match="first rows of .*/train-000.tar cannot be read: ReadError"):
        read_tar(path)


def test_compressed_tar_is_read_and_a_cut_one_named(tmp_path: Path):
    tar_of(tmp_path / "plain.tar", samples(20))
    whole = gzip.compress((tmp_path / "plain.tar").read_bytes())
    (tmp_path / "train.tar.gz").write_bytes(whole)
    assert sorted(read_tar(tmp_path / "train.tar.gz")[:20]) == list(range(20))
    (tmp_path / "train.tar.gz").write_bytes(whole[: len(whole) * 3 // 4])
    with pytest.raises(SourceError, match=r"row \d+ of .*/train.tar.gz cannot be read: |first rows of .*/train.tar.gz"):
        read_tar(tmp_path / "train.tar.gz")


def test_row_that_holds_an_address_or_a_missing_file_is_named(tmp_path: Path):
    features = Features({"image": ImageFeature(), "label": ClassLabel(names=["a"])})
    address = (
        "^row 0 of .*.parquet holds the address https://host/1.png instead of an image: download the images first$"
    )
    missing = "^row 0 of .*.parquet: .*gone.png cannot be read: FileNotFoundError"
    names = {"https://host/1.png?Signature=5ec7e7": address, str(tmp_path / "gone.png"): missing}
    for name, message in names.items():
        rows = [{"image": {"bytes": None, "path": name}, "label": 0}]
        table = pa.Table.from_pylist(rows, schema=features.arrow_schema)
        pq.write_table(table, tmp_path / "train.parquet")
        for options in ({}, {"num_workers": 1}):
            with pytest.raises(SourceError, match=message):
                read(open_images(str(tmp_path / "train.parquet")), 1, **options)


def test_folder_of_images_is_read_file_by_file(tmp_path: Path):
    for k in range(9):
        path = tmp_path / "train" / "abcd"[k % 4] / f"{k}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(one_colour(k))
    source = open_images(str(tmp_path))
    assert isinstance(source, FilesSource)
    assert source.classes.names == ["a", "b", "c", "d"]
    assert sorted(read(source, 9)) == list(range(9))
    (tmp_path / "train" / "b" / "5.png").unlink()
    with pytest.raises(SourceError, match=r"5\.png cannot be read: FileNotFoundError"):
        read(source, 9)


def test_subset_of_the_classes_reads_only_groups_that_have_them(folder: Path):
    source = open_images(str(folder), class_names=["a"])
    assert source.group_sizes.tolist() == [1, 1, 1]  # 0, 4, 8
    assert sorted(read(source, 3)) == [0, 4, 8]
    with pytest.raises(ValueError, match="has no class 'e'"):
        open_images(str(folder), class_names=["e"])


# ---- faults ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("label", "message"),
    [
        (None, "label None of row 1 of train-00000-of-00004.parquet is no class"),
        (7, "label 7 of row 1 of .* is outside the 4 classes"),
    ],
)
def test_wrong_label_is_an_error_at_its_sample(folder: Path, label, message: str):
    features = Features({"image": ImageFeature(), "label": ClassLabel(names=["a", "b", "c", "d"])})
    schema = features.arrow_schema
    table = pq.read_table(io.BytesIO(shard_bytes([0, 1])))
    table = table.set_column(1, schema.field("label"), pa.array([0, label], pa.int64())).cast(schema)
    pq.write_table(table, folder / "data" / "train-00000-of-00004.parquet")
    with pytest.raises(ValueError, match=message):
        read(open_images(str(folder)), 9)
    with pytest.raises(ValueError, match=f"^{message}"):
        read(open_images(str(folder)), 9, num_workers=1)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "train-00002-of-00004.parquet is no parquet file"),
        (b"PAR1 and then nothing", "is no parquet file"),
        (shard_bytes([5])[:-200], "is no parquet file"),
    ],
)
def test_damaged_shard_is_named_before_the_first_step(folder: Path, content: bytes, message: str):
    (folder / "data" / "train-00002-of-00004.parquet").write_bytes(content)
    with pytest.raises(SourceError, match=message):
        open_images(str(folder))


def test_shard_whose_column_is_renamed_is_named_before_the_first_step(folder: Path):
    path = folder / "data" / "train-00002-of-00004.parquet"
    pq.write_table(pq.read_table(path).rename_columns(["picture", "label"]), path)
    with pytest.raises(
        SourceError, match=r"00002-of-00004.parquet has no column 'image'; its columns are \['picture', 'label'\]"
    ):
        open_images(str(folder))


@pytest.mark.parametrize("change", [Path.unlink, lambda path: path.write_bytes(shard_bytes([1, 2, 3]))])
def test_shard_that_changes_under_us_is_named(folder: Path, change):
    source = open_images(str(folder))
    change(folder / "data" / "train-00002-of-00004.parquet")
    with pytest.raises(SourceError, match=r"train-00002-of-00004.parquet has changed or gone since the start"):
        read(source, 9)


def test_damaged_row_group_is_named(folder: Path):
    path = folder / "data" / "train-00000-of-00004.parquet"
    content = bytearray(path.read_bytes())
    content[10:60] = bytes(50)
    path.write_bytes(content)
    with pytest.raises(SourceError, match=r"row group 0 of .*train-00000-of-00004.parquet (is damaged|cannot be read)"):
        read(open_images(str(folder)), 9, max_bad_images=1.0)


def test_revision_of_local_files_changes_with_them_and_is_compared(folder: Path, tmp_path: Path):
    first = open_images(str(folder)).revision
    assert first.startswith("files-")
    assert open_images(str(folder), revision=first).revision == first
    (folder / "data" / "train-00003-of-00004.parquet").write_bytes(shard_bytes([8, 9]))
    with pytest.raises(ValueError, match=f"has changed: it was {first} and is files-"):
        open_images(str(folder), revision=first)


def test_data_set_that_is_not_there_is_one_line(tmp_path: Path):
    with pytest.raises(SourceError, match="the data set .*nothing cannot be read: there is no file or folder"):
        open_images(str(tmp_path / "nothing"))


# ---- retries ---------------------------------------------------------------------------------------------------------


def test_passing_errors_are_tried_again_with_growing_pauses_and_others_are_not(monkeypatch):
    pauses: list[float] = []
    monkeypatch.setattr(time, "sleep", pauses.append)
    answers = [ConnectionError("cut"), TimeoutError("slow"), "data"]

    def answer():
        found = answers.pop(0)
        if isinstance(found, Exception):
            raise found
        return found

    assert retried(answer, "shard") == "data"
    assert pauses == [1, 2]
    answers[:] = [PermissionError("no")]
    with pytest.raises(SourceError, match="shard cannot be read: PermissionError: no"):
        retried(answer, "shard")
    answers[:] = [ConnectionError("cut")] * 99
    with pytest.raises(SourceError, match=f"shard cannot be read after {retries.TRIES} tries: ConnectionError: cut"):
        retried(answer, "shard")
    assert max(pauses) <= network.LONGEST_PAUSE


def test_what_retries_say_holds_no_signature_of_an_address(monkeypatch, caplog):
    monkeypatch.setattr(time, "sleep", lambda seconds: None)

    def read():
        raise ConnectionError("503 for url 'https://cdn.example/x.parquet?X-Amz-Credential=A0&X-Amz-Signature=5ec7e7'")

    with pytest.raises(SourceError, match="x.parquet") as error:
        retried(read, "shard")
    assert "try 2 of" in caplog.text
    assert "5ec7e7" not in caplog.text + str(error.value)


@pytest.mark.parametrize("fault", [ConnectionError, HTTPError])
@pytest.mark.parametrize("times", [1, 3])
def test_rows_that_are_read_in_turn_go_on_where_they_were_cut_again_and_again(fault, times, monkeypatch):
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    faults = [150, 5, 5][:times]  # the row at which the network fails, once more while it is read up to there again

    def examples():
        for k in range(200):
            if faults and k == faults[0]:
                raise fault(f"cut at row {faults.pop(0)}")
            yield {"image": {"bytes": one_colour(k % 20), "path": None}, "label": k % 4}

    dataset = IterableDataset.from_generator(examples)
    source = SequentialSource(dataset, ["train.tar"], Classes(["a", "b", "c", "d"], {k: k for k in range(4)}, True))
    assert [numbers for _, _, numbers in source.rows(0)] == [(0, k) for k in range(200)]
    assert not faults
