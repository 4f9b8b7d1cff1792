"""Another resolution for a trained model: only its fixed position embedding depends on the number of tokens."""

from torch import nn

from ..configuration_dit import DiTConfig
from ..modeling_dit import DiTModel, position_embedding

POLICIES = ("extend", "interpolate")


def resize_positions(model: DiTModel, sample_size: int | tuple[int, int] | list[int], policy: str) -> None:
    """Give a model another size of latents, in place.

    Args:
        model: at its own resolution.
        sample_size: side of the new latents, or (height, width).
        policy: "extend" counts rows and columns on, 0, 1, 2 ..., as the original's own 512 px model does;
            "interpolate" keeps the range of positions that the model was trained on, and rescales the new ones into it.

    Raises:
        ValueError: if the policy is unknown, or the patch size does not divide the size.
    """
    if policy not in POLICIES:
        raise ValueError(f"position_embedding={policy!r}: choose from {', '.join(POLICIES)}")
    config, old_grid = model.config, model.config.grid_height_width
    resized = DiTConfig.from_dict({**config.to_dict(), "sample_size": sample_size})  # checks and normalises
    grid = resized.grid_height_width
    scale = (old_grid[0] / grid[0], old_grid[1] / grid[1]) if policy == "interpolate" else (1.0, 1.0)
    config.sample_size = resized.sample_size
    positions = position_embedding(grid, config.hidden_size, scale)  # (1, N, D)
    model.pos_embed = nn.Parameter(positions.to(model.pos_embed), requires_grad=False)
