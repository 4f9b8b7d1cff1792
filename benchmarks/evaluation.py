"""Time the metrics at the size of papers, beside plain numpy and scipy, and beside the matrix product of this machine.

    OMP_NUM_THREADS=2 python benchmarks/evaluation.py                          # 50,000 x 2048 against 10,000
    OMP_NUM_THREADS=2 python benchmarks/evaluation.py --num_samples 5000 --num_reference 2000 --plain

Prints one JSON line a measurement. The product's rate is measured before and after each. CPU seconds, of all threads
together, say what a quiet machine would do: where others use it too, divide them by the threads.
"""

import argparse
import json
import platform
import resource
import time
from collections.abc import Callable

import numpy as np
import scipy.linalg
import torch

from dit_hf.evaluation import GaussianStatistics, InceptionScoreSums, frechet_distance, neighbours, precision_recall
from dit_hf.evaluation.inception_score import softmax

D, K, BATCH = 2048, 1008, 1000


def features(num: int, seed: int) -> np.ndarray:
    """Non-negative and correlated, as the network's are."""
    rng = np.random.default_rng(seed)
    mix = np.random.default_rng(0).standard_normal((256, D), np.float32) / 16
    rows = np.empty((num, D), np.float32)
    for start in range(0, num, BATCH):
        hidden = rng.standard_normal((min(BATCH, num - start), 256), np.float32)
        rows[start : start + BATCH] = np.maximum(hidden @ mix + 0.1, 0)
    return rows


def product_rate() -> float:
    """GFLOP per CPU second of a float32 product of torch, (4096, D) by (D, 4096)."""
    x = torch.ones(4096, D)
    start = time.process_time()
    x @ x.T
    return 2 * 4096**2 * D / (time.process_time() - start) / 1e9


def timed(name: str, function: Callable[[], object], flops: float = 0) -> None:
    before = product_rate()
    start, cpu_start = time.perf_counter(), time.process_time()
    result = function()
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
    rate = (before + product_rate()) / 2
    line = {"measure": name, "seconds": round(seconds, 1), "cpu_seconds": round(cpu_seconds, 1)}
    line |= {"product_gflop_per_cpu_second": round(rate, 1), "result": result}
    if flops:
        line["share_of_product_rate"] = round(flops / cpu_seconds / 1e9 / rate, 3)
    line["peak_gib"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2)
    print(json.dumps(line), flush=True)


def fid_and_score(samples: np.ndarray, reference: GaussianStatistics, weights: np.ndarray) -> list[float]:
    statistics, scores = GaussianStatistics.empty(D), InceptionScoreSums()
    for start in range(0, len(samples), BATCH):
        rows = samples[start : start + BATCH]
        statistics.update(rows)
        scores.update(softmax(rows @ weights), np.arange(start, start + len(rows)))
    ours, theirs = statistics.moments(), reference.moments()
    fid = frechet_distance(ours.mean, ours.covariance, theirs.mean, theirs.covariance)
    return [round(fid, 4), round(float(scores.scores().mean()), 4)]


def plain_fid_and_score(samples: np.ndarray, reference: np.ndarray, weights: np.ndarray) -> list[float]:
    moments = [(x.mean(0), np.cov(x, rowvar=False)) for x in (samples, reference)]
    root = scipy.linalg.sqrtm(moments[0][1] @ moments[1][1]).real
    fid = ((moments[0][0] - moments[1][0]) ** 2).sum() + np.trace(moments[0][1] + moments[1][1] - 2 * root)
    p = softmax(samples @ weights)
    parts = [p[start : start + 5000] for start in range(0, len(p), 5000)]
    score = np.mean([np.exp((part * (np.log(part) - np.log(part.mean(0)))).sum(1).mean()) for part in parts])
    return [round(float(fid), 4), round(float(score), 4)]


def plain_precision_recall(reference: np.ndarray, samples: np.ndarray) -> list[float]:
    """Row by row of blocks, partitioned by numpy: float32 as it comes, so that near ties may differ."""

    def blocks(x: np.ndarray, y: np.ndarray):
        norms = (y * y).sum(1)
        for start in range(0, len(x), BATCH):
            rows = x[start : start + BATCH]
            yield slice(start, start + len(rows)), (rows * rows).sum(1)[:, None] - 2 * rows @ y.T + norms

    def radii(x: np.ndarray) -> np.ndarray:
        return np.concatenate([np.partition(distances, 3, axis=1)[:, 3] for _, distances in blocks(x, x)])

    radii_reference, radii_samples = radii(reference), radii(samples)
    precise, recalled = np.zeros(len(samples), bool), np.zeros(len(reference), bool)
    for rows, distances in blocks(reference, samples):
        precise |= (distances <= radii_reference[rows, None]).any(0)
        recalled[rows] |= (distances <= radii_samples).any(1)
    return [float(precise.mean()), float(recalled.mean())]


def block_flops(num_rows: int, num_columns: int, triangle: bool = False) -> float:
    blocks = neighbours._blocks(num_rows, num_columns, triangle)
    return sum(2.0 * D * (r.stop - r.start) * (c.stop - c.start) for r, c in blocks)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num_samples", type=int, default=50_000)
    parser.add_argument("--num_reference", type=int, default=10_000)
    parser.add_argument("--plain", action="store_true", help="also plain numpy and scipy")
    arguments = parser.parse_args()
    n, m = arguments.num_samples, arguments.num_reference
    about = {"samples": n, "reference": m, "threads": torch.get_num_threads(), "torch": torch.__version__}
    print(json.dumps({**about, "numpy": np.__version__, "machine": platform.machine()}), flush=True)
    samples, reference = features(n, 1), features(m, 2) * np.float32(1.05)
    weights = np.random.default_rng(3).standard_normal((D, K), np.float32) / 8
    statistics = GaussianStatistics.empty(D)
    statistics.update(reference)
    exact = block_flops(m, m, True) + block_flops(n, n, True) + block_flops(m, n)
    timed("precision, recall, exact", lambda: precision_recall(reference, samples), exact)
    timed("FID, Inception score", lambda: fid_and_score(samples, statistics, weights))
    adm = 2.0 * D * (m * m + n * n + m * n)
    timed("precision, recall, adm_float16", lambda: precision_recall(reference, samples, mode="adm_float16"), adm)
    if arguments.plain:
        timed("plain: FID, Inception score", lambda: plain_fid_and_score(samples, reference, weights))
        timed("plain: precision, recall", lambda: plain_precision_recall(reference, samples), adm)


if __name__ == "__main__":
    main()
