"""Min-SNR weighting against the paper's formula in float64, and as a setting of a training."""

import json
from pathlib import Path

import pytest
import torch
import yaml

from dit_hf.diffusion import OBJECTIVES
from dit_hf.training.batch import Draws, LatentBatch
from dit_hf.training.run import run
from dit_hf.training.settings import TrainSettings, card_names, changed_settings, parse_settings
from dit_hf.training.techniques import MinSNR, Techniques
from dit_hf.training.techniques.min_snr import MinSNRSettings

TIMESTEP = torch.tensor([0, 20, 250, 500, 750, 999])
GAMMA = 5.0


def signal_and_sigma(beta_schedule: str) -> tuple[torch.Tensor, torch.Tensor]:
    """a_t and s_t of x_t = a_t x_0 + s_t eps, in float64, from the betas written out."""
    steps = torch.arange(1000, dtype=torch.float64)
    if beta_schedule == "linear":
        betas = 1e-4 + (0.02 - 1e-4) * steps / 999
    else:
        alpha_bar = torch.cos((torch.arange(1001, dtype=torch.float64) / 1000 + 0.008) / 1.008 * torch.pi / 2) ** 2
        betas = (1 - alpha_bar[1:] / alpha_bar[:-1]).clamp(max=0.999)
    alpha_bar = torch.cumprod(1 - betas, 0)[TIMESTEP]
    return alpha_bar.sqrt(), (1 - alpha_bar).sqrt()


def weighed(name: str, beta_schedule: str) -> tuple[dict[str, torch.Tensor], torch.Tensor, torch.Tensor, torch.Tensor]:
    """Losses with min-SNR weighting of a network that predicts noise, with its prediction, x_0 and eps."""
    objective = OBJECTIVES[name](beta_schedule=beta_schedule)
    generator = torch.Generator().manual_seed(0)
    x_0, noise = torch.randn(2, 6, 4, 8, 8, generator=generator)
    prediction = torch.randn(6, 8 if objective.learns_variance else 4, 8, 8, generator=generator)
    draws = Draws(TIMESTEP, noise, None)
    batch = LatentBatch(x_0, None, [(0, k) for k in range(6)], (0, 6))

    def compute() -> dict[str, torch.Tensor]:
        return objective(lambda *_: prediction, x_0, timestep=TIMESTEP, noise=noise, class_labels=None)

    losses = Techniques({"min_snr": MinSNR(objective, GAMMA)}).apply(compute, torch.nn.Identity(), batch, draws)
    return losses, prediction[:, :4].double(), x_0.double(), noise.double()


@pytest.mark.parametrize("beta_schedule", ["linear", "squaredcos_cap_v2"])
@pytest.mark.parametrize("name", ["epsilon", "hybrid"])
def test_the_weighed_error_is_min_snr_times_the_error_of_x_0(name, beta_schedule):
    """The paper's loss is min(SNR, gamma) |x_0 - its x_0|^2, where x_0 follows from the predicted noise."""
    losses, prediction, x_0, noise = weighed(name, beta_schedule)
    a, s = (each.reshape(-1, 1, 1, 1) for each in signal_and_sigma(beta_schedule))
    x_t = a * x_0 + s * noise
    own_x_0 = (x_t - s * prediction) / a
    weight = ((a / s) ** 2).clamp(max=GAMMA).flatten()
    expected = weight * ((x_0 - own_x_0) ** 2).mean((1, 2, 3))
    bound = losses.get("vb", torch.zeros(6))  # the bound of the variance keeps its weight
    torch.testing.assert_close((losses["loss"] - bound).double(), expected, rtol=1e-3, atol=1e-6)  # float32 of 1/a^2
    torch.testing.assert_close(losses["mse"].double(), ((noise - prediction) ** 2).mean((1, 2, 3)))


def test_weights_of_epsilon_are_those_of_the_paper():
    """Hang et al. 2023, section 3.4: min(SNR, gamma) / SNR."""
    a, s = signal_and_sigma("linear")
    snr = (a / s) ** 2
    losses, *_ = weighed("epsilon", "linear")
    expected = snr.clamp(max=GAMMA) / snr
    torch.testing.assert_close((losses["loss"] / losses["mse"]).double(), expected, rtol=1e-4, atol=0)


@pytest.mark.parametrize("name", ["sample", "v_prediction", "flow", "flow_sample"])
def test_other_predictions_are_refused_with_the_reason(name):
    with pytest.raises(ValueError, match="serves predictions of noise; .* objective epsilon or hybrid"):
        MinSNR(OBJECTIVES[name](), 5.0)


def test_its_setting_is_one_like_the_others(tmp_path: Path):
    file = tmp_path / "some.yaml"
    file.write_text("min_snr_gamma: 5\n")
    settings = parse_settings([str(file)])
    assert settings.to_dict()["min_snr_gamma"] == 5
    assert parse_settings([str(file), "--min_snr_gamma", "2"]).techniques["min_snr"] == MinSNRSettings(2.0)
    assert card_names()["min_snr_gamma"] == "gamma of min-SNR weighting"
    without = parse_settings([])
    assert changed_settings(without.to_dict(), settings) == {"min_snr_gamma": (None, 5)}
    assert changed_settings(settings.to_dict(), TrainSettings()) == {"min_snr_gamma": (5, None)}
    with pytest.raises(ValueError, match="min_snr_gamma=0.0 is not possible: set it to a number of at least 0.001"):
        parse_settings(["--min_snr_gamma", "0"])
    file.write_text("min_snr_gama: 5\n")
    with pytest.raises(ValueError, match="'min_snr_gama', which is not a setting: 'min_snr_gamma' is"):
        parse_settings([str(file)])


def test_a_training_is_weighed_and_says_so(tiny: Path, tmp_path: Path):
    flags = [str(tiny / "tiny.yaml"), "--max_train_steps", "2", "--ema_decay", "0.01"]
    run(parse_settings([*flags, "--output_dir", str(tmp_path), "--min_snr_gamma", "0.5"]))
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert all(row["loss"] < row["mse"] + row["vb"] - 0.05 for row in rows)
    assert yaml.safe_load((tmp_path / "settings.yaml").read_text())["min_snr_gamma"] == 0.5
    with pytest.raises(ValueError, match="min_snr_gamma was 0.5 and is None"):
        run(parse_settings([*flags, "--output_dir", str(tmp_path)]))
    with pytest.raises(ValueError, match="does not fit FlowLoss"):
        run(
            parse_settings(
                [*flags, "--output_dir", str(tmp_path / "flow"), "--min_snr_gamma", "5", "--objective", "flow"]
            )
        )
