"""N images from any sampler, in memory or in files, over any number of processes, resumable after a kill.

Image k is drawn from the seed and k alone: neither the number of processes nor an interruption changes it, and another
batch size changes it by the rounding of floats only. Batch p is always the images [p B, (p+1) B), whoever draws it.
Legend: N images, B images of a batch, H and W their height and width.
"""

import hashlib
import json
import platform
import shutil
import warnings
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs
from PIL import Image
from tqdm import tqdm

from ..files import remove_leftovers, write_text, written_whole

Sampler = Callable[[list[int] | None, list[torch.Generator]], np.ndarray]
"""From the labels of a batch, None without classes, and a generator for each image, to uint8 (B, H, W, 3)."""

LABEL_STREAM = 1  # sets the draws of labels apart from the other uses of a seed
MASK = 0xFFFFFFFF


def _mix(word: int) -> int:
    """A bijection of 32 bits in which every bit depends on every other: MurmurHash3's finaliser."""
    for multiplier, shift in ((0x85EBCA6B, 16), (0xC2B2AE35, 13)):
        word = ((word ^ word >> shift) * multiplier) & MASK
    return word ^ word >> 16


@cache
def _words(seed: int) -> list[int]:
    return np.random.SeedSequence(seed).generate_state(2, np.uint32).tolist()


def image_seed(seed: int, index: int) -> int:
    """The seed of image `index`: another one for each, as torch's CPU generator keeps 32 bits of what it is given.

    Args:
        seed: of all images, from 0 on.
        index: 0..2^32 - 1. Hashes of 32 bits would give two of 100,000 images the same noise, more often than not.
    """
    first, second = _words(seed)
    return _mix(_mix(index ^ first) ^ second)


def draw_labels(scheme: str, num_images: int, num_classes: int, seed: int = 0) -> list[int]:
    """Choose a class for each image: "random", each class as likely, or "balanced", 0, 1, ... in turn.

    Raises:
        ValueError: for another scheme, or without classes.
    """
    if num_classes < 1:
        raise ValueError(f"num_classes={num_classes}: the model is unconditional, there are no labels to draw")
    if scheme == "random":
        return np.random.default_rng((seed, LABEL_STREAM)).integers(num_classes, size=num_images).tolist()
    if scheme == "balanced":
        return (np.arange(num_images) % num_classes).tolist()
    raise ValueError(f"labels={scheme!r}: choose from random, balanced")


def _check(num_images: int, labels: Sequence[int] | None, seed: int, batch_size: int) -> None:
    for name, value, least in (("num_images", num_images, 1), ("batch_size", batch_size, 1), ("seed", seed, 0)):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ValueError(f"{name}={value!r}: pass a whole number of at least {least}")
    if labels is not None and len(labels) != num_images:
        raise ValueError(f"{len(labels)} labels for num_images={num_images}: pass one for each image")


