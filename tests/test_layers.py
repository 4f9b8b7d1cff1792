"""The layers of the blocks, against formulas written out in float64 and against each other."""

import pytest
import torch
from torch.testing import assert_close

from dit_hf.blocks import BLOCKS
from dit_hf.layers import Norm

each_block = pytest.mark.parametrize("block_type", BLOCKS)


def slow(parameter: str):
    return pytest.param(parameter, marks=pytest.mark.slow)


@each_block
@pytest.mark.parametrize("implementation", ["eager", slow("flex_attention")])
@torch.no_grad()
def test_attention_implementations_agree(tiny_model, tiny_inputs, block_type, implementation):
    model = tiny_model(block_type=block_type)
    assert model.config._attn_implementation == "sdpa"
    expected = model(*tiny_inputs()).sample
    model.set_attn_implementation(implementation)
    assert model.config._attn_implementation == implementation
    assert_close(model(*tiny_inputs()).sample, expected, atol=1e-5, rtol=1e-4)


def test_norm_modulates_in_float32_and_answers_in_the_dtype_of_the_products():
    generator = torch.Generator().manual_seed(0)
    x, shift, scale = (torch.randn(2, 3, 8, generator=generator) for _ in range(3))
    z = x.double()
    z = (z - z.mean(-1, keepdim=True)) / (z.var(-1, keepdim=True, unbiased=False) + 1e-6).sqrt()
    norm = Norm(8)
    assert_close(norm(x, torch.float32), z.float())
    expected = (z * (1 + scale) + shift).float()
    assert_close(norm(x, torch.float32, shift, scale), expected)
    assert torch.equal(norm(x, torch.bfloat16, shift, scale), norm(x, torch.float32, shift, scale).bfloat16())
