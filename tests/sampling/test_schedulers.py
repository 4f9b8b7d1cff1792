"""Every scheduler against distributions whose denoiser is known: a Gaussian and a mixture, in place of the network.

A latent's pixels are independent draws, its C channels one vector x_0. With x_t = a x_0 + b noise, everything a model
could predict has a closed form, and for a Gaussian N(m, S) so has the path of the probability flow ODE:
    x_t - a m = (a^2 S + b^2 I)^(1/2) (A^2 S + B^2 I)^(-1/2) (x_T - A m),   A, B at the first timestep T.
`python tests/sampling/test_schedulers.py` prints the tables of docs/schedulers.md.
"""

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import NamedTuple

import diffusers
import numpy as np
import pytest
import torch
from scipy.integrate import quad
from torch import Tensor

from dit_hf import DiTConfig, DiTModel, DiTPipeline
from dit_hf.modeling_dit import DiTConditioning
from dit_hf.sampling.schedulers import SCHEDULERS

pytestmark = pytest.mark.filterwarnings("ignore:__array_wrap__:DeprecationWarning")  # DEIS, with numpy 2

BETAS = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
ALPHA_BAR = (1 - BETAS).cumprod(0)
SIGMA = ((1 - ALPHA_BAR) / ALPHA_BAR).sqrt()
EYE = torch.eye(2, dtype=torch.float64)

# --- what is sampled ---------------------------------------------------------------------------------------------


def scale_and_noise(t: float, flow: bool = False) -> tuple[float, float]:
    """(a, b) of x_t = a x_0 + b noise; between whole timesteps sigma = b / a is linear, as in diffusers."""
    if flow:
        return 1 - t / 1000, t / 1000
    sigma = float(np.interp(t, np.arange(1000), SIGMA))
    return 1 / math.sqrt(1 + sigma**2), sigma / math.sqrt(1 + sigma**2)


class Mixture(NamedTuple):
    """Gaussians: weights (K,), means (K, 2), covariances (K, 2, 2)."""

    weights: Tensor
    means: Tensor
    covariances: Tensor

    def denoise(self, x: Tensor, a: float, b: float) -> Tensor:
        """E[x_0 | x_t] for x_t (..., 2)."""
        logits, answers = [], []
        for weight, mean, covariance in zip(*self, strict=True):
            of_x_t = a**2 * covariance + b**2 * EYE
            whitened = (x - a * mean) @ torch.linalg.inv(of_x_t)
            logits.append(weight.log() - ((x - a * mean) * whitened).sum(-1) / 2 - torch.logdet(of_x_t) / 2)
            answers.append(mean + a * whitened @ covariance)
        return (torch.stack(logits).softmax(0)[..., None] * torch.stack(answers)).sum(0)


def mixture(*rows: tuple[float, list, list]) -> Mixture:
    return Mixture(*(torch.tensor(column, dtype=torch.float64) for column in zip(*rows, strict=True)))


GAUSSIAN = mixture((1.0, [0.7, -0.4], [[0.25, 0.12], [0.12, 0.5]]))
TWO = mixture((0.3, [-1.5, 0.5], [[0.1, 0.04], [0.04, 0.2]]), (0.7, [1.0, -0.5], [[0.2, -0.1], [-0.1, 0.15]]))


class Oracle(DiTModel):
    """A DiT whose answer is the closed form: class k is `of_class[k]`, the null class the last of them."""

    of_class: list[Mixture]
    flow = False
    variance: Callable[[int], float] | None = None  # of q(x_{t-1} | x_t), at t; for a learned range

    def condition(self, timestep, class_labels=None, drop_labels=None):
        t = torch.as_tensor(timestep, dtype=torch.float64).reshape(-1)
        labels = torch.zeros_like(t) if class_labels is None else class_labels.double()
        return DiTConditioning(torch.stack(torch.broadcast_tensors(t, labels), dim=1))

    def forward(self, hidden_states, timestep=None, class_labels=None, *, conditioning=None, **_):
        conditioning = conditioning or self.condition(timestep, class_labels)
        rows = conditioning.embedding.expand(len(hidden_states), 2)
        answers = torch.empty_like(hidden_states, dtype=torch.float64)
        for t, label in {tuple(row) for row in rows.tolist()}:
            these = (rows == torch.tensor([t, label], dtype=torch.float64)).all(dim=1)
            a, b = scale_and_noise(t, self.flow)
            x_t = hidden_states[these].double().movedim(1, -1)
            x_0 = self.of_class[int(label)].denoise(x_t, a, b)
            noise = (x_t - a * x_0) / b
            answers[these] = (noise - x_0 if self.flow else noise).movedim(-1, 1)
        if self.variance is not None:
            share = torch.full_like(answers, self.variance(int(rows[0, 0])))
            answers = torch.cat([answers, share], dim=1)
        return SimpleNamespace(sample=answers.float())


