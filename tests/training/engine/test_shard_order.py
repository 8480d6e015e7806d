"""The order of rows in shards: whole epochs, a step without the ones before it, few shards at once, exact shares."""

import numpy as np
import pytest

from codebrush.errors import TrainingError
from codebrush.training.engine.shard_order import BLOCK, PERIOD, MixedOrder, ShardOrder

COUNTS = np.array([7, 3, 12, 1, 9, 5, 8])


@pytest.mark.parametrize("lanes", [1, 3, 7, 20])
def test_every_epoch_has_every_row_once_in_an_order_of_its_own(lanes: int) -> None:
    order = ShardOrder(COUNTS, seed=3, lanes=lanes)
    rows = order.at(np.arange(3 * order.examples)).reshape(3, -1)
    assert [sorted(epoch) for epoch in rows.tolist()] == [list(range(order.examples))] * 3
    assert len({tuple(epoch) for epoch in rows.tolist()}) == 3
    assert not np.array_equal(rows[0], ShardOrder(COUNTS, seed=4, lanes=lanes).at(np.arange(order.examples)))


def test_a_step_needs_none_of_the_steps_before_it() -> None:
    whole = MixedOrder([ShardOrder(COUNTS, 0, 3)], [1.0], batch_size=4)
    steps = [whole.of_step(step) for step in range(40)]
    for step in (0, 11, 12, 39, 5):
        np.testing.assert_array_equal(MixedOrder([ShardOrder(COUNTS, 0, 3)], [1.0], 4).of_step(step), steps[step])


def test_processes_that_divide_the_lanes_read_different_shards() -> None:
    counts = np.full(32, 100)
    order = MixedOrder([ShardOrder(counts, 0, 8)], [1.0], batch_size=16)
    read = [{int(row) // 100 for step in range(200) for row in order.of_step(step)[rank::4]} for rank in range(4)]
    assert sorted(len(shards) for shards in read) == [8, 8, 8, 8]
    assert sum(len(a & b) for a in read for b in read if a is not b) == 0


def test_no_more_shards_than_lanes_are_read_side_by_side() -> None:
    order = MixedOrder([ShardOrder(np.full(40, 64), 0, 4)], [1.0], batch_size=32)
    assert max(len({int(row) // 64 for row in order.of_step(step)}) for step in range(2560 // 32)) == 4


def test_nothing_follows_the_last_shard_of_a_lane() -> None:
    order = ShardOrder(COUNTS, seed=0, lanes=1)
    for epoch in range(6):
        rows = order.at(np.arange(epoch * order.examples, (epoch + 1) * order.examples))
        assert int(np.searchsorted(order.first, rows[-1], side="right")) - 1 not in order.next
        assert len(order.next) == len(COUNTS) - 1


def test_a_mix_keeps_to_its_shares_and_to_the_order_of_each_source() -> None:
    counts = [np.full(4, 50), np.full(3, 30)]
    mixed = MixedOrder([ShardOrder(each, 0, 2) for each in counts], [3, 1], batch_size=BLOCK)
    rows = np.concatenate([mixed.of_step(step) for step in range(PERIOD)])
    new, other = rows[rows < 200], rows[rows >= 200] - 200
    assert len(new) == 3 * len(other)
    np.testing.assert_array_equal(new, ShardOrder(counts[0], 0, 2).at(np.arange(len(new))))
    np.testing.assert_array_equal(other, ShardOrder(counts[1], 0, 2).at(np.arange(len(other))))
    shares = [(rows[start : start + 8 * BLOCK] < 200).mean() for start in range(0, len(rows), 8 * BLOCK)]
    assert (min(shares), max(shares)) == (0.75, 0.75)  # in every stretch of a few blocks too
    with pytest.raises(TrainingError, match=r"below 0\.1 %"):
        MixedOrder([ShardOrder(each, 0, 2) for each in counts], [1e5, 1], batch_size=BLOCK)
