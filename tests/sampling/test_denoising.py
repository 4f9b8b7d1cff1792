"""The model's answer at each step: what is computed once, what never waits, what stays whole."""

import accelerate
import numpy as np
import pytest
import torch
import torch._dynamo as dynamo
from diffusers import DDIMScheduler, DDPMScheduler
from sampling_parts import PAPER, scheduler_by_name, seeded, tiny_model, tiny_pipeline
from torch._dynamo.utils import counters
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from dit_hf.sampling.guidance import guide
from dit_hf.sampling.schedulers import SCHEDULERS


@torch.no_grad()
def plain_loop(pipe, labels, latents, steps, scale) -> torch.Tensor:
    """Sampling without anything computed beforehand."""
    model, scheduler = pipe.transformer, pipe.scheduler
    scheduler.set_timesteps(steps)
    ids = torch.tensor([*labels, *[model.config.num_classes] * len(labels)])
    x = latents
    for t in scheduler.timesteps:
        answer = guide(*model(torch.cat([x, x]), t.expand(len(ids)), ids).sample.chunk(2), scale, 4)
        x = scheduler.step(answer[:, :4], t, x).prev_sample
    return x


@pytest.mark.slow
@pytest.mark.parametrize("block_type", ["adaln_zero", "adaln", "cross_attention", "in_context"])
@pytest.mark.parametrize("labels", [[3], [3, 3, 1]])
def test_precomputed_conditionings_change_nothing(block_type, labels):
    pipe = tiny_pipeline(tiny_model(block_type=block_type), DDIMScheduler(clip_sample=False))
    latents = torch.randn(len(labels), 4, 8, 8, generator=seeded(0))
    expected = plain_loop(pipe, labels, latents, 8, 4.0)
    for window in (1, 3, 8):
        rows = 2 if len(labels) == 1 else 3
        pipe.conditioning_bytes = 2 * window * rows * 6 * 48 * 3 * 4
        final = pipe(labels, 4.0, 8, latents=latents, output_type="latent").images
        error = (final - expected).norm() / expected.norm()
        assert error < 1e-5
        if window == 1 and len(labels) == 1:  # at the step's own batch shape there is no other rounding
            assert torch.equal(final, expected)


def test_conditioning_is_computed_once_for_each_timestep_and_distinct_label():
    pipe = tiny_pipeline(scheduler=DDIMScheduler(clip_sample=False))
    calls, in_steps = [], []
    model = pipe.transformer
    condition = model.condition

    def counted(timestep, class_labels, drop_labels):
        calls.append((timestep.tolist(), class_labels.tolist()))
        return condition(timestep, class_labels, drop_labels)

    model.condition = counted
    for module in model.modules():
        if isinstance(module, torch.nn.Linear | torch.nn.Embedding | torch.nn.Conv2d):
            size = sum(parameter.nbytes for parameter in module.parameters())
            module.register_forward_pre_hook(lambda *_, size=size: in_steps.append(size))
    starts = []
    model.register_forward_pre_hook(lambda *_: starts.append(len(in_steps)))
    pipe([3, 3, 1], num_inference_steps=4, output_type="latent")
    assert calls == [([750] * 3 + [500] * 3 + [250] * 3 + [0] * 3, [3, 1, 10] * 4)]
    # parameter bytes that each step reads: those of neither adaLN nor the embedders
    ends = [*starts[1:], len(in_steps)]
    spared = sum(p.nbytes for name, p in model.named_parameters() if "adaLN" in name or "embedder." in name[1:])
    spared -= sum(p.nbytes for p in model.x_embedder.parameters())
    every = sum(p.nbytes for p in model.parameters()) - model.pos_embed.nbytes
    assert [sum(in_steps[a:b]) for a, b in zip(starts, ends, strict=True)] == [every - spared] * 4
    assert spared > 0.3 * every


def test_memory_of_the_conditionings_is_bounded():
    pipe = tiny_pipeline(scheduler=DDIMScheduler(clip_sample=False))
    rows, held = [], []
    condition = pipe.transformer.condition

    def measured(*args, **kwargs):
        table = condition(*args, **kwargs)
        rows.append(len(table.embedding))
        held.append(sum(part.nbytes for part in (table.embedding, table.final, *table.blocks)))
        return table

    pipe.transformer.condition = measured
    row = 6 * 48 * (2 + 1) * 4  # 6D for each of two blocks, and once more, of float32
    pipe.conditioning_bytes = 2 * 7 * 2 * row
    pipe(3, num_inference_steps=20, output_type="latent")
    assert rows == [14, 14, 12]
    assert max(held) <= pipe.conditioning_bytes / 2
    assert max(held) > pipe.conditioning_bytes / 3
    pipe.conditioning_bytes = 0  # one step at a time is the least
    pipe(3, num_inference_steps=2, output_type="latent")
    assert rows[3:] == [2, 2]


