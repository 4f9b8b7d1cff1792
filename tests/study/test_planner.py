"""The planner's sum, by hand."""

import torch

from dit_hf import DiTModel
from dit_hf.analysis.results import MeasurementKey
from dit_hf.study.planner import Speed, expected_seconds, format_plan, measure_speed
from dit_hf.study.recipe import Variant

VARIANT = Variant("S/8", "adaln_zero", 0)
SPEEDS = {("S/8", "adaln_zero"): Speed(training=0.5, forward=0.01)}


def test_plan_counts_only_what_is_left_of_a_training_and_doubles_guidance():
    keys = [
        MeasurementKey(*VARIANT, 100, 20, 1.0, 10),
        MeasurementKey(*VARIANT, 140, 20, 1.0, 10),
        MeasurementKey(*VARIANT, 140, 20, 1.5, 10),
    ]
    expected = expected_seconds(keys, SPEEDS, {VARIANT: 60})
    assert expected == [40 * 0.5 + 200 * 0.01, 40 * 0.5 + 200 * 0.01, 400 * 0.01]
    lines = format_plan(keys, expected).splitlines()
    assert lines[0].split()[:2] == ["0.01", "h"]
    assert "140 images seen, 10 samples, guidance 1.5: 1 measurements" in lines[2]
    assert lines[-1] == f"{sum(expected) / 3600:8.2f} h  in all"


def test_speed_is_measured_on_the_model_itself(recipe):
    speed = measure_speed(DiTModel(recipe.config("S/8", in_channels=4, num_classes=2)), torch.device("cpu"))
    assert 0 < speed.forward
    assert 0 < speed.training
