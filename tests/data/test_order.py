"""The order of an epoch, and 1,000 schedules of stops, world sizes and workers against a run that nothing disturbs."""

from collections import Counter
from functools import lru_cache
from types import SimpleNamespace

import numpy as np
import pytest

from dit_hf.data import samples as samples_module
from dit_hf.data.order import EpochOrder
from dit_hf.data.rows import Rows
from dit_hf.data.samples import OrderedSamples
from dit_hf.data.streaming import BEGINNING, ImageStream, Position, _Shares

SIZES = np.array([7, 3, 5, 8, 1, 6, 4, 9, 2, 5, 7, 3])  # 60 rows in 12 groups


def epoch_order(epoch: int = 0, sizes: np.ndarray = SIZES, num_streams: int = 6, window: int = 12, seed: int = 0):
    return EpochOrder(sizes, seed=seed, epoch=epoch, num_streams=num_streams, window=window)


def places(order: EpochOrder) -> list[tuple[int, int]]:
    return [(place.group, place.row) for place in map(order.locate, range(order.total))]


def all_rows(sizes: np.ndarray) -> set[tuple[int, int]]:
    return {(group, row) for group, size in enumerate(sizes) for row in range(size)}


@pytest.mark.parametrize("num_streams", [1, 2, 6, 7, 64])
@pytest.mark.parametrize("window", [1, 12, 1000])
def test_every_row_comes_once_an_epoch(num_streams: int, window: int):
    for epoch in range(3):
        order = places(epoch_order(epoch, num_streams=num_streams, window=window))
        assert len(order) == 60
        assert set(order) == all_rows(SIZES)


def test_random_groups_come_once_too():
    rng = np.random.default_rng(0)
    for _ in range(200):
        sizes = rng.integers(0, 9, size=rng.integers(1, 9))
        sizes[0] += 1
        options = {
            "num_streams": int(rng.integers(1, 12)),
            "window": int(rng.integers(1, 40)),
            "seed": int(rng.integers(9)),
        }
        order = places(epoch_order(int(rng.integers(5)), sizes, **options))
        assert len(order) == sizes.sum()
        assert set(order) == all_rows(sizes)


def test_order_depends_on_seed_and_epoch_and_can_be_asked_anywhere():
    assert places(epoch_order(1)) != places(epoch_order(2))
    assert places(epoch_order(seed=1)) != places(epoch_order(seed=2))
    expected = places(epoch_order(3))
    for offset in np.random.default_rng(0).permutation(60):
        place = epoch_order(3).locate(int(offset))
        assert (place.group, place.row) == expected[offset]


def test_grouping_has_no_influence_where_all_rows_are_shuffled_together():
    def rows(sizes: list[int]) -> list[int]:
        starts = np.cumsum([0, *sizes])
        order = epoch_order(2, np.array(sizes), num_streams=1, window=60)
        return [int(starts[group] + row) for group, row in places(order)]

    assert rows([60]) == rows([10] * 6) == rows([1, 59])
    assert sorted(rows([60])) == list(range(60))


@pytest.mark.slow
def test_shuffle_is_even():
    """Over seeds, every row is in the first half as often as in the second, within 5 standard errors."""
    first, sizes = Counter(), np.full(12, 5)
    for seed in range(400):
        first.update(places(epoch_order(sizes=sizes, seed=seed))[:30])
    for row in all_rows(sizes):
        assert abs(first[row] - 200) < 5 * np.sqrt(400 / 4)


