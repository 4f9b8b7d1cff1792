"""Streaming statistics equal those of all rows at once in float64, however the rows arrive."""

import numpy as np
import pytest

from dit_hf.evaluation import GaussianStatistics


@pytest.fixture(scope="module")
def rows() -> np.ndarray:
    """Far from zero, where sums of squares would lose all digits."""
    return (np.random.default_rng(0).normal(size=(5000, 12)) * np.arange(1, 13) + 1e6).astype(np.float64)


def whole(rows: np.ndarray) -> GaussianStatistics:
    statistics = GaussianStatistics.empty(rows.shape[1])
    statistics.update(rows)
    return statistics


def check(statistics: GaussianStatistics, rows: np.ndarray) -> None:
    moments = statistics.moments()
    assert moments.num == len(rows)
    np.testing.assert_allclose(moments.mean, rows.mean(0), rtol=1e-14)
    # at a mean of 1e6 a float64 of the scatter is good to 1e-16 * 1e6, relative to deviations of 1 to 12
    np.testing.assert_allclose(moments.covariance, np.cov(rows, rowvar=False), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("size", [1, 7, 5000])
def test_batches_of_any_size_give_the_covariance_of_all_rows(rows, size):
    statistics = GaussianStatistics.empty(12)
    for start in range(0, len(rows), size):
        statistics.update(rows[start : start + size])
    check(statistics, rows)


def test_merged_parts_give_the_covariance_of_all_rows(rows):
    statistics = GaussianStatistics.empty(12)
    for part in np.split(rows, [3, 3, 1000, 4999]):  # one is empty, one has a single row
        statistics.merge(whole(part))
    check(statistics, rows)


def test_memory_is_that_of_the_covariance(rows):
    statistics = whole(rows)
    assert sum(array.size for array in vars(statistics).values() if isinstance(array, np.ndarray)) == 12 + 12**2


def test_what_does_not_fit_is_refused(rows):
    with pytest.raises(ValueError, match=r"shape \(5000, 12\) do not fit statistics of 3"):
        GaussianStatistics.empty(3).update(rows)
    with pytest.raises(ValueError, match="12 and 3 features"):
        GaussianStatistics.empty(3).merge(whole(rows))
    with pytest.raises(ValueError, match=r"rows 0\.\.4999? are not finite|not finite"):
        whole(np.full((5, 2), np.nan))
    with pytest.raises(ValueError, match="at least 2 images, there are 1"):
        whole(rows[:1]).moments()
