"""Another resolution for a trained model. Only its positions depend on the number of tokens."""

import inspect
from typing import Literal

from torch import nn

from ..configuration_dit import DiTConfig
from ..modeling_dit import DiTModel


def resize_positions(
    model: DiTModel, sample_size: int | tuple[int, int] | list[int], policy: Literal["extend", "interpolate"]
) -> None:
    """Give a model another size of latents, in place.

    Args:
        model: Model at its own resolution.
        sample_size: Side of the new latents, or (height, width).
        policy: Policy of `DiTModel.resize_pos_embed`. The original's 512 px model continues the grid, "extend".

    Raises:
        ValueError: If the policy is unknown, or the patch size does not divide the size.
    """
    own = {name: getattr(model.config, name) for name in inspect.signature(DiTConfig).parameters if name != "kwargs"}
    resized = DiTConfig(**{**own, "sample_size": sample_size})  # checks and normalises
    height, width = resized.sample_height_width
    positions = model.positions(height, width, policy).embedding  # (1, N, D), and refuses an unknown policy
    if model.pos_embed is not None:
        model.pos_embed = nn.Parameter(positions.to(model.pos_embed), requires_grad=False)
    if model.config.position_embedding != "sincos" and policy == "interpolate":
        trained, scales = model.config.sample_height_width, model.config.rope_scale_height_width
        rows, columns = (s * old / new for s, old, new in zip(scales, trained, (height, width), strict=True))
        model.config.rope_scale = rows if rows == columns else [rows, columns]
    model.config.sample_size = resized.sample_size
