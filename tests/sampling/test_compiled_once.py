"""A compiled model serves other labels, steps and guidance scales, and in the end every batch, without compiling."""

import numpy as np
import pytest
import torch
from sampling_parts import seeded, tiny_model, tiny_pipeline
from torch._dynamo.testing import CompileCounter

from dit_hf import DiTPipeline

pytestmark = pytest.mark.slow


def compile_and_count(pipe: DiTPipeline, how: str) -> CompileCounter:
    """Compile the model or its blocks by a backend that counts graphs and runs them as they are."""
    torch._dynamo.reset()
    counter = CompileCounter()
    if how == "whole":
        pipe.transformer = torch.compile(pipe.transformer, fullgraph=True, backend=counter)
    else:
        pipe.transformer.compile_repeated_blocks(fullgraph=True, backend=counter)
    return counter


def sample(pipe: DiTPipeline, labels: list[int], num_steps: int = 2, guidance_scale: float = 2.0, **options):
    arguments = {"generator": seeded(0), "output_type": "np", **options}
    return pipe(labels, num_inference_steps=num_steps, guidance_scale=guidance_scale, **arguments).images


def model_of(block_type: str):
    return tiny_model() if block_type == "adaln_zero" else tiny_model(block_type=block_type)


@pytest.mark.parametrize("block_type", ["adaln_zero", "cross_attention", "in_context"])
@pytest.mark.parametrize("how", ["whole", "blocks"])
def test_compiled_model_is_compiled_no_more_for_other_labels_steps_guidance_and_batches(how, block_type):
    model, pipe = model_of(block_type), tiny_pipeline(model_of(block_type))
    counter = compile_and_count(pipe, how)
    sample(pipe, [0, 1])
    assert counter.frame_count == 1  # all blocks share one graph
    sample(pipe, [3, 7])
    sample(pipe, [0, 1], num_steps=3)
    sample(pipe, [0, 1], guidance_scale=3.5)
    assert counter.frame_count == 1
    sample(pipe, [0, 1, 2])
    assert counter.frame_count == 2  # the second size is taken as one of many
    for num_images in (4, 5, 7):
        got = sample(pipe, list(range(num_images)), num_steps=4, guidance_scale=1.5)
    sample(pipe, [0, 1, 2, 3], num_steps=4, guidance_interval=(0.25, 0.75))
    assert counter.frame_count == 2
    sample(pipe, [4], num_steps=3, guidance_scale=1.5)  # guided, a batch of two: not the graph of a batch of one
    assert counter.frame_count == 2
    expected = sample(tiny_pipeline(model), list(range(7)), num_steps=4, guidance_scale=1.5)
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("number", [int, float])
@torch.no_grad()
def test_compiled_model_is_compiled_twice_for_all_timesteps_that_are_python_numbers(number):
    torch._dynamo.reset()
    counter, model = CompileCounter(), tiny_model()
    compiled = torch.compile(model, fullgraph=True, backend=counter)
    x, labels = torch.randn(2, 4, 8, 8, generator=seeded(1)), torch.tensor([3, 7])
    for timestep in (999, 750, 500, 251):
        got = compiled(x, number(timestep), labels).sample
        torch.testing.assert_close(got, model(x, timestep, labels).sample, atol=1e-5, rtol=1e-5)
    assert counter.frame_count <= 2  # the first number is taken as fixed, the second as one of many
