"""Folders as people have them, and what a training makes of each: the rows of the table in docs/data.md."""

import csv
import io
import json
import logging
import os
import time
import unicodedata
import zipfile
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from datasets import ClassLabel, Dataset, Features
from datasets import Image as ImageFeature
from PIL import Image

from dit_hf.data.retries import SourceError
from dit_hf.data.sources import FilesSource, ParquetSource, open_images
from dit_hf.data.streaming import ImageStream
from dit_hf.evaluation.sources import open_batches
from dit_hf.images import HEIC_REMEDY, readable_formats


def picture(number: int = 0, format: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (number % 256, 0, 0)).save(buffer, format)
    return buffer.getvalue()


def fill(root: Path, *names: str) -> Path:
    """Write a picture under each name that ends as one, and a few bytes under any other."""
    for number, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(number + 1) if path.suffix.lower() in (".png", ".jpg") else b"not a picture")
    return root


def classes(name: str | Path, *arguments, **options) -> dict[str, str]:
    """The class of each image that a training would read."""
    source = open_images(str(name), *arguments, **options)
    assert isinstance(source, FilesSource)
    rows = source.read(0)
    assert all(rows.read(k) for k in range(len(rows)))
    return {rows.key(k): source.classes.names[label] for k, label in enumerate(rows.labels)}


def by_folder(*names: str) -> dict[str, str]:
    return {name: name.split("/")[0] for name in names}


SHAPES = {
    "words of splits in two files of 42": [
        *(f"cat/{k}.jpg" for k in range(20)), "cat/toy train.jpg",
        *(f"dog/{k}.jpg" for k in range(20)), "dog/on train.jpg",
    ],
    "a class called train": ["bus/1.jpg", "car/1.jpg", "train/1.jpg"],
    "classes called as splits are": ["dev/1.jpg", "test/1.jpg", "val/1.jpg"],
    "classes called train and test": ["test/1.jpg", "train/1.jpg"],
    "words of splits in all files": ["cat/test_1.jpg", "cat/val-2.jpg", "dog/dev 3.jpg", "dog/eval.4.jpg"],
    "one class": ["cat/1.jpg", "cat/2.jpg"],
    "several depths": ["cat/1.jpg", "cat/2024/may/2.jpg", "dog/2025/3.jpg"],
    "nested, one of them called train": ["car/1.jpg", "train/steam/2.jpg", "train/electric/3.jpg"],
    "spaces, brackets and colons": ["a::b/1 (2).jpg", "cat [raw]/2*.jpg", "dog?/3.jpg"],
    "suffixes in capitals": ["cat/1.JPG", "dog/2.PNG"],
}  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES)
def test_class_is_the_first_folder(tmp_path: Path, shape: str):
    assert classes(fill(tmp_path, *SHAPES[shape])) == by_folder(*SHAPES[shape])


OTHER_FILES = {
    "cover in the root": ["cover.jpg"],
    "folder of a file server": ["@eaDir/1.jpg", "cat/@eaDir/1.jpg/SYNOPHOTO_THUMB_XL.jpg"],
    "hidden": [".thumbnails/1.jpg", "cat/.ipynb_checkpoints/1.jpg", "__MACOSX/cat/._1.jpg", ".DS_Store"],
    "captions": ["cat/1.txt", "cat/2.txt", "dog/3.txt"],
    "sidecars": ["cat/1.jpg.json", "cat/1.xml", "dog/3.jpg.json", "dog/3.xmp"],
    "mostly films": [f"dog/{k}.mp4" for k in range(20)],
    "pictures that are not read": ["cat/1.jxl", "cat/2.jxl", "dog/1.cr2"],
    "a table": ["labels.parquet"],
    "a text with a name of metadata": ["notes/metadata.txt"],
    "a zip beside the class folders": ["backup.zip"],
}


@pytest.mark.parametrize("shape", OTHER_FILES)
def test_other_files_take_no_label_away(tmp_path: Path, shape: str):
    fill(tmp_path, "cat/1.jpg", "cat/2.jpg", "dog/3.jpg", *OTHER_FILES[shape])
    assert classes(tmp_path) == by_folder("cat/1.jpg", "cat/2.jpg", "dog/3.jpg")


