"""The architecture's switches beyond the paper: each alone, and all of them together."""

SWITCHES = {
    "qk_norm": {"qk_norm": True},
    "rope": {"position_embedding": "rope"},
    "both": {"position_embedding": "both", "rope_theta": 10_000.0},
    "swiglu": {"mlp": "swiglu"},
    "rms": {"norm": "rms"},
    "value_residual": {"value_residual": True},
}
ALL = {"qk_norm": True, "position_embedding": "rope", "mlp": "swiglu", "norm": "rms", "value_residual": True}
CASES = {"paper": {}, **SWITCHES, "all": ALL}
