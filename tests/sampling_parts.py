"""Small parts to sample with: models, VAEs, schedulers, and a model whose answers are exact."""

from pathlib import Path

import diffusers
import numpy as np
import torch
from diffusers import AutoencoderKL, DDPMScheduler
from PIL import Image
from safetensors.torch import load_file

from dit_hf import DiTConfig, DiTModel, DiTPipeline
from dit_hf.diffusion import OBJECTIVES, FlowLoss
from dit_hf.modeling_dit import DiTConditioning
from dit_hf.sampling.schedulers import SCHEDULERS

ROOT = Path(__file__).parents[1]
GOLDEN = Path(__file__).parent / "golden"
ID2LABEL = {0: "tench, Tinca tinca", 1: "goldfish", 2: "green snake, grass snake", 3: "garter snake, grass snake"}
PAPER = {"variance_type": "learned_range", "timestep_spacing": "linspace", "clip_sample": False}


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def tiny_vae(**config) -> AutoencoderKL:
    torch.manual_seed(3)
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    sizes = {"block_out_channels": (8, 8), "norm_num_groups": 4, "layers_per_block": 1, "latent_channels": 4}
    return AutoencoderKL(**{**blocks, **sizes, **config}).eval()


def tiny_model(**config) -> DiTModel:
    """The golden weights, or random ones of another configuration."""
    sizes = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "sample_size": 8, "num_classes": 10}
    model = DiTModel(DiTConfig(**{**sizes, **config})).eval()
    if not config:
        model.load_state_dict(load_file(GOLDEN / "dit_p2_c4.safetensors"))
        return model
    generator = seeded(4)
    for parameter in model.parameters():
        parameter.data = 0.1 * torch.randn(parameter.shape, generator=generator)
    return model


def tiny_pipeline(model=None, scheduler=None, vae="tiny", **arguments) -> DiTPipeline:
    vae = tiny_vae() if vae == "tiny" else vae
    pipe = DiTPipeline(model or tiny_model(), vae, scheduler or DDPMScheduler(**PAPER), **arguments)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def scheduler_by_name(name: str, prediction_type: str = "epsilon"):
    cls = getattr(diffusers, name)
    if SCHEDULERS[name].flow:
        return cls()
    # by name, as the defaults of some start at 0.00085
    ours = {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02, "prediction_type": prediction_type}
    return cls(**ours, **({"clip_sample": False} if "clip_sample" in cls().config else {}))


def variant(cls, name="DDIMScheduler", **parts):
    """A pipeline of another class, with a scheduler by its name."""
    flow = SCHEDULERS[name].flow
    parts = {"model": tiny_model(learn_sigma=False), "scheduler": scheduler_by_name(name), **parts}
    pipe = cls.from_pipe(tiny_pipeline(**parts, prediction_type="flow_prediction" if flow else None))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def sampled(pipe, *args, **arguments):
    """The images of a call, and the scheduler that the call used."""
    schedulers = []

    def keep(call, *_):
        schedulers.append(call.scheduler)

    images = pipe(*args, **arguments, callback_on_step_end=keep).images
    assert all(scheduler is schedulers[0] for scheduler in schedulers)
    return images, schedulers[0]


def count_rows(pipe) -> list[int]:
    """Rows of each pass of the transformer, as they come."""
    rows = []
    pipe.transformer.register_forward_pre_hook(lambda _, args: rows.append(len(args[0])))
    return rows


def picture(seed: int = 0, size: tuple[int, int] = (16, 16)) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), dtype=np.uint8))


ANCESTRAL = ("DDPMScheduler", "EulerAncestralDiscreteScheduler")


class ExactDenoiser(DiTModel):
    """The exact answer for data from N(MEAN, STD^2), whatever it was asked to predict."""

    MEAN, STD = 0.7, 0.5
    objective = None

    def condition(self, timestep, class_labels=None, drop_labels=None):
        return DiTConditioning(embedding=timestep)

    def forward(self, hidden_states, conditioning):
        t = conditioning.embedding.to(torch.float64).reshape(-1, 1, 1, 1)
        if isinstance(self.objective, FlowLoss):
            a, b = 1 - t / 1000, t / 1000
        else:  # fractional timesteps, as the Euler family has them, lie between the tables' entries
            table, low = self.objective.schedule.alpha_bar, t.floor().long()
            log = table.log()
            alpha_bar = (log[low] + (t - low) * (log[(low + 1).clamp(max=999)] - log[low])).exp()
            a, b = alpha_bar.sqrt(), (1 - alpha_bar).sqrt()
        x_t = hidden_states.double()
        x_0 = self.MEAN + a * self.STD**2 / (a**2 * self.STD**2 + b**2) * (x_t - a * self.MEAN)
        noise = (x_t - a * x_0) / b
        answers = {
            "epsilon": noise,
            "sample": x_0,
            "v_prediction": a * noise - b * x_0,
            "flow_prediction": noise - x_0,
            "flow_sample": x_0,
        }
        answer = answers[self.objective.prediction_type].float()
        if self.config.learn_sigma:
            answer = torch.cat([answer, torch.ones_like(answer)], 1)  # beta, the larger of the two variances
        return type("Answer", (), {"sample": answer})


def exact_model() -> ExactDenoiser:
    config = DiTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, sample_size=16, num_classes=0)
    config.in_channels, config.learn_sigma = 3, False
    model = ExactDenoiser(config)
    model.objective = OBJECTIVES["epsilon"]()
    return model
