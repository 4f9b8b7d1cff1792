"""The file of results: whole rows only, whatever a kill left, and nothing read that is not a result."""

import csv
import math
import re
import runpy
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from dit_hf.analysis import Row, append_rows, read_rows
from dit_hf.analysis.results import COLUMNS, OLDEST_COLUMNS, REAL
from dit_hf.analysis.selection import floor, last_checkpoint, over_training, points, sizes_over_training

ROOT = Path(__file__).parents[2]
ROW = Row(
    model="S/8", block_type="adaln_zero", seed=0, images_seen=64, num_steps=20, guidance_scale=1.0, num_samples=10,
    distance=1.5, class_agreement=0.5, precision=0.25, recall=0.125, train_loss=0.3, gmacs=0.001, parameters=7,
    train_seconds=1.0, sample_seconds=2.0, dataset="toys", recipe="sample, AdamW 0.001", sampler="DDIM",
    extractor="a classifier, \"quoted\"", commit="abc", hardware="cpu", date="2026-01-01T00:00:00Z",
    train_cpu_seconds=0.5, second_distance=3.5, second_extractor="another",
)  # fmt: skip


def test_rows_are_read_back_as_they_were_appended(tmp_path):
    path = tmp_path / "new" / "results.csv"
    append_rows(path, [ROW])
    append_rows(path, [replace(ROW, seed=1), replace(ROW, seed=2)])
    assert read_rows(path) == [ROW, replace(ROW, seed=1), replace(ROW, seed=2)]
    assert read_rows(tmp_path / "none.csv") == []


def test_commits_of_ten_and_of_forty_digits_are_read(tmp_path):
    commits = ["0123456789", "0123456789+", "0123456789" * 4, "0123456789" * 4 + "+"]
    append_rows(tmp_path / "results.csv", [replace(ROW, commit=commit) for commit in commits])
    assert [row.commit for row in read_rows(tmp_path / "results.csv")] == commits


def test_file_of_an_older_version_is_read_and_completed_by_the_first_new_row(tmp_path):
    path = tmp_path / "results.csv"
    append_rows(path, [ROW])
    with path.open() as file:
        older = list(csv.DictReader(file))
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, OLDEST_COLUMNS, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(older)
    (read,) = read_rows(path)
    assert math.isnan(read.train_cpu_seconds)
    assert math.isnan(read.second_distance)
    assert replace(read, train_cpu_seconds=0.5, second_distance=3.5, second_extractor="another") == ROW
    append_rows(path, [replace(ROW, seed=1)])
    first, second = read_rows(path)
    assert math.isnan(first.train_cpu_seconds)
    assert first.key == ROW.key
    assert second == replace(ROW, seed=1)
    assert path.read_text().splitlines()[0] == ",".join(COLUMNS)


@pytest.mark.parametrize("cut", [1, 20, 60])
def test_line_that_a_kill_cut_off_is_passed_over_and_then_replaced(tmp_path, cut):
    path = tmp_path / "results.csv"
    append_rows(path, [ROW, replace(ROW, seed=1)])
    path.write_bytes(path.read_bytes()[:-cut])
    assert read_rows(path) == [ROW]
    append_rows(path, [replace(ROW, seed=3)])
    assert read_rows(path) == [ROW, replace(ROW, seed=3)]


def test_cut_off_line_that_is_longer_than_the_next_leaves_nothing_behind(tmp_path):
    path = tmp_path / "results.csv"
    append_rows(path, [ROW])
    with path.open("a") as file:
        file.write("x" * 2000)
    append_rows(path, [ROW])
    assert read_rows(path) == [ROW, ROW]
    assert path.read_text().endswith("Z,0.5,3.5,another\n")


def test_file_whose_header_was_cut_off_starts_anew(tmp_path):
    path = tmp_path / "results.csv"
    path.write_text("model,blo")
    append_rows(path, [ROW])
    assert read_rows(path) == [ROW]


def test_other_columns_and_broken_numbers_are_refused(tmp_path):
    path = tmp_path / "results.csv"
    path.write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match="has the columns"):
        read_rows(path)
    append_rows(tmp_path / "good.csv", [ROW])
    path.write_text((tmp_path / "good.csv").read_text().replace("0.125", "many"))
    with pytest.raises(ValueError, match="repair or remove"):
        read_rows(path)
    path.write_text(",".join(COLUMNS) + "\nS/8,adaln_zero,0\n")
    with pytest.raises(ValueError, match="repair or remove"):
        read_rows(path)


def test_last_checkpoint_is_where_most_models_are():
    early = [replace(ROW, model=model) for model in ("S/8", "B/8", "L/8")]
    late = [replace(ROW, model=model, images_seen=128) for model in ("S/8", "B/8")]
    assert last_checkpoint([*early, *late]) == early
    late.append(replace(ROW, model="L/8", images_seen=128))
    assert last_checkpoint([*early, *late]) == late
    many = [replace(row, num_samples=50) for row in late]
    assert last_checkpoint([*early, *late, *many]) == many
    assert over_training([*early, *late, *many, replace(ROW, num_steps=99)]) == [*early, *late]
    assert last_checkpoint([replace(ROW, model=REAL, block_type="")]) == []


def test_curves_end_where_a_single_model_went_on():
    early = [replace(ROW, model=model) for model in ("S/8", "B/8")]
    longer = replace(ROW, images_seen=128)
    other_block = replace(ROW, block_type="adaln")
    assert sizes_over_training([*early, longer, other_block]) == early
    assert sizes_over_training([ROW, longer]) == [ROW, longer]  # nothing to compare with
    assert sizes_over_training([]) == []


@pytest.mark.parametrize(
    ("name", "rate", "images"),
    [
        ("fashion_mnist_tuned.csv", "4e-3", [16_000, 32_000, 64_000]),
        ("fashion_mnist.csv", "1e-3", [16_000, 32_000, 64_000, 128_000]),
    ],
)
def test_table_of_the_document_holds_what_the_summary_prints(capsys, monkeypatch, name, rate, images):
    monkeypatch.setattr(sys, "argv", ["summary.py", str(ROOT / "runs" / "results" / name)])
    runpy.run_path(str(ROOT / "runs" / "summary.py"))
    printed = re.findall(
        r"^(\d+) images seen, (\d+) samples, 20 steps, guidance 1\n +(.*)$", capsys.readouterr().out, re.M
    )
    numbers = {(int(seen), int(samples)): re.findall(r"\d+\.\d", line) for seen, samples, line in printed}
    document = (ROOT / "docs" / "reproduction.md").read_text()
    for seen in images:
        assert f"| {seen:,} | {rate} | {' | '.join(numbers[seen, 1000])} |" in document
    if 128_000 in images:
        assert f"| the same, 5,000 samples | {rate} | {' | '.join(numbers[128_000, 5000])} |" in document


def test_points_are_means_and_ranges_over_seeds():
    rows = [replace(ROW, distance=value, seed=seed) for seed, value in enumerate((1.0, 2.0, 6.0))]
    assert points(rows, "images_seen") == [(64, 3.0, 1.0, 6.0)]


def test_floor_is_that_of_as_many_real_images():
    real = replace(ROW, model=REAL, distance=0.1)
    assert floor([ROW, real], 10) == 0.1
    assert floor([ROW, real], 11) is None
