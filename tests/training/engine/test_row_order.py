"""The rows of each step: every epoch holds each row once, and its order is drawn once."""

from collections import Counter

import numpy as np
import pytest

from codebrush.training.engine import rows
from codebrush.training.engine.rows import SHUFFLES, ShuffledRows, step_rng


def from_the_definition(examples: int, batch_size: int, seed: int, step: int, stream: int = SHUFFLES) -> np.ndarray:
    """Consecutive stretches of one endless row of shuffled epochs, each drawn anew from (seed, epoch, stream)."""
    positions = np.arange(step * batch_size, (step + 1) * batch_size)
    found = np.empty(batch_size, dtype=np.int64)
    for epoch in np.unique(positions // examples):
        order = np.random.default_rng(np.random.SeedSequence([seed, int(epoch), stream])).permutation(examples)
        inside = positions // examples == epoch
        found[inside] = order[positions[inside] % examples]
    return found


SIZES = [(10, 4), (7, 7), (3, 8), (12, 1), (5, 4), (1, 3)]


@pytest.mark.parametrize(("examples", "batch_size"), SIZES)
def test_the_order_is_that_of_the_definition_whatever_was_asked_before(examples: int, batch_size: int):
    drawn, other = ShuffledRows(examples, batch_size, 3), ShuffledRows(examples, batch_size, 3, stream=1 << 21)
    for step in [*range(40), 7, 39, 0, 1, 2]:
        found = drawn.of_step(step)
        assert found.dtype == np.int64
        assert found.tolist() == from_the_definition(examples, batch_size, 3, step).tolist()
        assert other.of_step(step).tolist() == from_the_definition(examples, batch_size, 3, step, 1 << 21).tolist()


def test_the_order_does_not_change_from_one_version_to_the_next():
    """A run that an earlier version began must see the same rows when it is resumed."""
    assert [ShuffledRows(10, 4, 5).of_step(step).tolist() for step in range(3)] == [
        [3, 6, 2, 0],
        [7, 8, 9, 4],
        [5, 1, 1, 0],
    ]


@pytest.mark.parametrize(("examples", "batch_size"), SIZES)
def test_every_epoch_holds_each_row_once(examples: int, batch_size: int):
    epochs, drawn = 6, ShuffledRows(examples, batch_size, 1)
    seen = np.concatenate([drawn.of_step(step) for step in range(-(-examples * epochs // batch_size))])
    orders = seen[: examples * epochs].reshape(epochs, examples)
    assert all(Counter(order.tolist()) == Counter(range(examples)) for order in orders)
    assert examples == 1 or len({tuple(order) for order in orders}) > 1


@pytest.mark.parametrize(("examples", "batch_size"), SIZES)
def test_each_epoch_is_shuffled_once_and_then_forgotten(
    examples: int, batch_size: int, monkeypatch: pytest.MonkeyPatch
):
    asked: list[int] = []

    def counted(seed: int, epoch: int, stream: int) -> np.random.Generator:
        asked.append(epoch)
        return step_rng(seed, epoch, stream)

    monkeypatch.setattr(rows, "step_rng", counted)
    drawn, steps = ShuffledRows(examples, batch_size, 1), 50
    for step in range(steps):
        drawn.of_step(step)
        assert len(drawn._orders) <= batch_size // examples + 2
    assert asked == list(range(-(-steps * batch_size // examples)))


def test_rows_follow_from_seed_and_step_alone():
    late = ShuffledRows(1000, 16, 5).of_step(40).tolist()
    assert late == ShuffledRows(1000, 16, 5).of_step(40).tolist()
    assert late != ShuffledRows(1000, 16, 6).of_step(40).tolist()


def test_all_streams_differ():
    names = [(seed, step, stream) for seed in (0, 1) for step in (0, 1, 2) for stream in (0, 1, 65535)]
    assert len({step_rng(*name).integers(2**62) for name in names}) == len(names)
    assert step_rng(4, 2, 1).integers(2**62) == step_rng(4, 2, 1).integers(2**62)


@pytest.mark.parametrize("weights", [[1.0, 2.0, 0.5, 0.0, 0.25, 1.25], [0.1] * 7, [3.0, 3.0]])
def test_an_epoch_holds_each_row_as_often_as_its_weight_says(weights: list[float]):
    """Rounded up or down in each epoch; over many epochs the mean is the weight."""
    given = np.array(weights)
    drawn, length, epochs = ShuffledRows(len(weights), 4, 1, weights=given), max(1, round(sum(weights))), 400
    seen = np.concatenate([drawn.of_step(step) for step in range(length * epochs // 4)])
    orders = seen[: len(seen) // length * length].reshape(-1, length)
    counts = np.stack([np.bincount(order, minlength=len(weights)) for order in orders])
    wanted = given * length / given.sum()
    assert (np.abs(counts - wanted) < 1).all()
    np.testing.assert_allclose(counts.mean(0), wanted, atol=4 * 0.5 / len(orders) ** 0.5)
    assert len({tuple(order) for order in orders}) > 1 or len(set(weights)) == 1


def test_weights_of_one_hold_each_row_once():
    drawn = ShuffledRows(10, 5, 3, weights=np.ones(10))
    for epoch in range(4):
        rows = np.concatenate([drawn.of_step(2 * epoch), drawn.of_step(2 * epoch + 1)])
        assert sorted(rows.tolist()) == list(range(10))
