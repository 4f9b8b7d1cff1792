"""Numbers that do not compare are warned of, and no metric depends on the order of the images where it need not."""

import warnings

import numpy as np
import pytest
import torch

from dit_hf.evaluation import (
    MetricSettings,
    array_batches,
    evaluate,
    extract,
    folder_batches,
    inception_score,
    load_reference,
    make_reference,
    measure,
)
from dit_hf.evaluation.comparability import warn_of_class_order, warn_of_missing_classes
from dit_hf.evaluation.metrics.inception_score import softmax

NUM_CLASSES, NUM_EACH = 10, 30
SPLITS = MetricSettings(inception_score_split_size=60)
SEEDED = MetricSettings(inception_score_split_size=60, inception_score_seed=3)
ORDERS = {
    "in order of class": np.repeat(np.arange(NUM_CLASSES), NUM_EACH),
    "classes in turn": np.tile(np.arange(NUM_CLASSES), NUM_EACH),
    "mixed": np.random.default_rng(1).permutation(np.repeat(np.arange(NUM_CLASSES), NUM_EACH)),
}


def draw(labels: np.ndarray, seed: int = 0) -> np.ndarray:
    """Images whose classes differ much more than the images of a class."""
    centres = np.random.default_rng(9).integers(40, 216, (NUM_CLASSES, 4, 4, 3))
    noise = np.random.default_rng(seed).normal(0, 25, (len(labels), 4, 4, 3))
    return (centres[labels] + noise).clip(0, 255).astype(np.uint8)


