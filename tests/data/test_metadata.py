"""Files of metadata beside images, as people write them; the classes that they give are those of `datasets`."""

import json
import re
from pathlib import Path

import pytest
from PIL import Image

from dit_hf.data.sources import open_images


def fill(root: Path, text: str, *names: str, file: str = "metadata.csv", encoding: str = "utf-8") -> str:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(path)
    (root / file).write_text(text, encoding=encoding)
    return str(root)


def classes(name: str, class_names: list[str]) -> dict[str, str]:
    source = open_images(name, class_names=class_names)
    rows = source.read(0)
    return {Path(rows.key(k)).name: class_names[label] for k, label in enumerate(rows.labels)}


ROWS = "file_name,label\n1.png,cat\n2.png,dog\n"
FLAT, FOLDERS = ("1.png", "2.png"), ("a/1.png", "b/2.png")
REFUSED = {
    "semicolons": (ROWS.replace(",", ";"), FOLDERS, {}, "has semicolons between its columns: write commas"),
    "tabs": (ROWS.replace(",", "\t"), FLAT, {}, "has tabs between its columns"),
    "spaces": (ROWS.replace(",", ", "), FLAT, {}, "has spaces around its column ' label': remove them"),
    "latin-1": (ROWS.replace("dog", "caf\xe9"), FLAT, {"encoding": "latin-1"}, "is not in UTF-8, .*: save it in UTF-8"),
    "utf-16": (ROWS, FOLDERS, {"encoding": "utf-16"}, "is in UTF-16 or UTF-32"),
    "a list": (json.dumps([{"file_name": "1.png"}]), FLAT, {"file": "metadata.jsonl"}, "begins with no object: write"),
    "no JSON": ("file_name", FLAT, {"file": "metadata.jsonl"}, "metadata.jsonl is no JSON"),
    "a file that is missing": (ROWS + "3.png,cat\n", FLAT, {}, "3.png has a row, and there is no such file. Put it"),
    "two classes": (ROWS + "1.png,dog\n", FLAT, {}, "1.png has rows of the classes 'cat' and 'dog': remove one"),
}  # fmt: skip


@pytest.mark.parametrize("kind", REFUSED)
def test_metadata_that_would_be_misread_is_refused_before_training(tmp_path: Path, kind: str):
    text, names, options, message = REFUSED[kind]
    with pytest.raises(ValueError, match=message):
        open_images(fill(tmp_path, text, *names, **options), class_names=["cat", "dog"])


def test_words_of_splits_in_names_leave_no_image_out(tmp_path: Path):
    """`datasets` would make the splits "test" and "validation" of them."""
    names = [f"{k}.png" for k in range(10)] + ["toy train.png", "test_1.png", "val-2.png"]
    text = "file_name,label\n" + "".join(f"{name},{'dog' if ' ' in name else 'cat'}\n" for name in names)
    found = classes(fill(tmp_path, text, *names), ["cat", "dog"])
    assert found == {name: "dog" if " " in name else "cat" for name in names}


def test_rows_and_images_that_are_left_out_are_told(tmp_path: Path, caplog):
    fill(tmp_path, ROWS, "1.png", "2.png", "3.png")
    assert classes(str(tmp_path), ["cat", "dog"]) == {"1.png": "cat", "2.png": "dog"}
    assert f"images without a row, which are left out, such as {tmp_path / '3.png'}: 1 in all" in caplog.text
    source = open_images(str(tmp_path), class_names=["cat", "Dog"])
    assert source.description.splitlines() == [
        "1 image of 2 classes: cat 1, Dog 0",
        "left out, as rows of other labels: 1 (dog 1)",
    ]
    assert "the data set has no image of Dog: check the spelling" in caplog.text


@pytest.mark.parametrize(
    ("file", "text", "told"),
    [
        (
            "metadata.csv",
            ROWS.replace("label", "Class"),
            "the column 'Class' of .*metadata.csv is not used: set --label_col",
        ),
        ("Metadata.CSV", ROWS, "Metadata.CSV is not read: call it metadata.csv"),
    ],
)
def test_metadata_that_is_not_used_is_pointed_out(tmp_path: Path, file: str, text: str, told: str, caplog):
    source = open_images(fill(tmp_path, text, *FOLDERS, file=file))
    assert source.classes.names == ["a", "b"]
    assert re.search(told, caplog.text)
