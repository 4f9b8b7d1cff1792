"""On real images and real features the distances order known corruptions rightly."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter

from dit_hf.evaluation import frechet_distance_of_rows
from dit_hf.evaluation.metrics import kernel_distance, precision_recall
from dit_hf.evaluation.sources import SourceOptions, open_batches

EXAMPLES = Path(__file__).parents[3] / "examples"
NUM = 240  # with 150, one blur is told from other drawings by a tenth only

pytestmark = pytest.mark.slow


def load_extractor():
    specification = importlib.util.spec_from_file_location("efficientnet_lite", EXAMPLES / "efficientnet_lite.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module.EfficientNetLite0()


def blurred(images: np.ndarray, radius: float) -> np.ndarray:
    blur = ImageFilter.GaussianBlur(radius)
    return np.stack([np.asarray(Image.fromarray(image).filter(blur)) for image in images])


def noisy(images: np.ndarray, deviation: float) -> np.ndarray:
    noise = np.random.default_rng(1).normal(0, deviation, images.shape)
    return (images + noise).clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def rows() -> dict[str, np.ndarray]:
    """Features of emoji: two sets of different drawings, and corruptions of the second."""
    extractor = load_extractor()
    drawings = open_batches(str(EXAMPLES / "assets" / "emoji"), SourceOptions(batch_size=2 * NUM))
    images, _ = next(iter(drawings))
    images = np.random.default_rng(0).permutation(images)
    reference, other = images[:NUM], images[NUM:]
    sets = {"reference": reference, "other": other, "blur 1": blurred(other, 1), "blur 3": blurred(other, 3)}
    sets |= {"noise 20": noisy(other, 20), "noise 80": noisy(other, 80)}
    rows = {name: extractor(torch.from_numpy(each))["pool"].numpy() for name, each in sets.items()}
    return {**rows, "a tenth of the classes": rows["other"][: NUM // 10].repeat(10, 0)}


ORDERS = [("other", "blur 1", "blur 3"), ("other", "noise 20", "noise 80"), ("other", "a tenth of the classes")]


@pytest.mark.parametrize("order", ORDERS, ids=[order[-1] for order in ORDERS])
def test_frechet_distance_grows_with_the_corruption(rows, order):
    distances = [frechet_distance_of_rows(rows["reference"], rows[name]) for name in order]
    assert all(after > 1.1 * before for before, after in zip(distances, distances[1:], strict=False)), distances


@pytest.mark.parametrize("order", ORDERS, ids=[order[-1] for order in ORDERS])
def test_kernel_distance_grows_with_the_corruption(rows, order):
    distances = [
        kernel_distance(rows["reference"], rows[name], num_subsets=20, subset_size=NUM // 2).mean for name in order
    ]
    assert distances == sorted(distances)
    assert distances[0] < distances[-1] / 2


def test_noise_costs_precision_and_missing_classes_cost_recall(rows):
    whole, noise, few = (
        precision_recall(rows["reference"], rows[name]) for name in ("other", "noise 80", "a tenth of the classes")
    )
    assert noise.precision < whole.precision / 2
    assert few.recall < whole.recall / 2
    assert few.precision > whole.precision / 2