def test_log_says_how_many_images_each_class_has_and_what_was_left_out(tmp_path: Path, caplog):
    fill(
        tmp_path,
        "cat/1.jpg",
        "cat/2.jpg",
        "dog/3.jpg",
        "dog/4.jxl",
        "dog/5.mp4",
        "dog/6.mp4",
        "cover.jpg",
        "dog/LICENSE",
    )
    source = open_images(str(tmp_path))
    assert source.description.splitlines() == [
        f"{tmp_path}: 3 images of 2 classes: cat 2, dog 1",
        "left out: 1 .jxl (convert them to PNG or JPEG), 2 .mp4, 1 outside the class folders, 1 without a suffix",
    ]
    assert "1 .jxl (convert them to PNG or JPEG)" in caplog.text  # a picture that is not read is worth a warning
    chosen = open_images(str(tmp_path), class_names=["dog"])
    assert chosen.description.splitlines()[-1] == "chosen: 1 image of 1 class: dog 1"


WITHOUT_SUFFIX = "they hold images: rename them to end with the suffix of their format, such as .jpg"
# name -> (files, how many of them are images of their folder, what the description says, what the log says)
TOLD = {
    "images without a suffix": (
        ["cat/1.jpg", "dog/IMG_2"], 1, f"left out: 1 without a suffix ({WITHOUT_SUFFIX})", "are no classes: dog",
    ),
    "downloads": (["cat/1.jpg", "cat/2.jpg?w=640", "cat/3.jpg.1"], 1, "1 .1, 1 .jpg?w=640 (they hold images", "rename"),
    "raw and other pictures": (["cat/1.jpg", "cat/2.PEF", "cat/3.dng", "cat/4.xcf"], 1, "1 .dng, 1 .pef, 1 .xcf (", ""),
    "class folders without images": (
        ["cat/1.jpg", "dog/2.mov", "fox/3.txt"], 1, "folders without images: dog, fox", "are no classes: dog, fox",
    ),
    "a class that is hidden": (["cat/1.jpg", "__all__/2.jpg", ".net/3.jpg"], 1, "hidden folders: .net, __all__", ""),
    "thumbnails of a file server": (["cat/1.jpg", "cat/@__thumb/2.jpg", "RECYCLER/3.jpg"], 1, "1 image of 1 class", ""),
    "many kinds of files": (
        ["cat/1.jpg", *(f"cat/log.{k}" for k in range(20))], 1, "8 files of 8 other kinds", "",
    ),
    "capitals": (["Cat/1.jpg", "cat/2.jpg"], 2, "Cat 1, cat 1", "2 classes whose names look alike: Cat, cat"),
    "letters of no width": (["cat/1.jpg", "cat\u200b/2.jpg"], 2, "2 classes", "2 classes whose names look alike"),
    "numbers": (["1/1.jpg", "2/2.jpg", "10/3.jpg"], 3, "1 1, 10 1, 2 1", "class '1' has the id 0. Ask for it"),
    "years": (["2023/1.jpg", "2024/2.jpg"], 2, "2023 1, 2024 1", ""),
}  # fmt: skip


@pytest.mark.parametrize("shape", TOLD)
def test_what_is_left_out_or_easily_confused_is_told(tmp_path: Path, shape: str, caplog):
    names, number, described, logged = TOLD[shape]
    fill(tmp_path, *names)
    for name in names:
        if "IMG" in name or ".jpg" in name:
            (tmp_path / name).write_bytes(picture())
    assert classes(tmp_path) == by_folder(*sorted(names[:number]))
    assert described in open_images(str(tmp_path)).description
    assert logged in caplog.text
    assert ("order of their names" in caplog.text) == (shape == "numbers")


def test_links_that_lead_nowhere_are_counted(tmp_path: Path, caplog):
    fill(tmp_path, "cat/1.jpg", "dog/2.jpg")
    for name, target in {"cat/2.jpg": "/nowhere", "fox": "/nowhere", "cat/up": "..", "self": "self"}.items():
        (tmp_path / name).symlink_to(target)
    os.mkfifo(tmp_path / "cat" / "3.jpg")
    assert classes(tmp_path) == by_folder("cat/1.jpg", "dog/2.jpg")
    assert open_images(str(tmp_path)).description.splitlines()[1] == (
        "left out: 3 behind broken links, 1 in a circle of links, 1 neither file nor folder"
    )


