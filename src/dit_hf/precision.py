"""The number format in which a device multiplies matrices fastest, without a visible loss for a DiT."""

import torch


def fast_dtype(device: torch.device) -> torch.dtype:
    """Return bfloat16 where the hardware multiplies it faster than float32, and float32 elsewhere.

    Of x86 processors, those with AMX are faster in bfloat16. With AVX512-BF16 alone, an Intel Xeon took 1.5 times as
    long as in float32 (docs/performance.md).

    Args:
        device: Device that computes.
    """
    if device.type == "cuda":
        is_fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        is_fast = device.type == "cpu" and bool(torch.cpu.get_capabilities().get("amx_bf16"))
    return torch.bfloat16 if is_fast else torch.float32
