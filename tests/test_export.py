"""The model as a graph for any batch: exported by torch, and run by ONNX Runtime, against the model itself."""

import pytest
import torch
from torch import Tensor
from torch.export import Dim
from torch.testing import assert_close
from torch.utils import _pytree as pytree

from dit_hf.blocks import BLOCKS

pytestmark = pytest.mark.slow

each_block = pytest.mark.parametrize("block_type", BLOCKS)
BATCHES = (1, 2, 3, 5)  # the example has 3


def inputs(batch: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(batch)
    x = torch.randn(batch, 4, 8, 8, generator=generator)
    return x, torch.randint(0, 1000, (batch,), generator=generator), torch.randint(0, 11, (batch,), generator=generator)


def any_batch(arguments):
    """Dynamic shapes: the first dimension of every tensor that has one."""
    return pytree.tree_map(lambda leaf: {0: Dim.DYNAMIC} if isinstance(leaf, Tensor) and leaf.ndim else None, arguments)


def of_three_tensors(model, batch):
    return inputs(batch), {}


def of_one_timestep_for_all(model, batch):
    x, _, y = inputs(batch)
    return (x, torch.tensor(500.5), y), {}


def of_labels_to_drop(model, batch):
    return inputs(batch), {"drop_labels": torch.arange(batch) % 2 == 0}


def of_a_conditioning(model, batch):
    x, t, y = inputs(batch)
    return (x,), {"conditioning": model.condition(t, y)}


def of_a_conditioning_for_all(model, batch):
    x, _, _ = inputs(batch)
    return (x,), {"conditioning": model.condition(7, torch.tensor([3]))}


CALLS = [of_three_tensors, of_one_timestep_for_all, of_labels_to_drop, of_a_conditioning, of_a_conditioning_for_all]


@each_block
@pytest.mark.parametrize("strict", [False, True])
@torch.no_grad()
def test_exported_program_takes_any_batch_and_gives_the_same_numbers(block_type, strict, tiny_model):
    model = tiny_model(block_type=block_type)
    arguments, options = of_three_tensors(model, 3)
    program = torch.export.export(model, arguments, options, dynamic_shapes=any_batch(arguments), strict=strict)
    for batch in BATCHES:
        assert_close(program.module()(*inputs(batch)).sample, model(*inputs(batch)).sample, atol=0, rtol=0)


@each_block
@pytest.mark.parametrize("call", CALLS[1:])
@torch.no_grad()
def test_every_way_to_call_the_model_exports(block_type, call, tiny_model):
    model = tiny_model(block_type=block_type)
    arguments, options = call(model, 3)
    shapes = {"hidden_states": any_batch(arguments[0]), **any_batch(options)}
    shapes |= dict(zip(("timestep", "class_labels"), any_batch(arguments[1:]), strict=False))
    if call == of_a_conditioning_for_all:
        shapes["conditioning"] = pytree.tree_map(lambda leaf: None, options["conditioning"])
    program = torch.export.export(model, arguments, options, dynamic_shapes=shapes)
    for batch in BATCHES:
        arguments, options = call(model, batch)
        expected = model(*arguments, **options).sample
        assert_close(program.module()(*arguments, **options).sample, expected, atol=0, rtol=0)


@torch.no_grad()
def test_unconditional_model_in_half_precision_exports(tiny_model):
    model = tiny_model(num_classes=0).to(torch.bfloat16)
    arguments = inputs(3)[:2]
    program = torch.export.export(model, arguments, dynamic_shapes=any_batch(arguments))
    for batch in BATCHES:
        arguments = inputs(batch)[:2]
        assert_close(program.module()(*arguments).sample, model(*arguments).sample, atol=0, rtol=0)


@each_block
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # of the exporter, about itself
@torch.no_grad()
def test_onnx_runtime_gives_the_same_numbers_for_any_batch(block_type, tiny_model, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    model = tiny_model(block_type=block_type)
    names = ["hidden_states", "timestep", "class_labels"]
    options = {"dynamo": True, "input_names": names, "output_names": ["sample"], "verbose": False}
    torch.onnx.export(model, inputs(3), dynamic_shapes=any_batch(inputs(3)), **options).save(tmp_path / "dit.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "dit.onnx")
    for batch in BATCHES:
        feed = dict(zip(names, (tensor.numpy() for tensor in inputs(batch)), strict=True))
        (sample,) = session.run(["sample"], feed)
        assert_close(torch.from_numpy(sample), model(*inputs(batch)).sample, atol=1e-5, rtol=1e-4)  # other kernels
