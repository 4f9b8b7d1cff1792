"""Operations and peaks, against the paper's multiply-adds and the vendors' figures."""

import time

import pytest
import torch
from accelerate import Accelerator

from dit_hf import DiTConfig, DiTModel
from dit_hf.training.reporting.metrics import Meter
from dit_hf.training.reporting.throughput import count_training_flops, device_peak


def test_an_image_costs_three_times_the_papers_forward():
    with torch.device("meta"):
        model = DiTModel(DiTConfig.from_name("DiT-S/4")).eval()
        inputs = torch.empty(1, 4, 32, 32), torch.empty(1), torch.empty(1, dtype=torch.long)
        assert count_training_flops(model, *inputs) == pytest.approx(3 * 2 * 1.41e9, rel=5e-3)


@pytest.mark.parametrize(
    ("name", "precision", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", "bf16", 989e12),
        ("NVIDIA H100 PCIe", "bf16", 756e12),
        ("NVIDIA A100-SXM4-80GB", "no", 156e12),
        ("cpu", "bf16", None),
    ],
)
def test_peak_is_that_of_the_device_and_precision(name: str, precision: str, peak: float | None):
    assert device_peak(name, precision) == peak


def test_a_pause_moves_the_clock_by_its_own_length_and_keeps_the_time_of_earlier_steps():
    meter = Meter(Accelerator(cpu=True), flops_per_image=1, peak_flops=None)
    meter.started -= 1000  # seconds that steps took before the pause
    began = meter.started
    with meter.paused():
        time.sleep(0.05)
    assert meter.started >= began + 0.05
    assert time.monotonic() - meter.started >= 1000
