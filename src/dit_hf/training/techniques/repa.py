"""REPA and iREPA: align tokens of the model with the features of a frozen encoder (arXiv 2410.06940, 2512.10794).

Yu et al. 2024 (section 3.2) project the tokens h after a block by a small network, and add to the loss, for each image,

    weight * (1 - mean over the patches n of cos(project(h)_n, y_n))

where y_n are the features of the clean image at the same place, by an encoder such as DINOv2. (The constant is ours: it
changes no gradient, and keeps the term from being negative.) Singh et al. 2025 (iREPA) project by one convolution over
the grid of patches instead, and make the features of an image differ more from each other:

    y_n <- (y_n - gamma * mean over n) / (standard deviation over n + 1e-6)

The encoder runs within the model's forward, without gradients, in the precision of the model's own products. Its
weights are neither trained, nor averaged, nor saved. With TREAD, a patch that skips the block takes part as it was
before the route.

Legend: B samples, N patches, S tokens of a block, D width of the model, F features of the encoder.
"""

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...diffusion import Objective
from ..setting_row import row
from .block_calls import changed_blocks, check_trained, stream
from .encoders import Encoder, load_encoder
from .technique import ForwardPass, Technique

DEFAULT_WIDTH = 2048


@dataclass
class AlignmentSettings:
    """The settings of the alignment with an encoder."""

    repa_encoder: str | None = row(
        None,
        "Frozen encoder of images whose features the model is aligned with (REPA, arXiv 2410.06940): a vision "
        "transformer of transformers such as facebook/dinov2-base, or a class in a file of yours, my_encoder.py:Name. "
        "Default: no alignment.",
        card="encoder that the model was aligned with (REPA)",
    )
    repa_weight: float = row(
        0.5,
        "Weight of the alignment in the loss.",
        at_least=0.0,
        needs="repa_encoder",
        card="weight of the alignment",
    )
    repa_block: int = row(
        8, "Number of blocks that tokens have passed when they are aligned.", at_least=1, needs="repa_encoder"
    )
    repa_head: Literal["mlp", "conv"] = row(
        "mlp",
        "Network that projects tokens to features: mlp, three layers for each token (REPA), or conv, one 3 x 3 "
        "convolution over the grid of tokens (iREPA, arXiv 2512.10794).",
        needs="repa_encoder",
    )
    repa_width: int | None = row(
        None, f"Width of the MLP's hidden layers. Default: {DEFAULT_WIDTH}.", at_least=1, needs="repa_encoder"
    )
    repa_gamma: float | None = row(
        None,
        "Gamma of iREPA's normalisation of the features, (y - gamma * mean) / (deviation + 1e-6) over the patches of "
        "an image; iREPA uses 0.6. Default: no normalisation, as in REPA.",
        at_least=0.0,
        needs="repa_encoder",
    )
    repa_resolution: int | None = row(
        None,
        "Height and width to which images are resized for the encoder, in pixels. Default: the size at which the "
        "encoder has one feature for each token, 224 for DINOv2 and 256 tokens.",
        at_least=1,
        needs="repa_encoder",
    )
    repa_steps: int | None = row(
        None,
        "Number of steps with alignment; the steps after it train without. Default: all steps.",
        at_least=1,
        needs="repa_encoder",
    )


class MlpHead(nn.Sequential):
    """REPA's projection of each token: three Linears with SiLU between them."""

    def __init__(self, hidden_size: int, width: int, num_features: int) -> None:
        super().__init__(
            nn.Linear(hidden_size, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, num_features)
        )


class ConvHead(nn.Module):
    """iREPA's projection: a 3 x 3 convolution over the grid of tokens."""

    def __init__(self, hidden_size: int, grid: tuple[int, int], num_features: int) -> None:
        super().__init__()
        self.grid, self.conv = grid, nn.Conv2d(hidden_size, num_features, kernel_size=3, padding=1)

    def forward(self, tokens: Tensor) -> Tensor:
        x = tokens.transpose(1, 2).unflatten(2, self.grid)  # (B, D, rows, columns)
        return self.conv(x).flatten(2).transpose(1, 2)  # (B, N, F)


