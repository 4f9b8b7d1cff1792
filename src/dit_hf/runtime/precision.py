"""The number format that this machine computes a DiT in fastest, without a visible loss."""

import torch

BFLOAT16_INSTRUCTIONS = ("amx_bf16", "avx512_bf16")  # of x86 processors


def has_bfloat16_instructions() -> bool:
    """Return whether this processor multiplies bfloat16 numbers by instructions of its own."""
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name) for name in BFLOAT16_INSTRUCTIONS)


def auto_dtype(format: str, device: torch.device) -> str:
    """Choose a number format: bfloat16 where the machine has instructions for it, float32 elsewhere.

    Args:
        format: Name of the runtime; ONNX Runtime computes in float32 on every CPU.
        device: Device that computes.
    """
    if device.type == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    is_fast = format != "onnx" and device.type == "cpu" and has_bfloat16_instructions()
    return "bfloat16" if is_fast else "float32"
