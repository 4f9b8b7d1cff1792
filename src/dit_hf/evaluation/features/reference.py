"""What samples are compared with: moments and features of real images, kept in a file that ADM's script reads too."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .adm import IMAGES, MOMENTS, npz_batches, npz_moments, npz_names
from .extract import Features, extract
from .extractors import FID_NAME, Extractor
from .images import Batch
from .statistics import Moments

ROWS, LABELS, SETTINGS = "rows", "labels", "settings"  # names in our files, beside ADM's


@dataclass
class Reference:
    """Moments of each tap, and each image's features where they are known."""

    moments: dict[str, Moments]
    rows: NDArray[np.float32] | None = None  # (N, D) of the tap "pool"
    labels: NDArray[np.integer] | None = None  # (N,)
    settings: dict[str, Any] | None = None  # where it comes from

    @classmethod
    def from_features(cls, features: Features, source: str = "") -> "Reference":
        """Compare with the images of a pass."""
        settings = {"source": source, "num_images": features.num_images, "extractor": features.extractor}
        return cls(features.moments(), features.rows, features.labels, settings)

    def save(self, path: str | Path) -> None:
        """Write the statistics, under ADM's names, and the features of each image where they are known."""
        arrays: dict[str, Any] = {SETTINGS: json.dumps(self.settings)}
        for tap, (mean, covariance) in MOMENTS.items():
            if tap in self.moments:
                arrays |= {mean: self.moments[tap].mean, covariance: self.moments[tap].covariance}
        arrays |= {name: array for name, array in ((ROWS, self.rows), (LABELS, self.labels)) if array is not None}
        with open(path, "wb") as file:
            np.savez(file, **arrays)


def load_reference(path: str | Path, extractor: Extractor, work_dir: str | Path | None = None) -> Reference:
    """Read statistics that were saved before, ADM's reference, or a file of images alone.

    In ADM's reference the moments are those of the file, over the whole data set, and the features of each image are
    computed from `arr_0`.

    Args:
        path: an `.npz`.
        extractor: computes the features of images in the file, and must be the one of saved statistics.
        work_dir: as in `extract`.

    Raises:
        ValueError: if the file was made with another extractor, or holds neither statistics nor images.
    """
    names = npz_names(path)
    moments = npz_moments(path)
    if SETTINGS in names:
        with np.load(path) as arrays:
            settings = json.loads(str(arrays[SETTINGS]))
            rows, labels = (arrays[name] if name in names else None for name in (ROWS, LABELS))
        about = {"name": extractor.name, **extractor.settings}
        if settings["extractor"] != json.loads(json.dumps(about)):
            raise ValueError(f"{path} was made with {settings['extractor']}, the extractor is {about}: make it anew")
        num = settings["num_images"]
        return Reference({tap: each._replace(num=num) for tap, each in moments.items()}, rows, labels, settings)
    if moments and extractor.name != FID_NAME:
        raise ValueError(f"{path} holds statistics of {FID_NAME}, the extractor is {extractor.name}: they do not fit")
    if IMAGES not in names and not moments:
        raise ValueError(f"{path} holds neither {IMAGES} nor mu and sigma, only {', '.join(names)}")
    settings = {"source": str(path), "moments": "those of the file" if moments else "of its images"}
    if IMAGES not in names:
        return Reference(moments, settings=settings)
    features = extract(npz_batches(path), extractor, work_dir=work_dir)
    settings["num_images"] = features.num_images
    return Reference(moments or features.moments(), features.rows, features.labels, settings)


def make_reference(
    images: Iterable[Batch],
    extractor: Extractor,
    source: str = "",
    work_dir: str | Path | None = None,
    num_images: int | None = None,
) -> Reference:
    """Compare with any images; see `extract`."""
    return Reference.from_features(extract(images, extractor, num_images=num_images, work_dir=work_dir), source)
