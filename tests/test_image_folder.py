"""The images of a folder as people have it: which files count, and to which class each belongs."""

import os
import unicodedata
from collections import Counter
from pathlib import Path

import pytest
from datasets import load_dataset
from PIL import Image

from dit_hf import images
from dit_hf.image_folder import OUTSIDE, ImageFolder, list_images


def fill(root: Path, *names: str) -> Path:
    """Write a file of each name: a picture where the suffix is one of Pillow's, else a few bytes."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix.lower() in (".png", ".jpg", ".jpeg", ".gif"):
            Image.new("RGB", (4, 4)).save(path)
        else:
            path.write_bytes(b"not a picture")
    return root


def classes(folder: ImageFolder) -> dict[str, str | None]:
    """The class of each image."""
    labels = folder.labels or [None] * len(folder.names)
    return {
        name: None if label is None else folder.class_names[label]
        for name, label in zip(folder.names, labels, strict=True)
    }


def test_folder_is_the_class_and_the_numbers_are_those_of_datasets(tmp_path: Path):
    names = [
        "cat/10.png",
        "cat/2.png",
        "cat 2/1.png",
        "Cat/1.PNG",
        "cat-x/1.jpg",
        "dog/a b.png",
        "dog/a.png",
        "é/1.gif",
    ]
    folder = list_images(fill(tmp_path, *names))
    rows = load_dataset(str(tmp_path), split="train")
    assert folder.class_names == rows.features["label"].names
    assert folder.labels == rows["label"]
    assert [str(path) for path in folder.paths] == [image.filename for image in rows["image"]]


def test_hidden_parts_shift_no_label_and_count_no_copy(tmp_path: Path):
    fill(
        tmp_path, "cat/1.png", "cat/.ipynb_checkpoints/1.png", "cat/._1.png", "dog/2.png", ".ipynb_checkpoints/x.png",
        "__MACOSX/._0.png", "__MACOSX/cat/0.png", ".thumbnails/t.png", ".DS_Store", "dog/__init__.png",
        "@eaDir/e.png", "dog/@eaDir/2.png/SYNOPHOTO_THUMB.jpg", "#recycle/r.png", "lost+found/l.png",
    )  # fmt: skip
    assert classes(list_images(tmp_path)) == {"cat/1.png": "cat", "dog/2.png": "dog"}
    assert list_images(tmp_path).left_out == {}


def test_hidden_folder_above_the_root_hides_nothing(tmp_path: Path):
    assert len(list_images(fill(tmp_path / ".cache" / "__photos", "cat/1.png")).names) == 1


def test_first_folder_is_the_class_however_deep_an_image_lies(tmp_path: Path):
    fill(tmp_path, "cat/1.png", "cat/2024/may/2.png", "dog/2024/3.png")
    assert classes(list_images(tmp_path)) == {"cat/1.png": "cat", "cat/2024/may/2.png": "cat", "dog/2024/3.png": "dog"}


def test_one_class_is_enough(tmp_path: Path):
    assert list_images(fill(tmp_path, "cat/1.png", "cat/2.png")).labels == [0, 0]


def test_picture_in_the_root_leaves_the_labels_as_they_are(tmp_path: Path):
    folder = list_images(fill(tmp_path, "cat/1.png", "dog/2.png", "cover.jpg"))
    assert folder.labels == [0, 1]
    assert folder.left_out == {OUTSIDE: 1}


def test_folder_whose_images_lie_in_its_root_has_no_classes(tmp_path: Path):
    folder = list_images(fill(tmp_path, "1.png", "2.png", "3.png", "grids/all.png"))
    assert folder.labels is None
    assert folder.names == ["1.png", "2.png", "3.png", "grids/all.png"]
    assert list_images(tmp_path / "grids").names == ["all.png"]
    (tmp_path / "nothing").mkdir()
    assert list_images(tmp_path / "nothing").names == []


def test_words_of_splits_in_names_make_no_split(tmp_path: Path):
    names = ["car/toy train.jpg", "bus/on_test.jpg", "train/val-1.jpg", "test/dev.jpg", "dev/1.jpg", "val/eval.jpg"]
    found = classes(list_images(fill(tmp_path, *names)))
    assert found == {name: name.split("/")[0] for name in names}


def test_other_files_are_left_out_by_suffix_and_number(tmp_path: Path):
    fill(
        tmp_path, "cat/1.png", "cat/1.txt", "cat/1.png.json", "cat/1.xml", "cat/README", "dog/2.png",
        *(f"dog/{k}.mp4" for k in range(5)), "dog/3.HEIC", "dog/4.jxl",
    )  # fmt: skip
    folder = list_images(tmp_path)
    expected = {".txt": 1, ".json": 1, ".xml": 1, ".mp4": 5, ".jxl": 1, "without a suffix": 1}
    if ".heic" in images.readable_suffixes():
        assert "dog/3.HEIC" in folder.names
    else:
        expected[".heic"] = 1
        assert "1 .heic (run `pip install pillow-heif`" in folder.describe()
    assert folder.left_out == expected
    assert f"{tmp_path}: " in folder.describe()
    assert "images of 2 classes: cat 1, dog " in folder.describe()
    assert "5 .mp4" in folder.describe()
    assert "1 .jxl (convert them to PNG or JPEG)" in folder.describe()


def test_directory_or_pipe_that_is_called_as_an_image_is_none(tmp_path: Path):
    fill(tmp_path, "cat/1.png", "cat/x.png/2.png")
    os.mkfifo(tmp_path / "cat" / "pipe.png")
    assert list_images(tmp_path).names == ["cat/1.png", "cat/x.png/2.png"]


def test_links_are_followed_but_not_in_circles(tmp_path: Path):
    fill(tmp_path, "elsewhere/1.png", "elsewhere/2.png", "photos/dog/3.png")
    photos = tmp_path / "photos"
    (photos / "cat").symlink_to(tmp_path / "elsewhere")
    (photos / "dog" / "4.png").symlink_to(tmp_path / "elsewhere" / "1.png")
    (photos / "dog" / "5.png").symlink_to(tmp_path / "is not there.png")
    (photos / "dog" / "6.png").symlink_to("6.png")
    (photos / "dog" / "all").symlink_to(photos)
    (photos / "bird").symlink_to(tmp_path / "elsewhere")  # two classes may share a folder
    assert Counter(classes(list_images(photos)).values()) == {"cat": 2, "bird": 2, "dog": 2}


def test_other_files_are_listed_by_name(tmp_path: Path):
    fill(tmp_path, "cat/1.png", "dog/2.png", "dog/photos.zip", "backup.zip", "cover.png", ".hidden")
    assert list_images(tmp_path).other_names == ["backup.zip", "cover.png", "dog/photos.zip"]
    assert list_images(tmp_path).archives == ["dog/photos.zip"]


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_class_names_are_in_one_form_of_unicode(tmp_path: Path, form: str):
    fill(tmp_path, unicodedata.normalize(form, "café/1.png"), unicodedata.normalize(form, "é/1.png"))
    assert list_images(tmp_path).class_names == ["café", "é"]


@pytest.mark.parametrize("name", ["[raw]", "a::b", "csv", "50% *off*?", "photos train"])
def test_no_character_of_a_path_has_a_meaning(tmp_path: Path, name: str):
    assert list_images(fill(tmp_path / name, "cat [1]/1.png", "a::b/2.png")).class_names == ["a::b", "cat [1]"]
