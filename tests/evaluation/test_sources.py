"""Images by the name that a user gives: which folders are images, which are data sets, and what becomes of damage."""

from pathlib import Path

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features
from datasets import Image as ImageFeature
from PIL import Image

from dit_hf.evaluation.sources import SourceOptions, open_batches


def save(path: Path, image: np.ndarray) -> bytes:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)
    return path.read_bytes()


def write_parquet(folder: Path, images: list[bytes], labels: list[int] | None, name: str = "train.parquet") -> str:
    features = {"image": ImageFeature()} | ({} if labels is None else {"label": ClassLabel(names=["cat", "dog"])})
    columns = {"image": [{"bytes": data, "path": None} for data in images]} | (
        {} if labels is None else {"label": labels}
    )
    folder.mkdir(parents=True, exist_ok=True)
    Dataset.from_dict(columns, features=Features(features)).to_parquet(folder / name)
    return str(folder)


def test_splits_of_a_folder_are_no_classes(tmp_path, pictures, joined):
    for number, name in enumerate(["train/cat/0", "train/dog/0", "val/cat/0", "val/dog/0", "val/dog/1"]):
        save(tmp_path / f"{name}.png", pictures[number])
    images, labels = joined(open_batches(str(tmp_path)))
    np.testing.assert_array_equal(images, pictures[:2])
    assert labels.tolist() == [0, 1]
    images, labels = joined(open_batches(str(tmp_path), SourceOptions(split="validation")))
    np.testing.assert_array_equal(images, pictures[2:5])
    assert labels.tolist() == [0, 1, 1]
    with pytest.raises(
        ValueError, match=r"holds the splits train, validation, and none of them is 'test': set --split"
    ):
        open_batches(str(tmp_path), SourceOptions(split="test"))


def test_picture_beside_shards_does_not_make_a_folder_of_images(tmp_path, pictures, joined):
    data = [save(tmp_path / "images" / f"{number}.png", image) for number, image in enumerate(pictures[:3])]
    for name, part in (("train-0", slice(0, 2)), ("train-1", slice(2, 3))):
        write_parquet(tmp_path / "data", data[part], [1, 0, 1][part], f"{name}.parquet")
    save(tmp_path / "data" / "preview.png", pictures[5])
    images, labels = joined(open_batches(str(tmp_path / "data")))
    np.testing.assert_array_equal(images, pictures[:3])
    assert labels.tolist() == [1, 0, 1]


def test_data_set_without_classes_is_read_when_none_are_asked_for(tmp_path, pictures, joined):
    data = [save(tmp_path / "images" / f"{number}.png", image) for number, image in enumerate(pictures[:3])]
    folder = write_parquet(tmp_path / "data", data, None)
    with pytest.raises(ValueError, match="has no column 'label'"):
        list(open_batches(folder))
    images, labels = joined(open_batches(folder, SourceOptions(batch_size=2, label_column=None)))
    np.testing.assert_array_equal(images, pictures[:3])
    assert labels is None
    with pytest.raises(ValueError, match="has no column 'picture'; its columns are image: set --image-column"):
        list(open_batches(folder, SourceOptions(image_column="picture", label_column=None)))


@pytest.mark.parametrize("label_column", ["label", None])
def test_damaged_row_of_a_data_set_is_named(tmp_path, pictures, label_column):
    data = [save(tmp_path / "images" / f"{number}.png", image) for number, image in enumerate(pictures[:9])]
    data[7] = data[7][:-60]
    folder = write_parquet(tmp_path / "data", data, [0] * 9)
    with pytest.raises(ValueError, match=r"row 7\b.*no whole image"):
        list(open_batches(folder, SourceOptions(batch_size=4, label_column=label_column)))


def test_path_that_does_not_exist_is_not_looked_for_on_the_hub(tmp_path):
    with pytest.raises((ValueError, OSError), match="nowhere"):
        list(open_batches(str(tmp_path / "nowhere")))