def oracle_pipeline(scheduler, *of_class: Mixture, size: int = 8) -> DiTPipeline:
    flow = SCHEDULERS[type(scheduler).__name__].flow
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "in_channels": 2}
    learned = scheduler.config.get("variance_type") == "learned_range"
    num_classes = len(of_class) - 1
    config = DiTConfig(**sizes, sample_size=size, num_classes=num_classes, learn_sigma=learned)
    model = Oracle(config).eval()
    model.of_class, model.flow = list(of_class), flow
    pipe = DiTPipeline(model, None, scheduler, prediction_type="flow_prediction" if flow else None)
    pipe.set_progress_bar_config(disable=True)
    return pipe


# --- the schedulers ----------------------------------------------------------------------------------------------


class Case(NamedTuple):
    """A scheduler with its settings."""

    name: str
    config: dict = {}
    order: int | None = None  # of a deterministic one
    num_exact: int = 0  # steps at the start that have a lower order, so that the exact path replaces them
    fit: tuple[int, ...] = (50, 100, 200)  # numbers of steps at which the order is seen, above the rounding of floats

    def scheduler(self):
        betas = {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02}
        return getattr(diffusers, self.name)(**({} if SCHEDULERS[self.name].flow else betas), **self.config)

    @property
    def spreads_noise(self) -> bool:
        """Whether latents are x_0 + sigma noise instead of a x_0 + b noise."""
        return self.name.startswith(("Euler", "Heun"))