@pytest.mark.parametrize(("one", "other"), [("caf\xe9", "cafe\u0301"), ("cat", "cat "), ("cat", " cat")])
def test_folders_whose_names_look_alike_are_one_class(tmp_path: Path, one: str, other: str, caplog):
    fill(tmp_path, f"{one}/1.jpg", f"{other}/2.jpg", "dog/3.jpg")
    assert classes(tmp_path) == {f"{one}/1.jpg": one, f"{other}/2.jpg": one, "dog/3.jpg": "dog"}
    assert f"2 folders whose names look alike, as one class: {one}" in caplog.text


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (b"caf\xe9", r"the folder caf\\xe9 in .* is not in UTF-8: rename it, or all of them by `convmv -f latin1"),
        (b" ", "the folder ' ' in .* has no name for a class: rename it"),
        (b"two\nlines", r"the folder 'two\\nlines' in .* has no name for a class: rename it"),
    ],
)
def test_class_that_nobody_could_ask_for_is_refused(tmp_path: Path, name: bytes, message: str):
    fill(tmp_path, "dog/1.jpg")
    fill(tmp_path / os.fsdecode(name), "1.jpg")
    with pytest.raises(ValueError, match=message):
        open_images(str(tmp_path))


def test_file_names_of_another_encoding_are_images_like_any_other(tmp_path: Path):
    name = os.fsdecode(b"caf\xe9.jpg")
    fill(tmp_path / "cat", name, "2.jpg")
    assert set(classes(tmp_path).values()) == {"cat"}


def test_folder_that_may_not_be_read_is_named(tmp_path: Path):
    fill(tmp_path, "cat/1.jpg", "dog/2.jpg")
    (tmp_path / "dog").chmod(0)
    if os.access(tmp_path / "dog", os.R_OK):
        pytest.skip("this user reads every folder, as root does")
    try:
        with pytest.raises(SourceError, match=f"{tmp_path / 'dog'} cannot be read: PermissionError"):
            open_images(str(tmp_path))
    finally:
        (tmp_path / "dog").chmod(0o700)


def test_heic_is_read_or_named_with_the_remedy(tmp_path: Path, caplog, monkeypatch):
    pytest.importorskip("pillow_heif")
    fill(tmp_path, "cat/1.jpg")
    assert "HEIF" in readable_formats()
    Image.new("RGB", (16, 16), (200, 0, 0)).save(tmp_path / "cat" / "2.HEIC", "HEIF")
    assert classes(tmp_path) == by_folder("cat/1.jpg", "cat/2.HEIC")
    monkeypatch.setitem(__import__("sys").modules, "pillow_heif", None)  # as if it were not installed
    readable_formats.cache_clear()
    assert classes(tmp_path) == by_folder("cat/1.jpg")
    assert f"1 .heic ({HEIC_REMEDY})" in caplog.text
    monkeypatch.undo()
    readable_formats.cache_clear()


def test_class_folders_may_be_links(tmp_path: Path):
    fill(tmp_path, "disk/1.jpg", "disk/2.jpg", "photos/dog/3.jpg")
    (tmp_path / "photos" / "cat").symlink_to(tmp_path / "disk")
    assert classes(tmp_path / "photos") == by_folder("cat/1.jpg", "cat/2.jpg", "dog/3.jpg")


@pytest.mark.parametrize("name", ["[raw]", "a::b", "csv", "parquet", "imagefolder", "train", "50% off*"])
def test_folder_may_have_any_name(tmp_path: Path, name: str, monkeypatch):
    fill(tmp_path / name, "cat/1.jpg", "dog/2.jpg")
    expected = by_folder("cat/1.jpg", "dog/2.jpg")
    assert classes(tmp_path / name) == expected
    monkeypatch.chdir(tmp_path)
    assert classes(name) == expected
    assert classes(f"./{name}/") == expected
    assert classes((tmp_path / name).as_uri()) == expected  # file://, with its special characters as %5B


