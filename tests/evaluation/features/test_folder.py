"""A folder gives the pixels and labels that its files have: those of a parquet of the same files, and of `datasets`."""

import json
from pathlib import Path

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features, load_dataset
from datasets import Image as ImageFeature
from PIL import Image

from dit_hf.evaluation import folder_batches
from dit_hf.evaluation.sources import SourceOptions, open_batches

EXIF_TURNED = (
    b"Exif\x00\x00MM\x00*\x00\x00\x00\x08\x00\x01\x01\x12\x00\x03\x00\x00\x00\x01\x00\x06\x00\x00\x00\x00\x00\x00"
)


def save_all(folder: Path, pictures: np.ndarray, *names: str) -> None:
    """Save the first pictures under the names, and make folders for the others."""
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pictures[number]).save(folder / name, format="PNG")


def write_rows(folder: Path, *rows: dict) -> None:
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_images_come_in_the_order_of_paths_and_folders_are_classes(tmp_path, pictures, joined):
    save_all(tmp_path, pictures, "b/0.png", "a/1.png", "a/0.png", "b/x/1.png")
    (tmp_path / "notes.txt").write_text("no image")
    batches = folder_batches(tmp_path, batch_size=3)
    images, labels = joined(batches)
    np.testing.assert_array_equal(images, pictures[[2, 1, 0, 3]])
    assert labels.tolist() == batches.labels.tolist() == [0, 0, 1, 1]
    assert batches.class_names == ["a", "b"]


def test_flat_folder_has_no_labels_and_an_empty_one_is_refused(tmp_path, pictures, joined):
    save_all(tmp_path, pictures, "0.png")
    assert joined(folder_batches(tmp_path))[1] is None
    with pytest.raises(ValueError, match="holds no image"):
        folder_batches(tmp_path / "nowhere")


# --- pixels ------------------------------------------------------------------------------------------------------

GREY = np.random.default_rng(0).integers(0, 256, (6, 9), dtype=np.uint8)
RGB = np.random.default_rng(1).integers(0, 256, (6, 9, 3), dtype=np.uint8)
ALPHA = np.random.default_rng(2).integers(0, 256, (6, 9), dtype=np.uint8)


def on_white(colour: np.ndarray) -> np.ndarray:
    share = ALPHA[..., None] / 255
    return colour * share + 255 * (1 - share)


def save_palette(path: Path) -> None:
    image = Image.fromarray((GREY % 3).astype(np.uint8), mode="P")
    image.putpalette([200, 0, 0, 0, 200, 0, 0, 0, 200])
    image.save(path, transparency=1)


PALETTE = np.array([[200, 0, 0], [255, 255, 255], [0, 0, 200]])
# What is saved -> the pixels it stands for.
PIXELS = {
    "grey of 16 bits.png": (lambda path: Image.fromarray(GREY.astype(np.uint16) * 257).save(path), GREY[..., None]),
    "grey of 16 bits.tif": (lambda path: Image.fromarray(GREY.astype(np.uint16) * 257).save(path), GREY[..., None]),
    "integers.tif": (lambda path: Image.fromarray(GREY.astype(np.int32) * 257).save(path), GREY[..., None]),
    "floats.tif": (lambda path: Image.fromarray((GREY / 255).astype(np.float32)).save(path), GREY[..., None]),
    "rgba.png": (lambda path: Image.fromarray(np.dstack([RGB, ALPHA])).save(path), on_white(RGB)),
    "la.png": (lambda path: Image.fromarray(np.dstack([GREY, ALPHA]), "LA").save(path), on_white(GREY[..., None])),
    "palette.png": (save_palette, PALETTE[GREY % 3]),
    "turned.png": (lambda path: Image.fromarray(RGB).save(path, exif=EXIF_TURNED), np.rot90(RGB, -1)),
}


@pytest.mark.parametrize("name", PIXELS)
def test_every_form_gives_the_pixels_that_it_stands_for(tmp_path, joined, name):
    save, expected = PIXELS[name]
    save(tmp_path / name)
    [image], _ = joined(folder_batches(tmp_path))
    expected = np.broadcast_to(expected, (*expected.shape[:2], 3))
    np.testing.assert_allclose(image, expected, atol=1)  # Pillow composites in whole numbers
    if "rgba" not in name and "la" not in name:
        np.testing.assert_array_equal(image, expected)


