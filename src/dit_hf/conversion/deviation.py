"""How far a model's output moves where other code computes its weights with its own fixed numbers."""

import torch

from ..configuration_dit import DiTConfig
from ..modeling_dit import DiTModel
from .assemble import empty_model


@torch.no_grad()
def deviation_of(model: DiTModel, timestep_freq_shift: float, mlp_norm_eps: float) -> str:
    """Say which of the two fields differ and what that does to the output; empty where neither does.

    Measured on one random latent at t = 500, with the model's own weights.

    Args:
        model: The model.
        timestep_freq_shift: What the other code takes for this field of the configuration.
        mlp_norm_eps: The same.
    """
    theirs = {"timestep_freq_shift": timestep_freq_shift, "mlp_norm_eps": mlp_norm_eps}
    changed = [name for name, value in theirs.items() if getattr(model.config, name) != value]
    if not changed:
        return ""
    config = DiTConfig.from_dict({**model.config.to_dict(), **theirs})
    config._attn_implementation = model.config._attn_implementation
    other = empty_model(config)
    other.load_state_dict(model.state_dict(), assign=True)  # the same memory
    shape = (1, config.in_channels, *config.sample_height_width)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(model.device)
    labels = torch.zeros(1, dtype=torch.long, device=model.device) if config.num_classes else None
    drop = torch.zeros(1, dtype=torch.bool, device=model.device) if config.has_null_class else None
    ours, others = (m(x, 500, labels, drop_labels=drop).sample.float() for m in (model, other))
    difference, scale = (ours - others).abs().max(), ours.std()
    fields = " and ".join(f"{name}={theirs[name]:g} for {getattr(model.config, name):g}" for name in changed)
    return f"{fields} moves the output by up to {difference:.2g}, its standard deviation being {scale:.2g}"
