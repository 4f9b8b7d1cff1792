"""What a training says of itself, against counts by hand."""

import logging

import pytest
from accelerate import PartialState

from dit_hf import DiTConfig, DiTModel
from dit_hf.training.reporting.announcement import Forecast, announce, in_words
from dit_hf.training.settings import TrainSettings

LOGGER = "dit_hf.training"


@pytest.fixture(autouse=True)
def _state_of_accelerate() -> None:
    PartialState(cpu=True)  # without which its loggers refuse to log


def model() -> DiTModel:
    return DiTModel(DiTConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, sample_size=4, num_classes=3))


def test_start_tells_size_steps_folder_and_how_to_watch(caplog: pytest.LogCaptureFixture):
    small = model()
    small.blocks[0].requires_grad_(False)
    sizes = [parameter.numel() / 1e6 for parameter in small.parameters() if parameter.requires_grad]
    settings = TrainSettings(output_dir="out/here", train_batch_size=8, max_train_steps=20, logging_steps=5)
    with caplog.at_level(logging.INFO, LOGGER):
        announce(settings, small, 6 * 1_500_000_000, 2, 3)
    assert "2 blocks of width 32, patches of 2" in caplog.text
    assert f"of which {sum(sizes):,.1f} are trained, and 1.5 billion multiply-adds" in caplog.text
    assert "steps 4 to 20 of 16 images; metrics every 5 steps" in caplog.text
    assert "everything is written to out/here" in caplog.text
    assert "tensorboard --logdir out/here/logs" in caplog.text


def test_training_that_is_finished_announces_nothing(caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.INFO, LOGGER):
        announce(TrainSettings(max_train_steps=20), model(), 1, 1, 20)
    assert not caplog.text


def test_time_is_told_once_after_the_first_steps(caplog: pytest.LogCaptureFixture):
    forecast = Forecast(100, None)
    with caplog.at_level(logging.INFO, LOGGER):
        for step in range(1, 20):
            forecast.add(step)
    assert caplog.text.count("for the 94 steps that are left") == 1


def test_time_is_compared_with_the_limit():
    assert Forecast(100, None).describe(90, 2.0) == "2 seconds a step: about 3 minutes for the 90 steps that are left"
    assert Forecast(100, 1.5).describe(90, 2.0).endswith("of which max_train_minutes=1.5 lets about 50% run")
    assert "max_train_minutes" not in Forecast(100, 3.5).describe(90, 2.0)


@pytest.mark.parametrize(
    ("minutes", "words"),
    [(0.5, "30 seconds"), (1.5, "90 seconds"), (45, "45 minutes"), (1800, "30 hours"), (60 * 24 * 12, "12 days")],
)
def test_times_are_told_in_the_unit_that_suits_them(minutes: float, words: str):
    assert in_words(minutes) == words