LEADING = {"timestep_spacing": "leading"}
ODE_CASES = {
    "DDIM": Case("DDIMScheduler", {**LEADING, "clip_sample": False}, 1),
    "Euler": Case("EulerDiscreteScheduler", {}, 1),
    "Euler, Karras' sigmas": Case("EulerDiscreteScheduler", {"use_karras_sigmas": True}, 1),
    "Heun": Case("HeunDiscreteScheduler", {}, 2),
    "PNDM": Case("PNDMScheduler", LEADING, 2),  # Liu et al. 2022, theorem 3.2
    "DPM-Solver++ multistep, order 1": Case("DPMSolverMultistepScheduler", {"solver_order": 1}, 1),
    "DPM-Solver++ multistep, order 2": Case("DPMSolverMultistepScheduler", {}, 2, 1),
    "DPM-Solver++ multistep, order 2, Heun": Case("DPMSolverMultistepScheduler", {"solver_type": "heun"}, 2, 1),
    # diffusers multiplies h^2 m''/2 by the coefficient of h^2 m'': what is left is of order 2
    "DPM-Solver++ multistep, order 3": Case("DPMSolverMultistepScheduler", {"solver_order": 3}, 2, 2),
    "DPM-Solver++ singlestep, order 2": Case("DPMSolverSinglestepScheduler", {}, 2),
    # the corrector adds one (Zhao et al. 2023, theorem 3.1)
    "UniPC, order 2": Case("UniPCMultistepScheduler", {}, 3, 2),
    "UniPC, order 3": Case("UniPCMultistepScheduler", {"solver_order": 3}, 4, 3, (25, 50, 100)),
    "DEIS, order 2": Case("DEISMultistepScheduler", {}, 2, 1, (25, 50, 100)),
    "SA-Solver without noise": Case("SASolverScheduler", {"tau_func": lambda t: 0}, 2, 2),
    "flow matching, Euler": Case("FlowMatchEulerDiscreteScheduler", {}, 1),
    "flow matching, Euler, shift 3": Case("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}, 1),
    "flow matching, Heun": Case("FlowMatchHeunDiscreteScheduler", {}, 2),
}


def root(matrix: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(matrix)
    return (vectors * values.sqrt()) @ vectors.T


def exact_path(x_first: Tensor, first: tuple[float, float], now: tuple[float, float]) -> Tensor:
    """The probability flow ODE of GAUSSIAN from x (..., 2) at one (a, b) to another."""
    [mean], [covariance] = GAUSSIAN.means, GAUSSIAN.covariances
    spread = [root(a**2 * covariance + b**2 * EYE) for a, b in (first, now)]
    return now[0] * mean + (x_first - first[0] * mean) @ torch.linalg.inv(spread[0]) @ spread[1]


def ode_errors(case: Case, num_steps: int) -> tuple[float, float]:
    """Root mean square errors against the exact path: the largest for t in 100..500, and at the end."""
    scheduler = case.scheduler()
    pipe, flow = oracle_pipeline(scheduler, GAUSSIAN), SCHEDULERS[case.name].flow
    z = torch.randn(8, 2, 8, 8, generator=torch.Generator().manual_seed(0))
    errors, start = [0.0], {}

    def compare(pipe, step, t, tensors):
        scheduler = pipe.scheduler  # of this call
        ts = scheduler.timesteps.tolist()
        a, b = scale_and_noise(ts[0], flow)
        scale = a if case.spreads_noise else 1.0
        start.update(x=z.double().movedim(1, -1) * getattr(scheduler, "init_noise_sigma", 1.0) * scale, ab=(a, b))
        if step + 1 == len(ts):
            return {}
        now = scale_and_noise(ts[step + 1], flow)
        scale = now[0] if case.spreads_noise else 1.0
        exact = exact_path(start["x"], (a, b), now)
        if step < case.num_exact:
            return {"latents": (exact / scale).movedim(-1, 1).float()}
        # a singlestep solver's own stages between two of its steps have a lower order
        whole = getattr(scheduler, "order_list", [1] * len(ts))[step + 1] == 1
        if whole and 100 <= ts[step + 1] <= 500:
            errors.append((tensors["latents"].double().movedim(1, -1) * scale - exact).square().mean().sqrt().item())
        return {}

    arguments = {"num_images": 8, "guidance_scale": 1.0, "num_inference_steps": num_steps, "latents": z}
    final = pipe(**arguments, output_type="latent", callback_on_step_end=compare).images
    exact = exact_path(start["x"], start["ab"], (1.0, 0.0))
    return max(errors), (final.double().movedim(1, -1) - exact).square().mean().sqrt().item()


def slope(num_steps: list[int], errors: list[float]) -> float:
    return -np.polyfit(np.log(num_steps), np.log(errors), 1)[0]


@pytest.mark.slow
@pytest.mark.parametrize("case", ODE_CASES.values(), ids=ODE_CASES)
def test_deterministic_scheduler_converges_to_the_exact_path_with_its_order(case: Case):
    path, end = zip(*(ode_errors(case, num_steps) for num_steps in case.fit), strict=True)
    # the orders lie one apart; 0.45 tells them from each other, a fit of three points strays by up to 0.4
    assert abs(slope(case.fit, path) - case.order) < 0.45
    assert path[-1] < 0.008  # of values that spread by 0.6
    # at the end also the last step counts, of order 1 in most, from the last timestep to no noise
    assert end[-1] < min(0.01, max(0.5 * end[0], 1e-4))  # where PNDM's whole timesteps round


def unchecked(case: Case, num_steps: int, monkeypatch: pytest.MonkeyPatch) -> tuple[float, float]:
    """What a refused scheduler would do."""
    with monkeypatch.context() as patch:
        for name in ("sampling.schedulers._check_steps", "sampling.schedulers._check_solver", "pipeline_dit.rehearse"):
            patch.setattr(f"dit_hf.{name}", lambda *_: None)
        return ode_errors(case, num_steps)


@pytest.mark.parametrize("name", ["DDIMScheduler", "PNDMScheduler"])
def test_spacing_that_is_refused_does_not_converge(name: str, monkeypatch: pytest.MonkeyPatch):
    case = Case(name, {"clip_sample": False} if name == "DDIMScheduler" else {})
    wrong, right = (Case(name, {**case.config, "timestep_spacing": spacing}) for spacing in ("linspace", "leading"))
    with pytest.raises(ValueError, match=f"{name} always steps by 1000 // 300"):
        ode_errors(wrong, 300)
    assert unchecked(wrong, 300, monkeypatch)[1] > 5 * ode_errors(right, 250)[1]


FAULTY_SOLVERS = {
    "DEIS, order 3": (Case("DEISMultistepScheduler", {"solver_order": 3}), "solver_order=3.*use solver_order=2"),
    "UniPC, bh1": (Case("UniPCMultistepScheduler", {"solver_type": "bh1"}), "solver_type='bh1'.*use solver_type='bh2'"),
}


@pytest.mark.parametrize(("case", "message"), FAULTY_SOLVERS.values(), ids=FAULTY_SOLVERS)
def test_solver_that_fails_is_refused(case: Case, message: str, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(ValueError, match=message):
        oracle_pipeline(case.scheduler(), GAUSSIAN)
    try:
        errors = [unchecked(case, num_steps, monkeypatch)[0] for num_steps in (50, 200)]
    except FloatingPointError:  # bh1 multiplies infinity by zero in the step to no noise
        return
    assert errors[1] > 10 * errors[0]  # it loses its digits: the error grows with the steps


# --- moments -----------------------------------------------------------------------------------------------------

PAPER = {"clip_sample": False, "timestep_spacing": "linspace"}
SDE_CASES = {
    "DDPM, fixed_small": Case("DDPMScheduler", PAPER),
    "DDPM, fixed_large": Case("DDPMScheduler", {**PAPER, "variance_type": "fixed_large"}),
    "DDIM, eta 1": Case("DDIMScheduler", {**LEADING, "clip_sample": False}),
    "Euler ancestral": Case("EulerAncestralDiscreteScheduler"),
    "sde-dpmsolver++": Case("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
    "SA-Solver": Case("SASolverScheduler"),
}
NUM_SAMPLES = 4 * 64 * 64


def draw(case: Case, target: Mixture, num_steps: int, **arguments) -> Tensor:
    """Samples (NUM_SAMPLES, 2)."""
    pipe = oracle_pipeline(case.scheduler(), target, size=64)
    arguments |= {"num_images": 4, "guidance_scale": 1.0, "generator": torch.Generator().manual_seed(1)}
    latents = pipe(num_inference_steps=num_steps, output_type="latent", **arguments).images
    return latents.double().movedim(1, -1).reshape(-1, 2)


def moment_errors(case: Case, num_steps: int, **arguments) -> tuple[float, float, float, float]:
    """The largest errors for TWO: weights, means and covariances of its parts, covariance of the whole."""
    x = draw(case, TWO, num_steps, **arguments)
    part = (x - TWO.means[:, None]).square().sum(-1).argmin(0)  # three deviations apart, for 1 of 300 the wrong one
    weights = torch.stack([(part == k).double().mean() for k in (0, 1)])
    means = torch.stack([x[part == k].mean(0) for k in (0, 1)])
    covariances = torch.stack([x[part == k].T.cov() for k in (0, 1)])
    centre = TWO.weights @ TWO.means
    apart = TWO.means - centre
    whole = (TWO.weights[:, None, None] * (TWO.covariances + apart[:, :, None] * apart[:, None])).sum(0)
    pairs = [(weights, TWO.weights), (means, TWO.means), (covariances, TWO.covariances), (x.T.cov(), whole)]
    return tuple((measured - true).abs().max().item() for measured, true in pairs)


def num_steps_of(case: Case) -> int:
    """The usual number; at least 100 for first order, whose errors are a part in as many."""
    usual = SCHEDULERS[case.name].num_steps
    return usual if (case.order or 1) > 1 else max(usual, 100)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*SDE_CASES, *ODE_CASES])
def test_samples_of_a_mixture_have_its_weights_means_and_covariances(name: str):
    case = {**SDE_CASES, **ODE_CASES}[name]
    eta = {"eta": 1.0} if name == "DDIM, eta 1" else {}
    weights, means, covariances, whole = moment_errors(case, num_steps_of(case), **eta)
    # Five standard errors of so many samples, and what the steps leave: 1 % of the weights and 3 % of the parts'
    # distance (1.5 % of a variance 1.6) at first order and 100 steps.
    assert weights < 5 * math.sqrt(0.21 / NUM_SAMPLES) + 0.003
    assert means < 5 * math.sqrt(0.2 / (0.3 * NUM_SAMPLES)) + 0.025
    assert covariances < 5 * 0.2 * math.sqrt(2 / (0.3 * NUM_SAMPLES)) + 0.025
    assert whole < 5 * 1.6 * math.sqrt(2 / NUM_SAMPLES) + 0.04


def ancestral_covariance(variance_type: str, num_steps: int) -> Tensor:
    """The covariance of what DDPM's own recursion makes of GAUSSIAN, Ho et al. 2020, eq. 7, in float64."""
    ts = np.linspace(0, 999, num_steps).round().astype(int)[::-1]
    covariance = EYE
    for t, previous in zip(ts, [*ts[1:], -1], strict=True):
        now, before = ALPHA_BAR[t], ALPHA_BAR[previous] if previous >= 0 else torch.tensor(1.0, dtype=torch.float64)
        beta, S = 1 - now / before, GAUSSIAN.covariances[0]
        denoise = now.sqrt() * S @ torch.linalg.inv(now * S + (1 - now) * EYE)
        step = before.sqrt() * beta / (1 - now) * denoise + (now / before).sqrt() * (1 - before) / (1 - now) * EYE
        variance = beta if variance_type == "fixed_large" else (1 - before) / (1 - now) * beta
        covariance = step @ covariance @ step.T + (variance * EYE if t > 0 else 0)
    return covariance


@pytest.mark.parametrize("variance_type", ["fixed_small", "fixed_large"])
def test_ddpm_has_the_covariance_of_its_own_recursion(variance_type: str):
    x = draw(Case("DDPMScheduler", {**PAPER, "variance_type": variance_type}), GAUSSIAN, 40)
    expected = ancestral_covariance(variance_type, 40)
    assert (expected - GAUSSIAN.covariances[0]).abs().max() > 0.02  # with 40 steps it is not that of the data
    assert (x.T.cov() - expected).abs().max() < 5 * 0.6 * math.sqrt(2 / NUM_SAMPLES)


def test_learned_range_with_the_exact_variance_is_exact_in_few_steps():
    # the reverse steps of an isotropic Gaussian are Gaussian: with their own variance no step errs, however few
    deviation, num_steps = 0.6, 10
    target = mixture((1.0, [0.7, -0.4], [[deviation**2, 0.0], [0.0, deviation**2]]))
    ts = np.linspace(0, 999, num_steps).round().astype(int).tolist()

    def share(t: int) -> float:
        """v of log variance = (v + 1)/2 log beta + (1 - v)/2 log posterior variance, for the exact variance."""
        if t == 0:
            return 0.0  # no noise is added
        now, before = ALPHA_BAR[t].item(), ALPHA_BAR[ts[ts.index(t) - 1]].item()
        beta, spread = 1 - now / before, [a * deviation**2 + 1 - a for a in (now, before)]
        exact = spread[1] - now / before * spread[1] ** 2 / spread[0]
        least = (1 - before) / (1 - now) * beta
        return 2 * math.log(exact / least) / math.log(beta / least) - 1

    case = Case("DDPMScheduler", {**PAPER, "variance_type": "learned_range"})
    pipe = oracle_pipeline(case.scheduler(), target, size=64)
    pipe.transformer.variance = share
    arguments = {"num_images": 4, "guidance_scale": 1.0, "generator": torch.Generator().manual_seed(1)}
    latents = pipe(num_inference_steps=num_steps, output_type="latent", **arguments).images
    x = latents.double().movedim(1, -1).reshape(-1, 2)
    # Five standard errors. The fixed variances leave 0.1 of the variance 0.36 here.
    assert (x.mean(0) - target.means[0]).abs().max() < 5 * deviation / math.sqrt(NUM_SAMPLES) + 1e-3
    assert (x.T.cov() - target.covariances[0]).abs().max() < 5 * deviation**2 * math.sqrt(2 / NUM_SAMPLES) + 1e-3


# --- guidance ----------------------------------------------------------------------------------------------------


UNCONDITIONAL, CONDITIONAL = ([0.0, 0.3], 1.0), ([0.8, -0.4], 0.5)  # means and deviations
CLASSES = [
    mixture((1.0, mean, [[deviation**2, 0.0], [0.0, deviation**2]])) for mean, deviation in (CONDITIONAL, UNCONDITIONAL)
]


def guided_path(scale: float, start: float, end: float) -> tuple[float, np.ndarray]:
    """(f, c) of x_end = f x_start + c: what guidance makes of two Gaussians between two sigmas, for x = x_t / a.

    With u = sigma^2 the guided ODE is linear,
        dx/du = 1/2 [(1 - w)(x - m_0)/(s_0^2 + u) + w (x - m_1)/(s_1^2 + u)],
    0 the unconditional Gaussian, and phi(u) = (s_0^2 + u)^((1 - w)/2) (s_1^2 + u)^(w/2) solves it for means of zero.
    """
    rows = [(1 - scale, *UNCONDITIONAL), (scale, *CONDITIONAL)]

    def phi(u: float) -> float:
        return math.prod((s**2 + u) ** (w / 2) for w, _, s in rows)

    def drift(log_u: float, channel: int) -> float:
        u = math.exp(log_u)
        return -0.5 * sum(w * mean[channel] / (s**2 + u) for w, mean, s in rows) / phi(u) * u

    ends = [2 * math.log(max(sigma, 1e-9)) for sigma in (start, end)]
    offset = [phi(end**2) * quad(drift, *ends, args=(channel,), limit=200)[0] for channel in (0, 1)]
    return phi(end**2) / phi(start**2), np.array(offset)


def guided_samples(scheduler: Case, num_steps: int, **arguments) -> tuple[Tensor, Tensor]:
    """Noise, and what the pipeline makes of it."""
    pipe = oracle_pipeline(scheduler.scheduler(), *CLASSES, size=32)
    z = torch.randn(8, 2, 32, 32, generator=torch.Generator().manual_seed(0))
    arguments |= {"num_inference_steps": num_steps, "latents": z, "output_type": "latent"}
    return z.double(), pipe([0] * 8, **arguments).images.double()


@pytest.mark.parametrize("scale", [1.5, 3.0])
def test_guidance_is_the_guided_ode_and_not_the_tilted_density(scale: float):
    z, x_0 = guided_samples(Case("UniPCMultistepScheduler"), 200, guidance_scale=scale)
    sigma = SIGMA[999].item()
    factor, offset = guided_path(scale, sigma, 0.0)
    expected = factor * math.sqrt(1 + sigma**2) * z + torch.from_numpy(offset).reshape(1, 2, 1, 1)
    torch.testing.assert_close(x_0, expected, rtol=0, atol=4e-3)  # the last step leaves 1e-3 of x_T's largest, 4
    # p_0^(1 - w) p_1^w, often said to be what guidance samples, is wider
    tilted = ((1 - scale) / UNCONDITIONAL[1] ** 2 + scale / CONDITIONAL[1] ** 2) ** -0.5
    assert x_0.std(dim=(0, 2, 3)).max() < 0.9 * tilted


def test_guidance_within_an_interval_is_the_ode_in_three_pieces():
    first, high, low = (SIGMA[t].item() for t in (998, 600, 300))  # of timesteps that 500 steps visit
    arguments = {"guidance_scale": 3.0, "guidance_interval": (low, high), "guidance_interval_unit": "sigma"}
    z, x_0 = guided_samples(Case("DDIMScheduler", {**LEADING, "clip_sample": False}), 500, **arguments)
    factor, offset = math.sqrt(1 + first**2), np.zeros(2)
    for scale, start, end in ((1.0, first, high), (3.0, high, low), (1.0, low, 0.0)):
        piece = guided_path(scale, start, end)
        factor, offset = piece[0] * factor, piece[0] * offset + piece[1]
    expected = factor * z + torch.from_numpy(offset).reshape(1, 2, 1, 1)
    everywhere = guided_path(3.0, first, 0.0)[0] * math.sqrt(1 + first**2)
    assert factor > 1.3 * everywhere
    torch.testing.assert_close(x_0, expected, rtol=0, atol=0.02)  # 500 steps of first order leave 3e-3 of x_T's 4


# --- the tables of docs/schedulers.md ----------------------------------------------------------------------------

if __name__ == "__main__":
    diffusers.utils.logging.set_verbosity_error()
    print("| scheduler | slope (order) | path, 25, 50, 100 steps | end, 50 and 500 steps |\n|---|---|---|---|")
    for name, case in ODE_CASES.items():
        path, end = zip(*(ode_errors(case, n) for n in (25, 50, 100, 200, 500)), strict=True)
        fitted = [error for n, error in zip((25, 50, 100, 200, 500), path, strict=True) if n in case.fit]
        errors = ", ".join(f"{error:.1e}" for error in path[:3])
        print(
            f"| {name} | {slope(case.fit, fitted):.2f} ({case.order}) | {errors} | {end[1]:.1e}, {end[4]:.1e} |",
            flush=True,
        )
    print("\n| scheduler | steps | weights | means | covariances | whole |\n|---|---|---|---|---|---|")
    for name, case in {**SDE_CASES, **ODE_CASES}.items():
        measured = moment_errors(case, num_steps_of(case), **({"eta": 1.0} if name == "DDIM, eta 1" else {}))
        print(
            f"| {name} | {num_steps_of(case)} | " + " | ".join(f"{error:.3f}" for error in measured) + " |", flush=True
        )
