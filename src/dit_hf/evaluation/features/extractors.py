"""What turns images into features: a small protocol, the Inception network of FID, and DINOv2.

An extractor of your own is any object with these members:

    name = "my-network"
    taps = {"pool": 1280}                    # what it gives, and how many features
    settings = {"sha256": "...", "resize": "bicubic to 224"}     # all that changes its numbers; goes into the result

    def __call__(self, images):              # uint8 (B, H, W, 3), any size
        return {"pool": ...}                 # float32 (B, 1280)

"pool" is for the Fréchet distance, precision, recall and their kin; "spatial" for sFID, "logits" for the Inception
score.
"""

import contextlib
import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from ...files import sha256_of_file
from .inception import NUM_LOGITS, NUM_POOL, NUM_SPATIAL_CHANNELS, Inception

FID_NAME = "inception-2015-12-05"
FID_FILE = "pt_inception-2015-12-05-6726825d.pth"
FID_URL = f"https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/{FID_FILE}"
FID_SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"

DINOV2 = "facebook/dinov2-large"  # ViT-L/14, that of Stein et al.
DINOV2_SIDE = 224


class Extractor(Protocol):
    """Turns images into features."""

    name: str
    taps: Mapping[str, int]
    settings: Mapping[str, Any]

    def __call__(self, images: Tensor) -> Mapping[str, Tensor]: ...


@contextlib.contextmanager
def full_float32(device: torch.device) -> Iterator[None]:
    """Compute in float32 proper: without gradients, autocast and TF32, whatever the program has set."""
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


def weights_sha256(*modules: nn.Module | None) -> str:
    """Hash every weight and buffer, so that a model that was trained on is not taken for the one before."""
    digest = hashlib.sha256()
    for module in modules:
        for name, tensor in module.state_dict().items() if module is not None else ():
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def fid_weights(path: str | Path | None = None) -> Path:
    """The file of FID's weights: the one given, or the community's, which is downloaded once; its hash is checked.

    Raises:
        ValueError: if the file is another one.
        OSError: if it cannot be downloaded; the message says where to put it.
    """
    if path is None:
        path = Path(torch.hub.get_dir()) / "checkpoints" / FID_FILE
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                torch.hub.download_url_to_file(FID_URL, str(path), hash_prefix=FID_SHA256, progress=False)
            except (OSError, RuntimeError) as error:
                raise OSError(f"cannot download {FID_URL} ({error}): put the file at {path}, or name it") from error
    found = sha256_of_file(path)
    if found != FID_SHA256:
        raise ValueError(f"{path} has the SHA-256 {found[:16]}..., FID's weights have {FID_SHA256[:16]}...: {FID_URL}")
    return Path(path)


class InceptionExtractor:
    """FID's features, sFID's, and the logits of the Inception score.

    Args:
        network: with the weights of `fid_weights` this is FID; `from_file` makes it.
        name: `FID_NAME` with those weights, another with others: only then are distances called FID.
        device: where to compute.
    """

    def __init__(self, network: Inception, name: str, device: str | torch.device = "cpu") -> None:
        self.name, self.device = name, torch.device(device)
        self.network = network.to(self.device, torch.float32).eval()
        num_spatial = 17 * 17 * NUM_SPATIAL_CHANNELS
        self.taps: Mapping[str, int] = {"pool": NUM_POOL, "spatial": num_spatial, "logits": NUM_LOGITS}
        self.settings: Mapping[str, Any] = {"resize": "bilinear to 299, as TensorFlow 1", "dtype": "float32"}

    @classmethod
    def from_file(cls, path: str | Path | None = None, device: str | torch.device = "cpu") -> "InceptionExtractor":
        """The network of FID from the community's file of weights, downloaded where no path is given.

        Raises:
            ValueError: if the file is another one.
            OSError: if it cannot be downloaded.
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
        name_or_path: a DINOv2 model of transformers, a folder or an id on the Hub.
        device: where to compute.
    """

    def __init__(self, name_or_path: str | Path = DINOV2, device: str | torch.device = "cpu") -> None:
        from transformers import Dinov2Model

        self.device = torch.device(device)
        self.network = Dinov2Model.from_pretrained(name_or_path, dtype=torch.float32).to(self.device).eval()
        self.name = Path(name_or_path).name
        self.taps: Mapping[str, int] = {"pool": self.network.config.hidden_size}
        self.settings: Mapping[str, Any] = {
            "sha256_of_weights": weights_sha256(self.network),
            "resize": f"bicubic to {DINOV2_SIDE}, Pillow",
            "dtype": "float32",
        }

    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        size = (DINOV2_SIDE, DINOV2_SIDE)
        pictures = [Image.fromarray(image) for image in images.cpu().numpy()]
        resized = [np.asarray(picture.resize(size, Image.Resampling.BICUBIC)) for picture in pictures]
        x = torch.from_numpy(np.stack(resized)).to(self.device).permute(0, 3, 1, 2).float() / 255  # (B, 3, 224, 224)
        mean, std = (x.new_tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
        with full_float32(self.device):
            return {"pool": self.network((x - mean) / std).pooler_output}  # the class token after the last norm
