"""Weights of SiT and of REPA as a `DiTModel` of flow matching: the same numbers, with another time and another sign.

Flow matching here has x_t = (1 - sigma) x + sigma eps with data x and noise eps, gives the model the timestep
1000 sigma, and reads eps - x. The models of others have DiT's keys and shapes, see a time t in [0, 1], and are

    SiT (Ma et al. 2024, arXiv 2401.08740):    x_t = t x + (1 - t) eps,    predicts x - eps
    REPA (Yu et al. 2024, arXiv 2410.06940):   x_t = (1 - t) x + t eps,    predicts eps - x

So t is 1 - timestep / 1000 for SiT and timestep / 1000 for REPA, which two fields of the configuration say, and SiT's
last layer changes its sign. SiT's models have 2C output channels like DiT's, of which its training never reads the
second half; that half is dropped. Every other weight stays as it is, bit for bit.
"""

from typing import Any, NamedTuple

from ..configuration_dit import DiTConfig
from ..modeling_dit import DiTModel
from .assemble import empty_model

NUM_TRAIN_TIMESTEPS = 1000  # of the scheduler; the embedding divides by it again


class FlowTraining(NamedTuple):
    """What the models of a training see and predict.

    Args:
        time: Fields of `DiTConfig` that turn our timestep into the time that the model sees.
        sign: Sign of the prediction, 1 for noise minus data.
    """

    time: dict[str, float]
    sign: int


TRAININGS = {
    "sit": FlowTraining({"timestep_scale": -1 / NUM_TRAIN_TIMESTEPS, "timestep_offset": 1.0}, -1),
    "repa": FlowTraining({"timestep_scale": 1 / NUM_TRAIN_TIMESTEPS, "timestep_offset": 0.0}, 1),
}


def training_of(config: DiTConfig) -> str | None:
    """Return the key of `TRAININGS` whose weights a model was made from; None for a DiT."""
    for name, training in TRAININGS.items():
        if all(getattr(config, field) == value for field, value in training.time.items()):
            return name
    return None


def to_flow_matching(model: DiTModel, trained_as: str) -> DiTModel:
    """Return a model that predicts noise minus data, given our timestep; it shares all other tensors.

    Args:
        model: Model with the weights as they are in the file, with 2C output channels or C.
        trained_as: Key of `TRAININGS`.
    """
    config, state, training = model.config, model.state_dict(), TRAININGS[trained_as]
    rows = (config.patch_size**2, 1 + config.learn_sigma, config.in_channels)  # of the last layer, channel fastest
    for name in ("final_layer.linear.weight", "final_layer.linear.bias"):
        state[name] = training.sign * state[name].unflatten(0, rows)[:, 0].flatten(0, 1)  # (p p C, D); (p p C,)
    fields: dict[str, Any] = {**config.to_dict(), **training.time, "learn_sigma": False}
    found = empty_model(DiTConfig.from_dict(fields))
    found.load_state_dict(state, assign=True)
    return found.train(model.training)
