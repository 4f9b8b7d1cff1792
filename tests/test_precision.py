"""The number format that a device multiplies matrices fastest in."""

import pytest
import torch

from dit_hf.precision import fast_dtype
from dit_hf.runtime.once import auto_dtype


@pytest.mark.parametrize(
    ("instructions", "expected"),
    [
        ({"avx2": True}, "float32"),
        ({"avx512_bf16": True, "avx512_fp16": False, "amx_bf16": False}, "bfloat16"),
        ({"avx512_bf16": True, "avx512_fp16": True, "amx_bf16": False}, "float32"),  # a Xeon whose AMX is hidden
        ({"avx512_bf16": True, "avx512_fp16": True, "amx_bf16": True}, "bfloat16"),
    ],
)
def test_cpu_is_fast_in_bfloat16_unless_its_amx_is_hidden(monkeypatch, instructions: dict[str, bool], expected: str):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: instructions)
    assert fast_dtype(torch.device("cpu")) == getattr(torch, expected)
    assert [auto_dtype(format, torch.device("cpu")) for format in ("torch", "openvino")] == [expected, expected]
    assert auto_dtype("onnx", torch.device("cpu")) == "float32"


def test_device_of_which_nothing_is_known_computes_in_float32():
    assert fast_dtype(torch.device("mps")) == torch.float32
