"""Make `metrics.npz`: random features, and what the metrics of torch-fidelity, clean-fid and pytorch-fid say of them.

    pip install --no-deps --target out/others torch-fidelity==0.4.0 clean-fid==0.1.35 pytorch-fid==0.3.0
    PYTHONPATH=out/others python tests/evaluation/golden/make_metrics.py

They import what their metrics do not use, torchvision and requests: a stand-in takes its place here. scipy has
to be below 1.18, as both ask its `sqrtm` for `disp`.
"""

import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from unittest.mock import MagicMock

import numpy as np
import torch

UNUSED = ["requests", "torchvision"] + [
    f"torchvision.{name}" for name in ("datasets", "models", "transforms", "transforms.functional")
]
D = 32


def random_features() -> dict[str, np.ndarray]:
    """Non-negative and correlated, as the network's pool is; few rows have a singular covariance."""
    rng = np.random.default_rng(0)
    mix = rng.normal(size=(D, D)) / np.sqrt(D)
    reference, samples = (np.maximum(rng.normal(size=(num, D)) @ mix + 0.2, 0) for num in (250, 200))
    few = np.maximum(rng.normal(size=(20, D)) @ mix + 0.4, 0)
    features = {"reference": reference, "samples": samples * 0.9, "few": few, "logits": rng.normal(size=(200, 10)) * 2}
    return {name: array.astype(np.float32) for name, array in features.items()}


def main() -> None:
    for name in UNUSED:
        sys.modules[name] = MagicMock(__spec__=ModuleSpec(name, None), __path__=[])
    import cleanfid.fid
    import pytorch_fid.fid_score
    from torch_fidelity import metric_fid, metric_isc, metric_kid, metric_prc

    stored = random_features()
    reference, samples, few, logits = (torch.from_numpy(array).double() for array in stored.values())
    numbers: dict[str, float] = {}
    for name, rows in (("full", samples), ("singular", few)):
        ours, theirs = (metric_fid.fid_features_to_statistics(x) for x in (rows, reference))
        moments = (ours["mu"], ours["sigma"], theirs["mu"], theirs["sigma"])
        found = metric_fid.fid_statistics_to_metric(ours, theirs, False)
        numbers[f"fid_{name}_torch_fidelity"] = found[metric_fid.KEY_METRIC_FID]
        numbers[f"fid_{name}_clean_fid"] = cleanfid.fid.frechet_distance(*moments)
        numbers[f"fid_{name}_pytorch_fid"] = pytorch_fid.fid_score.calculate_frechet_distance(*moments)
    for name, shuffle in (("in_order", False), ("shuffled", True)):
        found = metric_isc.isc_features_to_metric(logits, splits=10, shuffle=shuffle)
        numbers[f"isc_{name}"] = found[metric_isc.KEY_METRIC_ISC_MEAN]
    whole = {"kid_subsets": 1, "kid_subset_size": len(samples), "verbose": False}  # no draw: all rows of both
    found = metric_kid.kid_features_to_metric(samples, reference[: len(samples)], **whole)
    numbers["kid_torch_fidelity"] = found[metric_kid.KEY_METRIC_KID_MEAN]
    numbers["kid_clean_fid"] = cleanfid.fid.kernel_distance(
        samples.numpy(), reference[: len(samples)].numpy(), num_subsets=1
    )
    for save_memory in (False, True):
        found = metric_prc.prc_features_to_metric(samples, reference, save_cpu_ram=save_memory, verbose=False)
        suffix = "in_parts" if save_memory else "at_once"
        numbers |= {f"{name}_{suffix}": found[name] for name in ("precision", "recall")}
    for name, number in numbers.items():
        print(f"{name:30} {number:.12g}")
    np.savez_compressed(Path(__file__).with_name("metrics.npz"), **stored, **numbers)


if __name__ == "__main__":
    main()
