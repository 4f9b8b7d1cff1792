"""Our metrics against torch-fidelity's, clean-fid's and pytorch-fid's on the same features (golden/make_metrics.py)."""

from pathlib import Path

import numpy as np
import pytest

from dit_hf.evaluation import GaussianStatistics, frechet_distance, frechet_distance_of_rows, polynomial_mmd
from dit_hf.evaluation.metrics import inception_score, precision_recall
from dit_hf.evaluation.metrics.inception_score import softmax

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "metrics.npz")
REFERENCE, SAMPLES, FEW, LOGITS = (GOLDEN[name] for name in ("reference", "samples", "few", "logits"))


# Full rank: all are float64, on covariances of condition 40. Singular: theirs take roots of eigenvalues that are 0 but
# for rounding, and each is off by the square root of that, 1e-8.
@pytest.mark.parametrize(("name", "rows", "rtol"), [("full", SAMPLES, 1e-12), ("singular", FEW, 1e-6)])
@pytest.mark.parametrize("package", ["torch_fidelity", "clean_fid", "pytorch_fid"])
def test_frechet_distance_equals_theirs(package, name, rows, rtol):
    moments = []
    for features in (rows, REFERENCE):
        statistics = GaussianStatistics.empty(features.shape[1])
        statistics.update(features)
        moments += statistics.moments()[:2]
    expected = float(GOLDEN[f"fid_{name}_{package}"])
    assert frechet_distance(*moments) == pytest.approx(expected, rel=rtol)
    assert frechet_distance_of_rows(rows, REFERENCE) == pytest.approx(expected, rel=rtol)


def test_inception_score_equals_torch_fidelitys_on_its_splits():
    """torch-fidelity takes ten splits of one size and shuffles first; ADM takes splits of 5000 in the order given."""
    probabilities = softmax(LOGITS)
    split_size = len(LOGITS) // 10
    assert inception_score(probabilities, split_size) == pytest.approx(float(GOLDEN["isc_in_order"]), rel=1e-12)
    shuffled = probabilities[np.random.RandomState(2020).permutation(len(LOGITS))]  # torch-fidelity's rng_seed
    assert inception_score(shuffled, split_size) == pytest.approx(float(GOLDEN["isc_shuffled"]), rel=1e-12)
    assert inception_score(probabilities) != pytest.approx(float(GOLDEN["isc_shuffled"]), rel=0.05)  # not comparable


@pytest.mark.parametrize("package", ["torch_fidelity", "clean_fid"])
def test_kernel_distance_equals_theirs_on_all_rows(package):
    """Their draws of subsets differ from ours: with all rows there is nothing to draw."""
    found = polynomial_mmd(REFERENCE[: len(SAMPLES)], SAMPLES)
    assert found == pytest.approx(float(GOLDEN[f"kid_{package}"]), rel=1e-12)


@pytest.mark.parametrize("how", ["at_once", "in_parts"])
def test_precision_and_recall_equal_torch_fidelitys(how):
    """Its balls are ours: closed, of the third nearest other; not squared, and float64 here. ADM's are float16."""
    found = precision_recall(REFERENCE, SAMPLES)
    expected = [float(GOLDEN[f"{name}_{how}"]) for name in ("precision", "recall")]
    assert found == pytest.approx(expected, abs=1e-7)  # it averages in float32; one point more is 4e-3
    assert found.precision != found.recall  # the two sets are not taken for each other
    half = precision_recall(REFERENCE, SAMPLES, mode="adm_float16")
    assert half == pytest.approx(found, abs=0.02)  # rounding moves points across the edges of balls
