"""How far a model's output moves if other code runs its weights with other fixed numbers."""

import torch

from ..configuration_dit import DiTConfig
from ..modeling_dit import DiTModel
from .assemble import empty_model, weights_of


@torch.no_grad()
def deviation_of(model: DiTModel, timestep_freq_shift: float, mlp_norm_eps: float) -> str:
    """Return a sentence about the fields that differ and what they do to the output; empty if no field differs.

    The output is measured on one random latent at t = 500, with the model's own weights.

    Args:
        model: Model whose output is compared.
        timestep_freq_shift: Value of this field of the configuration in the other code.
        mlp_norm_eps: Value of this field of the configuration in the other code.
    """
    numbers = {"timestep_freq_shift": timestep_freq_shift, "mlp_norm_eps": mlp_norm_eps}
    changed = [name for name, value in numbers.items() if getattr(model.config, name) != value]
    if not changed:
        return ""
    config = DiTConfig.from_dict({**model.config.to_dict(), **numbers})
    config._attn_implementation = model.config._attn_implementation
    other = empty_model(config)
    other.load_state_dict(weights_of(model), assign=True)  # the same memory
    shape = (1, config.in_channels, *config.sample_height_width)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(model.device)
    labels = torch.zeros(1, dtype=torch.long, device=model.device) if config.num_classes else None
    drop = torch.zeros(1, dtype=torch.bool, device=model.device) if config.has_null_class else None
    output, changed_output = (m(x, 500, labels, drop_labels=drop).sample.float() for m in (model, other))
    difference, scale = (output - changed_output).abs().max(), output.std()
    fields = " and ".join(f"{name}={numbers[name]:g} for {getattr(model.config, name):g}" for name in changed)
    return f"{fields} moves the output by up to {difference:.2g}, its standard deviation being {scale:.2g}"
