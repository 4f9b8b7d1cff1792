"""Time the metrics at the sizes of papers, beside plain numpy and scipy and beside this machine's matrix product.

    OMP_NUM_THREADS=2 python benchmarks/evaluation.py --plain                  # 50,000 x 2048 against 10,000
    OMP_NUM_THREADS=2 python benchmarks/evaluation.py --plain --num_samples 5000 --num_reference 2000

Each measurement is a row of a table and runs in a process of its own, so that its peak of memory is its own. The rate
of the plain matrix product is the best of six, three before and three after the measurement. The share of that rate is
given by wall time, and by the CPU time of all threads: on a machine with other work, the latter is the fair one.
"""

import argparse
import multiprocessing
import resource
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import NamedTuple

import numpy as np
import scipy.linalg
import torch

from dit_hf.evaluation import GaussianStatistics, InceptionScoreSums, Moments, frechet_distance
from dit_hf.evaluation.metrics import neighbours, precision_recall
from dit_hf.evaluation.metrics.inception_score import softmax

D, K, BATCH = 2048, 1008, 1000
PRODUCT = 4096  # rows of the product that is timed for comparison
Measurement = tuple[Callable[[], tuple[float, float]], float]  # returns two numbers; operations of its products, or 0


def features(num: int, seed: int) -> np.ndarray:
    """Return random features (num, D), non-negative and correlated as those of the network."""
    rng = np.random.default_rng(seed)
    mix = np.random.default_rng(0).standard_normal((256, D), np.float32) / 16
    rows = np.empty((num, D), np.float32)
    for start in range(0, num, BATCH):
        hidden = rng.standard_normal((min(BATCH, num - start), 256), np.float32)
        rows[start : start + BATCH] = np.maximum(hidden @ mix + 0.1, 0)
    return rows