def iterate_batches(
    sample: Sampler,
    num_images: int,
    *,
    labels: Sequence[int] | None = None,
    seed: int = 0,
    batch_size: int = 32,
    batches: Iterable[int] | None = None,
) -> Iterator[np.ndarray]:
    """Yield the images batch by batch, uint8 (B, H, W, 3), and keep none.

    Args:
        sample: draws one batch.
        num_images: N.
        labels: a class for each image, or None for an unconditional model.
        seed: of all images.
        batch_size: B; the last batch may be smaller.
        batches: which ones, by number; None is all.

    Raises:
        ValueError: for an argument outside its limits, or when `sample` returns something else.
    """
    _check(num_images, labels, seed, batch_size)
    num_batches = -(-num_images // batch_size)
    for number in range(num_batches) if batches is None else batches:
        indices = range(number * batch_size, min((number + 1) * batch_size, num_images))
        generators = [torch.Generator().manual_seed(image_seed(seed, index)) for index in indices]
        images = sample(None if labels is None else [labels[index] for index in indices], generators)
        form = (getattr(images, "dtype", None), getattr(images, "ndim", None), getattr(images, "shape", (0,))[-1])
        if form != (np.uint8, 4, 3) or len(images) != len(indices):
            got = f"{form[0]} {getattr(images, 'shape', type(images).__name__)}"
            raise ValueError(f"sample returned {got}: it must return uint8 ({len(indices)}, H, W, 3)")
        yield images


class PngFolder:
    """A PNG for each image, and `metadata.jsonl` with the labels, as `load_dataset("imagefolder")` reads them."""

    def __init__(self, folder: Path, num_images: int) -> None:
        self.folder, self.num_images = folder, num_images
        self.settings_file = folder / "generation.json"

    def _path(self, index: int) -> Path:
        return self.folder / f"{index:06d}.png"

    def holds(self, indices: range) -> bool:
        return all(self._path(index).exists() for index in indices)

    def start(self) -> None:
        """Make the place, and remove what a killed run left unfinished."""
        self.folder.mkdir(parents=True, exist_ok=True)
        remove_leftovers(self.folder)
        if any(self.folder.iterdir()) and not self.settings_file.exists():
            raise ValueError(f"{self.folder} holds files but no {self.settings_file.name}: choose an empty folder")

    def write(self, indices: range, images: np.ndarray) -> None:
        for index, image in zip(indices, images, strict=True):
            if not self._path(index).exists():
                with written_whole(self._path(index)) as partial:
                    Image.fromarray(image).save(partial, format="PNG")

    def finish(self, labels: Sequence[int] | None) -> Path:
        if labels is not None:
            rows = ({"file_name": self._path(index).name, "label": int(label)} for index, label in enumerate(labels))
            text = "".join(json.dumps(row) + "\n" for row in rows)
            write_text(self.folder / "metadata.jsonl", text)
        return self.folder


class NpzFile:
    """ADM's form: `arr_0`, uint8 (N, H, W, 3), and the labels as `arr_1`; in parts beside it until all are drawn."""

    def __init__(self, file: Path, num_images: int) -> None:
        self.file, self.num_images = file, num_images
        self.parts = file.with_name(f"{file.name}.parts")
        self.settings_file = file.with_suffix(".json")

    def _part(self, indices: range) -> Path:
        return self.parts / f"{indices.start:09d}.npy"

    def holds(self, indices: range) -> bool:
        return self.file.exists() or self._part(indices).exists()

    def start(self) -> None:
        """Make the place, and remove what a killed run left unfinished."""
        self.file.parent.mkdir(parents=True, exist_ok=True)
        for path in (self.file, self.parts):
            if path.exists() and not self.settings_file.exists():
                raise ValueError(f"{path} exists but no {self.settings_file.name}: remove it or choose another name")
        if self.file.exists() and self.parts.exists():  # killed after the merge
            shutil.rmtree(self.parts)
        for path in (self.file, self.settings_file):
            remove_leftovers(path.parent, path.name)
        remove_leftovers(self.parts)

    def write(self, indices: range, images: np.ndarray) -> None:
        self.parts.mkdir(exist_ok=True)  # only now, as a folder without settings beside it is nobody's
        with written_whole(self._part(indices)) as partial, partial.open("wb") as file:
            np.save(file, images)

    def finish(self, labels: Sequence[int] | None) -> Path:
        if not self.file.exists():
            with written_whole(self.file) as partial, partial.open("wb") as file:
                self._merge(file, labels)
            shutil.rmtree(self.parts)
        return self.file

    def _merge(self, file: BinaryIO, labels: Sequence[int] | None) -> None:
        """Write what `numpy.savez` would, one part in memory at a time."""
        parts = sorted(self.parts.glob("*.npy"))
        height_width, count = np.load(parts[0], mmap_mode="r").shape[1:3], 0
        header = {"descr": "|u1", "fortran_order": False, "shape": (self.num_images, *height_width, 3)}
        with zipfile.ZipFile(file, "w") as archive:  # uncompressed, and dated 1980: the same bytes every time
            with archive.open(zipfile.ZipInfo("arr_0.npy"), "w", force_zip64=True) as entry:
                np.lib.format.write_array_header_1_0(entry, header)
                for part in parts:
                    images = np.load(part)  # (B, H, W, 3)
                    if images.shape[1:3] != height_width:
                        raise ValueError(f"{part} holds images of {images.shape[1:3]}, {parts[0].name} {height_width}")
                    entry.write(images.tobytes())
                    count += len(images)
            assert count == self.num_images, f"{self.parts} holds {count} of {self.num_images} images"
            if labels is not None:
                with archive.open(zipfile.ZipInfo("arr_1.npy"), "w", force_zip64=True) as entry:
                    np.lib.format.write_array(entry, np.asarray(labels, dtype=np.int64))


def _check_settings(file: Path, settings: dict[str, Any], environment: dict[str, Any]) -> None:
    """Write the settings, or refuse to go on with others than those that the images there were drawn with."""
    settings, environment = json.loads(json.dumps([settings, environment]))  # as they come back: tuples are lists
    if not file.exists():
        text = json.dumps({"settings": settings, "environment": environment}, indent=2) + "\n"
        return write_text(file, text)
    before = json.loads(file.read_text(encoding="utf-8"))
    for part, now in (("settings", settings), ("environment", environment)):
        names = sorted(name for name in {*before[part], *now} if before[part].get(name) != now.get(name))
        changes = ", ".join(f"{name} {before[part].get(name)!r} -> {now.get(name)!r}" for name in names)
        if changes and part == "settings":
            raise ValueError(f"{file} was begun with other settings ({changes}): use those, or another output")
        if changes:
            warnings.warn(f"going on elsewhere than begun, images may round otherwise: {changes}", stacklevel=3)


def start_inference_accelerator() -> Accelerator:
    """An Accelerator whose processes may wait for each other as long as the slowest needs."""
    patience = InitProcessGroupKwargs(timeout=timedelta(days=30))
    # without `cpu`, Accelerate starts one process where there is no GPU, whatever the launcher asked for
    return Accelerator(cpu=not torch.accelerator.is_available(), kwargs_handlers=[patience])


def generate_images(
    sample: Sampler,
    output: str | Path,
    num_images: int,
    *,
    labels: Sequence[int] | None = None,
    seed: int = 0,
    batch_size: int = 32,
    settings: dict[str, Any] | None = None,
    accelerator: Accelerator | None = None,
) -> Path:
    """Draw N images into a folder of PNGs or ADM's `.npz`; the same call goes on where a killed one stopped.

    Every process of a launcher calls this, each draws its share, and memory holds one batch of a process at a time.

    Args:
        sample: draws one batch.
        output: a new folder, or a file that ends in `.npz`, which takes its size again on the disk while it is merged.
        num_images: N.
        labels: a class for each image, or None for an unconditional model.
        seed: of all images.
        batch_size: B, on each process.
        settings: all else that the images depend on, for the JSON file beside them.
        accelerator: the processes; made here if not given.

    Returns:
        The folder or file.

    Raises:
        ValueError: for an argument outside its limits, or when the output was begun with other settings.
    """
    _check(num_images, labels, seed, batch_size)
    accelerator = accelerator or start_inference_accelerator()
    output = Path(output)
    place = (NpzFile if output.suffix == ".npz" else PngFolder)(output, num_images)
    if accelerator.is_main_process:
        digest = None if labels is None else hashlib.sha256(np.asarray(labels, dtype="<i8").tobytes()).hexdigest()
        ours = {"num_images": num_images, "seed": seed, "batch_size": batch_size, "labels_sha256": digest}
        versions = {"torch": torch.__version__, "device": accelerator.device.type, "machine": platform.machine()}
        place.start()
        _check_settings(place.settings_file, {**(settings or {}), **ours}, versions)
    accelerator.wait_for_everyone()
    _draw_missing(sample, place, labels, seed, batch_size, accelerator)
    accelerator.wait_for_everyone()
    return place.finish(labels) if accelerator.is_main_process else output


def _draw_missing(
    sample: Sampler,
    place: PngFolder | NpzFile,
    labels: Sequence[int] | None,
    seed: int,
    batch_size: int,
    accelerator: Accelerator,
) -> None:
    """Draw this process's batches that are not there: number p belongs to process p mod their count, always."""
    world, num_images = accelerator.num_processes, place.num_images
    with tqdm(total=num_images, unit="image", disable=not accelerator.is_main_process) as bar:
        for number in range(accelerator.process_index, -(-num_images // batch_size), world):
            indices = range(number * batch_size, min((number + 1) * batch_size, num_images))
            round_end = min((number + world) * batch_size, num_images)  # the others are about as far
            if place.holds(indices):
                bar.initial = bar.n = round_end
                bar.refresh()
                continue
            [images] = iterate_batches(
                sample, num_images, labels=labels, seed=seed, batch_size=batch_size, batches=[number]
            )
            place.write(indices, images)
            bar.update(round_end - indices.start)