def test_classes_that_lie_together_are_mixed_in_every_batch():
    """Row groups of one class each, as folders become parquet: a batch of 64 has most of 50 classes."""
    sizes = np.full(500, 20)  # class of group k: k // 10
    order = EpochOrder(sizes, seed=0, epoch=0, num_streams=48, window=2000)
    batches = np.array([order.locate(offset).group // 10 for offset in range(order.total)])[: 64 * 156].reshape(156, 64)
    distinct = np.array([len(set(batch)) for batch in batches])
    expected = 50 * (1 - (1 - 1 / 50) ** 64)  # of independent draws: 36.3
    assert abs(distinct.mean() - expected) < 4


# ---- simulated processes ---------------------------------------------------------------------------------------------


class CountingSource:
    """Row groups whose rows are numbers, with a count of how often each is read."""

    in_memory = False

    def __init__(self, sizes: np.ndarray, num_streams: int = 12, window: int = 24) -> None:
        self.group_sizes, self.num_streams, self.window = sizes, num_streams, window
        self.reads: Counter[int] = Counter()

    def read(self, group: int) -> Rows:
        self.reads[group] += 1
        size = int(self.group_sizes[group])
        return Rows([[b""] * size], [group] * size, [(group, row) for row in range(size)], ["shard"] * 99)


def parts(stream: ImageStream, num_workers: int):
    """The parts of every worker, without images: (samples, next_position)."""

    class Light(_Shares):
        def _prepare(self, part, next_position):
            return [(position, rows.numbers[row]) for position, rows, row in part], next_position

    return [Light(stream).batches(worker, num_workers) for worker in range(num_workers)]


def read_global_batches(
    source: CountingSource, world_size: int, num_workers: int, start: Position, count: int, batch: int
):
    """What `world_size` processes of `num_workers` workers read together, batch by batch."""
    common = {"batch_size": batch // world_size, "resolution": 8, "world_size": world_size, "start": start}
    streams = [ImageStream(source, rank=rank, **common) for rank in range(world_size)]
    workers = [worker for stream in streams for worker in parts(stream, num_workers)]
    for _ in range(count):
        shares = [next(worker) for worker in workers]
        per_rank = [
            sum(len(samples) for samples, _ in shares[r * num_workers : (r + 1) * num_workers])
            for r in range(world_size)
        ]
        assert set(per_rank) == {batch // world_size}  # equal steps, equal sizes
        (following,) = {following for _, following in shares}
        yield sorted(sample for samples, _ in shares for sample in samples), following


WORLDS = {48: [1, 2, 3, 4, 6, 8, 12, 16], 70: [1, 5, 7, 10, 14], 99: [9, 11], 45: [3, 5, 9, 15], 26: [2, 13]}


@pytest.mark.slow
def test_a_thousand_schedules_of_stops_and_world_sizes_give_the_batches_of_one_undisturbed_run(monkeypatch):
    """World sizes 1 to 16, 1 to 3 workers, stops at random batches; rows and keys of all draws are compared."""
    rng = np.random.default_rng(0)
    sizes = rng.integers(1, 30, size=12)
    total, length = int(sizes.sum()), 6

    # an order is a function of its arguments (tested above): all processes may ask one, which saves most of the time
    shared = lru_cache(lambda epoch, **options: EpochOrder(sizes, epoch=epoch, **options))
    monkeypatch.setattr(samples_module, "EpochOrder", lambda sizes, **options: shared(**options))

    def source() -> CountingSource:
        return CountingSource(sizes, num_streams=6, window=100)

    undisturbed = {
        batch: [group for group, _ in read_global_batches(source(), 1, 1, BEGINNING, length, batch)] for batch in WORLDS
    }
    for batch, groups in undisturbed.items():
        samples = sum(groups, [])
        assert [position for position, _ in samples] == [divmod(n, total) for n in range(length * batch)]
        for epoch in range(length * batch // total):
            assert {row for _, row in samples[epoch * total : (epoch + 1) * total]} == all_rows(sizes)

    lost = repeated = wrong = 0
    for _ in range(1000):
        batch = int(rng.choice(list(WORLDS)))
        start, read = BEGINNING, []
        while len(read) < length:
            world, workers = int(rng.choice(WORLDS[batch])), int(rng.integers(1, 4))
            count = min(int(rng.integers(1, length + 1)), length - len(read))
            found = list(read_global_batches(source(), world, workers, start, count, batch))
            read += [group for group, _ in found]
            start = found[-1][1]
        wrong += sum(group != expected for group, expected in zip(read, undisturbed[batch], strict=True))
        samples, seen = sum(undisturbed[batch], []), sum(read, [])
        lost += len(set(samples) - set(seen))
        repeated += len(seen) - len(set(seen))
    assert (lost, repeated, wrong) == (0, 0, 0)


@pytest.mark.parametrize(("world_size", "num_workers"), [(1, 1), (2, 1), (4, 3), (6, 2), (12, 1)])
def test_processes_and_workers_read_each_row_group_once_an_epoch_but_where_a_stream_is_cut(world_size, num_workers):
    sizes = np.full(120, 10)
    source = CountingSource(sizes)
    for _ in read_global_batches(source, world_size, num_workers, BEGINNING, 50, 24):  # one epoch
        pass
    assert set(source.reads) == set(range(120))
    assert source.reads.total() <= 120 + 2 * source.num_streams
    assert max(source.reads.values()) <= 3


def test_a_process_reads_its_share_and_not_all():
    sizes = np.full(120, 10)
    for rank in range(4):
        source = CountingSource(sizes)
        stream = ImageStream(source, batch_size=6, resolution=8, rank=rank, world_size=4)
        (worker,) = parts(stream, 1)
        for _ in range(50):
            next(worker)
        assert 120 / 4 <= source.reads.total() <= 120 / 4 + 2 * source.num_streams / 4


def test_a_resumed_run_reads_the_row_groups_it_needs_and_none_before():
    sizes = np.full(1200, 10)
    source = CountingSource(sizes)
    next(read_global_batches(source, 1, 1, Position(3, 6000), 1, 24))
    assert source.reads.total() <= 3 * source.num_streams  # a window of two groups or three in each stream


def test_groups_are_let_go_when_their_window_is_done():
    source = CountingSource(np.full(120, 10))
    ordered = OrderedSamples(source, BEGINNING, seed=0, num_streams=source.num_streams, window=source.window)
    held = []
    for n in range(2400):
        ordered.take(n)
        held.append(len(ordered._alive))
    assert max(held) <= 3 * source.num_streams


def test_positions_are_those_of_numpy_s_divmod_over_many_epochs():
    source = SimpleNamespace(
        group_sizes=np.array([2, 3]),
        in_memory=True,
        num_streams=1,
        window=5,
        read=CountingSource(np.array([2, 3])).read,
    )
    (worker,) = parts(ImageStream(source, batch_size=7, resolution=8), 1)
    for k in range(10):
        samples, following = next(worker)
        assert [tuple(position) for position, _ in samples] == [divmod(n, 5) for n in range(7 * k, 7 * k + 7)]
        assert following.epoch * 5 + following.offset == 7 * (k + 1)
