"""The stream of batches: every image once an epoch, in an order that processes, workers and restarts do not change."""

import io
import pickle
import threading
from collections import Counter
from itertools import islice
from pathlib import Path

import pytest
import torch
from PIL import Image

from dit_hf.data.labels import select_classes
from dit_hf.data.sources import open_images
from dit_hf.data.streaming import ImageBatch, ImageStream, Position


def make_stream(colours: Path, class_names: list[str] | None = None, **options) -> ImageStream:
    settings = {"batch_size": 4, "resolution": 8, "random_flip": False, **options}
    return ImageStream(open_images(str(colours), class_names=class_names), **settings)


def indices(batch: ImageBatch) -> list[int]:
    """Which images a batch holds, read off their colour."""
    return ((batch.images[:, 0, 0, 0] + 1) * 12.75).round().int().tolist()


def read(stream: ImageStream, num_batches: int) -> list[list[int]]:
    return [indices(batch) for batch in islice(stream, num_batches)]


def test_every_image_comes_once_an_epoch_and_nothing_is_dropped(colours):
    samples = sum(read(make_stream(colours), 23), [])  # 92 samples: four epochs of 23
    for epoch in range(4):
        assert Counter(samples[23 * epoch : 23 * (epoch + 1)]) == Counter(range(23))


def test_labels_belong_to_their_images(colours):
    for batch in islice(make_stream(colours), 6):
        assert batch.class_labels.tolist() == [k % 4 for k in indices(batch)]


def test_order_changes_with_the_epoch_and_the_seed_alone(colours):
    first, again, other = (sum(read(make_stream(colours, seed=seed), 12), []) for seed in (0, 0, 1))
    assert first == again
    assert first != other
    assert first[:23] != first[23:46]
    assert first[:23] != sorted(first[:23])


@pytest.mark.parametrize("world_size", [2, 4])
def test_number_of_processes_does_not_change_the_global_batches(colours, world_size):
    alone = read(make_stream(colours, batch_size=8), 7)
    options = {"batch_size": 8 // world_size, "world_size": world_size}
    parts = [read(make_stream(colours, rank=rank, **options), 7) for rank in range(world_size)]
    taken_in_turn = [sum((list(each) for each in zip(*part, strict=True)), []) for part in zip(*parts, strict=True)]
    assert taken_in_turn == alone


def test_stream_goes_on_where_a_batch_says(colours):
    whole = list(islice(make_stream(colours, num_jitters=3, random_flip=True), 14))
    for stopped_after in (1, 5, 6, 11):
        start = whole[stopped_after - 1].next_position
        rest = make_stream(colours, num_jitters=3, random_flip=True, start=start)
        for expected, batch in zip(whole[stopped_after:], rest, strict=False):
            torch.testing.assert_close(batch.images, expected.images, rtol=0, atol=0)
            assert batch.positions == expected.positions
            assert batch.identities == expected.identities


def test_workers_do_not_change_the_batches(colours):
    alone = list(islice(make_stream(colours, random_flip=True), 9))
    for batch, expected in zip(make_stream(colours, random_flip=True, num_workers=3), alone, strict=False):
        torch.testing.assert_close(batch.images, expected.images, rtol=0, atol=0)
        assert vars(batch).keys() == vars(expected).keys()
        for name in ("positions", "identities", "next_position"):
            assert getattr(batch, name) == getattr(expected, name)


def test_stop_ends_the_wait_for_data_that_the_process_reads_itself(colours):
    stream, has_answered, is_stopped = make_stream(colours), threading.Event(), threading.Event()
    read_from_source = stream.source.read

    def read_when_answered(*arguments):
        is_stopped.set()  # the signal arrives while the network is silent
        has_answered.wait()
        return read_from_source(*arguments)

    stream.source.read = read_when_answered
    batches = stream.batches(is_stopped.is_set)
    assert next(batches) is None
    has_answered.set()
    found = [indices(batch) for batch in islice((batch for batch in batches if batch is not None), 6)]
    assert found == read(make_stream(colours), 6)


def test_error_of_data_that_the_process_reads_itself_is_raised_as_it_is(colours):
    stream = make_stream(colours)

    def fail(*arguments):
        raise ConnectionError("the shard's server is gone")

    stream.source.read = fail
    with pytest.raises(ConnectionError, match="the shard's server is gone"):
        next(iter(stream))


def test_positions_count_the_samples_of_an_epoch(colours):
    batches = list(islice(make_stream(colours), 7))
    assert batches[0].positions == [(0, 0), (0, 1), (0, 2), (0, 3)]
    assert batches[5].positions == [(0, 20), (0, 21), (0, 22), (1, 0)]
    assert batches[5].next_position == Position(1, 1)


def test_equal_identities_are_equal_images(colours):
    seen = {}
    for batch in islice(make_stream(colours, num_jitters=2, random_flip=True), 40):
        for identity, image in zip(batch.identities, batch.images, strict=True):
            torch.testing.assert_close(seen.setdefault(identity, image), image, rtol=0, atol=0)
    assert 23 < len(seen) <= 23 * 2 * 2
    assert {mirrored for *_, mirrored, _ in seen} == {True, False}


def test_only_the_classes_asked_for_are_streamed_under_their_new_labels(colours):
    for batch in islice(make_stream(colours, class_names=["d", "b"]), 6):
        assert batch.class_labels.tolist() == [{3: 0, 1: 1}[k % 4] for k in indices(batch)]


def one_colour(k: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (10 * k, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def test_local_folder_of_images_is_streamed(colours, tmp_path: Path):
    for k in range(23):
        folder = tmp_path / "train" / "abcd"[k % 4]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{k:02}.png").write_bytes(one_colour(k))
    stream = make_stream(tmp_path)
    samples = sum(read(stream, 23), [])
    assert Counter(samples[:23]) == Counter(range(23))
    for batch in islice(stream, 6):
        assert batch.class_labels.tolist() == [k % 4 for k in indices(batch)]


def test_class_chosen_twice_is_refused():
    with pytest.raises(ValueError, match="'a' is chosen twice"):
        select_classes(["a", "b"], ["a", "b", "a"])


def test_unknown_class_is_refused_by_name():
    with pytest.raises(ValueError, match="no class 'e'"):
        select_classes(["a", "b"], ["b", "e"])


def test_missing_column_is_refused_with_those_there_are(colours):
    with pytest.raises(ValueError, match="no column 'picture' of type Image.*'image'.*--image_column"):
        open_images(str(colours), image_column="picture")
    with pytest.raises(ValueError, match="no column 'class'; its columns are.*'label'.*--label_column"):
        open_images(str(colours), label_column="class")


def test_column_of_another_type_is_refused(colours):
    with pytest.raises(ValueError, match="column 'image' holds Image: classes are ClassLabel, whole numbers or texts"):
        open_images(str(colours), label_column="image")
    with pytest.raises(ValueError, match="no column 'label' of type Image"):
        open_images(str(colours), image_column="label")


def test_stream_can_be_sent_to_a_worker_that_is_started_afresh(colours):
    stream = pickle.loads(pickle.dumps(make_stream(colours)))
    assert read(stream, 5) == read(make_stream(colours), 5)