def test_class_names_of_macos_are_those_that_people_type(tmp_path: Path):
    fill(tmp_path, unicodedata.normalize("NFD", "café/1.jpg"), "dog/2.jpg")
    assert classes(tmp_path, class_names=["café"]) == {unicodedata.normalize("NFD", "café/1.jpg"): "café"}


# ---- splits ----------------------------------------------------------------------------------------------------------


def test_folders_of_splits_are_read_one_at_a_time(tmp_path: Path):
    fill(
        tmp_path, "train/cat/1.jpg", "train/dog/2.jpg", "val/cat/3.jpg", "test/cat/4.jpg", "test/dog/5.jpg", "cover.jpg"
    )
    assert classes(tmp_path) == by_folder("cat/1.jpg", "dog/2.jpg")
    assert classes(tmp_path, "test") == by_folder("cat/4.jpg", "dog/5.jpg")
    assert classes(tmp_path, "validation") == by_folder("cat/3.jpg")
    with pytest.raises(ValueError, match="holds the splits test, train, validation, and none of them is 'other'"):
        open_images(str(tmp_path), "other")


def test_folder_of_one_split_only(tmp_path: Path):
    fill(tmp_path, "train2017/cat/1.jpg", "train2017/dog/2.jpg")
    assert classes(tmp_path) == by_folder("cat/1.jpg", "dog/2.jpg")


SPLIT_SHAPES = {
    "images of the test without classes": ["train/cat/1.jpg", "test/2.jpg", "test/3.jpg", "test/4.jpg"],
    "more than splits": ["train/cat/1.jpg", "test/cat/2.jpg", "unlabeled/3.jpg", "unlabeled/4.jpg"],
    "one folder among several splits": ["train/cat/1.jpg", "val/cat/2.jpg", "validation/cat/3.jpg"],
}


@pytest.mark.parametrize("shape", SPLIT_SHAPES)
def test_splits_are_known_beside_other_folders(tmp_path: Path, shape: str, caplog):
    assert classes(fill(tmp_path, *SPLIT_SHAPES[shape])) == by_folder("cat/1.jpg")
    assert ("beside which these folders are left out: unlabeled" in caplog.text) == (shape == "more than splits")


def test_split_without_some_class_has_the_ids_of_the_others(tmp_path: Path, caplog):
    fill(tmp_path, "train/cat/1.jpg", "train/dog/2.jpg", "train/fox/3.jpg", "test/dog/4.jpg", "test/fox/5.jpg")
    source = open_images(str(tmp_path), "test")
    assert source.classes.names == ["cat", "dog", "fox"]
    assert source.read(0).labels == [1, 2]
    assert "the data set has no image of cat" in caplog.text


def test_several_folders_of_a_split_are_not_read_for_one(tmp_path: Path):
    fill(tmp_path, "train_1/cat/1.jpg", "train_2/dog/2.jpg")
    with pytest.raises(ValueError, match="several folders of the split 'train': train_1, train_2. Move their images"):
        open_images(str(tmp_path))
    with pytest.raises(ValueError, match="several folders of the split 'train'"):
        open_batches(str(tmp_path))
    assert classes(tmp_path / "train_1") == by_folder("cat/1.jpg")


def test_split_that_is_asked_for_and_is_no_folder_means_what_datasets_means(tmp_path: Path):
    fill(tmp_path, "cat/test_1.jpg", "cat/2.jpg", "dog/test_3.jpg", "dog/4.jpg")
    assert classes(tmp_path, "test") == by_folder("cat/test_1.jpg", "dog/test_3.jpg")


def test_classes_that_are_called_as_splits_are_and_a_folder_too_many_are_pointed_out(tmp_path: Path, caplog):
    open_images(str(fill(tmp_path / "a", "train/1.jpg", "test/2.jpg")))
    assert "the classes of" in caplog.text
    assert "are called as splits are: test, train" in caplog.text
    caplog.clear()
    open_images(str(fill(tmp_path / "b", "photos/cat/1.jpg", "photos/dog/2.jpg")))
    assert f"if the folders in it are the classes, pass {tmp_path / 'b' / 'photos'}" in caplog.text


