"""What stands between a data set and the loop: the number of workers that prepare it."""

import os
from pathlib import Path

import pytest

from dit_hf.training.batches import check_output_dir, choose_num_workers


@pytest.fixture
def cores(monkeypatch: pytest.MonkeyPatch):
    """Set the number of cores, and of processes on this machine."""

    def set_cores(count: int, local_processes: int = 1) -> None:
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(count)), raising=False)
        monkeypatch.setenv("LOCAL_WORLD_SIZE", str(local_processes))

    return set_cores


@pytest.mark.parametrize(
    ("num_cores", "num_processes", "num_streams", "expected"),
    [
        (1, 1, 192, 0),  # the training needs the core
        (2, 1, 192, 1),
        (64, 1, 192, 4),
        (64, 8, 192, 4),  # 32 readers divide 192 streams
        (64, 3, 192, 4),
        (64, 5, 192, 0),  # no number of workers does: each process reads its share alone
        (64, 1, 6, 3),
        (16, 8, 192, 1),  # two cores a process
        (8, 8, 192, 0),
        (64, 5, 1, 4),  # all rows in memory
    ],
)
def test_the_number_of_workers_fits_cores_processes_and_streams(cores, num_cores, num_processes, num_streams, expected):
    cores(num_cores, num_processes)
    assert choose_num_workers(None, num_streams, num_processes) == expected


def test_one_worker_reads_what_can_only_be_read_as_a_whole(cores):
    cores(64)
    assert choose_num_workers(None, 1, 1, has_row_groups=False) == 1


@pytest.mark.parametrize("wanted", [0, 7])
def test_the_number_that_the_user_sets_is_taken(cores, wanted: int):
    cores(1)
    assert choose_num_workers(wanted, 192, 5) == wanted


@pytest.mark.parametrize("output", ["photos/out", "photos", "photos/cat/../out", "link/out"])
def test_output_among_the_images_is_refused(tmp_path: Path, output: str, monkeypatch):
    (tmp_path / "photos" / "cat").mkdir(parents=True)
    (tmp_path / "link").symlink_to("photos")
    monkeypatch.chdir(tmp_path)
    for name in ("photos", f"file://{tmp_path}/photos"):
        with pytest.raises(ValueError, match="the folder of the images, which its previews would join: set another"):
            check_output_dir(output, name)
    for elsewhere in ("out", "photos-2", "photos/.out"):
        check_output_dir(elsewhere, "photos")
