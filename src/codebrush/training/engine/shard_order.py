"""Which rows each step of a run sees where the rows lie in shards: close together, so that few shards are open at once.

An epoch shuffles the shards and deals them to lanes, like cards to players. A lane reads its shards one after the
other, the rows of each in a shuffled order, and positions take the lanes in turn. Everything follows from the seed, the
epoch and the number of rows in each shard: neither the number of processes nor that of workers changes the order, and
the rows of a step are computed without those of earlier ones. Processes of a number that divides the lanes read
different shards.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from codebrush.errors import TrainingError
from codebrush.training.engine.rows import step_rng

SHARDS, ROWS = 1 << 21, 1 << 22  # the streams that shuffle shards, and the rows of the first shard; see `step_rng`
BLOCK = 16  # consecutive rows of one source in a mix, so that lanes and processes keep in step
PERIOD = 1000  # blocks after which the sources of a mix come in the same order again


@dataclass(frozen=True)
class _Epoch:
    """The lanes of one epoch: `shards` of each in order, and the places in the lane at which they `begin` and end.

    From `starts[j]` on, the positions of the epoch go in turn to the lanes `live[j]`, from their row `rounds[j]` on.
    """

    shards: list[np.ndarray]
    begin: list[np.ndarray]
    starts: np.ndarray
    rounds: np.ndarray
    live: list[np.ndarray]


class ShardOrder:
    """The endless sequence of rows of a source in shards of `counts` (S,) rows, with `lanes` shards read side by side.

    Rows are numbered through all shards, from 0 to `examples` - 1; each epoch has every one of them once.
    """

    def __init__(self, counts: np.ndarray, seed: int, lanes: int):
        self.counts, self.seed = counts, seed
        self.lanes = min(lanes, len(counts))
        self.first = np.concatenate([[0], counts.cumsum()[:-1]])
        self.examples = int(counts.sum())
        self.next: dict[int, int] = {}  # the shard that follows a shard of the last positions in its lane
        self._epochs: dict[int, _Epoch] = {}
        self._orders: dict[tuple[int, int], np.ndarray] = {}  # of the rows in a shard, by epoch and shard

    def at(self, positions: np.ndarray) -> np.ndarray:
        """The rows at ascending `positions` (B,) of the sequence, (B,) int64."""
        epochs, inside = np.divmod(positions, self.examples)
        self._epochs = {epoch: self._epoch(epoch) for epoch in np.unique(epochs).tolist()}
        rows, used = np.empty(len(positions), np.int64), dict[tuple[int, int], np.ndarray]()
        for place, (epoch, position) in enumerate(zip(epochs.tolist(), inside.tolist(), strict=True)):
            shard, row = self._place(epoch, position)
            order = used.get((epoch, shard))
            if order is None:
                order = used[epoch, shard] = self._order(epoch, shard)
            rows[place] = self.first[shard] + order[row]
        self._orders = used
        return rows

    def _place(self, epoch: int, position: int) -> tuple[int, int]:
        """The shard at a position of an epoch, and how many of the shard's rows come before it."""
        lanes = self._epochs[epoch]
        part = int(np.searchsorted(lanes.starts, position, side="right")) - 1
        turn, number = divmod(position - int(lanes.starts[part]), len(lanes.live[part]))
        lane, row = int(lanes.live[part][number]), int(lanes.rounds[part]) + turn
        begin, shards = lanes.begin[lane], lanes.shards[lane]
        place = int(np.searchsorted(begin, row, side="right")) - 1
        shard = int(shards[place])
        if place + 1 < len(shards):
            self.next[shard] = int(shards[place + 1])
        else:
            self.next.pop(shard, None)  # another one may have followed it in an earlier epoch
        return shard, row - int(begin[place])

    def _order(self, epoch: int, shard: int) -> np.ndarray:
        kept = self._orders.get((epoch, shard))
        return step_rng(self.seed, epoch, ROWS + shard).permutation(self.counts[shard]) if kept is None else kept

    def _epoch(self, epoch: int) -> _Epoch:
        if (kept := self._epochs.get(epoch)) is not None:
            return kept
        order = step_rng(self.seed, epoch, SHARDS).permutation(len(self.counts))
        shards = [order[lane :: self.lanes] for lane in range(self.lanes)]
        ends = [self.counts[lane].cumsum() for lane in shards]
        lengths = np.array([end[-1] for end in ends])
        rounds = np.unique(np.concatenate([[0], lengths]))[:-1]  # at these some lane has come to its end, but the first
        live = [np.flatnonzero(lengths > done) for done in rounds]
        steps = np.diff(np.concatenate([rounds, [lengths.max()]]))
        sizes = steps * np.array([len(lanes) for lanes in live])
        starts = np.concatenate([[0], sizes.cumsum()[:-1]])
        begin = [end - self.counts[lane] for end, lane in zip(ends, shards, strict=True)]
        return _Epoch(shards, begin, starts, rounds, live)


class MixedOrder:
    """The rows of each step, of several sources in blocks whose numbers keep to `shares`; those of source i are
    numbered after all rows of the sources before it.

    Raises:
        TrainingError: for a share so small that it would never be seen.
    """

    def __init__(self, orders: Sequence[ShardOrder], shares: Sequence[float], batch_size: int):
        self.orders, self.batch_size = orders, batch_size
        self.first = np.cumsum([0, *(order.examples for order in orders)])[:-1]
        exact = np.array(shares) * PERIOD / sum(shares)
        quotas = np.floor(exact).astype(np.int64)
        quotas[np.argsort(quotas - exact, kind="stable")[: PERIOD - quotas.sum()]] += 1
        if not quotas.all():
            raise TrainingError(f"the shares of a mix are {', '.join(map(str, shares))}: the smallest is below 0.1 %")
        self.quotas = quotas
        sources = np.repeat(np.arange(len(quotas)), quotas)
        places = np.concatenate([(np.arange(quota) + 0.5) / quota for quota in quotas])
        self.pattern = sources[np.argsort(places, kind="stable")]  # (PERIOD,) the source of each block, well spread
        self.before = np.empty(PERIOD, np.int64)  # how many blocks of the same source come earlier in a period
        for source, quota in enumerate(quotas):
            self.before[self.pattern == source] = np.arange(quota)

    def of_step(self, step: int) -> np.ndarray:
        """The rows that step `step` sees, (B,) int64."""
        positions = np.arange(step * self.batch_size, (step + 1) * self.batch_size)
        blocks, inside = np.divmod(positions, BLOCK)
        periods, places = np.divmod(blocks, PERIOD)
        sources = self.pattern[places]
        rows = np.empty(self.batch_size, np.int64)
        for source, order in enumerate(self.orders):
            mine = sources == source
            if mine.any():
                earlier = periods[mine] * self.quotas[source] + self.before[places[mine]]
                rows[mine] = self.first[source] + order.at(earlier * BLOCK + inside[mine])
        return rows