# ---- what `datasets` reads -------------------------------------------------------------------------------------------


def metadata(path: Path, rows: list[dict]) -> None:
    if path.suffix == ".csv":
        with open(path, "w", newline="") as file:
            writer = csv.DictWriter(file, rows[0].keys())
            writer.writeheader()
            writer.writerows(rows)
    elif path.suffix == ".jsonl":
        path.write_text("\n".join(map(json.dumps, rows)))
    else:
        pq.write_table(pa.Table.from_pylist(rows), path)


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_metadata_with_captions_leaves_the_labels_to_the_folders(tmp_path: Path, suffix: str):
    fill(tmp_path, "cat/1.jpg", "dog/2.jpg")
    rows = [{"file_name": "cat/1.jpg", "text": "a cat"}, {"file_name": "dog/2.jpg", "text": "a dog, asleep"}]
    metadata(tmp_path / f"metadata.{suffix}", rows)
    assert classes(tmp_path) == by_folder("cat/1.jpg", "dog/2.jpg")


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_metadata_with_labels_means_what_datasets_means(tmp_path: Path, suffix: str):
    fill(tmp_path, "a/1.jpg", "a/2.jpg", "b/3.jpg")
    rows = [{"file_name": name, "label": label} for name, label in (("a/1.jpg", 1), ("a/2.jpg", 0), ("b/3.jpg", 1))]
    metadata(tmp_path / f"metadata.{suffix}", rows)
    found = classes(tmp_path, class_names=["cold", "warm"])
    assert {Path(name).name: label for name, label in found.items()} == {
        "1.jpg": "warm",
        "2.jpg": "cold",
        "3.jpg": "warm",
    }
    metadata(tmp_path / f"metadata.{suffix}", [{**row, "kind": "x"} for row in rows])
    assert set(classes(tmp_path, label_column="kind", class_names=["x"]).values()) == {"x"}


def shard() -> bytes:
    features = Features({"image": ImageFeature(), "label": ClassLabel(names=["a", "b"])})
    rows = [{"image": {"bytes": picture(k), "path": None}, "label": k % 2} for k in range(4)]
    buffer = io.BytesIO()
    Dataset.from_list(rows, features=features).to_parquet(buffer)
    return buffer.getvalue()


def test_folder_of_shards_with_some_pictures_is_a_folder_of_shards(tmp_path: Path):
    fill(tmp_path, "assets/logo.png")
    (tmp_path / "data").mkdir()
    for k in range(2):
        (tmp_path / "data" / f"train-0000{k}-of-00002.parquet").write_bytes(shard())
    assert isinstance(open_images(str(tmp_path)), ParquetSource)
    # as a repository of the Hub that was cloned: its card names the files
    fill(tmp_path, "assets/1.png", "assets/2.png", "assets/3.png")
    card = (
        "---\nconfigs:\n- config_name: default\n  data_files:\n  - split: train\n    path: data/train-*\n---\n# Data\n"
    )
    (tmp_path / "README.md").write_text(card)
    assert isinstance(open_images(str(tmp_path)), ParquetSource)


@pytest.mark.parametrize(
    "names",
    [
        ("train.parquet", "preview.png"),
        ("data/train.parquet", "preview/1.png"),
        ("train.parquet", "1.png", "2.png", "3.png"),
        ("data/train-00000-of-00001.parquet", "previews/1.png", "previews/2.png", "previews/3.png"),
    ],
)
def test_one_shard_beside_pictures_of_it_is_a_folder_of_shards(tmp_path: Path, names: tuple[str, ...]):
    fill(tmp_path, *names[1:])
    (tmp_path / names[0]).parent.mkdir(exist_ok=True)
    (tmp_path / names[0]).write_bytes(shard())
    assert isinstance(open_images(str(tmp_path)), ParquetSource)


def test_table_beside_class_folders_leaves_them_what_they_are(tmp_path: Path):
    fill(tmp_path, "cat/1.png", "cat/2.png", "dog/1.png")
    (tmp_path / "embeddings.parquet").write_bytes(shard())
    assert classes(tmp_path) == by_folder("cat/1.png", "cat/2.png", "dog/1.png")


# ---- patterns --------------------------------------------------------------------------------------------------------


