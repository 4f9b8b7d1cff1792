"""The objectives against the original's golden values, closed forms and diffusers' forward processes."""

import json
import math
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from dit_hf import DiTConfig, DiTModel
from dit_hf.diffusion import OBJECTIVES, EpsilonLoss, FlowLoss, HybridLoss, Schedule, VelocityLoss
from dit_hf.diffusion.objectives import discretised_gaussian_nll, gaussian_kl

GOLDEN = Path(__file__).parents[1] / "golden"
DISCRETE = ["epsilon", "v_prediction", "sample"]


def golden_model(name: str) -> DiTModel:
    with safe_open(GOLDEN / name, "pt") as file:
        original = json.loads(file.metadata()["config"])
    names = {"input_size": "sample_size", "depth": "num_hidden_layers", "num_heads": "num_attention_heads"}
    model = DiTModel(DiTConfig(**{names.get(key, key): value for key, value in original.items()}))
    model.load_state_dict(load_file(GOLDEN / name))
    return model.eval()


def constant(value: float, channels: int = 4):
    return lambda x_t, timestep, class_labels: torch.full((len(x_t), channels, *x_t.shape[2:]), value)


def draw(objective, num_samples: int, seed: int = 0, shape: tuple[int, ...] = (4, 8, 8)):
    generator = torch.Generator().manual_seed(seed)
    x_0 = torch.randn(num_samples, *shape, generator=generator)
    noise = torch.randn(num_samples, *shape, generator=generator)
    timestep = objective.draw_timesteps(torch.rand(num_samples, generator=generator))
    return x_0, {"timestep": timestep, "noise": noise, "class_labels": None}


def test_hybrid_loss_and_its_gradients_equal_the_original():
    golden = {key: torch.from_numpy(value) for key, value in np.load(GOLDEN / "dit_p2_c4.npz").items()}
    model = golden_model("dit_p2_c4.safetensors")
    terms = HybridLoss()(
        model,
        golden["loss_x0"],
        timestep=golden["loss_t"],
        noise=golden["loss_noise"],
        class_labels=golden["loss_y"],
    )
    terms["loss"].mean().backward()
    for key in ("mse", "vb", "loss"):
        assert terms[key].dtype == torch.float32
        # float32 on another machine and in another order of operations
        torch.testing.assert_close(terms[key], golden[f"loss_{key}_term"], rtol=1e-5, atol=1e-5)
    gradients = {
        "grad_final_linear_weight": model.final_layer.linear.weight.grad,
        "grad_x_embedder_bias": model.x_embedder.proj.bias.grad,
    }
    for key, gradient in gradients.items():
        torch.testing.assert_close(gradient, golden[key], rtol=1e-5, atol=1e-5)


def test_twelve_steps_of_the_recipe_equal_the_original():
    golden = np.load(GOLDEN / "train_12_steps.npz")
    model = golden_model("train_12_steps_init.safetensors")
    ema = {key: value.clone() for key, value in model.state_dict().items()}
    decay = float(golden["ema_decay"])
    optimizer = torch.optim.AdamW(model.parameters(), lr=float(golden["lr"]), weight_decay=0)
    objective = HybridLoss()
    losses = []
    for x_0, noise, t, y in zip(*(torch.from_numpy(golden[key]) for key in ("x0", "noise", "t", "y")), strict=True):
        loss = objective(model, x_0, timestep=t, noise=noise, class_labels=y)["loss"].mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        for key, value in model.state_dict().items():
            ema[key].lerp_(value, 1 - decay)
        losses.append(loss.item())
    np.testing.assert_allclose(losses, golden["losses"], rtol=0, atol=1e-5)
    for found, name in ((model.state_dict(), "final"), (ema, "ema")):
        expected = load_file(GOLDEN / f"train_12_steps_{name}.safetensors")
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            torch.testing.assert_close(found[key], value, rtol=0, atol=1e-5, msg=lambda text, key=key: f"{key}: {text}")


