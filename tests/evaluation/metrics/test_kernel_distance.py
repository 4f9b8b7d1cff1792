"""The kernel distance against torchmetrics' KID, the formula pair by pair, and what an unbiased estimate must do."""

import numpy as np
import pytest
import torch
from torchmetrics.image import kid

from dit_hf.evaluation import polynomial_mmd
from dit_hf.evaluation.metrics import kernel_distance

RNG = np.random.default_rng(0)


def test_mmd_equals_the_sum_over_pairs():
    x, y = RNG.normal(size=(6, 4)), RNG.normal(size=(5, 4)) + 0.5
    k = lambda a, b: (a @ b / 4 + 1) ** 3  # noqa: E731
    within_x = np.mean([k(x[i], x[j]) for i in range(6) for j in range(6) if i != j])
    within_y = np.mean([k(y[i], y[j]) for i in range(5) for j in range(5) if i != j])
    between = np.mean([k(a, b) for a in x for b in y])
    assert polynomial_mmd(x, y) == pytest.approx(within_x + within_y - 2 * between, rel=1e-12)


def test_mmd_equals_that_of_torchmetrics():
    x, y = RNG.normal(size=(2, 300, 64)) + np.array([0, 0.3])[:, None, None]
    expected = kid.poly_mmd(torch.from_numpy(x), torch.from_numpy(y)).item()
    assert polynomial_mmd(x, y) == pytest.approx(expected, rel=1e-10)


def test_subsets_of_the_whole_sets_are_the_mmd():
    x, y = RNG.normal(size=(2, 50, 8)).astype(np.float32)
    distance = kernel_distance(x, y, num_subsets=3, subset_size=50)
    assert distance.mean == pytest.approx(polynomial_mmd(x, y), rel=1e-9)
    assert distance.std < 1e-9


def test_estimate_is_unbiased_at_any_subset_size():
    x, y = RNG.normal(size=(2000, 8)), RNG.normal(size=(2000, 8)) * 1.2
    whole = polynomial_mmd(x, y)
    for size in (10, 200):
        distance = kernel_distance(x, y, num_subsets=100, subset_size=size)
        assert abs(distance.mean - whole) < 4 * distance.std / np.sqrt(100)
    same = kernel_distance(x[:1000], x[1000:], num_subsets=100, subset_size=200)
    assert abs(same.mean) < 4 * same.std / np.sqrt(100)


def test_seed_decides_and_limits_are_named():
    x, y = RNG.normal(size=(2, 50, 8))
    assert kernel_distance(x, y, subset_size=10, seed=1) == kernel_distance(x, y, subset_size=10, seed=1)
    assert kernel_distance(x, y, subset_size=10, seed=1) != kernel_distance(x, y, subset_size=10, seed=2)
    with pytest.raises(ValueError, match=r"subset_size=1000 is outside 2\.\.50"):
        kernel_distance(x, y)
    with pytest.raises(ValueError, match="8 and 7 features"):
        kernel_distance(x, y[:, :7], subset_size=10)
