"""Utilisation: the operations that a training needs, counted by torch, over the operations that its devices promise."""

import torch
from torch.utils.flop_counter import FlopCounterMode

# Dense TFLOP/s in (bf16 or fp16, TF32), from the vendors' data sheets. The first name found in the device's counts.
PEAK_TFLOPS: dict[str, tuple[float, float]] = {
    "B200": (2250, 1125),
    "H200": (989, 495),
    "H100 PCIe": (756, 378),
    "H100 NVL": (835, 418),
    "H100": (989, 495),
    "A100": (312, 156),
    "L40S": (362, 183),
    "A10G": (70, 35),
    "L4": (121, 60),
    "RTX 4090": (165, 83),
    "RTX 3090": (71, 36),
}


def device_peak(device_name: str, mixed_precision: str) -> float | None:
    """Return the FLOP/s that a device promises in a precision, or None if the table does not have the device."""
    column = 0 if mixed_precision in ("bf16", "fp16") else 1
    return next((peaks[column] * 1e12 for name, peaks in PEAK_TFLOPS.items() if name in device_name), None)


def count_training_flops(model: torch.nn.Module, *inputs: torch.Tensor) -> int:
    """Return the operations of one image's step: three times those of a forward, as the backward has twice as many.

    The forward that gradient checkpointing repeats is not counted, as it makes no progress.

    Args:
        model: Model on the meta device, so that nothing is computed.
        inputs: Inputs of one image, on the meta device.
    """
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(*inputs)
    return 3 * counter.get_total_flops()