def test_folder_and_parquet_of_the_same_files_give_the_same_bytes(tmp_path, joined):
    folder, labels = tmp_path / "folder", [0, 0, 0, 1, 1, 1, 1]
    paths = [folder / ("cat", "dog")[label] / name for label, name in zip(labels, sorted(PIXELS)[:-1], strict=True)]
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        PIXELS[path.name][0](path)
    features = Features({"image": ImageFeature(), "label": ClassLabel(names=["cat", "dog"])})
    rows = [
        {"image": {"bytes": path.read_bytes(), "path": None}, "label": label}
        for path, label in zip(paths, labels, strict=True)
    ]
    (tmp_path / "parquet").mkdir()
    Dataset.from_list(rows, features=features).to_parquet(tmp_path / "parquet" / "train.parquet")
    (images, read), (images_of_rows, read_of_rows) = (
        joined(open_batches(str(tmp_path / name), SourceOptions(batch_size=3))) for name in ("folder", "parquet")
    )
    assert images.tobytes() == images_of_rows.tobytes()
    assert read.tolist() == read_of_rows.tolist() == labels


def test_truncated_file_among_many_is_named(tmp_path, pictures):
    save_all(tmp_path, pictures, *(f"{number:02d}.png" for number in range(20)))
    damaged = tmp_path / "13.png"
    damaged.write_bytes(damaged.read_bytes()[:-60])
    with pytest.raises(ValueError, match=r"13\.png: .* no whole image"):
        list(folder_batches(tmp_path, batch_size=8))
    damaged.write_bytes(b"")
    with pytest.raises(ValueError, match=r"13\.png: no bytes"):
        list(folder_batches(tmp_path, batch_size=8))


def test_images_of_several_sizes_need_preparation(tmp_path, pictures, joined):
    save_all(tmp_path, pictures, "0.png")
    Image.fromarray(pictures[1]).resize((10, 12)).save(tmp_path / "1.png")
    with pytest.raises(ValueError, match=r"sizes \(8, 8\) and \(10, 12\): name a resolution"):
        list(folder_batches(tmp_path))
    images, _ = joined(folder_batches(tmp_path, prepare=lambda image: image.resize((4, 4))))
    assert images.shape == (2, 4, 4, 3)


# --- labels ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "extra",
    [
        ".ipynb_checkpoints/x.png",
        "cat/.ipynb_checkpoints/0.png",
        "__MACOSX/._0.png",
        "__MACOSX/cat/._0.png",
        ".thumbnails/0.png",
        ".DS_Store",
        "cat/.DS_Store",
        "dog/Thumbs.db",
        "dog/x.png/",
        "x.png/",
    ],
)
def test_labels_are_those_of_datasets_whatever_else_lies_about(tmp_path, pictures, joined, extra):
    save_all(tmp_path, pictures, "cat/0.png", "cat/1.png", "dog/0.png", "dog/1.png")
    if extra.endswith("/"):
        (tmp_path / extra).mkdir()
    elif extra.endswith(".png"):
        save_all(tmp_path, pictures[4:], extra)
    else:
        (tmp_path / extra).write_bytes(b"\0\0\0\1Bud1")
    images, labels = joined(folder_batches(tmp_path))
    theirs = load_dataset(
        "imagefolder", data_dir=str(tmp_path), split="train", cache_dir=str(tmp_path.parent / "cache")
    )
    assert labels.tolist() == theirs["label"][:] == [0, 0, 1, 1]
    assert images.tobytes() == b"".join(np.asarray(image).tobytes() for image in theirs["image"])


def test_images_that_are_left_out_are_warned_of(tmp_path, pictures, joined):
    save_all(tmp_path, pictures, "cat/0.png", "dog/0.png", "cover.png")
    with pytest.warns(UserWarning, match="2 images of 2 classes: cat 1, dog 1\nleft out: 1 outside the class folders"):
        batches = folder_batches(tmp_path)
    assert joined(batches)[1].tolist() == [0, 1]


