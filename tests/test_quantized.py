"""Weights that are stored otherwise than they compute: layerwise casting, torchao, bitsandbytes.

Two oracles: storage that loses nothing gives the very output, and storage that rounds gives the output of a plain model
whose weights were rounded before.
"""

import pytest
import torch
from diffusers import PipelineQuantizationConfig
from diffusers.hooks import apply_layerwise_casting
from sampling_parts import seeded, tiny_pipeline
from sampling_parts import tiny_model as tiny
from torch import nn
from torch.testing import assert_close
from transformers import BitsAndBytesConfig, TorchAoConfig

from dit_hf import DiTModel, DiTPipeline
from dit_hf.blocks import BLOCKS

each_block = pytest.mark.parametrize("block_type", BLOCKS)


def sample(model: DiTModel, inputs) -> torch.Tensor:
    """The output of both ways through the model, which must agree."""
    x, t, y = inputs
    x = x.to(model.dtype)
    out = model(x, t, y).sample
    assert_close(model(x, conditioning=model.condition(t, y)).sample, out, atol=0, rtol=0)
    return out


@each_block
@pytest.mark.parametrize("storage", [torch.float8_e4m3fn, torch.float8_e5m2, torch.bfloat16])
@pytest.mark.parametrize("compute", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_layerwise_casting_is_a_model_whose_weights_were_rounded(block_type, storage, compute, tiny_model, tiny_inputs):
    stored, rounded = (tiny_model(block_type=block_type).to(compute) for _ in range(2))
    apply_layerwise_casting(stored, storage_dtype=storage, compute_dtype=compute)
    assert stored.t_embedder.mlp[0].weight.dtype == stored.x_embedder.proj.weight.dtype == storage
    for name, parameter in rounded.named_parameters():
        parameter.copy_(parameter.to(stored.get_parameter(name).dtype))
    out = sample(stored, tiny_inputs())
    assert out.dtype == compute
    assert_close(out, sample(rounded, tiny_inputs()), atol=0, rtol=0)


@each_block
@torch.no_grad()
def test_layers_may_compute_in_another_dtype_than_the_model_was_loaded_in(block_type, tiny_model, tiny_inputs):
    model = tiny_model(block_type=block_type)
    expected = model(*tiny_inputs()).sample
    apply_layerwise_casting(model, storage_dtype=torch.bfloat16, compute_dtype=torch.bfloat16)
    out = sample(model, tiny_inputs())
    assert out.dtype == torch.bfloat16
    assert (out - expected).norm() < 0.02 * expected.norm()  # bfloat16 has three digits


def weights_of(model: DiTModel) -> dict[str, torch.Tensor]:
    return {name: module.weight for name, module in model.named_modules() if isinstance(module, nn.Linear)}


@each_block
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_int8_weights_of_torchao_are_a_model_whose_weights_were_rounded(block_type, dtype, tiny_model, tiny_inputs):
    quantization = pytest.importorskip("torchao.quantization")
    model, rounded = (tiny_model(block_type=block_type).to(dtype) for _ in range(2))
    quantization.quantize_(model, quantization.Int8WeightOnlyConfig())
    for name, weight in weights_of(model).items():
        stored = weight.dequantize()
        assert not torch.equal(stored, rounded.get_submodule(name).weight)
        rounded.get_submodule(name).weight.copy_(stored)
    out, expected = sample(model, tiny_inputs()), sample(rounded, tiny_inputs())
    assert out.dtype == dtype
    # the scale of a row multiplies the sum in place of each weight
    tolerance = {"atol": 1e-5, "rtol": 1e-4} if dtype == torch.float32 else {"atol": 0.05, "rtol": 0.05}
    assert_close(out, expected, **tolerance)


@each_block
@torch.no_grad()
def test_int8_activations_of_torchao_stay_close(block_type, tiny_model, tiny_inputs):
    quantization = pytest.importorskip("torchao.quantization")
    model = tiny_model(block_type=block_type)
    expected = model(*tiny_inputs()).sample
    quantization.quantize_(model, quantization.Int8DynamicActivationInt8WeightConfig())
    error = (sample(model, tiny_inputs()) - expected).norm() / expected.norm()
    assert 0 < error < 0.03  # 8 bits are steps of 1/127 of the largest number of a row


@torch.no_grad()
def test_byte_packed_first_layer_takes_the_timestep(tiny_model, tiny_inputs):
    """A layer of somebody else whose weight is no number that an input could be cast to."""

    class Packed(nn.Module):
        def __init__(self, linear: nn.Linear) -> None:
            super().__init__()
            self.weight = nn.Parameter(linear.weight.detach().view(torch.uint8).clone(), requires_grad=False)
            self.bias = linear.bias

        def forward(self, x):
            return nn.functional.linear(x, self.weight.view(torch.float32), self.bias)

    model = tiny_model()
    expected = model(*tiny_inputs()).sample
    model.t_embedder.mlp[0] = Packed(model.t_embedder.mlp[0])
    assert_close(sample(model, tiny_inputs()), expected, atol=0, rtol=0)


LOADING = {
    "torchao, weights": lambda: TorchAoConfig(pytest.importorskip("torchao.quantization").Int8WeightOnlyConfig()),
    "torchao, weights and activations": lambda: TorchAoConfig(
        pytest.importorskip("torchao.quantization").Int8DynamicActivationInt8WeightConfig()
    ),
    "bitsandbytes, 8 bits": lambda: pytest.importorskip("bitsandbytes") and BitsAndBytesConfig(load_in_8bit=True),
    "bitsandbytes, 4 bits": lambda: pytest.importorskip("bitsandbytes") and BitsAndBytesConfig(load_in_4bit=True),
}


@pytest.mark.parametrize("quantization", LOADING.values(), ids=LOADING)
@torch.no_grad()
def test_transformers_quantises_while_it_loads(quantization, tiny_model, tiny_inputs, tmp_path):
    model = tiny_model(hidden_size=64)
    expected = model(*tiny_inputs()).sample
    model.save_pretrained(tmp_path)
    loaded = DiTModel.from_pretrained(tmp_path, quantization_config=quantization())
    error = (sample(loaded, tiny_inputs()).float() - expected).norm() / expected.norm()
    assert 0 < error < 0.15  # 4 bits are 16 numbers a weight


@torch.no_grad()
def test_pipeline_quantises_while_it_loads_as_torchao_does_afterwards(tmp_path):
    torchao = pytest.importorskip("torchao.quantization")
    pipeline = tiny_pipeline(model=tiny(hidden_size=64))
    pipeline.save_pretrained(tmp_path)
    quantization = PipelineQuantizationConfig(
        quant_mapping={"transformer": TorchAoConfig(torchao.Int8WeightOnlyConfig())}
    )
    loaded = DiTPipeline.from_pretrained(tmp_path, quantization_config=quantization)
    exact = draw(pipeline)
    torchao.quantize_(pipeline.transformer, torchao.Int8WeightOnlyConfig())
    assert_close(draw(loaded), draw(pipeline), atol=0, rtol=0)
    assert not torch.equal(draw(loaded), exact)


def draw(pipeline: DiTPipeline) -> torch.Tensor:
    return pipeline(1, num_inference_steps=2, generator=seeded(0), output_type="latent").images
