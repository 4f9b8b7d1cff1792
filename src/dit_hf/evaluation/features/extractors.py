"""Extractors turn images into features: the Inception network of FID, DINOv2, or a network of your own.

The Fréchet distance, precision, recall and their kin do not compare pixels, but the activations of a network that was
trained to recognise objects. Which network it is, its weights, and how images are resized for it decide the numbers.

An extractor of your own is any object with these members:

    name = "my-network"
    taps = {"pool": 1280}                    # the outputs, and their numbers of features
    settings = {"sha256": "...", "resize": "bicubic to 224"}     # all that changes the numbers; goes into the result

    def __call__(self, images):              # uint8 (B, H, W, 3), any size
        return {"pool": ...}                 # float32 (B, 1280)

The Fréchet distance, precision, recall and their kin read the tap "pool", sFID reads "spatial", and the Inception score
"logits"; only "pool" is needed.
"""

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ...files import sha256_of_file
from ...places import check_model_source
from ...provenance import weights_sha256
from .inception import NUM_LOGITS, NUM_POOL, NUM_SPATIAL_CHANNELS, Inception

POOL, SPATIAL, LOGITS = "pool", "spatial", "logits"  # taps

FID_NAME = "inception-2015-12-05"
FID_FILE = "pt_inception-2015-12-05-6726825d.pth"
FID_URL = f"https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/{FID_FILE}"
FID_SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"

DINOV2 = "facebook/dinov2-large"  # ViT-L/14, that of Stein et al.
DINOV2_SIDE = 224


class Extractor(Protocol):
    """What turns images uint8 (B, H, W, 3) into features.

    Attributes:
        name: Name for the result.
        taps: Number of features D of each output.
        settings: All that changes the features, as JSON can hold it.
    """

    name: str
    taps: Mapping[str, int]
    settings: Mapping[str, Any]

    def __call__(self, images: Tensor) -> Mapping[str, Tensor]: ...


@contextlib.contextmanager
def full_float32(device: torch.device) -> Iterator[None]:
    """Compute without gradients, autocast and TF32, whatever the program has set.

    Args:
        device: Device that computes.
    """
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with (
            torch.no_grad(),
            torch.autocast(device.type, enabled=False),
            torch.backends.cudnn.flags(enabled=True, allow_tf32=False),
        ):
            yield
    finally:
        torch.set_float32_matmul_precision(precision)


def fid_weights(path: str | Path | None = None) -> Path:
    """Return the file of the FID network's weights, after a check of its SHA-256.

    Args:
        path: File. None takes the community's conversion from torch.hub's cache, and downloads it the first time.

    Raises:
        ValueError: If the file holds other weights.
        OSError: If the file is missing, or cannot be downloaded.
    """
    file = _download_fid_weights() if path is None else Path(path)
    digest = sha256_of_file(file)
    if digest != FID_SHA256:
        raise ValueError(f"{file} has the SHA-256 {digest[:16]}..., FID's weights have {FID_SHA256[:16]}...: {FID_URL}")
    return file


def _download_fid_weights() -> Path:
    file = Path(torch.hub.get_dir()) / "checkpoints" / FID_FILE
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(FID_URL, str(file), hash_prefix=FID_SHA256, progress=False)
        except (OSError, RuntimeError) as error:
            raise OSError(
                f"cannot download {FID_URL} ({error}): put the file at {file}, or pass a copy by weights=FILE"
            ) from error
    return file


class InceptionExtractor:
    """The features of FID and sFID, and the logits of the Inception score.

    Args:
        network: Inception network; with the weights of `fid_weights` its Fréchet distance is FID. `from_file` makes it.
        name: `FID_NAME` for those weights, another name for others. Distances are called FID under `FID_NAME` only.
        device: Device that computes.
    """

    def __init__(self, network: Inception, name: str, device: str | torch.device = "cpu") -> None:
        self.name, self.device = name, torch.device(device)
        self.network = network.to(self.device, torch.float32).eval()
        num_spatial = 17 * 17 * NUM_SPATIAL_CHANNELS
        self.taps: Mapping[str, int] = {POOL: NUM_POOL, SPATIAL: num_spatial, LOGITS: NUM_LOGITS}
        self.settings: Mapping[str, Any] = {"resize": "bilinear to 299, as TensorFlow 1", "dtype": "float32"}

    @classmethod
    def from_file(cls, path: str | Path | None = None, device: str | torch.device = "cpu") -> "InceptionExtractor":
        """Make the extractor of FID.

        Args:
            path: File of the weights. None downloads the community's conversion, once.
            device: Device that computes.

        Raises:
            ValueError: If the file holds other weights.
            OSError: If the file is missing, or cannot be downloaded.
        """
        network = Inception()
        network.load_state_dict(torch.load(fid_weights(path), map_location="cpu", weights_only=True))
        extractor = cls(network, FID_NAME, device)
        extractor.settings = {**extractor.settings, "sha256": FID_SHA256}
        return extractor

    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        with full_float32(self.device):
            return self.network(images.to(self.device))._asdict()


class DINOv2Extractor:
    """The class token of DINOv2, for FD-DINOv2 (Stein et al. 2023, arXiv 2306.04675).

    Images are resized to 224 x 224 with Pillow's bicubic filter and normalised with ImageNet's mean and deviation, as
    the authors' code (layer6ai-labs/dgm-eval) does.

    Args:
        name_or_path: DINOv2 model of transformers: a folder, or an id on the Hub.
        device: Device that computes.
    """

    def __init__(self, name_or_path: str | Path = DINOV2, device: str | torch.device = "cpu") -> None:
        from transformers import Dinov2Model

        check_model_source(name_or_path)
        self.device = torch.device(device)
        self.network = Dinov2Model.from_pretrained(name_or_path, dtype=torch.float32).to(self.device).eval()
        self.name = Path(name_or_path).name
        self.taps: Mapping[str, int] = {POOL: self.network.config.hidden_size}
        self.settings: Mapping[str, Any] = {
            "sha256_of_weights": weights_sha256(self.network),
            "resize": f"bicubic to {DINOV2_SIDE}, Pillow",
            "dtype": "float32",
        }

    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        size = (DINOV2_SIDE, DINOV2_SIDE)
        opened = [Image.fromarray(image) for image in images.cpu().numpy()]
        resized = [np.asarray(image.resize(size, Image.Resampling.BICUBIC)) for image in opened]
        x = torch.from_numpy(np.stack(resized)).to(self.device).permute(0, 3, 1, 2).float() / 255  # (B, 3, 224, 224)
        mean, std = (x.new_tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
        with full_float32(self.device):
            return {POOL: self.network((x - mean) / std).pooler_output}  # the class token after the last norm
