"""Precision, recall, density and coverage: brute force in float64, the package prdc, ADM's arithmetic, known sets."""

import numpy as np
import prdc
import pytest
import torch

from dit_hf.evaluation import density_coverage
from dit_hf.evaluation.metrics import adm_float16, neighbours, precision_recall


def squared_distances(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    x, y = x.astype(np.float64), y.astype(np.float64)
    return np.stack([((row - y) ** 2).sum(1) for row in x])


def brute_force(reference: np.ndarray, samples: np.ndarray, k: int) -> tuple[float, float, float, float]:
    """Precision, recall, density, coverage; a point is its own nearest neighbour, so the k-th other has index k."""
    radii_reference, radii_samples = (np.sort(squared_distances(x, x), 1)[:, k] for x in (reference, samples))
    between = squared_distances(reference, samples)
    in_reference = between <= radii_reference[:, None]
    recall = (between <= radii_samples).any(1).mean()
    return in_reference.any(0).mean(), recall, in_reference.sum() / (k * len(samples)), in_reference.any(1).mean()


def ours(reference: np.ndarray, samples: np.ndarray, k: int) -> tuple[float, float, float, float]:
    return (*precision_recall(reference, samples, k=k), *density_coverage(reference, samples, k=k))


SETS = {
    "clouds": lambda rng: (rng.normal(size=(1500, 8)), rng.normal(size=(1300, 8)) * 0.9 + 0.3),
    "far from the origin": lambda rng: (rng.normal(size=(400, 8)) + 1000, rng.normal(size=(300, 8)) + 1000.2),
    "on a grid, full of ties": lambda rng: (rng.integers(0, 6, (900, 3)), rng.integers(0, 6, (700, 3))),
    "many copies": lambda rng: (rng.normal(size=(20, 4)).repeat(30, 0), rng.normal(size=(20, 4)).repeat(20, 0)),
    "the same set": lambda rng: (rng.normal(size=(300, 16)),) * 2,
    "as small as can be": lambda rng: (rng.normal(size=(4, 2)), rng.normal(size=(4, 2))),
}


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", SETS)
def test_exact_mode_equals_brute_force(name, dtype, monkeypatch):
    monkeypatch.setattr(neighbours, "ROWS", 100)  # many blocks, and blocks that do not divide the sets
    monkeypatch.setattr(neighbours, "COLUMNS", 300)
    reference, samples = (x.astype(dtype) for x in SETS[name](np.random.default_rng(0)))
    assert ours(reference, samples, 3) == pytest.approx(brute_force(reference, samples, 3), abs=1e-12)


def test_radii_equal_brute_force_to_the_last_digits():
    points = np.random.default_rng(0).normal(size=(700, 20)).astype(np.float32)
    first, _ = neighbours.pair_up(points, points)
    expected = np.sort(squared_distances(points, points), 1)[:, 5]
    np.testing.assert_allclose(neighbours.squared_radii(first, 5).numpy(), expected, rtol=1e-14)


def test_metrics_equal_those_of_prdc():
    rng = np.random.default_rng(1)
    # without ties, as prdc's balls are open
    reference, samples = rng.normal(size=(500, 10)), rng.normal(size=(400, 10)) * 1.1
    expected = prdc.compute_prdc(reference, samples, nearest_k=5)
    expected = [expected[name] for name in ("precision", "recall", "density", "coverage")]
    assert ours(reference, samples, 5) == pytest.approx(expected, abs=1e-12)


def test_points_a_billionth_inside_or_outside_a_ball_are_told_apart():
    """Where float32 cannot tell, float64 decides."""
    rng = np.random.default_rng(8)
    reference = rng.normal(size=(200, 8))
    third = np.argsort(squared_distances(reference, reference), 1)[:, 3]
    step = np.where(np.arange(200) % 2, 1 + 1e-9, 1 - 1e-9)[:, None]
    samples = reference + (reference[third] - reference) * step
    assert ours(reference, samples, 3) == pytest.approx(brute_force(reference, samples, 3), abs=1e-12)


def test_radius_among_neighbours_that_float32_cannot_order():
    """Forty points at one distance but for billionths: more than are kept beside the k nearest."""
    rng = np.random.default_rng(9)
    around = rng.normal(size=(40, 8))
    around *= (1 + 1e-9 * rng.permutation(40)[:, None]) / np.linalg.norm(around, axis=1, keepdims=True)
    points = np.concatenate([np.zeros((1, 8)), around])
    first, _ = neighbours.pair_up(points, points)
    expected = np.sort(squared_distances(points, points), 1)[:, 3]
    np.testing.assert_allclose(neighbours.squared_radii(first, 3).numpy(), expected, rtol=1e-14)


def half_distances(u: np.ndarray, v: np.ndarray, dtype: type) -> np.ndarray:
    """ADM's `_batch_pairwise_distances` in numpy; dot products and norms are summed in float32, as on a GPU."""
    u, v = u.astype(dtype), v.astype(dtype)
    norm_u, norm_v = ((x * x).astype(np.float32).sum(1).astype(dtype) for x in (u, v))
    product = (u.astype(np.float32) @ v.astype(np.float32).T).astype(dtype)
    return np.maximum(norm_u[:, None] - 2 * product + norm_v, 0).astype(np.float32)


def test_adm_distances_are_rounded_after_every_step():
    # sixteenths up to 8: their squares are rounded in float16, and all sums are exact in float32
    u, v = (np.random.default_rng(10).integers(-128, 129, (2, 50, 64)) / 16).astype(np.float32)
    found = adm_float16._rounded_distances(torch.from_numpy(u), torch.from_numpy(v), torch.float16)
    np.testing.assert_array_equal(found.numpy(), half_distances(u, v, np.float16))


def half_precision_by_hand(reference: np.ndarray, samples: np.ndarray, k: int) -> tuple[float, float]:
    """ADM's precision and recall, in float32 where a float16 overflows."""

    def checked(u: np.ndarray, v: np.ndarray) -> np.ndarray:
        with np.errstate(over="ignore", invalid="ignore"):
            half = half_distances(u, v, np.float16)
        return half if np.isfinite(half).all() else half_distances(u, v, np.float32)

    radii_1, radii_2 = (np.partition(checked(x, x), np.arange(k + 1), 1)[:, k] for x in (reference, samples))
    between = checked(reference, samples)
    return (between <= radii_1[:, None]).any(0).mean(), (between <= radii_2).any(1).mean()


@pytest.mark.parametrize("scale", [1, 30], ids=["in half precision", "overflowing into float32"])
def test_adm_mode_is_half_precision_step_by_step(scale):
    rng = np.random.default_rng(2)
    reference, samples = rng.normal(size=(2, 700, 64)).astype(np.float32) * scale + 0.5
    samples = samples * 0.95
    expected = half_precision_by_hand(reference, samples, 3)
    assert precision_recall(reference, samples, mode="adm_float16") == pytest.approx(expected, abs=1e-12)
    if scale == 1:  # rounding shows: the two modes are told apart
        assert precision_recall(reference, samples) != pytest.approx(expected, abs=1e-4)


def test_one_overflow_turns_its_whole_block_into_float32(monkeypatch):
    monkeypatch.setattr(adm_float16, "ROWS", 64)
    rng = np.random.default_rng(3)
    reference, samples = rng.normal(size=(2, 300, 64)).astype(np.float32) + 1
    reference[-1] = 300  # a norm of 64 * 9e4 is beyond float16
    expected = half_precision_by_hand(reference, samples, 3)
    assert precision_recall(reference, samples, mode="adm_float16") == pytest.approx(expected, abs=1e-12)


MODES = ["exact", "adm_float16"]


@pytest.mark.parametrize("mode", MODES)
def test_dropping_modes_lowers_recall_only(mode):
    rng = np.random.default_rng(4)
    centres = rng.normal(size=(10, 16)) * 10
    reference = (centres.repeat(100, 0) + rng.normal(size=(1000, 16))).astype(np.float32)
    samples = (centres.repeat(100, 0) + rng.normal(size=(1000, 16))).astype(np.float32)
    whole = precision_recall(reference, samples, mode=mode)
    dropped = precision_recall(reference, samples[:500], mode=mode)
    assert dropped.recall == pytest.approx(whole.recall / 2, abs=0.02)
    assert dropped.precision == pytest.approx(whole.precision, abs=0.05)


@pytest.mark.parametrize("mode", MODES)
def test_noise_lowers_precision_only(mode):
    rng = np.random.default_rng(5)
    reference, samples = rng.normal(size=(2, 1000, 16)).astype(np.float32)
    noise = (rng.normal(size=(1000, 16)) * 0.1 + 8).astype(np.float32)  # beside the data, and tight
    whole = precision_recall(reference, samples, mode=mode)
    noisy = precision_recall(reference, np.concatenate([samples, noise]), mode=mode)
    assert noisy.precision == pytest.approx(whole.precision / 2, abs=0.02)
    assert noisy.recall == pytest.approx(whole.recall, abs=0.02)


def test_density_and_coverage_of_a_set_with_itself():
    points = np.random.default_rng(6).normal(size=(500, 8))
    density, coverage = density_coverage(points, points, k=5)
    # every ball holds its centre and, closed, its five neighbours
    assert (density, coverage) == (6 / 5, 1)


@pytest.mark.parametrize("mode", MODES)
def test_what_does_not_fit_is_refused(mode):
    points = np.zeros((4, 2), np.float32)
    with pytest.raises(ValueError, match=r"k=4 is outside 1\.\.3"):
        precision_recall(points, points, k=4, mode=mode)
    with pytest.raises(ValueError, match=r"\(4, 2\) and \(4, 1\)"):
        precision_recall(points, points[:, :1], mode=mode)
    with pytest.raises(ValueError, match="choose exact or adm_float16"):
        precision_recall(points, points, mode="float16")


@pytest.mark.parametrize("mode", MODES)
def test_features_that_are_not_finite_are_refused(mode):
    points = np.zeros((4, 2), np.float32)
    points[1, 1] = np.nan
    with pytest.raises(ValueError, match="not finite"):
        precision_recall(points, points, mode=mode)
    with pytest.raises(ValueError, match="not finite"):
        density_coverage(points, points, k=2)


def test_exact_mode_computes_few_distances_twice(monkeypatch):
    """On features as the network gives them, the float32 product answers nearly all."""
    computed = []
    exact = neighbours._exact
    monkeypatch.setattr(neighbours, "_exact", lambda a, i, b, j: computed.append(len(i)) or exact(a, i, b, j))
    rng = np.random.default_rng(7)
    reference, samples = (rng.normal(size=(2, 1500, 512)).clip(min=0) + 0.1).astype(np.float32)
    precision_recall(reference, samples)
    assert sum(computed) < 0.02 * 1500**2
