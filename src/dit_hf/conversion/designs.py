"""What other libraries' code can compute: the paper's adaLN-Zero, without any of the later switches of `DiTConfig`."""

from ..configuration_dit import DiTConfig

# Field -> the paper's value, which is the only one that the original and diffusers' DiT have.
ONLY = {
    "block_type": "adaln_zero",
    "qk_norm": False,
    "position_embedding": "sincos",
    "mlp": "gelu",
    "norm": "layer",
    "value_residual": False,
    "timestep_scale": 1.0,
    "timestep_offset": 0.0,
}


def check_design(config: DiTConfig, whose: str) -> None:
    """Refuse a model whose weights the code of another library cannot run.

    Args:
        config: Architecture of the model.
        whose: Code that is to run the weights, as the message names it: "diffusers' DiT".

    Raises:
        ValueError: If a field differs from the paper's design, naming the field.
    """
    for name, value in ONLY.items():
        if getattr(config, name) != value:
            raise ValueError(
                f"{name}={getattr(config, name)!r}: {whose} has {name}={value!r} only; "
                "keep the model as dit-hf saves it"
            )
