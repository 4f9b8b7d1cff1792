"""Denoising: the model's answer at each step of a call, guided, in the form that the scheduler's `step` takes.

Legend: B images, C latent channels, H and W latent height and width, L distinct labels of a call, T' timesteps of a
window.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from diffusers import SchedulerMixin
from diffusers.models import CacheMixin
from torch import Tensor
from transformers import PreTrainedModel

from .guidance import Guidance
from .latents import on_its_device
from .schedulers import noise_levels, takes_variance, traits_of, velocity
from .turns import lock_of


def cached_model(transformer: Any) -> Any:
    """Return the transformer, without the wrapper of `torch.compile`, if one of diffusers' caches is enabled on it."""
    model = getattr(transformer, "_orig_mod", transformer)
    return model if getattr(model, "_cache_config", None) is not None else None


@contextmanager
def cache_to_oneself(cached: Any) -> Iterator[None]:
    """Let a call have an enabled cache to itself, which it finds empty; other calls of other threads wait."""
    if cached is None:
        yield
        return
    with lock_of(cached):
        CacheMixin._reset_stateful_cache(cached)
        yield


@dataclass
class Denoising:
    """All that a call has settled before its loop.

    Args:
        transformer: Model.
        scheduler: Scheduler whose timesteps are set.
        timesteps: Timestep of each evaluation of the model (N,), in host memory.
        labels: Class id of each image, or None for each (B,).
        guidance: Guidance with its plan.
        positions: Positions of the transformer, and of the guide model if there is one; None for their own.
        conditioning_bytes: Most memory that precomputed conditionings may take.
        prediction_type: What the model predicts, as in `check_scheduler`; a guide model predicts the same.
    """

    transformer: PreTrainedModel
    scheduler: SchedulerMixin
    timesteps: Tensor
    labels: list[int] | list[None]
    guidance: Guidance
    positions: list[Any]
    conditioning_bytes: int
    prediction_type: str

    def steps(self, device: torch.device) -> Iterator[Callable[[Tensor], Tensor]]:
        """Yield for each step a function from latents (B, C, H, W) to what the scheduler takes, (B, C or 2C, H, W)."""
        guide_model = self.guidance.guide_model
        conditionings = self._conditionings(self.transformer, device)
        weak = None if guide_model is None else self._conditionings(guide_model, device)
        for step, conditioning in enumerate(conditionings):
            weak_conditioning = None if weak is None else next(weak)
            yield partial(self._denoise, step, conditioning, weak_conditioning)

    def _conditionings(self, model: PreTrainedModel, device: torch.device) -> Iterator[Any]:
        """Yield the conditioning of each step; a step guided by the null class has 2B rows: B labels, B null classes.

        A conditioning is computed once for each timestep and distinct label, for as many steps at once as memory
        allows, so that the loop reads none of the parameters that serve it: a third of the model in adaLN-Zero.
        """
        config, ts = model.config, self.timesteps
        paired = [self.guidance.is_paired(step) for step in range(len(ts))]
        distinct = [*dict.fromkeys(self.labels), *([config.null_class_id] if any(paired) else [])]  # L labels
        plain = torch.tensor([distinct.index(label) for label in self.labels], device=device)  # (B,)
        both = torch.cat([plain, torch.full_like(plain, len(distinct) - 1)])  # (2B,)
        ids = None if config.num_classes == 0 else torch.tensor(distinct, device=device)  # (L,)
        # an upper bound: 6D for each block, and 3D for the final layer and the embedding
        step_bytes = 6 * config.hidden_size * (config.num_hidden_layers + 1) * len(distinct) * model.dtype.itemsize
        window = max(1, self.conditioning_bytes // 2 // step_bytes)  # half: two live while one follows the other
        for begin in range(0, len(ts), window):
            t = ts[begin : begin + window].to(device)  # (T',)
            arguments = {"timestep": t.repeat_interleave(len(distinct))}  # (T' L,)
            if ids is not None:
                arguments["class_labels"] = ids.repeat(len(t))
            if config.has_null_class:  # no label is dropped, also if the model is in training mode
                arguments["drop_labels"] = torch.zeros(len(t) * len(distinct), dtype=torch.bool, device=device)
            table = on_its_device(model).condition(**arguments)  # (T' L, ...)
            for step in range(len(t)):
                rows = (both if paired[begin + step] else plain) + step * len(distinct)
                # copies, not views: a compiled model would be compiled again for a view's offset
                blocks = tuple(None if block is None else block[rows] for block in table.blocks)
                final = None if table.final is None else table.final[rows]
                yield table._replace(embedding=table.embedding[rows], blocks=blocks, final=final)

    def _denoise(self, step: int, conditioning: Any, weak_conditioning: Any, latents: Tensor) -> Tensor:
        model, t, guidance = self.transformer, self.timesteps[step], self.guidance
        x = latents  # the scheduler's step takes these, unscaled
        if hasattr(self.scheduler, "scale_model_input"):
            x = self.scheduler.scale_model_input(x, t)
        with self._cache_context(step):
            batch = torch.cat([x, x]) if guidance.is_paired(step) else x
            answer = self._evaluate(step, model, batch, conditioning, self.positions[0])
        if guidance.is_guided[step]:
            if guidance.guide_model is None:
                cond, other = answer.chunk(2)  # (B, C or 2C, H, W)
            else:
                cond = answer
                other = self._evaluate(step, guidance.guide_model, x, weak_conditioning, self.positions[1])
            answer = guidance.combine(step, t, cond, other)
        return answer if takes_variance(self.scheduler, model.config.learn_sigma) else answer[:, : latents.shape[1]]

    def _evaluate(self, step: int, model: PreTrainedModel, x: Tensor, conditioning: Any, positions: Any) -> Tensor:
        """Return the model's answer as the scheduler reads it, float32."""
        resized = {} if positions is None else {"positions": positions}
        answer: Tensor = model(x.to(model.dtype), conditioning=conditioning, **resized).sample
        if self.prediction_type == "flow_sample":
            x_0 = answer[:, : x.shape[1]].float()
            return velocity(self.scheduler, step, x, x_0)
        return answer.to(torch.float32, copy=True)  # a CUDA graph's next replay would overwrite it

    def _cache_context(self, step: int) -> AbstractContextManager:
        cached = cached_model(self.transformer)
        if cached is None:
            return nullcontext()
        cached.current_timestep = self.timesteps[step]  # one of the caches asks for it
        level = float(noise_levels(self.scheduler, self.timesteps[step : step + 1])[0])
        if not (traits_of(self.scheduler).flow or self.scheduler.config.prediction_type == "flow_prediction"):
            level /= 1 + level  # the time of flow matching with the same ratio of noise
        where = {"step_index": step, "num_inference_steps": len(self.timesteps), "sigma": level}
        # contexts of their own, as the batch is another
        name = "guided" if self.guidance.is_guided[step] else "unguided"
        return CacheMixin.cache_context(cached, name, **where, timestep=self.timesteps[step])
