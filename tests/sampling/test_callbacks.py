"""What a callback sees of its call, how a call is stopped, and calls in many threads at once."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    FirstBlockCacheConfig,
)
from diffusers.callbacks import (
    IPAdapterScaleCutoffCallback,
    MultiPipelineCallbacks,
    PipelineCallback,
    SD3CFGCutoffCallback,
    SDCFGCutoffCallback,
)
from diffusers.guiders import AdaptiveProjectedGuidance
from sampling_parts import count_rows, picture, scheduler_by_name, seeded, tiny_model, tiny_pipeline, tiny_vae

from dit_hf import DiTImg2ImgPipeline, DiTInpaintPipeline, DiTPipeline
from dit_hf.sampling import turns

LATENT = {"guidance_scale": 1, "output_type": "latent"}


def ddim_pipeline(**arguments) -> DiTPipeline:
    return tiny_pipeline(tiny_model(learn_sigma=False), DDIMScheduler(clip_sample=False), **arguments)


# --- callbacks ---------------------------------------------------------------------------------------------------


class Mix(PipelineCallback):
    """An official callback that halves the latents from a share of the steps on."""

    tensor_inputs = ["latents"]

    def callback_fn(self, pipeline, step_index, timestep, callback_kwargs):
        if step_index >= int(pipeline.num_timesteps * self.config.cutoff_step_ratio):
            callback_kwargs["latents"] = callback_kwargs["latents"] / 2
        return callback_kwargs


def test_official_callback_object_changes_the_latents_from_its_step_on():
    pipe = ddim_pipeline()
    seen = []

    def by_hand(pipeline, step, t, tensors):
        seen.append((pipeline.num_timesteps, pipeline.scheduler.timesteps.tolist()))
        return {"latents": tensors["latents"] / 4} if step >= 3 else {}

    arguments = {"num_inference_steps": 6, "generator": seeded(0), **LATENT}
    expected = pipe(1, callback_on_step_end=by_hand, **arguments).images
    twice = MultiPipelineCallbacks([Mix(0.5), Mix(0.5)])
    found = pipe(1, callback_on_step_end=twice, **{**arguments, "generator": seeded(0)}).images
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    assert seen == [(6, [830, 664, 498, 332, 166, 0])] * 6
    assert pipe.num_timesteps == 6


@pytest.mark.parametrize(
    ("callback", "message"),
    [
        (SDCFGCutoffCallback(), "SDCFGCutoffCallback needs the tensors prompt_embeds.*guidance_interval"),
        (MultiPipelineCallbacks([Mix(), SD3CFGCutoffCallback()]), "prompt_embeds, pooled_prompt_embeds"),
        (IPAdapterScaleCutoffCallback(), "an image prompt adapter"),
        ("print", "callback_on_step_end='print': pass a function"),
    ],
)
def test_callback_that_needs_other_parts_is_refused_before_any_work(callback, message: str):
    pipe = ddim_pipeline()
    pipe.transformer.register_forward_pre_hook(lambda *_: pytest.fail("the model ran"))
    with pytest.raises(ValueError, match=message):
        pipe(1, callback_on_step_end=callback)


@pytest.mark.parametrize("whose", ["the call's", "the pipeline's"])
def test_interrupted_call_ends_after_its_step_and_the_next_one_is_whole(whose: str):
    pipe = ddim_pipeline()
    rows, kept = count_rows(pipe), []

    def stop(call, step, t, tensors):
        kept.append(tensors["latents"])
        if step == 2:
            (call if whose == "the call's" else pipe)._interrupt = True

    found = pipe(1, num_inference_steps=6, callback_on_step_end=stop, **LATENT).images
    assert len(rows) == 3
    assert torch.equal(found, kept[-1])
    pipe._interrupt = True  # while nothing runs
    pipe(1, num_inference_steps=6, **LATENT)
    assert len(rows) == 3 + 6


# --- threads -----------------------------------------------------------------------------------------------------


def jobs(pipe: DiTPipeline) -> list:
    """Calls of many kinds: each a function from a callback to what the pipeline returns."""
    models = {"transformer": pipe.transformer, "vae": pipe.vae}
    ancestral = DiTPipeline(scheduler=scheduler_by_name("EulerAncestralDiscreteScheduler"), **models)
    solver = DiTPipeline(scheduler=scheduler_by_name("DPMSolverMultistepScheduler"), **models)
    change = DiTImg2ImgPipeline.from_pipe(pipe)
    inpaint = DiTInpaintPipeline.from_pipe(solver)
    guider = AdaptiveProjectedGuidance(guidance_scale=3.0, adaptive_projected_guidance_momentum=-0.5)
    mask = torch.zeros(1, 1, 16, 16)
    mask[..., :8] = 1
    for made in (ancestral, solver, change, inpaint):
        made.set_progress_bar_config(disable=True)
    assert type(ancestral.scheduler) is EulerAncestralDiscreteScheduler
    assert type(solver.scheduler) is DPMSolverMultistepScheduler
    latent = {"output_type": "latent"}
    pixels = {"output_type": "pt"}
    return [
        lambda **more: pipe(1, guider, 4, seeded(1), **latent, **more),
        lambda **more: pipe([2, 3], 1.0, 7, seeded(2), eta=0.7, **latent, **more),
        lambda **more: pipe(4, guider, 6, seeded(3), **latent, **more),
        lambda **more: ancestral(5, 2.0, 5, seeded(4), **latent, **more),
        lambda **more: solver(6, 3.0, 9, seeded(5), guidance_interval=(0.2, 0.7), **pixels, **more),
        lambda **more: solver(7, 1.0, 20, seeded(6), **latent, **more),
        lambda **more: change(picture(), 8, 0.6, num_inference_steps=8, generator=seeded(7), **latent, **more),
        lambda **more: inpaint(
            picture(1), mask, 9, num_inference_steps=6, generator=seeded(8), output_type="pt", **more
        ),
    ]


def interleaved(calls: list) -> list[torch.Tensor]:
    """Run calls in a thread each; each waits after each step until all have had theirs."""
    barrier = threading.Barrier(len(calls))

    def run(call):
        def wait(*_):
            if not barrier.broken:
                try:
                    barrier.wait(timeout=60)
                except threading.BrokenBarrierError:
                    return

        try:
            return call(callback_on_step_end=wait).images
        finally:
            barrier.abort()  # a call that has ended takes no more turns; the others go on as they like

    with ThreadPoolExecutor(len(calls)) as pool:
        return [future.result() for future in [pool.submit(run, call) for call in calls]]


@pytest.mark.slow
def test_eight_threads_of_mixed_settings_draw_what_each_draws_alone():
    calls = jobs(ddim_pipeline())
    alone = [call().images for call in calls]
    for together in (interleaved(calls), interleaved(calls[::-1])[::-1]):
        for found, expected in zip(together, alone, strict=True):
            assert torch.equal(found, expected)


def test_interruption_of_one_call_leaves_the_others_alone():
    pipe = ddim_pipeline()
    has_stopped, expected = threading.Event(), pipe(2, num_inference_steps=5, generator=seeded(2), **LATENT).images

    def stop(call, step, *_):
        call._interrupt = True
        has_stopped.set()

    def wait(call, step, *_):
        assert has_stopped.wait(timeout=60)

    rows = count_rows(pipe)
    with ThreadPoolExecutor(2) as pool:
        other = pool.submit(pipe, 2, 1, 5, seeded(2), output_type="latent", callback_on_step_end=wait)
        pool.submit(pipe, 1, 1, 5, seeded(1), output_type="latent", callback_on_step_end=stop).result()
    assert torch.equal(other.result().images, expected)
    assert len(rows) == 5 + 1


class Watchful:
    """A lock that says when a thread has to wait for it."""

    def __init__(self) -> None:
        self.lock, self.has_waiter = threading.RLock(), threading.Event()

    def __enter__(self) -> None:
        if not self.lock.acquire(blocking=False):
            self.has_waiter.set()
            self.lock.acquire()

    def __exit__(self, *_: object) -> None:
        self.lock.release()


def test_half_precision_vae_is_brought_to_float32_by_one_thread_at_a_time(monkeypatch: pytest.MonkeyPatch):
    vae = tiny_vae(force_upcast=True).half()
    pipe = tiny_pipeline(tiny_model(learn_sigma=False), DDIMScheduler(clip_sample=False), vae=vae)
    latents = torch.randn(1, 4, 8, 8, generator=seeded(0))
    expected, lock, seen, has_entered = pipe._decode(latents, "pt"), Watchful(), [], threading.Event()
    monkeypatch.setitem(turns._LOCKS, vae, lock)
    forward = vae.decoder.forward

    def watched(z, *args):
        seen.append(("enters", next(vae.decoder.parameters()).dtype))
        has_entered.set()
        if len(seen) == 1:
            assert lock.has_waiter.wait(timeout=60)
        seen.append(("leaves", next(vae.decoder.parameters()).dtype))
        return forward(z, *args)

    vae.decoder.forward = watched
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(pipe._decode, latents, "pt")
        assert has_entered.wait(timeout=60)
        second = pool.submit(pipe._decode, latents, "pt")
        for result in (first, second):
            torch.testing.assert_close(result.result(), expected, rtol=0, atol=0)
    assert seen == [(what, torch.float32) for what in ("enters", "leaves")] * 2
    assert vae.dtype == torch.float16


def test_call_has_an_enabled_cache_to_itself(monkeypatch: pytest.MonkeyPatch):
    pipe = ddim_pipeline()
    pipe.enable_cache(FirstBlockCacheConfig(threshold=0.5))
    arguments = [1, 1, 6, None, torch.randn(1, 4, 8, 8, generator=seeded(0)), "latent"]
    expected, lock = pipe(*arguments).images, Watchful()
    monkeypatch.setitem(turns._LOCKS, pipe.transformer, lock)

    has_begun = threading.Event()

    def begin(call, step, *_):
        has_begun.set()
        assert step != 2 or lock.has_waiter.wait(timeout=60)

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(pipe, *arguments, callback_on_step_end=begin)
        assert has_begun.wait(timeout=60)
        second = pool.submit(pipe, *arguments)
        assert torch.equal(first.result().images, expected)
        assert torch.equal(second.result().images, expected)