def test_folder_that_was_generated_keeps_its_labels(tmp_path, pictures, joined):
    save_all(tmp_path, pictures, "0.png", "1.png")
    write_rows(tmp_path, {"file_name": "1.png", "label": 5}, {"file_name": "./0.png", "label": 7})
    images, labels = joined(folder_batches(tmp_path))
    assert labels.tolist() == [7, 5]
    theirs = load_dataset("imagefolder", data_dir=str(tmp_path), split="train")  # in the order of the rows
    assert {image.tobytes(): label for image, label in zip(images, labels, strict=True)} == {
        np.asarray(row["image"]).tobytes(): row["label"] for row in theirs
    }
    write_rows(tmp_path, {"file_name": "0.png", "text": "a cat"})
    assert joined(folder_batches(tmp_path))[1] is None


def test_labels_may_be_names_or_digits_and_lie_in_a_table(tmp_path, pictures, joined):
    save_all(tmp_path, pictures, "0.png", "1.png", "2.png")
    names = {"0.png": "dog", "1.png": "a, b", "2.png": "dog"}
    write_rows(tmp_path, *({"file_name": file, "label": name} for file, name in names.items()))
    batches = folder_batches(tmp_path)
    assert joined(batches)[1].tolist() == [1, 0, 1]
    assert batches.class_names == ["a, b", "dog"]
    (tmp_path / "metadata.jsonl").unlink()
    (tmp_path / "metadata.csv").write_text("file_name,label\n2.png,10\n0.png,2\n1.png,3\n", encoding="utf-8-sig")
    batches = folder_batches(tmp_path)
    assert joined(batches)[1].tolist() == [2, 3, 10]
    assert batches.class_names is None


def test_accents_in_names_are_one_letter_or_two(tmp_path, pictures, joined):
    save_all(tmp_path, pictures, "cafe\u0301.png", "tea.png")  # as macOS writes it
    write_rows(tmp_path, {"file_name": "caf\u00e9.png", "label": 1}, {"file_name": "tea.png", "label": 0})
    assert joined(folder_batches(tmp_path))[1].tolist() == [1, 0]


@pytest.mark.parametrize(
    ("lines", "complaint"),
    [
        (['{"file_name": "0.png", "label": 1}'], "no label for 1.png and 0 others: add them, or remove the file"),
        (['{"file_name": "0.png", "label": 1}', '{"file_name": "1.png", "label": null}'], "no label for 1.png"),
        (
            [f'{{"file_name": "{number}.png", "label": 1}}' for number in range(4)],
            "names 2.png and 1 others, which are no images of the folder: put them back, or remove their rows",
        ),
        (
            ['{"file_name": "0.png", "label": 1}', '{"file_name": "1.png", "label": 1}', "",
             '{"file_name": "./0.png", "label": 2}'],
            "line 4: 0.png has a row already: remove one of the two",
        ),
        (['{"file_name": "0.png", "label": 1}', '{"label": 1}'], "line 2: there is no file_name"),
        (['{"file_name": "0.png", "label": 1}', "cat"], "line 2: Expecting value.*one JSON object on each line"),
        (['{"file_name": "0.png", "label": 1}', '{"file_name": "1.png", "label": "cat"}'], "some labels are numbers"),
        (['{"file_name": "0.png", "label": 1}', '{"file_name": "1.png", "label": [1]}'], "labels of type int, list"),
        (['{"file_name": "0.png", "label": 1}', '{"file_name": "1.png", "label": -1}'], "label -1: classes"),
        (['{"file_name": "0.png", "label": true}', '{"file_name": "1.png", "label": 1}'], "labels of type bool, int"),
    ],
)  # fmt: skip
def test_rows_that_do_not_fit_the_images_are_refused(tmp_path, pictures, lines, complaint):
    save_all(tmp_path, pictures, "0.png", "1.png")
    (tmp_path / "metadata.jsonl").write_text("\n".join(lines))
    with pytest.raises(ValueError, match=r"metadata\.jsonl.*" + complaint.replace(".png", r"\.png")):
        folder_batches(tmp_path)


def test_labels_in_another_encoding_are_refused_with_the_file(tmp_path, pictures):
    save_all(tmp_path, pictures, "0.png")
    (tmp_path / "metadata.csv").write_bytes("file_name,label\n0.png,Kätzchen\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"metadata\.csv is no text in UTF-8"):
        folder_batches(tmp_path)