class ScalarReads(TorchDispatchMode):
    """Counts the reads of a value that was computed from the latents or the weights: on a GPU each stops the loop."""

    def __init__(self, tensors):
        super().__init__()
        self.device = WeakIdKeyDictionary(dict.fromkeys(tensors, True))
        self.reads = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        on_device = any(isinstance(x, torch.Tensor) and x in self.device for x in tree_leaves((args, kwargs)))
        if on_device and func.overloadpacket.__name__ in ("_local_scalar_dense", "nonzero", "equal", "is_nonzero"):
            self.reads.append(str(func))
        for x in tree_leaves(result) if on_device else []:
            if isinstance(x, torch.Tensor):
                self.device[x] = True
        return result


@pytest.mark.parametrize("name", SCHEDULERS)
def test_loop_never_waits_for_the_device(name):
    flow = SCHEDULERS[name].flow
    model = tiny_model(num_hidden_layers=1, hidden_size=16, learn_sigma=name == "DDPMScheduler")
    scheduler = DDPMScheduler(**PAPER) if name == "DDPMScheduler" else scheduler_by_name(name)
    pipe = tiny_pipeline(model, scheduler, prediction_type="flow_prediction" if flow else None)
    reads = ScalarReads([*model.parameters()])
    seen = []

    def boundary(pipe, step, t, tensors):
        seen.append(len(reads.reads))
        reads.device[tensors["latents"]] = True

    latents = torch.randn(1, 4, 8, 8, generator=seeded(0))
    reads.device[latents] = True
    with reads:
        pipe(1, num_inference_steps=6, latents=latents, callback_on_step_end=boundary, output_type="latent")
    assert len(seen) >= 6
    assert seen == [0] * len(seen)
    assert reads.reads == ["aten._local_scalar_dense.default"]  # after the loop: were the latents finite?


def test_training_mode_drops_no_label():
    pipe = tiny_pipeline()
    # unguarded, one of 200 labels would be dropped with probability 1 - 1e-9
    arguments = {"class_labels": [*range(10)], "guidance_scale": 1, "num_inference_steps": 20, "output_type": "latent"}
    expected = pipe(**arguments, generator=seeded(0)).images
    pipe.transformer.train()
    torch.testing.assert_close(pipe(**arguments, generator=seeded(0)).images, expected, rtol=0, atol=0)


@pytest.mark.parametrize("sequential", [True, False])
def test_offloaded_models_are_brought_back_for_each_part(sequential):
    pipe = tiny_pipeline()
    latents = torch.randn(2, 4, 8, 8, generator=seeded(0))
    arguments = {"latents": latents, "num_inference_steps": 3, "output_type": "np"}
    tall = {"height": 24, "position_policy": "extend", "num_inference_steps": 2, "output_type": "np"}
    expected = pipe([1, 7], generator=seeded(1), **arguments).images
    expected_tall = pipe(3, generator=seeded(2), **tall).images
    if sequential:  # as enable_sequential_cpu_offload does, which names the device "cpu:0" and trips on it
        for model in (pipe.transformer, pipe.vae):
            accelerate.cpu_offload(model, torch.device("cpu"))
        assert pipe.transformer.pos_embed.is_meta
    else:
        pipe.enable_model_cpu_offload(device="cpu")
    np.testing.assert_allclose(pipe([1, 7], generator=seeded(1), **arguments).images, expected, atol=1e-6)
    np.testing.assert_allclose(pipe(3, generator=seeded(2), **tall).images, expected_tall, atol=1e-6)
    assert hasattr(pipe.transformer, "_hf_hook")


@pytest.mark.slow
@pytest.mark.parametrize("regional", [True, False])
def test_compiled_model_is_not_compiled_again(regional):
    dynamo.reset()
    counters.clear()
    pipe = tiny_pipeline(tiny_model(num_hidden_layers=3), DDIMScheduler(clip_sample=False))
    latents = torch.randn(1, 4, 8, 8, generator=seeded(0))
    expected = pipe(3, latents=latents, num_inference_steps=4, output_type="latent").images
    if regional:
        pipe.transformer.compile_repeated_blocks(fullgraph=True, backend="eager")
    else:
        pipe.transformer = torch.compile(pipe.transformer, fullgraph=True, backend="eager")
    found = pipe(3, latents=latents, num_inference_steps=4, output_type="latent").images
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-4)

    def graphs_after(labels, **arguments):
        pipe(labels, output_type="latent", **arguments)
        return counters["stats"]["unique_graphs"]

    assert counters["stats"]["unique_graphs"] == 1  # one for the three blocks
    assert graphs_after(5, guidance_scale=1.5, num_inference_steps=7) == 1  # labels, guidance, steps
    assert graphs_after(5, guidance_scale=1.5, num_inference_steps=3, eta=0.5) == 1
    # a batch of one, and batches of any other size
    assert graphs_after(5, num_inference_steps=4, guidance_interval=(0.5, 1.0)) == 2
    assert graphs_after([5, 5], num_inference_steps=4, guidance_interval=(0.0, 0.5)) == 3
    assert graphs_after([1, 2, 3], num_inference_steps=5, guidance_interval=(0.4, 1.0)) == 3
    assert not counters["graph_break"]
