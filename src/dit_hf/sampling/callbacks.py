"""Watching a call of a pipeline: a function that is called after each step, and a way to stop.

A pipeline may sample in several threads at once. So a callback gets a copy of the pipeline that belongs to its call,
with the scheduler and the number of timesteps of that call. To stop, the callback sets `pipeline._interrupt = True` on
this copy, which ends its own call; the same on the pipeline itself, by any thread, ends all calls that run.
"""

import copy
from typing import Any

from diffusers import SchedulerMixin
from diffusers.callbacks import IPAdapterScaleCutoffCallback, MultiPipelineCallbacks


class Watched:
    """Part of a pipeline that callbacks look at, named as in the pipelines of diffusers."""

    scheduler: SchedulerMixin
    _callback_tensor_inputs = ["latents"]
    _num_timesteps = 0
    _interruptions = 0  # number of them: a flag would have to be reset, by one call before another has seen it
    _interruptions_before = 0

    def _for_one_call(self) -> Any:
        """Return a copy that shares the models and has a scheduler of its own, for the duration of a call."""
        call = copy.copy(self)
        call.scheduler = copy.deepcopy(self.scheduler)
        call._interruptions, call._interruptions_before = 0, self._interruptions
        return call

    @property
    def num_timesteps(self) -> int:
        """Number of evaluations of the model in this call; in the pipeline itself, in the call that began last."""
        return self._num_timesteps

    @property
    def interrupt(self) -> bool:
        """Whether this call is to end after its step."""
        return self._interruptions > 0

    @property
    def _interrupt(self) -> bool:
        return self.interrupt

    @_interrupt.setter
    def _interrupt(self, value: bool) -> None:
        self._interruptions += bool(value)


def check_callback(callback: Any) -> None:
    """Refuse an official callback of diffusers that needs what a DiT does not have.

    Raises:
        ValueError: If the callback is not callable, needs other tensors than the latents, or an image prompt adapter.
    """
    for one in callback.callbacks if isinstance(callback, MultiPipelineCallbacks) else [callback]:
        if one is not None and not callable(one):
            raise ValueError(f"callback_on_step_end={one!r}: pass a function, or a PipelineCallback of diffusers")
        missing = [name for name in getattr(one, "tensor_inputs", []) if name not in Watched._callback_tensor_inputs]
        if missing or isinstance(one, IPAdapterScaleCutoffCallback):
            needs = f"the tensors {', '.join(missing)}" if missing else "an image prompt adapter"
            raise ValueError(
                f"{type(one).__name__} needs {needs}, and a DiT has latents only: to end guidance early, pass "
                "guidance_interval=(0.0, end)"
            )
