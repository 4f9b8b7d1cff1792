"""The Fréchet distance against scipy's matrix square root, closed forms, and where covariances are singular."""

import numpy as np
import pytest
import scipy.linalg

from dit_hf.evaluation import class_frechet_distances, frechet_distance, frechet_distance_of_rows

RNG = np.random.default_rng(0)


def gaussian(size: int, rank: int) -> tuple[np.ndarray, np.ndarray]:
    features = RNG.normal(size=(rank, size))
    return RNG.normal(size=size), features.T @ features / rank


def by_sqrtm(mean_1, covariance_1, mean_2, covariance_2) -> float:
    root = scipy.linalg.sqrtm(covariance_1 @ covariance_2).real
    return ((mean_1 - mean_2) ** 2).sum() + np.trace(covariance_1 + covariance_2 - 2 * root)


# scipy's square root of a singular product is good to about 1e-4 itself
@pytest.mark.parametrize(("rank", "rtol"), [(400, 1e-6), (30, 1e-3)])
def test_frechet_distance_equals_that_by_sqrtm(rank, rtol):
    first, second = gaussian(50, rank), gaussian(50, rank)
    assert frechet_distance(*first, *second) == pytest.approx(by_sqrtm(*first, *second), rel=rtol)


def test_frechet_distance_of_diagonal_gaussians_is_the_closed_form():
    mean_1, mean_2, std_1, std_2 = RNG.uniform(0.1, 2, size=(4, 20))
    expected = ((mean_1 - mean_2) ** 2 + (std_1 - std_2) ** 2).sum()
    assert frechet_distance(mean_1, np.diag(std_1**2), mean_2, np.diag(std_2**2)) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("rank", [100, 5])
def test_frechet_distance_of_a_gaussian_to_itself_is_zero(rank):
    first = gaussian(50, rank)
    assert frechet_distance(*first, *first) < 1e-6


def test_frechet_distance_refuses_what_does_not_fit():
    mean, covariance = gaussian(4, 10)
    with pytest.raises(ValueError, match=r"shapes \(4,\), \(4, 4\), \(3,\), \(3, 3\)"):
        frechet_distance(mean, covariance, mean[:3], covariance[:3, :3])
    with pytest.raises(ValueError, match="not finite"):
        frechet_distance(mean * np.nan, covariance, mean, covariance)


def by_moments(x: np.ndarray, y: np.ndarray) -> float:
    return frechet_distance(x.mean(0), np.cov(x, rowvar=False), y.mean(0), np.cov(y, rowvar=False))


@pytest.mark.parametrize(("n", "m"), [(2, 3), (20, 30), (500, 400)])
def test_distance_of_rows_is_that_of_their_moments(n, m):
    x, y = RNG.normal(size=(n, 40)), RNG.normal(size=(m, 40)) * 1.3 + 0.2
    assert frechet_distance_of_rows(x, y) == pytest.approx(by_moments(x, y), rel=1e-6)


def test_distance_of_few_rows_to_themselves_is_zero():
    x = RNG.normal(size=(10, 2048)).astype(np.float32)
    assert frechet_distance_of_rows(x, x[::-1]) < 1e-6


def test_class_distances_are_those_within_each_class():
    x, y = RNG.normal(size=(60, 8)), RNG.normal(size=(90, 8)) + 1
    labels_x, labels_y = np.arange(60) % 3, np.arange(90) % 3
    found = class_frechet_distances(x, labels_x, y, labels_y)
    assert list(found) == [0, 1, 2]
    for label, distance in found.items():
        assert distance == pytest.approx(by_moments(x[labels_x == label], y[labels_y == label]), rel=1e-6)


def test_classes_that_differ_and_single_rows_are_refused():
    x = RNG.normal(size=(4, 3))
    with pytest.raises(ValueError, match="class 7 is in one of the two"):
        class_frechet_distances(x, np.array([0, 0, 7, 7]), x, np.array([0, 0, 0, 0]))
    with pytest.raises(
        ValueError, match="class 3 has a single image in one of the two sets: each class needs at least 2"
    ):
        class_frechet_distances(x, np.array([0, 0, 3, 3]), x, np.array([0, 0, 0, 3]))
    with pytest.raises(ValueError, match="at least 2"):
        frechet_distance_of_rows(x, x[:1])
