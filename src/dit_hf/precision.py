"""The number format in which a device multiplies matrices fastest, without a visible loss for a DiT."""

import torch


def fast_dtype(device: torch.device) -> torch.dtype:
    """Return bfloat16 where the hardware multiplies it faster than float32, and float32 elsewhere.

    Of x86 processors, these are the ones with AMX, and those with AVX512-BF16 that were made without AMX, such as
    AMD's. Where a cloud hides the AMX of an Intel Xeon, AVX512-BF16 is left and slower than float32
    (docs/performance.md). Such a Xeon is known by AVX512-FP16, which came with AMX.

    Args:
        device: Device that computes.
    """
    if device.type == "cuda":
        is_fast = torch.cuda.is_bf16_supported(including_emulation=False)
    elif device.type == "cpu":
        has = torch.cpu.get_capabilities().get
        is_fast = bool(has("amx_bf16") or (has("avx512_bf16") and not has("avx512_fp16")))
    else:
        is_fast = False
    return torch.bfloat16 if is_fast else torch.float32
