"""The two forms in which many images are kept: a folder of PNGs, or the single `.npz` file of ADM's evaluation.

Both are written batch by batch. A file gets its name once it is whole, so a run that was killed leaves no half image,
and the batches that are there need not be drawn again.
"""

import json
import shutil
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image

from ..files import remove_leftovers, write_text, written_whole


class PngFolder:
    """A PNG for each image, and `metadata.jsonl` with the labels, as `load_dataset("imagefolder")` reads them.

    Args:
        folder: Folder that is made if it is missing.
        num_images: Number of images of the finished folder.
    """

    def __init__(self, folder: Path, num_images: int) -> None:
        self.path, self.num_images = folder, num_images
        self.settings_file = folder / "generation.json"

    def _image_file(self, index: int) -> Path:
        return self.path / f"{index:06d}.png"

    def holds(self, indices: range) -> bool:
        """Whether all images of a batch are there."""
        return all(self._image_file(index).exists() for index in indices)

    def start(self) -> None:
        """Make the folder, and remove what a killed run left unfinished.

        Raises:
            ValueError: If the folder holds files that `generate` did not write.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        remove_leftovers(self.path)
        if any(self.path.iterdir()) and not self.settings_file.exists():
            raise ValueError(f"{self.path} holds files but no {self.settings_file.name}: choose an empty folder")

    def write(self, indices: range, images: np.ndarray) -> None:
        """Write those images of a batch that are missing."""
        for index, image in zip(indices, images, strict=True):
            if not self._image_file(index).exists():
                with written_whole(self._image_file(index)) as partial:
                    Image.fromarray(image).save(partial, format="PNG")

    def finish(self, labels: Sequence[int] | None) -> Path:
        """Write the labels, and return the folder."""
        if labels is not None:
            names = (self._image_file(index).name for index in range(len(labels)))
            rows = ({"file_name": name, "label": int(label)} for name, label in zip(names, labels, strict=True))
            write_text(self.path / "metadata.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
        return self.path


class NpzFile:
    """ADM's form: `arr_0`, uint8 (N, H, W, 3), and the labels as `arr_1`.

    Until all images are drawn, each batch is a file of its own in the folder `NAME.npz.parts` beside the file.

    Args:
        file: File that ends in `.npz`.
        num_images: Number of images of the finished file.
    """

    def __init__(self, file: Path, num_images: int) -> None:
        self.path, self.num_images = file, num_images
        self.parts = file.with_name(f"{file.name}.parts")
        self.settings_file = file.with_suffix(".json")

    def _part(self, indices: range) -> Path:
        return self.parts / f"{indices.start:09d}.npy"

    def holds(self, indices: range) -> bool:
        """Whether all images of a batch are there."""
        return self.path.exists() or self._part(indices).exists()

    def start(self) -> None:
        """Make the folder around the file, and remove what a killed run left unfinished.

        Raises:
            ValueError: If there is a file or folder of that name that `generate` did not write.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        for path in (self.path, self.parts):
            if path.exists() and not self.settings_file.exists():
                raise ValueError(f"{path} exists but no {self.settings_file.name}: remove it or choose another name")
        if self.path.exists() and self.parts.exists():  # the run was killed after the merge
            shutil.rmtree(self.parts)
        for path in (self.path, self.settings_file):
            remove_leftovers(path.parent, path.name)
        remove_leftovers(self.parts)

    def write(self, indices: range, images: np.ndarray) -> None:
        """Write a batch as a part."""
        # The folder is made after the settings file: `start` refuses a folder of parts without one.
        self.parts.mkdir(exist_ok=True)
        with written_whole(self._part(indices)) as partial, partial.open("wb") as file:
            np.save(file, images)

    def finish(self, labels: Sequence[int] | None) -> Path:
        """Merge the parts into the file, add the labels, and return the file."""
        if not self.path.exists():
            with written_whole(self.path) as partial, partial.open("wb") as file:
                self._merge(file, labels)
            shutil.rmtree(self.parts)
        return self.path

    def _merge(self, file: IO[bytes], labels: Sequence[int] | None) -> None:
        """Write the bytes that `numpy.savez` would, with one part in memory at a time."""
        with zipfile.ZipFile(file, "w") as archive:  # uncompressed, and dated 1980: the same bytes every time
            with archive.open(zipfile.ZipInfo("arr_0.npy"), "w", force_zip64=True) as entry:
                self._write_images(entry)
            if labels is not None:
                with archive.open(zipfile.ZipInfo("arr_1.npy"), "w", force_zip64=True) as entry:
                    np.lib.format.write_array(entry, np.asarray(labels, dtype=np.int64))

    def _write_images(self, entry: IO[bytes]) -> None:
        parts = sorted(self.parts.glob("*.npy"))
        image_shape, count = np.load(parts[0], mmap_mode="r").shape[1:], 0  # (H, W, 3)
        header = {"descr": "|u1", "fortran_order": False, "shape": (self.num_images, *image_shape)}
        np.lib.format.write_array_header_1_0(entry, header)
        for part in parts:
            images = np.load(part)  # (B, H, W, 3)
            if images.shape[1:] != image_shape:
                raise ValueError(f"{part} holds images of {images.shape[1:]}, {parts[0].name} of {image_shape}")
            entry.write(images.tobytes())
            count += len(images)
        assert count == self.num_images, f"{self.parts} holds {count} of {self.num_images} images"


def open_output(path: Path, num_images: int) -> PngFolder | NpzFile:
    """Return the form that a path asks for: an `NpzFile` if the path ends in `.npz`, else a `PngFolder`."""
    return (NpzFile if path.suffix == ".npz" else PngFolder)(path, num_images)