class RepresentationAlignment(Technique):
    """Pull the tokens after a block to the features of a frozen encoder.

    Args:
        encoder: Frozen encoder.
        head: Network from tokens (B, N, D) to features (B, N, F), which is trained.
        grid: Rows and columns of patches, whose product is N.
        block: Number of blocks that the tokens have passed.
        weight: Weight of the term.
        gamma: Share of the mean over the patches that is taken from the features before they are divided by their
            deviation; None leaves the features as they are.
        resolution: Height and width of the images that the encoder sees; None for one feature a token.
        num_steps: Number of steps with the term; None for all.
    """

    Settings = AlignmentSettings
    extras = frozenset({"images"})

    def __init__(
        self,
        encoder: Encoder,
        head: nn.Module,
        grid: tuple[int, int],
        *,
        block: int = 8,
        weight: float = 0.5,
        gamma: float | None = None,
        resolution: int | None = None,
        num_steps: int | None = None,
    ) -> None:
        self.encoder, self.module, self.grid, self.block = encoder, head, grid, block
        self.weight, self.gamma, self.num_steps = weight, gamma, num_steps
        rows, columns = grid
        self.size = (resolution, resolution) if resolution else (rows * encoder.stride, columns * encoder.stride)
        self.pair: tuple[Tensor, Tensor] | None = None  # tokens and features of the newest forward

    @classmethod
    def build(cls, settings: Any, objective: Objective, model: Any) -> Self | None:
        if settings.repa_encoder is None:
            return None
        config, block, width = model.config, settings.repa_block, settings.repa_width
        if block > config.num_hidden_layers:
            raise ValueError(
                f"repa_block={block}: the model has {config.num_hidden_layers} blocks, set it to one of them"
            )
        check_trained(model, "repa_block", block)
        if width is not None and settings.repa_head == "conv":
            raise ValueError(f"repa_width={width} has no effect with repa_head='conv': leave it out")
        encoder = load_encoder(settings.repa_encoder)
        if (settings.repa_resolution or 0) % encoder.stride:
            raise ValueError(
                f"repa_resolution={settings.repa_resolution} is no multiple of {encoder.stride}, the distance of two "
                f"features of {settings.repa_encoder}: make it one"
            )
        grid, num_features = config.grid_height_width, encoder.num_features
        head = (
            MlpHead(config.hidden_size, width or DEFAULT_WIDTH, num_features)
            if settings.repa_head == "mlp"
            else ConvHead(config.hidden_size, grid, num_features)
        )
        return cls(
            encoder,
            head,
            grid,
            block=block,
            weight=settings.repa_weight,
            gamma=settings.repa_gamma,
            resolution=settings.repa_resolution,
            num_steps=settings.repa_steps,
        )

    def around(self, model: Any, forward: ForwardPass) -> AbstractContextManager[None]:
        self.pair = None
        if self.num_steps is not None and forward.step >= self.num_steps:
            return changed_blocks(model, {})

        def call(block: nn.Module, *arguments: Any) -> Any:
            answer = block(*arguments)
            self.pair = stream(answer), self.features(forward.batch.extras["images"])
            return answer

        return changed_blocks(model, {self.block - 1: call})

    @torch.no_grad()
    def features(self, images: Tensor) -> Tensor:
        """Return what the tokens are aligned with, (B, N, F) in float32.

        Images are resized with a bicubic filter, and features, where their grid is not that of the tokens, with a
        bilinear one; both are antialiased.

        Args:
            images: Images (B, 3, S, S) in [-1, 1].

        Raises:
            ValueError: If the encoder returns another number of features than it states.
        """
        x = F.interpolate((images + 1) / 2, self.size, mode="bicubic", antialias=True).clamp(0, 1)
        self.encoder.to(images.device)
        y = self.encoder(x).float()  # (B, F, rows, columns)
        if y.ndim != 4 or y.shape[1] != self.encoder.num_features:
            raise ValueError(
                f"the encoder {type(self.encoder).__name__} returns {tuple(y.shape)}: it has to return a grid "
                f"(B, {self.encoder.num_features}, rows, columns)"
            )
        if y.shape[2:] != self.grid:
            y = F.interpolate(y, self.grid, mode="bilinear", antialias=True)
        y = y.flatten(2).transpose(1, 2)  # (B, N, F)
        if self.gamma is None:
            return y
        return (y - self.gamma * y.mean(1, keepdim=True)) / (y.std(1, keepdim=True) + 1e-6)

    def losses(self, forward: ForwardPass) -> dict[str, Tensor]:
        if self.pair is None:
            return {}
        assert self.network is not None, "the assembly prepares the module of a technique"
        (tokens, features), self.pair = self.pair, None
        guess = self.network(tokens[:, : features.shape[1]]).float()  # (B, N, F)
        cosine = F.cosine_similarity(guess, features, dim=-1).mean(1)  # (B,)
        return {"repa": self.weight * (1 - cosine)}