def make_sets(num_samples: int, num_reference: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the features of samples, and of a reference that differs a little."""
    samples, reference = features(num_samples, 1), features(num_reference, 2)
    reference *= np.float32(1.05)
    return samples, reference


def logit_weights() -> np.ndarray:
    return np.random.default_rng(3).standard_normal((D, K), np.float32) / 8


# --- the measurements: samples and reference are made before the clock starts ----------------------------------------


def fid_and_score(num_samples: int, num_reference: int) -> Measurement:
    """FID and Inception score from streamed statistics; those of the reference are given, as in ADM's file."""
    samples, reference = make_sets(num_samples, num_reference)
    statistics, weights = GaussianStatistics.empty(D), logit_weights()
    statistics.update(reference)
    real = statistics.moments()

    def compute() -> tuple[float, float]:
        statistics, scores = GaussianStatistics.empty(D), InceptionScoreSums()
        for start in range(0, len(samples), BATCH):
            rows = samples[start : start + BATCH]
            statistics.update(rows)
            scores.update(softmax(rows @ weights), np.arange(start, start + len(rows)))
        drawn = statistics.moments()
        fid = frechet_distance(drawn.mean, drawn.covariance, real.mean, real.covariance)
        return fid, float(scores.scores().mean())

    return compute, 0


def plain_fid_and_score(num_samples: int, num_reference: int) -> Measurement:
    samples, reference = make_sets(num_samples, num_reference)
    real, weights = Moments(reference.mean(0), np.cov(reference, rowvar=False)), logit_weights()

    def compute() -> tuple[float, float]:
        drawn = Moments(samples.mean(0), np.cov(samples, rowvar=False))
        root = scipy.linalg.sqrtm(drawn.covariance @ real.covariance).real
        fid = ((drawn.mean - real.mean) ** 2).sum() + np.trace(drawn.covariance + real.covariance - 2 * root)
        p = softmax(samples @ weights)
        parts = [p[start : start + 5000] for start in range(0, len(p), 5000)]
        score = np.mean([np.exp((part * (np.log(part) - np.log(part.mean(0)))).sum(1).mean()) for part in parts])
        return float(fid), float(score)

    return compute, 0


def exact(num_samples: int, num_reference: int) -> Measurement:
    samples, reference = make_sets(num_samples, num_reference)
    sides = [(num_reference, num_reference, True), (num_samples, num_samples, True), (num_reference, num_samples)]
    blocks = [block for side in sides for block in neighbours._blocks(*side)]
    flops = sum(2.0 * D * (rows.stop - rows.start) * (columns.stop - columns.start) for rows, columns in blocks)
    return lambda: precision_recall(reference, samples), flops


def whole_products(num_samples: int, num_reference: int) -> float:
    """Return the number of operations without any use of symmetry."""
    return 2.0 * D * (num_reference**2 + num_samples**2 + num_reference * num_samples)


def adm_float16(num_samples: int, num_reference: int) -> Measurement:
    samples, reference = make_sets(num_samples, num_reference)
    flops = whole_products(num_samples, num_reference)
    return lambda: precision_recall(reference, samples, mode="adm_float16"), flops


def plain_precision_recall(num_samples: int, num_reference: int) -> Measurement:
    """Blocks of rows, partitioned by numpy in float32, so that near ties may be decided otherwise."""
    samples, reference = make_sets(num_samples, num_reference)

    def blocks(x: np.ndarray, y: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
        norms = (y * y).sum(1)
        for start in range(0, len(x), BATCH):
            rows = x[start : start + BATCH]
            yield slice(start, start + len(rows)), (rows * rows).sum(1)[:, None] - 2 * rows @ y.T + norms

    def radii(x: np.ndarray) -> np.ndarray:
        return np.concatenate([np.partition(distances, 3, axis=1)[:, 3] for _, distances in blocks(x, x)])

    def compute() -> tuple[float, float]:
        radii_reference, radii_samples = radii(reference), radii(samples)
        precise, recalled = np.zeros(len(samples), bool), np.zeros(len(reference), bool)
        for rows, distances in blocks(reference, samples):
            precise |= (distances <= radii_reference[rows, None]).any(0)
            recalled[rows] |= (distances <= radii_samples).any(1)
        return float(precise.mean()), float(recalled.mean())

    return compute, whole_products(num_samples, num_reference)


OURS = {
    "FID, Inception score": fid_and_score,
    "precision, recall, exact": exact,
    "precision, recall, adm_float16": adm_float16,
}
PLAIN = {
    "plain: FID, Inception score": plain_fid_and_score,
    "plain: precision, recall": plain_precision_recall,
}


# --- the table -------------------------------------------------------------------------------------------------------


class Seconds(NamedTuple):
    """Wall time, and CPU time of all threads."""

    wall: float
    cpu: float


def seconds_of(function: Callable[[], object]) -> tuple[Seconds, object]:
    start, cpu_start = time.perf_counter(), time.process_time()
    result = function()
    return Seconds(time.perf_counter() - start, time.process_time() - cpu_start), result


def product_seconds() -> list[Seconds]:
    """Return the times of three float32 products of torch, (PRODUCT, D) by (D, PRODUCT)."""
    x = torch.ones(PRODUCT, D)
    return [seconds_of(lambda: x @ x.T)[0] for _ in range(3)]


def measure(name: str, num_samples: int, num_reference: int) -> str:
    """Return a row of the table."""
    compute, flops = (OURS | PLAIN)[name](num_samples, num_reference)
    products = product_seconds()
    seconds, result = seconds_of(compute)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # before the products that follow
    products += product_seconds()
    product_flops = 2.0 * PRODUCT**2 * D
    rates = [product_flops / min(times) / 1e9 for times in zip(*products, strict=True)]
    shares = [f"{flops / used / 1e9 / rate:.2f}" if flops else "" for used, rate in zip(seconds, rates, strict=True)]
    numbers = ", ".join(f"{number:.4f}" for number in result)
    cells = [name, numbers, f"{seconds.wall:.1f}", f"{seconds.cpu:.1f}", *shares, f"{rates[0]:.0f}", f"{peak:.2f}"]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num_samples", type=int, default=50_000, help="Number of samples.")
    parser.add_argument("--num_reference", type=int, default=10_000, help="Number of real images.")
    parser.add_argument("--plain", action="store_true", help="Also time plain numpy and scipy.")
    arguments = parser.parse_args()
    sizes = (arguments.num_samples, arguments.num_reference)
    print(f"{sizes[0]} x {D} against {sizes[1]}, {torch.get_num_threads()} threads, torch {torch.__version__}\n")
    print("| | result | wall s | CPU s | share of product, wall | share, CPU | product GFLOP/s | peak GiB |")
    print("|---|---|---|---|---|---|---|---|", flush=True)
    for name in OURS | (PLAIN if arguments.plain else {}):
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
            print(process.submit(measure, name, *sizes).result(), flush=True)


if __name__ == "__main__":
    main()
