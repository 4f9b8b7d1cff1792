"""The nearest class accepts real drawings, and neither blurs, noise nor wrong labels."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter

from dit_hf.data.references import load_references
from dit_hf.evaluation import nearest_class

EMOJI = Path(__file__).parents[3] / "examples" / "assets" / "emoji"


@pytest.fixture(scope="module")
def class_names() -> list[str]:
    return (EMOJI / "classes_300.txt").read_text().splitlines()[:100]


@pytest.fixture(scope="module")
def references(class_names) -> np.ndarray:
    return load_references(str(EMOJI), class_names, resolution=64)


@pytest.mark.slow
def test_references_are_two_drawings_mirrored_and_jittered(references):
    assert references.shape == (100, 2 * 2 * 9, 64, 64, 3)
    np.testing.assert_array_equal(references[0, 0], references[0, 9][:, ::-1])


@pytest.mark.slow
def test_other_jitters_of_real_drawings_are_recognised(class_names, references):
    images = load_references(str(EMOJI), class_names, resolution=64, num_jitters=1, seed=1)[:, 1::2]  # the jittered
    labels = np.repeat(np.arange(100), images.shape[1])
    nearest = nearest_class(images.reshape(-1, 64, 64, 3), references)
    assert (nearest == labels).mean() >= 0.95
    shuffled = np.random.default_rng(0).permutation(labels)
    assert (nearest == shuffled).mean() <= 0.05


@pytest.mark.slow
@pytest.mark.parametrize("radius", [0, 1, 2])
def test_blurred_class_means_are_not(references, radius):
    means = [Image.fromarray(each.mean(0).astype(np.uint8)) for each in references]
    blurred = np.stack([np.array(mean.filter(ImageFilter.GaussianBlur(radius))) for mean in means])
    assert (nearest_class(blurred, references) == np.arange(100)).mean() <= 0.05


@pytest.mark.slow
def test_noisy_drawings_are_not(references):
    noise = np.random.default_rng(0).normal(0, 80, (100, 64, 64, 3))
    noisy = (references[:, 0] + noise).clip(0, 255).astype(np.uint8)
    assert (nearest_class(noisy, references) == np.arange(100)).mean() <= 0.05


def test_nearest_is_that_of_a_loop_in_float64():
    rng = np.random.default_rng(0)
    references = rng.integers(0, 256, (3, 4, 6, 6, 3), dtype=np.uint8)
    images = rng.integers(0, 256, (20, 6, 6, 3), dtype=np.uint8)
    flat = references.reshape(12, -1).astype(np.float64)
    by_hand = [((flat - image.reshape(-1)) ** 2).sum(1).argmin() // 4 for image in images.astype(np.float64)]
    assert nearest_class(images, references, sharpness=(0, np.inf)).tolist() == by_hand


def test_sizes_that_differ_are_refused():
    with pytest.raises(ValueError, match="resize"):
        nearest_class(np.zeros((1, 8, 8, 3), np.uint8), np.zeros((1, 1, 16, 16, 3), np.uint8))