def test_pattern_of_image_files_has_the_classes_of_their_folders(tmp_path: Path, monkeypatch):
    fill(tmp_path, "photos/cat/1.jpg", "photos/cat/2.png", "photos/dog/3.jpg", "photos/dog/old/4.jpg")
    assert classes(tmp_path / "photos/*/*.jpg") == by_folder("cat/1.jpg", "dog/3.jpg")
    assert classes(tmp_path / "photos/**/*.jpg") == by_folder("cat/1.jpg", "dog/3.jpg", "dog/old/4.jpg")
    assert classes(tmp_path / "photos/cat/*.png") == by_folder("cat/2.png")
    assert classes(tmp_path / "photos/*/*") == by_folder("cat/1.jpg", "cat/2.png", "dog/3.jpg")
    assert classes(tmp_path / "photos/**") == by_folder("cat/1.jpg", "cat/2.png", "dog/3.jpg", "dog/old/4.jpg")
    assert classes(tmp_path / "photos/*/*.[jJ]*") == by_folder("cat/1.jpg", "dog/3.jpg")
    with pytest.raises(ValueError, match=f"fits folders and no files: pass {tmp_path / 'photos'}, or a pattern"):
        open_images(str(tmp_path / "photos/*"))
    monkeypatch.chdir(tmp_path / "photos")
    assert classes("*/*.jpg") == by_folder("cat/1.jpg", "dog/3.jpg")
    monkeypatch.chdir("cat")
    assert classes("*.jpg") == by_folder("cat/1.jpg")
    with pytest.raises(ValueError, match="have no splits: leave out --dataset_split test"):
        open_images(str(tmp_path / "photos/*/*.jpg"), "test")


def test_patterns_of_arrow_and_of_files_without_a_suffix_in_the_pattern(tmp_path: Path):
    features = Features({"image": ImageFeature(), "label": ClassLabel(names=["a", "b"])})
    rows = [{"image": {"bytes": picture(k), "path": None}, "label": k % 2} for k in range(4)]
    Dataset.from_list(rows, features=features).save_to_disk(tmp_path / "arrow")
    (tmp_path / "train-00000.parquet").write_bytes(shard())
    for pattern in ("arrow/*.arrow", "train-*", "train-00000.parquet"):
        source = open_images(str(tmp_path / pattern))
        batch = next(iter(ImageStream(source, batch_size=4, resolution=8, random_flip=False)))
        assert sorted(batch.class_labels.tolist()) == [0, 0, 1, 1]


# ---- refusals --------------------------------------------------------------------------------------------------------


def zipped(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("cat/1.png", picture())


@pytest.mark.parametrize("name", ["dog/photos.zip", "dog/old/photos.ZIP", "dog/photos.tar", "fox/photos.tar.gz"])
def test_archive_in_a_class_folder_is_refused_with_the_remedy(tmp_path: Path, name: str):
    fill(tmp_path, "cat/1.jpg", "dog/2.jpg", "dog/old/3.jpg", "fox/3.txt")
    zipped(tmp_path / name)
    with pytest.raises(
        ValueError, match="is an archive in a class folder: unpack it there if its images are of this class"
    ):
        open_images(str(tmp_path))


def test_images_without_class_folders_are_refused_with_the_remedy(tmp_path: Path):
    fill(tmp_path, "1.jpg", "2.jpg", "3.jpg", "sheets/all.jpg")
    with pytest.raises(
        ValueError, match="holds 3 images outside of class folders and 1 in them: put the images of each"
    ):
        open_images(str(tmp_path))


def test_folder_whose_pictures_are_all_of_a_kind_that_is_not_read_names_the_remedy(tmp_path: Path):
    fill(tmp_path, "cat/1.jxl", "dog/2.jxl", "dog/2.txt")
    with pytest.raises(ValueError, match=r"holds no image that is read, but 2 .jxl \(convert them to PNG or JPEG\)"):
        open_images(str(tmp_path))


EMPTY = {
    "nothing": ([], "holds no image: pass a folder of images"),
    "films": (["cat/1.mp4", "dog/2.mov"], "holds no image, but 1 .mp4, 1 .mov: pass a folder of images"),
    "texts": (["cat/1.txt", "dog/2.txt"], "holds no image, but 2 .txt: pass a folder of images"),
    "archives of classes": (
        ["cat/cat.zip", "dog/dog.7z"],
        "holds no image, but 2 archives such as cat/cat.zip: unpack",
    ),
    "one archive": (["photos.tar.gz"], "holds no image, but 1 archive such as photos.tar.gz: unpack"),
    "images without a suffix": (["cat/IMG"], "holds no image that is read, but 1 without a suffix .they hold images"),
}


@pytest.mark.parametrize("shape", EMPTY)
def test_folder_without_images_is_refused_with_what_it_holds(tmp_path: Path, shape: str):
    names, message = EMPTY[shape]
    for path in (tmp_path / name for name in names):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture() if path.name == "IMG" else b"")
    with pytest.raises(ValueError, match=message):
        open_images(str(tmp_path))


