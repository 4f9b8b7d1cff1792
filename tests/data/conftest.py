"""A tiny labelled data set in parquet shards, as ImageNet has it on the Hub."""

import io
from pathlib import Path

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features, Image
from PIL import Image as PILImage

NUM_IMAGES, NUM_SHARDS = 23, 3


def one_colour(k: int) -> bytes:
    buffer = io.BytesIO()
    PILImage.new("RGB", (8, 8), (10 * k, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="session")
def colours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """23 images, the k-th of red 10 k and label k % 4, in three shards."""
    folder = tmp_path_factory.mktemp("colours")
    features = Features({"image": Image(), "label": ClassLabel(names=["a", "b", "c", "d"])})
    rows = [{"image": {"bytes": one_colour(k), "path": None}, "label": k % 4} for k in range(NUM_IMAGES)]
    for shard, part in enumerate(np.array_split(np.arange(NUM_IMAGES), NUM_SHARDS)):
        path = folder / "data" / f"train-{shard:05d}-of-{NUM_SHARDS:05d}.parquet"
        path.parent.mkdir(exist_ok=True)
        Dataset.from_list([rows[k] for k in part], features=features).to_parquet(path)
    return folder
