"""What samples are compared with: moments and features of real images, kept in a file that ADM's script reads too."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .adm import IMAGES, MOMENTS, npz_batches, npz_moments, npz_names, read_arrays
from .extract import extract
from .extractors import FID_NAME, Extractor
from .features import Features
from .images import Batch
from .statistics import Moments

# Names in our files, beside ADM's.
ROWS, LABELS, CLASS_NAMES, IMAGE_SIZES, SETTINGS = "rows", "labels", "class_names", "image_sizes", "settings"


@dataclass
class Reference:
    """The real images, as the metrics need them.

    Attributes:
        moments: Mean and covariance of each tap.
        rows: Features (N, D) of the tap `pool`, or None if there are statistics only.
        labels: Class of each row (N,), or None if the images have no labels.
        settings: Source, number of images and extractor, for the result.
        class_names: Name of each class, or None if the classes have no names.
        image_sizes: Heights and widths of the images, each once; empty if they are not known.
    """

    moments: dict[str, Moments]
    rows: NDArray[np.float32] | None = None
    labels: NDArray[np.integer] | None = None
    settings: dict[str, Any] | None = None
    class_names: Sequence[str] | None = None
    image_sizes: Sequence[tuple[int, int]] = ()

    @classmethod
    def from_features(cls, features: Features, source: str = "") -> "Reference":
        """Return the images of a pass as a reference.

        Args:
            features: Features of the pass.
            source: Name of the images, for the result.
        """
        settings = {"source": source, "num_images": features.num_images, "extractor": features.extractor}
        return cls._of_pass(features, features.moments(), settings)

    @classmethod
    def _of_pass(cls, features: Features, moments: dict[str, Moments], settings: dict[str, Any]) -> "Reference":
        """Return the images of a pass as a reference, with moments that may be those of more images."""
        return cls(moments, features.rows, features.labels, settings, features.class_names, features.image_sizes)

    def save(self, path: str | Path) -> None:
        """Write the statistics under ADM's names, and the rows and labels if they are known."""
        arrays: dict[str, Any] = {SETTINGS: json.dumps(self.settings)}
        for tap, (mean, covariance) in MOMENTS.items():
            if tap in self.moments:
                arrays |= {mean: self.moments[tap].mean, covariance: self.moments[tap].covariance}
        known = {ROWS: self.rows, LABELS: self.labels, CLASS_NAMES: self.class_names, IMAGE_SIZES: self.image_sizes}
        arrays |= {name: np.asarray(array) for name, array in known.items() if array is not None}
        with open(path, "wb") as file:
            np.savez(file, **arrays)


def load_reference(path: str | Path, extractor: Extractor, work_dir: str | Path | None = None) -> Reference:
    """Read saved statistics, ADM's reference file, or a file that holds images alone.

    ADM's reference file gives the moments of the whole data set; features are computed of the images in its `arr_0`.

    Args:
        path: File that ends in `.npz`.
        extractor: Extractor of the images in the file. Saved statistics must have been made with the same.
        work_dir: Folder that keeps the features, as in `extract`.

    Raises:
        ValueError: If the file was made with another extractor, or holds neither statistics nor images.
    """
    names = npz_names(path)
    if SETTINGS in names:
        return _load_saved(path, extractor)
    moments = npz_moments(path)
    if moments and extractor.name != FID_NAME:
        raise ValueError(f"{path} holds statistics of {FID_NAME}, the extractor is {extractor.name}: they do not fit")
    if IMAGES not in names and not moments:
        raise ValueError(f"{path} holds neither {IMAGES} nor mu and sigma, only {', '.join(names)}")
    settings: dict[str, Any] = {"source": str(path), "moments": "those of the file" if moments else "of its images"}
    if IMAGES not in names:
        return Reference(moments, settings=settings)
    features = extract(npz_batches(path), extractor, work_dir=work_dir)
    settings["num_images"] = features.num_images
    return Reference._of_pass(features, moments or features.moments(), settings)


def _load_saved(path: str | Path, extractor: Extractor) -> Reference:
    """Read what `Reference.save` wrote."""
    text, rows, labels, class_names, sizes = read_arrays(path, SETTINGS, ROWS, LABELS, CLASS_NAMES, IMAGE_SIZES)
    settings = json.loads(str(text))
    identity = {"name": extractor.name, **extractor.settings}
    if settings["extractor"] != json.loads(json.dumps(identity)):
        raise ValueError(f"{path} was made with {settings['extractor']}, the extractor is {identity}: make it anew")
    num = settings["num_images"]
    moments = {tap: each._replace(num=num) for tap, each in npz_moments(path).items()}
    names = None if class_names is None else class_names.tolist()
    image_sizes = [] if sizes is None else [(height, width) for height, width in sizes.tolist()]
    return Reference(moments, rows, labels, settings, names, image_sizes)


def make_reference(
    images: Iterable[Batch],
    extractor: Extractor,
    source: str = "",
    work_dir: str | Path | None = None,
    num_images: int | None = None,
) -> Reference:
    """Pass over any images, and return them as a reference.

    Args:
        images: Batches of images, as in `extract`.
        extractor: Network that gives the features.
        source: Name of the images, for the result.
        work_dir: Folder that keeps the features, as in `extract`.
        num_images: Number of images to take from the beginning; None takes all.

    Raises:
        ValueError: As in `extract`.
    """
    return Reference.from_features(extract(images, extractor, num_images=num_images, work_dir=work_dir), source)