@pytest.mark.parametrize("name", ["", "  "])
def test_blank_name_is_not_the_folder_that_one_is_in(name: str):
    with pytest.raises(ValueError, match="is blank: name a folder"):
        open_images(name)


def test_folder_has_no_configurations(tmp_path: Path):
    with pytest.raises(ValueError, match="dataset_config_name='default': the folder .* has no configurations"):
        open_images(str(fill(tmp_path, "cat/1.jpg")), config_name="default")


def test_single_file_that_is_no_data_set_is_refused_with_the_remedy(tmp_path: Path):
    fill(tmp_path, "1.jpg")
    zipped(tmp_path / "photos.zip")
    with pytest.raises(
        ValueError, match="photos.zip is a file that ends with none of .*: unpack it, and pass the folder"
    ):
        open_images(str(tmp_path / "photos.zip"))
    with pytest.raises(ValueError, match="1.jpg is a file that ends with none of .*: pass a folder"):
        open_images(str(tmp_path / "1.jpg"))


def test_folder_of_another_kind_whose_path_datasets_would_misread_is_refused(tmp_path: Path):
    (tmp_path / "[raw]").mkdir()
    (tmp_path / "[raw]" / "train.parquet").write_bytes(shard())
    with pytest.raises(ValueError, match=r"holds '\[', which has a meaning for `datasets`: rename or move the folder"):
        open_images(str(tmp_path / "[raw]"))


@pytest.mark.parametrize(
    "name",
    ["./photos/pest", "./photo", "photos/pets/", "../nothing/here", "photos/*.parquet", "nothing/at/all", "~/no-such"],
)
def test_mistyped_path_is_told_at_once(tmp_path: Path, name: str, monkeypatch):
    fill(tmp_path, "photos/cats/1.jpg", "photos/pest control/2.jpg")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(time, "sleep", lambda seconds: pytest.fail("waited for the network"))
    with pytest.raises(SourceError, match="there is no file or folder ") as error:
        open_images(name)
    if name == "./photos/pest":
        assert str(error.value).endswith(f"{tmp_path / 'photos'} holds cats, pest control")
    assert "Hub" not in str(error.value)


@pytest.mark.parametrize("name", ["fotos", "fotos/pets", "photos/pets"])
def test_name_that_may_be_on_the_hub_is_looked_for_there_once(tmp_path: Path, name: str, monkeypatch):
    (tmp_path / "photos").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.hf_api.api.endpoint", "http://127.0.0.1:9")  # nobody answers there
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(time, "sleep", lambda seconds: pytest.fail("waited for the network"))
    expected = (
        f"there is no file or folder {name}: .*; the Hub, which may have a data set of this name, cannot be reached"
    )
    with pytest.raises(SourceError, match=expected):
        open_images(name)


# ---- pixels ----------------------------------------------------------------------------------------------------------


