"""The result of an evaluation: the metrics under the names they deserve, their spread, and all settings.

FID, sFID and KID are defined by the Inception network of 2015. On the features of any other network they are called FD,
sFD and KD.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

NAMES_ON_OTHER_FEATURES = {"fid": "fd", "sfid": "sfd", "kid": "kd", "kid_std": "kd_std", "class_fid": "class_fd"}
TITLES = {
    "fid": "FID",
    "sfid": "sFID",
    "kid": "KID",
    "kid_std": "KID, std",
    "class_fid": "FID within classes",
    "fd": "FD",
    "sfd": "sFD",
    "kd": "KD",
    "kd_std": "KD, std",
    "class_fd": "FD within classes",
    "inception_score": "Inception score",
    "precision": "precision",
    "recall": "recall",
    "density": "density",
    "coverage": "coverage",
}
Value = TypeVar("Value")


def rename_for_other_features(values: Mapping[str, Value]) -> dict[str, Value]:
    """Return values by the names that metrics have on features other than those of FID."""
    return {NAMES_ON_OTHER_FEATURES.get(name, name): value for name, value in values.items()}


@dataclass
class Evaluation:
    """What `evaluate` found.

    Attributes:
        metrics: Metrics by name.
        spread: Standard error or deviation of metrics by name; `settings["spread"]` says which.
        skipped: Reason why a metric could not be computed, by its name.
        settings: Every setting that the metrics depend on.
    """

    metrics: dict[str, float]
    spread: dict[str, float] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)

    def save(self, path: str | Path) -> None:
        """Write the result as JSON."""
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text(json.dumps(asdict(self), indent=2, default=str) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> "Evaluation":
        """Read what `save` wrote."""
        return cls(**json.loads(Path(path).read_text(encoding="utf-8")))

    def table(self) -> str:
        """Return lines for a terminal."""
        lines = [
            f"{TITLES[name]:<20}{value:>14.4f}" + (f"  +- {self.spread[name]:.4f}" if name in self.spread else "")
            for name, value in self.metrics.items()
        ]
        lines += [f"{name:<20}{'-':>14}  {reason}" for name, reason in self.skipped.items()]
        extractor = self.settings["extractor"]["name"]
        return "\n".join([f"{self.settings['num_images']} images, features of {extractor}", *lines])


def average(results: Sequence[Evaluation]) -> Evaluation:
    """Return the mean of each metric over repetitions, with the standard deviation over them as the spread.

    Args:
        results: Results that differ only in the samples, for example in their seed. One result is returned as it is.
    """
    first = results[0]
    if len(results) == 1:
        return first
    values = {name: [result.metrics[name] for result in results] for name in first.metrics}
    means = {name: float(np.mean(each)) for name, each in values.items()}
    spread = {name: float(np.std(each, ddof=1)) for name, each in values.items()}
    settings = {**first.settings, "samples": [result.settings.get("samples") for result in results]}
    settings |= {"each": values, "spread": f"standard deviation over {len(results)} repetitions"}
    return Evaluation(means, spread, first.skipped, settings)
