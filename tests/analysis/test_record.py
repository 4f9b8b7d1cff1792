"""The record of runs/speedrun: interpolation by hand, and a table that holds what the rows say."""

import math
import runpy
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from dit_hf.analysis import append_rows, read_rows
from dit_hf.analysis.record import mean_curve, reach
from dit_hf.analysis.results import Row
from dit_hf.study.recipe import Recipe

SPEEDRUN = Path(__file__).parents[2] / "runs" / "speedrun"
RECIPES = sorted((SPEEDRUN / "recipes").glob("*.yaml"))
ROW = Row(
    model="L/4", block_type="adaln_zero", seed=0, images_seen=0, num_steps=20, guidance_scale=1.0, num_samples=1000,
    distance=0.0, class_agreement=0.5, precision=0.25, recall=0.125, train_loss=0.3, gmacs=0.001, parameters=7,
    train_seconds=1.0, sample_seconds=2.0, dataset="toys", recipe=Recipe().summary, sampler="DDIM",
    extractor="a classifier", commit="abc", hardware="cpu", date="2026-01-01T00:00:00Z",
)  # fmt: skip


def curve(*points: tuple[int, float, float], **fields: object) -> list[Row]:
    """Return rows of (images, distance, CPU seconds)."""
    return [replace(ROW, images_seen=n, distance=d, train_cpu_seconds=s, **fields) for n, d, s in points]


def test_power_law_is_interpolated_exactly():
    """d = 1000 / sqrt(n) is a line in logarithms, so every point between the checkpoints is exact."""
    rows = curve(*((n, 1000 / math.sqrt(n), n / 100) for n in (8000, 16000, 64000)))
    for images in (8000, 11000, 16000, 40000, 64000):
        reached = reach(rows, 1000 / math.sqrt(images))
        assert reached == pytest.approx((images, images / 100))


def test_distance_is_reached_at_the_first_of_several_crossings_or_not_at_all():
    rows = curve((1000, 8.0, 1.0), (2000, 4.0, 2.0), (3000, 6.0, 3.0), (4000, 2.0, 4.0))
    assert reach(rows, 4.0) == (2000, 2.0)
    assert reach(rows[::-1], 9.0) == (1000, 1.0)  # an upper limit
    assert reach(rows, 1.0) is None
    assert reach(rows, 4.0, "second_distance") is None  # which was not measured


def test_curve_of_seeds_is_their_mean_where_all_were_measured():
    first, second = curve((1000, 8.0, 1.0), (2000, 4.0, 2.0)), curve((1000, 6.0, 3.0), (4000, 1.0, 9.0))
    (row,) = mean_curve([first, second])
    assert (row.images_seen, row.distance, row.train_cpu_seconds) == (1000, 7.0, 2.0)


def run_script(monkeypatch, *arguments: str) -> dict:
    monkeypatch.setattr(sys, "argv", ["record.py", *arguments])
    return runpy.run_path(str(SPEEDRUN / "record.py"), run_name="record")


def test_table_of_the_record_is_what_its_rows_say(monkeypatch):
    script = run_script(monkeypatch)
    assert script["table"](read_rows(SPEEDRUN / "results.csv")) in (SPEEDRUN / "README.md").read_text()


def test_recipe_that_needs_a_quarter_of_the_images_says_so_in_the_table(monkeypatch):
    paper, change = Recipe().summary, Recipe(additions={"qk_norm": True}).summary
    rows = [
        row
        for seed, shift in ((0, -0.5), (1, 0.5))
        for recipe, scale in ((paper, 1), (change, 4))
        for row in curve(
            *((n, 4 * 128_000 / n / scale + shift, n / 100) for n in (32_000, 64_000, 128_000)),
            recipe=recipe,
            seed=seed,
        )
    ]
    first, second = run_script(monkeypatch)["table"](rows).splitlines()[2:]
    assert first.startswith("| L/4 | sample, AdamW 0.001")
    assert "qk_norm True | 0 1 | 4.00 | 1.00 (128,000) | 32,000 | 0.25 | 320 |" in first
    assert "(sets the target, 4.00) | 0 1 | 16.00 | 4.00 (128,000) | 128,000 | 1.00 | 1280 |" in second


def test_collecting_adds_each_row_once_and_second_distances_later(monkeypatch, tmp_path):
    script = run_script(monkeypatch)
    monkeypatch.setitem(script["collect"].__globals__, "RESULTS", tmp_path / "record.csv")
    rows = curve((1000, 8.0, 1.0), (2000, 4.0, 2.0))
    append_rows(tmp_path / "rows.csv", rows)
    assert [script["collect"]([tmp_path / "rows.csv"]) for _ in range(2)] == [2, 0]
    filled = replace(rows[0], second_distance=3.0, second_extractor="another")
    append_rows(tmp_path / "later.csv", [filled])
    assert script["collect"]([tmp_path / "later.csv"]) == 1
    assert read_rows(tmp_path / "record.csv")[0] == filled


@pytest.mark.parametrize("file", RECIPES, ids=lambda file: file.stem)
def test_recipe_of_the_record_differs_from_the_paper_s_by_what_it_changes_only(file):
    recipe, paper = Recipe.read(file), Recipe.read(SPEEDRUN / "recipes" / "adamw_4e-3.yaml")
    changed = {name for name in vars(recipe) if getattr(recipe, name) != getattr(paper, name)}
    of_the_measurement = {"models", "seeds", "checkpoints"}
    assert changed <= {
        "additions", "objective", "learning_rate", "batch_size", "ema_decay", "warmup_steps", *of_the_measurement
    }  # fmt: skip
    assert {25_600, 32_000, 42_624} & set(recipe.checkpoints)
    assert file.read_text().splitlines()[1].startswith("# Kept: ")
    recipe.config("B/2", in_channels=4, num_classes=10)  # raises if a field of the model is not possible


def test_recipes_of_the_record_have_different_names_in_the_rows():
    assert len({Recipe.read(file).summary for file in RECIPES}) == len(RECIPES) > 10