class Recogniser:
    """A classifier that is nearly always right about `draw`, with the features that it decides by."""

    name, settings = "recogniser", {}
    taps = {"pool": 5, "logits": NUM_CLASSES}

    def __init__(self) -> None:
        centres = torch.from_numpy(np.random.default_rng(9).integers(40, 216, (NUM_CLASSES, 4, 4, 3)))
        self.centres = centres.flatten(1).double()
        self.mix = torch.randn(48, 5, generator=torch.Generator().manual_seed(0)).double() / 500

    def __call__(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        x = images.flatten(1).double()
        return {"pool": (x @ self.mix).float(), "logits": (-torch.cdist(x, self.centres) / 30).float()}


@pytest.fixture(scope="module")
def reference():
    labels = np.random.default_rng(2).integers(NUM_CLASSES, size=2000)
    return make_reference(array_batches(draw(labels, seed=1)), Recogniser())


# --- the splits of the Inception score -----------------------------------------------------------------------------


def test_images_in_order_of_class_are_warned_of_and_their_score_is_that_of_few_classes(reference):
    labels = ORDERS["in order of class"]
    with pytest.warns(UserWarning, match=r"in splits of 60 even a perfect classifier gives .* 2\.00, and 9\.\d\d in r"):
        result = evaluate(
            array_batches(draw(labels), labels), reference, Recogniser(), settings=SPLITS, metrics=["inception_score"]
        )
    assert result.metrics["inception_score"] < 2


@pytest.mark.parametrize("order", ["classes in turn", "mixed"])
def test_images_in_another_order_are_not_warned_of(reference, order):
    labels = ORDERS[order]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        evaluate(
            array_batches(draw(labels), labels), reference, Recogniser(), settings=SPLITS, metrics=["inception_score"]
        )


@pytest.mark.parametrize("work", [False, True])
@pytest.mark.parametrize("order", ORDERS)
def test_permuted_splits_score_as_mixed_images_do_whatever_the_order(reference, order, work, tmp_path):
    labels = ORDERS[order]
    images, work_dir = draw(labels), tmp_path if work else None
    for _ in range(2):  # the second time from the features that were kept
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            result = evaluate(
                array_batches(images, labels, 50), reference, Recogniser(), settings=SEEDED,
                metrics=["inception_score"], work_dir=work_dir,
            )  # fmt: skip
        position = np.random.default_rng(3).permutation(len(images))
        logits = Recogniser()(torch.from_numpy(images))["logits"].numpy()
        expected = inception_score(softmax(logits)[np.argsort(position)], 60)
        assert result.metrics["inception_score"] == pytest.approx(expected, rel=1e-6)
        assert 7 < expected < 10
        assert result.settings["metrics"]["inception_score_seed"] == 3


def test_a_stream_without_a_known_number_of_images_is_not_permuted_silently(reference):
    images = draw(ORDERS["mixed"])
    with pytest.raises(ValueError, match="cannot be permuted by the seed 3, because their number is not known"):
        evaluate(iter([images]), reference, Recogniser(), settings=SEEDED, metrics=["inception_score"])
    results = [
        evaluate(batches, reference, Recogniser(), settings=SEEDED, metrics=["inception_score"], num_images=300)
        for batches in (iter([images]), array_batches(images))
    ]
    assert results[0].metrics == results[1].metrics


def test_small_sets_in_random_order_are_hardly_ever_warned_of():
    rng = np.random.default_rng(0)
    num_warnings = 0
    for _ in range(100):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            warn_of_class_order(rng.integers(5, size=12), split_size=5)
            num_warnings += len(caught)
    assert num_warnings < 10  # one in 21 orders is worse than 20 others


def test_no_metric_but_the_inception_score_in_order_depends_on_the_order(extractor, pictures):
    labels = np.arange(230) % 5
    reference = make_reference(array_batches(pictures[:115], labels[:115]), extractor)
    settings = MetricSettings(kid_subset_size=50, inception_score_split_size=115)
    order = np.random.default_rng(0).permutation(115) + 115
    results = [
        evaluate(array_batches(pictures[chosen], labels[chosen]), reference, extractor, settings=settings).metrics
        for chosen in (np.arange(115, 230), order)
    ]
    kernel = [[each.pop(name) for name in ("kd", "kd_std")] for each in results]
    assert results[0] == pytest.approx(results[1], rel=1e-5)
    assert set(results[0]) == {"fd", "sfd", "inception_score", "precision", "recall", "density", "coverage", "class_fd"}
    assert kernel[0][0] == pytest.approx(kernel[1][0], abs=5 * kernel[0][1] / 10)  # 100 subsets


# --- the groups of the jackknife -------------------------------------------------------------------------------------


def spread(order: str, reference, num_groups: int = 10) -> float:
    """The mean standard error of FD over three sets of images in an order."""
    labels = ORDERS[order]
    return float(
        np.mean([
            measure(
                extract(array_batches(draw(labels, seed), labels), Recogniser(), num_groups=num_groups),
                reference,
                metrics=["fid"],
            ).spread["fd"]
            for seed in (5, 6, 7)
        ])
    )  # fmt: skip


@pytest.mark.parametrize("order", ORDERS)
def test_standard_error_does_not_depend_on_the_order_of_classes(reference, order):
    """With groups k mod 10 the error of classes in turn was 90 times larger than it is."""
    labels = [np.random.default_rng(seed).integers(NUM_CLASSES, size=300) for seed in range(20)]
    results = [
        evaluate(array_batches(draw(each, seed)), reference, Recogniser(), metrics=["fid"])
        for seed, each in enumerate(labels)
    ]
    observed = np.std([result.metrics["fd"] for result in results], ddof=1)
    assert observed / 2.5 < spread(order, reference) < observed * 2.5


def test_groups_are_equal_in_size_and_of_images_drawn_at_random():
    labels = ORDERS["classes in turn"]
    features = extract(array_batches(draw(labels), labels, 64), Recogniser(), num_groups=10)
    assert np.bincount(features.group).tolist() == [30] * 10
    counts = np.array([np.bincount(labels[features.group == group], minlength=10) for group in range(10)])
    assert counts.max() < 12  # of 30: all 30 were of one class
    streamed = extract(iter([draw(labels)]), Recogniser(), num_groups=10)
    assert np.bincount(streamed.group, minlength=10).min() > 10


# --- the number, the sizes and the names ---------------------------------------------------------------------------


def test_first_images_that_lack_classes_are_warned_of():
    labels = ORDERS["in order of class"]
    with pytest.warns(UserWarning, match="the first 100 of 300 images hold 4 of 10 classes"):
        extract(array_batches(draw(labels), labels), Recogniser(), num_images=100)
    for order in ("classes in turn", "mixed"):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            warn_of_missing_classes(ORDERS[order], 100)
            warn_of_missing_classes(labels, 300)


def test_sizes_that_differ_are_warned_of_and_kept_with_saved_statistics(tmp_path, extractor, pictures):
    large = pictures.repeat(2, axis=1).repeat(2, axis=2)
    reference = make_reference(array_batches(large[:100]), extractor)
    reference.save(tmp_path / "reference.npz")
    for real in (reference, load_reference(tmp_path / "reference.npz", extractor)):
        with pytest.warns(UserWarning, match="images of 8 x 8 pixels, the reference of 16 x 16"):
            result = evaluate(array_batches(pictures), real, extractor, metrics=["fid"])
        assert result.settings["image_sizes"] == [[8, 8]]
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            evaluate(array_batches(large), real, extractor, metrics=["fid"])
    with pytest.warns(UserWarning, match="images of 8 x 8, 16 x 16 pixels, the reference of 16 x 16"):
        evaluate(iter([pictures, large]), reference, extractor, metrics=["fid"])


def test_classes_with_the_same_numbers_and_other_names_are_not_compared(tmp_path, extractor, pictures):
    from PIL import Image

    for number, image in enumerate(pictures[:40]):
        for root, names in (
            ("samples", "cat dog"),
            ("same", "cat dog"),
            ("other", "bird cat"),
            ("more", "cat dog eel"),
        ):
            classes = names.split()
            folder = tmp_path / root / classes[number % len(classes)]
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(folder / f"{number}.png")
    samples = folder_batches(tmp_path / "samples")
    references = {
        name: make_reference(folder_batches(tmp_path / name), extractor) for name in ("same", "other", "more")
    }
    references["other"].save(tmp_path / "other.npz")
    references["saved"] = load_reference(tmp_path / "other.npz", extractor)
    results = {name: evaluate(samples, reference, extractor) for name, reference in references.items()}
    assert "class_fd" in results["same"].metrics
    for name in ("other", "saved"):
        assert "'cat' in the samples is 'bird' in the reference" in results[name].skipped["class_fd"]
    assert "one has more" in results["more"].skipped["class_fd"]