@pytest.mark.parametrize(
    ("timesteps", "vb", "tolerance"),
    # the KL of N(0, 1) data from an answer of zeros, in float64 by hand: 0.6327 at t = 1, 0.0161 over all t
    [(range(1000), 0.0161, 3e-4), ([0], 1.99, 0.01), ([1], 0.6327, 2e-3)],
    ids=["all timesteps", "t = 0", "t = 1"],
)
def test_hybrid_loss_of_a_model_that_answers_zeros(timesteps, vb, tolerance):
    objective = HybridLoss()
    timestep = torch.tensor(list(timesteps)).repeat(4000 // len(timesteps))
    x_0, arguments = draw(objective, len(timestep))
    terms = objective(constant(0.0, channels=8), x_0, **{**arguments, "timestep": timestep})
    assert abs(terms["mse"].mean() - 1) < 5e-3  # a mean over a million values strays by 1.4e-3
    assert abs(terms["vb"].mean() - vb) < tolerance
    torch.testing.assert_close(terms["loss"], terms["mse"] + terms["vb"])


def test_variational_bound_moves_the_variance_only():
    objective = HybridLoss()
    x_0, arguments = draw(objective, 6)
    arguments["timestep"] = torch.tensor([0, 1, 5, 300, 700, 999])
    answer = torch.randn(6, 8, 8, 8, generator=torch.Generator().manual_seed(1)).mul_(0.3).requires_grad_()
    objective(lambda *_: answer, x_0, **arguments)["vb"].sum().backward()
    assert (answer.grad[:, :4] == 0).all()
    assert (answer.grad[:, 4:].flatten(1).abs().sum(1) > 0).all()


def test_bound_is_the_kl_of_torch_in_bits_per_dimension():
    objective = HybridLoss()
    x_0, arguments = draw(objective, 3)
    arguments["timestep"] = t = torch.tensor([1, 40, 999])
    answer = torch.randn(3, 8, 8, 8, generator=torch.Generator().manual_seed(1)) * 0.5
    vb = objective(lambda *_: answer, x_0, **arguments)["vb"]

    table = {key: value[t].reshape(-1, 1, 1, 1) for key, value in vars(objective.schedule).items() if key in TABLES}
    eps, v = answer.double().chunk(2, dim=1)
    x_t = table["alpha_bar"].sqrt() * x_0.double() + (1 - table["alpha_bar"]).sqrt() * arguments["noise"].double()
    predicted = (x_t - (1 - table["alpha_bar"]).sqrt() * eps) / table["alpha_bar"].sqrt()
    means = [table["posterior_x_0"] * x + table["posterior_x_t"] * x_t for x in (x_0.double(), predicted)]
    fraction = (v + 1) / 2
    log_variance = fraction * table["log_beta"] + (1 - fraction) * table["log_beta_tilde"]
    true = torch.distributions.Normal(means[0], (0.5 * table["log_beta_tilde"]).exp())
    model = torch.distributions.Normal(means[1], (0.5 * log_variance).exp())
    expected = torch.distributions.kl_divergence(true, model).mean((1, 2, 3)) / math.log(2)
    torch.testing.assert_close(vb.double(), expected, rtol=2e-4, atol=1e-6)  # float32 against float64


TABLES = {"alpha_bar", "posterior_x_0", "posterior_x_t", "log_beta", "log_beta_tilde"}


def test_discretised_likelihood_sums_to_one_over_the_bins():
    bins = torch.linspace(-1, 1, 256, dtype=torch.float64)
    for mean, log_scale in ((0.0, -1.0), (0.9, -2.0), (-1.5, -0.5)):
        full = torch.full_like(bins, mean)
        nll = discretised_gaussian_nll(bins, full, torch.full_like(bins, log_scale))
        assert abs((-nll).exp().sum() - 1) < 1e-9
    exact = torch.distributions.Normal(0.0, 0.5)
    likelihood = exact.cdf(torch.tensor(0.3 + 1 / 255)) - exact.cdf(torch.tensor(0.3 - 1 / 255))
    nll = discretised_gaussian_nll(torch.tensor(0.3), torch.tensor(0.0), torch.tensor(math.log(0.5)))
    assert abs(nll + likelihood.log()) < 1e-2  # tanh stands for erf


def test_kl_of_a_gaussian_from_itself_is_zero():
    x = torch.randn(5, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(gaussian_kl(x, x, x, x), torch.zeros(5))


@pytest.mark.parametrize("name", DISCRETE)
@pytest.mark.parametrize("beta_schedule", ["linear", "scaled_linear", "squaredcos_cap_v2"])
def test_discrete_objectives_use_the_forward_process_of_diffusers(name, beta_schedule):
    objective = OBJECTIVES[name](beta_schedule=beta_schedule)
    config = objective.scheduler_config()
    scheduler = diffusers.DDIMScheduler.from_config(config)  # it has `get_velocity` too
    x_0, arguments = draw(objective, 16)
    t, noise = arguments["timestep"], arguments["noise"]
    targets = {"epsilon": noise, "v_prediction": scheduler.get_velocity(x_0, noise, t), "sample": x_0}
    seen = []

    def perfect_to_a_constant(x_t, timestep, class_labels):
        seen.append((x_t, timestep))
        return targets[name] + 0.5

    terms = objective(perfect_to_a_constant, x_0, **arguments)
    # their tables are float32: 1e-4 of the value at the noisy end
    torch.testing.assert_close(seen[0][0], scheduler.add_noise(x_0, noise, t), rtol=1e-3, atol=1e-4)
    assert seen[0][1] is t
    torch.testing.assert_close(terms["mse"], torch.full((16,), 0.25), rtol=0, atol=1e-3)
    assert terms.keys() == {"loss", "mse"}


def test_flow_uses_the_forward_process_of_diffusers():
    objective = FlowLoss()
    config = objective.scheduler_config()
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler.from_config(config)
    x_0, arguments = draw(objective, 8)
    arguments["timestep"] = t = scheduler.timesteps[torch.arange(0, 1000, 125)]
    seen = []

    def perfect_to_a_constant(x_t, timestep, class_labels):
        seen.append((x_t, timestep))
        return arguments["noise"] - x_0 + 0.5

    terms = objective(perfect_to_a_constant, x_0, **arguments)
    torch.testing.assert_close(seen[0][0], scheduler.scale_noise(x_0, t, arguments["noise"]))
    assert seen[0][1] is t
    torch.testing.assert_close(terms["loss"], torch.full((8,), 0.25), rtol=1e-5, atol=0)


@pytest.mark.parametrize("name", [*DISCRETE, "flow", "flow_sample"])
def test_exact_denoiser_of_a_gaussian_reaches_the_known_minimum(name):
    # x_0 ~ N(0, s^2): with x_t = a x_0 + b noise, E[x_0 | x_t] = a s^2 / (a^2 s^2 + b^2) x_t and
    # Var[x_0 | x_t] = s^2 b^2 / (a^2 s^2 + b^2); each target is linear in x_0 given x_t, which fixes its variance.
    s = 0.5
    objective = OBJECTIVES[name]()

    def signal_and_noise(t):
        t = t.reshape(-1, 1, 1, 1)
        if name.startswith("flow"):
            return 1 - t / 1000, t / 1000
        return objective.schedule.alpha_bar[t].sqrt().float(), (1 - objective.schedule.alpha_bar[t]).sqrt().float()

    def from_x_0(x_0, x_t, a, b):  # the target as a function of x_0 and x_t
        noise = (x_t - a * x_0) / b
        return {"epsilon": noise, "sample": x_0, "v_prediction": a * noise - b * x_0, "flow": noise - x_0}.get(
            name, x_0
        )

    def exact(x_t, timestep, class_labels):
        a, b = signal_and_noise(timestep)
        return from_x_0(a * s**2 / (a**2 * s**2 + b**2) * x_t, x_t, a, b)

    uniform = torch.linspace(0.05, 0.99, 8).repeat_interleave(32)
    x_0, arguments = draw(objective, len(uniform), shape=(4, 16, 16))
    arguments["timestep"] = objective.draw_timesteps(uniform)
    loss = objective(exact, s * x_0, **arguments)["loss"]
    a, b = signal_and_noise(arguments["timestep"])
    slope = from_x_0(torch.ones_like(a), torch.zeros_like(a), a, b)
    if name == "flow_sample":  # the error is that of the velocity (x_t - x_0) / b
        slope = slope / b
    minimum = (slope**2 * s**2 * b**2 / (a**2 * s**2 + b**2)).flatten()
    # a mean over 32 x 1024 values strays by sqrt(2 / 32768) = 0.8 %
    torch.testing.assert_close(loss.reshape(8, 32).mean(1), minimum.reshape(8, 32).mean(1), rtol=0.03, atol=0)


@pytest.mark.parametrize("name", [*DISCRETE, "hybrid"])
def test_timesteps_are_the_floor_of_the_uniform_number(name):
    uniform = torch.tensor([0.0, 0.0009999, 0.0010001, 0.5, 1 - 2**-24])
    assert OBJECTIVES[name]().draw_timesteps(uniform).tolist() == [0, 0, 1, 500, 999]
    assert OBJECTIVES[name](num_train_timesteps=10).draw_timesteps(uniform).tolist() == [0, 0, 0, 5, 9]


def test_flow_sample_has_the_error_of_the_velocity_beyond_sigma_005():
    """Li & He 2025: |v - v_theta|^2 with v_theta = (x_theta - x_t) / max(1 - t, 0.05), where their t is 1 - sigma."""
    objective = OBJECTIVES["flow_sample"]()
    x_0, arguments = draw(objective, 6)
    arguments["timestep"] = timestep = torch.tensor([0.0, 20.0, 50.0, 51.0, 400.0, 999.9])
    prediction = torch.randn(6, 4, 8, 8, generator=torch.Generator().manual_seed(5))
    losses = objective(lambda *_: prediction, x_0, **arguments)
    sigma = (timestep.double() / 1000).reshape(-1, 1, 1, 1)
    x_t = (1 - sigma) * x_0.double() + sigma * arguments["noise"].double()
    divisor = sigma.clamp(min=0.05)
    v, v_theta = (x_0.double() - x_t) / divisor, (prediction.double() - x_t) / divisor
    torch.testing.assert_close(losses["loss"].double(), ((v - v_theta) ** 2).mean((1, 2, 3)), rtol=1e-5, atol=0)
    noisy = sigma.flatten() >= 0.05  # where their v is the velocity of the path, with the sign turned
    torch.testing.assert_close(v[noisy], (x_0 - arguments["noise"]).double()[noisy], rtol=1e-6, atol=1e-6)


def test_flow_timesteps_are_continuous():
    assert FlowLoss().draw_timesteps(torch.tensor([0.0, 0.12345])).tolist() == pytest.approx([0.0, 123.45])


@pytest.mark.parametrize("name", OBJECTIVES)
def test_model_gets_the_keywords_of_the_caller_and_may_answer_with_an_object(name):
    objective = OBJECTIVES[name]()
    x_0, arguments = draw(objective, 2)
    dropped = torch.tensor([True, False])

    class Answer:
        sample = torch.zeros(2, 8 if name == "hybrid" else 4, 8, 8, dtype=torch.bfloat16)

    def model(x_t, timestep, class_labels, *, drop_labels):
        assert drop_labels is dropped
        return Answer()

    terms = objective(model, x_0, **arguments, drop_labels=dropped)
    assert all(term.dtype == torch.float32 and term.shape == (2,) for term in terms.values())


@pytest.mark.parametrize("name", OBJECTIVES)
def test_channels_that_do_not_fit_are_refused_with_the_remedy(name):
    objective = OBJECTIVES[name]()
    x_0, arguments = draw(objective, 2)
    hybrid = name == "hybrid"
    with pytest.raises(ValueError, match=f"learn_sigma={hybrid}"):
        objective(constant(0.0, channels=4 if hybrid else 8), x_0, **arguments)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_saved_scheduler_samples_what_was_trained(name):
    objective = OBJECTIVES[name]()
    config = objective.scheduler_config()
    scheduler = getattr(diffusers, config["_class_name"]).from_config(config)
    unknown = set(config) - set(scheduler.config)
    assert not unknown
    if name.startswith("flow"):
        assert objective.prediction_type == {"flow": "flow_prediction"}.get(name, name)
        return
    assert scheduler.config.get("variance_type") == ("learned_range" if name == "hybrid" else None)
    assert scheduler.config.prediction_type == objective.prediction_type
    assert not scheduler.config.get("clip_sample")
    again = type(objective).from_scheduler_config(scheduler.config)
    torch.testing.assert_close(again.schedule.betas, objective.schedule.betas, rtol=0, atol=0)


def test_scheduler_of_another_prediction_is_refused():
    with pytest.raises(ValueError, match="'epsilon'.*'v_prediction'"):
        VelocityLoss.from_scheduler_config(diffusers.DDPMScheduler().config)


@pytest.mark.parametrize("name", ["hybrid", "epsilon"])
def test_epsilon_at_pure_noise_is_refused(name):
    with pytest.raises(ValueError, match="v_prediction"):
        OBJECTIVES[name](rescale_betas_zero_snr=True)
    assert VelocityLoss(rescale_betas_zero_snr=True).scheduler_config()["timestep_spacing"] == "trailing"


def test_fractional_timesteps_are_refused_where_they_are_discrete():
    x_0, arguments = draw(FlowLoss(), 2)
    with pytest.raises(ValueError, match=r"float32.*integers"):
        VelocityLoss()(constant(0.0), x_0, **arguments)


def test_flow_says_that_it_has_no_betas():
    with pytest.warns(UserWarning, match="beta_schedule='linear' is ignored"):
        OBJECTIVES["flow"](beta_schedule="linear")


def test_objectives_state_what_has_an_effect_on_them():
    all_fields = {*Schedule.FIELDS}
    for name in ("hybrid", *DISCRETE):
        assert OBJECTIVES[name].fields_in_use() == OBJECTIVES[name].fields_in_use("scaled_linear") == all_fields
        assert OBJECTIVES[name].fields_in_use("squaredcos_cap_v2") == all_fields - {"beta_start", "beta_end"}
        with pytest.raises(ValueError, match="beta_schedule='cosine' is unknown: choose from linear, scaled_linear"):
            OBJECTIVES[name].fields_in_use("cosine")
    assert OBJECTIVES["flow"].fields_in_use() == {"num_train_timesteps"}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_field_changes_the_sampler_exactly_where_it_is_in_use(name):
    other = {"beta_schedule": "scaled_linear", "beta_start": 2e-4, "beta_end": 0.03, "num_train_timesteps": 500}
    objective = OBJECTIVES[name]
    for field in objective.fields_in_use() & other.keys():
        assert objective(**{field: other[field]}).scheduler_config() != objective().scheduler_config()
    assert objective.learns_variance == (objective().scheduler_config().get("variance_type") == "learned_range")


def test_signal_to_noise_ratio_is_that_of_the_forward_process():
    # in float64 by hand: a^2 / s^2 with a and s of x_t = a x_0 + s eps
    objective = OBJECTIVES["epsilon"]()
    timestep = torch.tensor([0, 1, 500, 999])
    alpha_bar = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)[timestep]
    assert objective.snr(timestep).dtype == torch.float32
    torch.testing.assert_close(objective.snr(timestep).double(), alpha_bar / (1 - alpha_bar), rtol=1e-6, atol=0)
    assert {name for name, each in OBJECTIVES.items() if each.has_snr} == {"hybrid", *DISCRETE}


def test_a_new_objective_says_only_what_differs():
    class WithAnotherTerm(EpsilonLoss):
        def terms(self, prediction, x_0, noise, x_t, timestep):
            (mse,) = super().terms(prediction, x_0, noise, x_t, timestep).values()
            return {"mse": mse, "small": mse.detach() * 0 + 0.25}

    objective = WithAnotherTerm()
    x_0, arguments = draw(objective, 3)
    terms = objective(lambda *_: arguments["noise"] + 2, x_0, **arguments)
    torch.testing.assert_close(terms["mse"], torch.full((3,), 4.0))
    torch.testing.assert_close(terms["loss"], torch.full((3,), 4.25))
    with pytest.raises(ValueError, match=r"WithAnotherTerm needs 4 channels, the model gives 8: .* objective: hybrid"):
        objective(constant(0.0, channels=8), x_0, **arguments)
