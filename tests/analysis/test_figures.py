"""Figures hold the numbers of the file they are drawn from, and say when it has too few."""

import csv
from dataclasses import fields, replace
from itertools import product

import numpy as np
import pytest
from PIL import Image

from dit_hf.analysis import Row, append_rows
from dit_hf.analysis.figures import FIGURES, draw_all
from dit_hf.analysis.figures.compute import compute_and_distance
from dit_hf.analysis.figures.sampling import sample_grid, sampling_compute
from dit_hf.analysis.figures.style import BLOCK_STYLES, block_styles, describe_rows
from dit_hf.analysis.figures.training import blocks, training_compute
from dit_hf.analysis.results import REAL
from dit_hf.analysis.selection import MODELS, log_correlation


def make_row(model: str, **others) -> Row:
    number = MODELS.index(model) + 1
    given = {field.name: field.type() for field in fields(Row)} | {
        "model": model, "block_type": "adaln_zero", "seed": 0, "images_seen": 64, "num_steps": 20,
        "guidance_scale": 1.0, "num_samples": 100, "distance": 10.0 / number, "class_agreement": 0.5,
        "precision": 0.4, "recall": 0.3, "gmacs": 0.001 * number, "parameters": 1000 * number,
    }  # fmt: skip
    return Row(**{**given, **others})


@pytest.fixture
def rows() -> list[Row]:
    """Twelve models and three more blocks at two checkpoints of two seeds, sampling compute, guidance, real images."""
    grid = product(MODELS, (64, 128), (0, 1))
    rows = [make_row(model, images_seen=images, seed=seed) for model, images, seed in grid]
    others = product(("in_context", "cross_attention", "adaln"), (64, 128))
    rows += [make_row("XL/4", block_type=block, images_seen=images) for block, images in others]
    rows += [make_row(m, images_seen=128, num_steps=n, num_samples=50) for m, n in product(("S/4", "XL/4"), (16, 64))]
    rows += [make_row("XL/4", images_seen=128, guidance_scale=scale) for scale in (1.5, 2.0)]
    return [*rows, replace(make_row("S/8", block_type="", images_seen=0, distance=0.1), model=REAL)]


@pytest.mark.slow  # ten drawings
def test_full_study_gives_every_figure(rows, tmp_path):
    append_rows(tmp_path / "results.csv", rows)
    samples = tmp_path / "samples"
    samples.mkdir()
    for row in rows:
        np.savez(samples / f"{row.key.name}.npz", np.full((10, 8, 8, 1), 128, np.uint8))
    written, lacking = draw_all(tmp_path / "results.csv", tmp_path / "figures", samples=samples)
    assert {path.stem for path in written} == {*FIGURES, "figure_7"}
    assert lacking == []
    assert all(min(Image.open(path).size) > 300 for path in written)


def test_title_states_the_fewest_and_the_most_seeds_of_a_point(rows):
    both = [row for row in rows if row.images_seen == 128 and row.block_type == "adaln_zero" and row.num_steps == 20]
    assert describe_rows([row for row in both if row.guidance_scale == 1]).endswith(", 2 seeds")
    assert describe_rows([row for row in both if row.guidance_scale == 1 and row.seed == 0]).endswith(", 1 seed")
    lacking = [row for row in both if row.guidance_scale == 1 and (row.seed == 0 or row.model == "S/4")]
    assert describe_rows(lacking).endswith(", 1 to 2 seeds")


def test_figure_8_holds_the_means_and_their_correlation(rows):
    figure = compute_and_distance(rows, quoted=False)
    axis = figure.axes[0]
    drawn = sorted(tuple(container.lines[0].get_xydata()[0]) for container in axis.containers)
    assert drawn == sorted((0.001 * n, 10.0 / n) for n in range(1, 13))
    numbers = np.arange(1, 13)
    r = np.corrcoef(np.log(0.001 * numbers), 10.0 / numbers)[0, 1]
    assert f"r = {r:.2f}" in axis.get_title()
    assert log_correlation(0.001 * numbers, 10.0 / numbers) == pytest.approx(r)


def test_figure_5_draws_each_block_s_own_rows(rows):
    distances = {"in_context": 9.0, "cross_attention": 7.0, "adaln": 5.0, "adaln_zero": 3.0}
    chosen = [replace(r, distance=distances[r.block_type]) for r in rows if r.model == "XL/4" and r.num_samples == 100]
    axis = blocks(chosen, quoted=False).axes[0]
    assert {line.get_label(): set(line.get_ydata()) for line in axis.lines} == {
        "in-context": {9.0}, "cross-attention": {7.0}, "adaLN": {5.0}, "adaLN-Zero": {3.0},
    }  # fmt: skip


