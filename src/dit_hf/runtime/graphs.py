"""The networks of a pipeline as graphs that take tensors and return tensors.

A DiT becomes two graphs, so that sampling still computes each conditioning once and reads its parameters no more:

    condition   timestep (B,), class_labels (B,)              -> tensors of a `DiTConditioning`
    denoise     x_t (B, C, H, W), tensors of a `DiTConditioning`
                and of `DiTPositions`                         -> prediction (B, out_channels, H, W)

and a VAE two more, one for each direction:

    decode      latents (B, C, h, w)                          -> images (B, 3, height, width)
    encode      images (B, 3, height, width)                  -> mean of the latents (B, C, h, w)

B and the sizes are free. The positions are an input, because they depend on the size; they are float32 always, while
labels are int64 and all else has the dtype of the weights.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.utils import _pytree as pytree

from ..configuration_dit import DiTConfig
from ..vae import mean_latents


def tensors_of(tree: Any) -> list[Tensor]:
    """Return the tensors of nested tuples in their order, without what is no tensor, such as None."""
    return [leaf for leaf in pytree.tree_leaves(tree) if isinstance(leaf, Tensor)]


def with_tensors(tree: Any, tensors: Iterable[Tensor]) -> Any:
    """Return nested tuples of the same form, with other tensors in the place of theirs."""
    left = iter(tensors)
    return pytree.tree_map(lambda leaf: next(left) if isinstance(leaf, Tensor) else leaf, tree)


def in_float32(positions: Any) -> Any:
    """Return positions of which every tensor is float32, as the graph "denoise" takes them."""
    return with_tensors(positions, [tensor.float() for tensor in tensors_of(positions)])


class Condition(nn.Module):
    """The graph "condition" of a DiT."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model: Any = model

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        return tuple(tensors_of(self.model.condition(*inputs)))


class Denoise(nn.Module):
    """The graph "denoise" of a DiT.

    Args:
        model: `DiTModel`.
        conditioning: Conditioning of the form that the model makes.
        positions: Positions of the form that the model makes.
    """

    def __init__(self, model: Any, conditioning: Any, positions: Any) -> None:
        super().__init__()
        self.model: Any = model
        self.form = (conditioning, positions)

    def forward(self, *inputs: Tensor) -> tuple[Tensor]:
        hidden_states, *derived = inputs
        conditioning, positions = with_tensors(self.form, derived)
        return (self.model(hidden_states, conditioning=conditioning, positions=positions).sample,)


class Decode(nn.Module):
    """The graph "decode" of a VAE."""

    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.vae: Any = vae

    def forward(self, *inputs: Tensor) -> tuple[Tensor]:
        return (self.vae.decode(*inputs).sample,)


class Encode(nn.Module):
    """The graph "encode" of a VAE: without the noise of a sample, as sampling needs it."""

    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.vae: Any = vae

    def forward(self, *inputs: Tensor) -> tuple[Tensor]:
        return (mean_latents(self.vae.encode(*inputs)),)


def example_condition_inputs(config: DiTConfig, device: str = "cpu") -> list[Tensor]:
    """Return inputs of the graph "condition", for three rows."""
    timestep = torch.tensor([999.0, 500.5, 0.0], device=device)  # (3,)
    return [timestep, *([torch.zeros(3, dtype=torch.int64, device=device)] if config.num_classes else [])]


@torch.no_grad()
def dit_programs(model: Any) -> dict[str, ExportedProgram]:
    """Export the two graphs of a DiT.

    Args:
        model: `DiTModel` in evaluation mode, on the CPU.
    """
    config = model.config
    inputs = example_condition_inputs(config)
    conditioning = model.condition(*inputs)
    # of no number that occurs elsewhere, so that torch takes none of the sizes for a constant
    size = [side + (place + 1) * config.patch_size for place, side in enumerate(config.sample_height_width)]
    positions = in_float32(model.positions(*size, "extend"))
    x_t = torch.randn(3, config.in_channels, *size, dtype=model.dtype)  # (3, C, H, W)
    conditions = tensors_of(conditioning)
    places, trained = tensors_of(positions), tensors_of(model.positions())
    # of the positions, those dimensions are free that change with the size
    changing = [
        tuple(axis for axis in range(place.ndim) if place.shape[axis] != other.shape[axis])
        for place, other in zip(places, trained, strict=True)
    ]
    return {
        "condition": _exported(Condition(model), inputs, [(0,)] * len(inputs)),
        "denoise": _exported(
            Denoise(model, conditioning, positions),
            [x_t, *conditions, *places],
            [(0, 2, 3), *[(0,)] * len(conditions), *changing],
        ),
    }


@torch.no_grad()
def vae_programs(vae: Any, latent_size: tuple[int, int], vae_scale_factor: int) -> dict[str, ExportedProgram]:
    """Export the two graphs of a VAE.

    Args:
        vae: VAE of diffusers in evaluation mode, on the CPU.
        latent_size: Height and width of the latents that it is mostly used with.
        vae_scale_factor: Number of pixels along one side of a latent pixel.
    """
    height, width = latent_size[0] + 1, latent_size[1] + 2
    latents = torch.randn(2, vae.config.latent_channels, height, width, dtype=vae.dtype)  # (2, C, h, w)
    size = (height * vae_scale_factor, width * vae_scale_factor)
    pixels = torch.randn(2, vae.config.in_channels, *size, dtype=vae.dtype)  # (2, 3, height, width)
    return {
        "decode": _exported(Decode(vae), [latents], [(0, 2, 3)]),
        "encode": _exported(Encode(vae), [pixels], [(0, 2, 3)]),
    }


def _exported(graph: nn.Module, inputs: list[Tensor], free: list[tuple[int, ...]]) -> ExportedProgram:
    """Export a graph whose inputs have some dimensions of any size; torch keeps those that the graph fixes."""
    shapes = tuple(dict.fromkeys(places, Dim.AUTO) for places in free)
    options: dict[str, Any] = {"dynamic_shapes": (shapes,), "prefer_deferred_runtime_asserts_over_guards": True}
    return torch.export.export(graph.eval(), tuple(inputs), **options)
