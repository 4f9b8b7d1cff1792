"""The Inception score: closed forms, ADM's splits, and sums that do not care how images arrive."""

import numpy as np
import pytest

from dit_hf.evaluation import InceptionScoreSums
from dit_hf.evaluation.metrics import inception_score
from dit_hf.evaluation.metrics.inception_score import perfect_inception_score, softmax


@pytest.fixture(scope="module")
def probabilities() -> np.ndarray:
    return softmax(np.random.default_rng(0).normal(size=(1030, 10)) * 2)


def by_hand(probabilities: np.ndarray, split_size: int) -> float:
    """The lines of ADM's `compute_inception_score`, in float64."""
    scores = []
    for start in range(0, len(probabilities), split_size):
        part = probabilities[start : start + split_size]
        kl = part * (np.log(part) - np.log(part.mean(0, keepdims=True)))
        scores.append(np.exp(kl.sum(1).mean()))
    return float(np.mean(scores))


def test_uniform_predictions_score_one():
    assert inception_score(np.full((200, 1008), 1 / 1008)) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("num_classes", [2, 1008])
def test_sure_and_balanced_predictions_score_the_number_of_classes(num_classes):
    assert inception_score(np.tile(np.eye(num_classes), (2, 1))) == pytest.approx(num_classes, rel=1e-12)


def test_splits_are_consecutive_and_a_short_last_one_counts_fully(probabilities):
    assert inception_score(probabilities, split_size=500) == pytest.approx(by_hand(probabilities, 500), rel=1e-12)
    # three splits, the last of 30 images: its weight is a third
    scores = [by_hand(part, 500) for part in (probabilities[:500], probabilities[500:1000], probabilities[1000:])]
    assert inception_score(probabilities, split_size=500) == pytest.approx(np.mean(scores), rel=1e-12)


def test_order_of_images_matters_only_across_splits(probabilities):
    swapped = probabilities.copy()
    swapped[[0, 499]] = swapped[[499, 0]]
    assert inception_score(swapped, 500) == pytest.approx(inception_score(probabilities, 500), rel=1e-12)
    swapped[[0, 700]] = swapped[[700, 0]]
    assert inception_score(swapped, 500) != pytest.approx(inception_score(probabilities, 500), rel=1e-6)


def test_sums_of_several_processes_in_any_order_score_the_same(probabilities):
    shares = [InceptionScoreSums(500) for _ in range(3)]
    for number, index in reversed(list(enumerate(np.array_split(np.arange(1030), 17)))):
        shares[number % 3].update(probabilities[index], index)
    for other in shares[1:]:
        shares[0].merge(other)
    assert shares[0].scores().mean() == pytest.approx(inception_score(probabilities, 500), rel=1e-12)


@pytest.mark.parametrize("split_size", [7, 60, 1000])
def test_a_perfect_classifier_scores_the_classes_of_each_split(split_size):
    labels = np.random.default_rng(0).choice([2, 5, 11, 12], size=200, p=[0.4, 0.3, 0.2, 0.1])
    expected = inception_score(np.eye(13)[labels], split_size)
    assert perfect_inception_score(labels, split_size) == pytest.approx(expected, rel=1e-12)
    in_order = np.repeat(np.arange(6), 20)  # splits of 40 hold two classes, the whole six
    assert perfect_inception_score(in_order, 40) == pytest.approx(2, rel=1e-12)
    assert perfect_inception_score(in_order, 120) == pytest.approx(6, rel=1e-12)


def test_logits_and_other_splits_are_refused():
    with pytest.raises(ValueError, match="softmax of the logits"):
        inception_score(np.ones((4, 3)))
    with pytest.raises(ValueError, match="splits of 10 and 5000"):
        InceptionScoreSums().merge(InceptionScoreSums(10))
    with pytest.raises(ValueError, match="there are none"):
        InceptionScoreSums().scores()
