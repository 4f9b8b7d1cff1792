"""Frozen encoders of images, whose features a model may be aligned with: any vision transformer, or a class of yours.

A class of your own is named as `my_encoder.py:Name`, is called without arguments, and has these members:

    num_features = 384                       # F
    stride = 16                              # pixels from one feature to the next
    def to(self, device): ...                # move the weights
    def __call__(self, images): ...          # (B, 3, H, W) in [0, 1] -> (B, F, H / stride, W / stride)

A subclass of `torch.nn.Module` with a `forward` has the last two already. Weights are neither trained, nor averaged,
nor saved with a checkpoint.
"""

import inspect
import runpy
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ...places import check_model_source


class Encoder(Protocol):
    """A frozen network that turns an image into a grid of features.

    Attributes:
        num_features: Number F of features at each place of the grid.
        stride: Distance of two places, in pixels.
    """

    num_features: int
    stride: int

    def to(self, device: torch.device) -> Any: ...

    def __call__(self, images: Tensor) -> Tensor: ...


class VisionTransformer(nn.Module):
    """The last layer's patch features of a vision transformer of the library transformers, such as DINOv2.

    Images are normalised with the mean and the deviation of the model's image processor.

    Args:
        name_or_path: Folder, or id on the Hub, of a model that `AutoModel` opens, for example facebook/dinov2-base.

    Raises:
        ValueError: If the model is no vision transformer, or has no image processor with a mean and a deviation.
        OSError: If there is no such model.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, name_or_path: str) -> None:
        from transformers import AutoModel, ImageProcessingMixin

        super().__init__()
        try:
            check_model_source(name_or_path)
            model = AutoModel.from_pretrained(name_or_path, dtype=torch.float32)
        except OSError as error:
            raise OSError(f"the encoder {name_or_path} cannot be opened: {error}") from error
        self.network = getattr(model, "vision_model", model).eval().requires_grad_(False)  # the half of a CLIP
        config = self.network.config
        if not isinstance(getattr(config, "patch_size", None), int) or not hasattr(config, "hidden_size"):
            raise ValueError(
                f"{name_or_path} is a {type(self.network).__name__}, no vision transformer with a patch_size: name "
                "another model, or a class of yours as my_encoder.py:Name"
            )
        self.num_features, self.stride = config.hidden_size, config.patch_size
        processor, _ = ImageProcessingMixin.get_image_processor_dict(name_or_path)
        for name, key in (("mean", "image_mean"), ("std", "image_std")):
            if key not in processor:
                raise ValueError(f"the image processor of {name_or_path} has no {key}: name another model")
            self.register_buffer(name, torch.tensor(processor[key]).view(3, 1, 1))
        resizes = "interpolate_pos_encoding" in inspect.signature(self.network.forward).parameters
        self.options = {"interpolate_pos_encoding": True} if resizes else {}  # others do it by themselves

    def forward(self, images: Tensor) -> Tensor:
        grid = tuple(side // self.stride for side in images.shape[2:])
        x = (images - self.mean) / self.std  # (B, 3, H, W)
        x = self.network(pixel_values=x, **self.options).last_hidden_state  # (B, 1 + N, F)
        patches = x[:, -grid[0] * grid[1] :]  # class and register tokens stand before them
        return patches.transpose(1, 2).unflatten(2, grid)  # (B, F, rows, columns)


def load_encoder(name: str) -> Encoder:
    """Return a frozen encoder on the CPU.

    Args:
        name: Folder or id on the Hub of a vision transformer, or a class in a file of yours, `my_encoder.py:Name`.

    Raises:
        ValueError: If the file has no such class, or the model is no vision transformer.
        OSError: If there is no such file or model.
    """
    file, _, class_name = name.rpartition(":")
    if not file.endswith(".py"):
        return VisionTransformer(name)
    members = runpy.run_path(file)
    if class_name not in members:
        raise ValueError(f"{file} has no {class_name!r}: name a class with the members of an encoder")
    encoder = members[class_name]()
    if missing := [each for each in ("num_features", "stride", "to") if not hasattr(encoder, each)]:
        raise ValueError(f"{class_name} of {file} has no {missing[0]!r}, which an encoder needs: add it")
    return encoder
