"""The images of a study, in memory, and the latents that its models are trained on.

The latents are the pixels, rearranged without loss: each square of 2 x 2 pixels becomes the channels of one latent
pixel. Example: 32 x 32 grey pixels are a latent of 16 x 16 x 4, which the paper's patch sizes 8, 4 and 2 divide into
4, 16 and 64 tokens.

Legend: N images, C channels, S side of an image.
"""

import gzip
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from datasets import Image, load_dataset
from PIL import Image as PILImage
from torch import Tensor

from ..data.local_folders import find_image_folder
from ..data.preparation import resize_and_crop
from ..data.rows import encoded_bytes
from ..images import decode_image, read_image

IDX_NAMES = {"train": "train", "test": "t10k"}  # split -> first part of the names of MNIST's files


@dataclass
class LabelledImages:
    """One split of a data set."""

    images: Tensor  # (N, C, S, S) uint8
    labels: Tensor  # (N,) int64
    num_classes: int


def load_images(source: str, split: str, side: int) -> LabelledImages:
    """Read a split from a folder of IDX files, as MNIST has them, or from a data set with the columns image and label.

    Args:
        source: Folder with files such as `train-images-idx3-ubyte.gz`, folder with class folders of images, or what
            `datasets.load_dataset` takes. Larger images are resized and cropped, smaller ones get a black margin.
        split: Split of the data set, such as "train" or "test".
        side: Side of the square images that are returned, in pixels.

    Raises:
        ValueError: If the source is neither, or if the images of IDX files are larger than `side`.
    """
    prefix = Path(source) / IDX_NAMES.get(split, split)
    if Path(f"{prefix}-images-idx3-ubyte.gz").is_file():
        images, labels = (_read_idx(Path(f"{prefix}-{kind}-ubyte.gz")) for kind in ("images-idx3", "labels-idx1"))
        margin = side - images.shape[1]
        if margin < 0:
            raise ValueError(f"images of {images.shape[1]} pixels do not fit into {side}: set a larger side")
        pad = (margin // 2, margin - margin // 2)
        images = np.pad(images, ((0, 0), pad, pad))[:, None]  # (N, 1, S, S)
        return LabelledImages(
            torch.from_numpy(images), torch.from_numpy(labels.astype(np.int64)), int(labels.max()) + 1
        )
    folder = find_image_folder(source, split, "label")
    if folder is not None and folder.labels is not None:
        return _stack(map(read_image, folder.paths), folder.labels, side)
    data = load_dataset(source, split=split)
    if not {"image", "label"} <= set(data.column_names):
        raise ValueError(f"{source} has the columns {data.column_names}: a study needs image and label")
    data = data.cast_column("image", Image(decode=False))
    return _stack((decode_image(encoded_bytes(image)) for image in data["image"]), data["label"], side)


def _stack(images: Iterable[PILImage.Image], labels: Sequence[int], side: int) -> LabelledImages:
    """Make images square, and keep one channel if all of them are grey."""
    stacked = np.stack([np.array(_fit(image, side)) for image in images])
    if (stacked == stacked[..., :1]).all():
        stacked = stacked[..., :1]
    classes = torch.tensor(labels)
    return LabelledImages(torch.from_numpy(stacked).permute(0, 3, 1, 2), classes, int(classes.max()) + 1)


def _fit(image: PILImage.Image, side: int) -> PILImage.Image:
    """Make an image square: shrink and crop a larger one, and centre a smaller one on black."""
    if max(image.size) > side:
        return resize_and_crop(image, side)
    canvas = PILImage.new("RGB", (side, side))
    canvas.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return canvas


def _read_idx(path: Path) -> np.ndarray:
    """Read an array in MNIST's format: its number of dimensions, its shape, and its bytes."""
    content = gzip.decompress(path.read_bytes())
    num_dims = content[3]
    shape = np.frombuffer(content, ">i4", count=num_dims, offset=4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * num_dims).reshape(shape)


@dataclass(frozen=True)
class PixelLatents:
    """From pixels to latents of zero mean and unit deviation, and back.

    Args:
        mean: Mean of the pixels of the training set, which are in [-1, 1].
        std: Standard deviation of the pixels of the training set.
    """

    mean: float
    std: float

    @classmethod
    def of(cls, images: Tensor) -> "PixelLatents":
        """Measure mean and standard deviation of images (N, C, S, S) in uint8."""
        counts = torch.bincount(images.flatten(), minlength=256).double()
        values = to_unit(torch.arange(256)).double()
        mean = (counts @ values / counts.sum()).item()
        return cls(mean, math.sqrt((counts @ (values - mean) ** 2 / counts.sum()).item()))

    def encode(self, images: Tensor) -> Tensor:
        """Convert images (N, C, S, S) in uint8 to latents (N, 4C, S/2, S/2)."""
        return F.pixel_unshuffle((to_unit(images) - self.mean) / self.std, 2)

    def decode(self, latents: Tensor) -> Tensor:
        """Convert latents (N, 4C, S/2, S/2) to images (N, C, S, S) in uint8."""
        unit = F.pixel_shuffle(latents, 2) * self.std + self.mean
        return (unit * 127.5 + 128).clamp(0, 255).to(torch.uint8)


def to_unit(images: Tensor) -> Tensor:
    """Scale pixels from 0..255 to [-1, 1]."""
    return images.float() / 127.5 - 1
