"""ADM's `.npz` files: images in `arr_0`, read in parts, and the statistics of a whole data set beside them.

A file of samples holds `arr_0`, uint8 (N, H, W, 3), and perhaps the labels `arr_1`. A reference file, such as
`VIRTUAL_imagenet256_labeled.npz`, also holds `mu sigma mu_s sigma_s`: mean and covariance of the features of FID and
sFID over the whole training set. Its `arr_0` is the part of that set that precision and recall compare with.

Source: openai/guided-diffusion, evaluations/README.md and evaluator.py.
"""

import contextlib
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from .extractors import POOL, SPATIAL
from .images import BATCH_SIZE, Batch, ImageBatches
from .labels import number_labels
from .statistics import Moments

IMAGES, LABELS = "arr_0", "arr_1"
MOMENTS = {POOL: ("mu", "sigma"), SPATIAL: ("mu_s", "sigma_s")}  # tap -> names in the file


@contextlib.contextmanager
def _damage_named(name: str) -> Iterator[None]:
    """Turn the errors of a damaged archive into one that names it."""
    try:
        yield
    except (zipfile.BadZipFile, zlib.error, EOFError, ValueError) as error:
        raise ValueError(f"{name} cannot be read, the file is damaged or of another form: {error}") from error


class ArrayInNpz:
    """An array of an npz file that is read by rows, without loading the whole array.

    Args:
        path: File.
        name: Name of the array.

    Raises:
        ValueError: If the file holds no such array, or if the array cannot be read in parts.
    """

    def __init__(self, path: str | Path, name: str) -> None:
        if name not in (names := npz_names(path)):
            raise ValueError(f"{path} holds no {name}, only {', '.join(names)}")
        self.path, self.name = path, name
        self._file: IO[bytes] | None = None
        with _damage_named(f"{name} in {path}"), self._open() as file:
            version = npy.read_magic(file)
            header = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
            self.shape, is_fortran, self.dtype = header(file)
            self._begin = file.tell()
        if self.dtype.hasobject:
            raise ValueError(f"{name} in {path} holds Python objects, which are not loaded: save one array of numbers")
        if is_fortran and len(self.shape) > 1:
            raise ValueError(
                f"{name} in {path} is in Fortran order, whose rows do not lie together: save np.ascontiguousarray of it"
            )

    def _open(self) -> IO[bytes]:
        return zipfile.ZipFile(self.path).open(f"{self.name}.npy")

    def read(self, start: int, stop: int) -> NDArray:
        """Return the rows start..stop - 1. Rising order is quickest: rows that are skipped may be read too."""
        if self._file is None:
            self._file = self._open()
        row_bytes = self.dtype.itemsize * int(np.prod(self.shape[1:]))
        with _damage_named(f"{self.name} in {self.path}"):
            self._file.seek(self._begin + start * row_bytes)
            data = self._file.read((stop - start) * row_bytes)
        if len(data) != (stop - start) * row_bytes:
            raise ValueError(f"{self.name} in {self.path} ends before row {stop}: the file is damaged")
        return np.frombuffer(data, self.dtype).reshape(stop - start, *self.shape[1:])


def npz_names(path: str | Path) -> list[str]:
    """Return the names of the arrays in an npz file.

    Raises:
        ValueError: If the file is no npz file.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return [name.removesuffix(".npy") for name in archive.namelist()]
    except zipfile.BadZipFile as error:
        raise ValueError(f"{path} is no npz file ({error}): download it again") from error


def read_arrays(path: str | Path, *names: str) -> list[NDArray | None]:
    """Return whole arrays of an npz file; None for those that the file does not have.

    Raises:
        ValueError: If the file is no npz file, or if an array is damaged or holds Python objects.
    """
    present = npz_names(path)
    arrays: list[NDArray | None] = []
    with np.load(path) as file:
        for name in names:
            with _damage_named(f"{name} in {path}"):
                arrays.append(file[name] if name in present else None)
    return arrays


def npz_batches(path: str | Path, batch_size: int = BATCH_SIZE) -> ImageBatches:
    """Return the images of a file in ADM's form, with the labels if the file has any.

    Args:
        path: File.
        batch_size: Number of images of a batch.

    Raises:
        ValueError: If the file holds no images in that form.
    """
    array = ArrayInNpz(path, IMAGES)
    if array.dtype != np.uint8 or len(array.shape) != 4 or array.shape[-1] != 3:
        raise ValueError(
            f"{IMAGES} in {path} is {array.dtype} {array.shape}: it must be uint8 (N, H, W, 3), with values 0..255 and "
            "the channels last"
        )
    labels, class_names = _read_labels(path, array.shape[0])

    def read(start: int, stop: int) -> Batch:
        images = array.read(start, stop)
        return images if labels is None else (images, labels[start:stop])

    stat = Path(path).stat()
    source = f"{Path(path).resolve()}, {stat.st_size} bytes of {stat.st_mtime_ns}"
    return ImageBatches(array.shape[0], batch_size, read, source, labels=labels, class_names=class_names)


def _read_labels(path: str | Path, num_images: int) -> tuple[NDArray[np.int64] | None, list[str] | None]:
    [labels] = read_arrays(path, LABELS)
    if labels is None:
        return None, None
    if labels.shape != (num_images,):
        raise ValueError(f"{LABELS} in {path} has the shape {labels.shape}: it must be {(num_images,)}, one label each")
    return number_labels(labels.tolist(), f"{LABELS} in {path}")


def npz_moments(path: str | Path) -> dict[str, Moments]:
    """Return mean and covariance of each tap that the file has; files of pytorch-fid have those of "pool" only."""
    arrays = {tap: read_arrays(path, *names) for tap, names in MOMENTS.items()}
    return {
        tap: Moments(mean, covariance)
        for tap, (mean, covariance) in arrays.items()
        if mean is not None and covariance is not None
    }