def test_folder_and_parquet_of_the_same_files_give_equal_batches(tmp_path: Path):
    """Kinds that readers disagree about: 16 bits, alpha, palettes, a turned picture, CMYK."""
    kinds = {
        "16 bits.png": Image.fromarray(np.arange(0, 65536, 1024, dtype=np.uint16).reshape(8, 8)),
        "alpha.png": Image.linear_gradient("L").resize((8, 8)).convert("LA"),
        "cmyk.jpg": Image.linear_gradient("L").resize((8, 8)).convert("CMYK"),
        "black and white.png": Image.linear_gradient("L").resize((8, 8)).convert("1"),
        "turned.png": Image.linear_gradient("L").resize((8, 8)),
        "palette.png": Image.linear_gradient("L").resize((8, 8)).convert("P"),
    }
    exif = Image.Exif()
    exif[0x0112] = 6
    rows = []
    for label, (name, image) in enumerate(sorted(kinds.items())):
        path = tmp_path / "photos" / f"{label}" / name
        path.parent.mkdir(parents=True)
        options = {"exif": exif} if name == "turned.png" else {"transparency": 3} if name == "palette.png" else {}
        image.save(path, **options)
        rows.append({"image": {"bytes": path.read_bytes(), "path": None}, "label": label})
    features = Features({"image": ImageFeature(), "label": ClassLabel(names=[str(k) for k in range(len(rows))])})
    Dataset.from_list(rows, features=features).to_parquet(tmp_path / "photos.parquet")
    streams = [
        ImageStream(open_images(str(tmp_path / name)), batch_size=4, resolution=8)
        for name in ("photos", "photos.parquet")
    ]
    for folder, parquet in islice(zip(*streams, strict=True), 6):
        assert torch.equal(folder.images, parquet.images)
        assert torch.equal(folder.class_labels, parquet.class_labels)


def test_order_of_a_folder_is_that_of_its_sorted_paths(tmp_path: Path):
    """The order of training follows from it: a folder gives the batches that it always gave."""
    names = ["cat/10.jpg", "cat/2.jpg", "cat 2/1.jpg", "cat-x/1.jpg", "dog/a.jpg", "dog/a b.jpg"]
    source = open_images(str(fill(tmp_path, *names)))
    assert [source.read(0).key(k) for k in range(6)] == sorted(names)


# ---- versions --------------------------------------------------------------------------------------------------------


def revisions(root: Path, change) -> tuple[str, str]:
    before = open_images(str(root)).revision
    change(root)
    return before, open_images(str(root)).revision


@pytest.mark.parametrize(
    "change",
    [
        lambda root: fill(root, "cat/new.jpg"),
        lambda root: (root / "cat" / "1.jpg").unlink(),
        lambda root: (root / "cat" / "1.jpg").write_bytes(picture(77)),  # of the same size
        lambda root: (root / "cat" / "1.jpg").rename(root / "cat" / "0.jpg"),
        lambda root: (root / "cat" / "1.jpg").rename(root / "dog" / "1.jpg"),
        lambda root: (root / "dog").rename(root / "wolf"),
    ],
    ids=["added", "removed", "replaced", "renamed", "moved", "class renamed"],
)
def test_every_change_of_a_folder_changes_its_version(tmp_path: Path, change):
    fill(tmp_path, "cat/1.jpg", "cat/2.jpg", "dog/3.jpg", "dog/4.jpg")
    assert len(picture(77)) == len(picture(1))
    before, after = revisions(tmp_path, change)
    assert before.startswith("files-")
    assert before != after
    with pytest.raises(ValueError, match=f"has changed: it was {before} and is {after}"):
        open_images(str(tmp_path), revision=before)


def test_what_is_no_image_and_where_the_folder_lies_change_no_version(tmp_path: Path):
    fill(tmp_path / "a", "cat/1.jpg", "dog/2.jpg")
    os.utime(tmp_path / "a" / "cat" / "1.jpg", (0, 0))

    def change(root: Path) -> None:
        fill(root, "cat/1.txt", "cover.jpg", "__pycache__/x.jpg")
        os.utime(root / "cat" / "1.jpg")

    before, after = revisions(tmp_path / "a", change)
    assert before == after
    (tmp_path / "a").rename(tmp_path / "b")
    assert open_images(str(tmp_path / "b")).revision == before


def test_description_reaches_the_log_of_no_one_by_itself(tmp_path: Path, caplog):
    """Every process opens the data; the trainer logs the description once."""
    with caplog.at_level(logging.INFO):
        open_images(str(fill(tmp_path, "cat/1.jpg")))
    assert "images of" not in caplog.text