def test_block_design_that_no_table_knows_is_drawn_with_a_look_of_its_own(rows):
    new = [make_row("XL/4", block_type="swi_glu", images_seen=images, distance=1.0) for images in (64, 128)]
    axis = blocks([*rows, *new], quoted=True).axes[0]
    lines = {line.get_label(): line for line in axis.lines}
    assert set(lines) == {"in-context", "cross-attention", "adaLN", "adaLN-Zero", "swi-glu"}
    assert lines["swi-glu"].get_xydata().tolist() == [[64, 1.0], [128, 1.0]]
    assert len({(line.get_color(), line.get_marker()) for line in lines.values()}) == 5


def test_twelve_new_block_designs_look_different_in_whatever_order_they_come():
    designs = [f"design_{letter}" for letter in "abcdefghijkl"]
    styles = block_styles([*designs, *BLOCK_STYLES])
    assert len({(style.colour, style.marker) for style in styles.values()}) == 16
    assert list(styles) == [*BLOCK_STYLES, *designs]
    assert styles == block_styles([*reversed([*designs, *BLOCK_STYLES]), "adaln"])
    assert styles["design_b"].name == "design-b"


def test_every_model_whose_blocks_are_compared_has_a_panel(rows):
    figure = blocks([*rows, make_row("S/8", block_type="adaln")], quoted=False)
    assert [axis.get_title().split(":")[0] for axis in figure.axes] == ["XL/4", "S/8"]


def test_model_that_no_figure_has_a_place_for_is_named_in_a_warning(rows, tmp_path, caplog):
    stranger = replace(rows[0], model="H/14")
    append_rows(tmp_path / "results.csv", [rows[0], stranger])
    draw_all(tmp_path / "results.csv", tmp_path, quoted=False)
    assert "no figure shows H/14; the figures know S/8" in caplog.text
    append_rows(tmp_path / "strange.csv", [stranger])
    with pytest.raises(ValueError, match="holds no measurement of a model"):
        draw_all(tmp_path / "strange.csv", tmp_path)


def test_figure_9_names_every_line_at_its_end(rows):
    axis = training_compute(rows, quoted=False).axes[0]
    ends = {line.get_label(): tuple(line.get_xydata()[-1]) for line in axis.lines if line.get_label() in MODELS}
    assert len(ends) == 12
    assert {text.get_text(): tuple(text.xy) for text in axis.texts if text.get_text() in MODELS} == ends


def test_figure_10_leaves_out_models_with_a_single_number_of_steps(rows):
    figure = sampling_compute([*rows, make_row("B/2", images_seen=128, num_samples=50)], quoted=False)
    assert [line.get_label() for line in figure.axes[0].lines] == ["S/4", "XL/4"]
    single = [make_row("S/4", num_steps=16), make_row("XL/4", num_steps=64)]
    assert sampling_compute(single, quoted=False) is None


@pytest.mark.slow  # three drawings
def test_results_of_few_models_name_the_figures_that_they_cannot_make(tmp_path):
    append_rows(tmp_path / "results.csv", [make_row("S/8"), make_row("B/8")])
    written, lacking = draw_all(tmp_path / "results.csv", tmp_path, quoted=False)
    assert {path.stem for path in written} == {"figure_2_left", "figure_6", "figure_9"}
    assert lacking == ["figure_2_right", "figure_5", "figure_8", "figure_8_other_metrics", "figure_10", "guidance"]


def test_results_without_models_are_refused(tmp_path):
    with pytest.raises(ValueError, match="run dit-hf study first"):
        draw_all(tmp_path / "none.csv", tmp_path)


def test_grid_shows_ten_classes_of_each_model(rows, tmp_path):
    row = make_row("L/2")
    images = np.repeat(np.arange(10, dtype=np.uint8), 16).reshape(10, 4, 4, 1)
    np.savez(tmp_path / f"{row.key.name}.npz", images)
    figure = sample_grid([row], tmp_path)
    (shown,) = [axis.images[0].get_array() for axis in figure.axes if axis.images]
    assert np.array_equal(shown[::4, ::4], np.arange(10).reshape(2, 5))


def test_csv_is_plain_text_that_others_read(rows, tmp_path):
    append_rows(tmp_path / "results.csv", rows[:1])
    with (tmp_path / "results.csv").open() as file:
        assert next(csv.DictReader(file))["model"] == rows[0].model
