"""Which rows each step of a run sees, and the random stream of a step: both follow from the seed and the step alone."""

import numpy as np

SHUFFLES = 1 << 20  # the stream that shuffles epochs; steps use those of the processes, from 1


def step_rng(seed: int, step: int, stream: int = 0) -> np.random.Generator:
    """The random stream named by (seed, step, stream)."""
    return np.random.default_rng(np.random.SeedSequence([seed, step, stream]))


class ShuffledRows:
    """The rows of each step of a run: consecutive stretches of one endless sequence of shuffled epochs.

    Another `stream` shuffles differently. The order of an epoch is drawn once and kept while steps need it: shuffling
    ten million rows takes half a second.
    """

    def __init__(self, examples: int, batch_size: int, seed: int, stream: int = SHUFFLES):
        self.examples, self.batch_size, self.seed, self.stream = examples, batch_size, seed, stream
        self._orders: dict[int, np.ndarray] = {}  # by epoch

    def of_step(self, step: int) -> np.ndarray:
        """The rows that step `step` sees, (B,) int64."""
        positions = np.arange(step * self.batch_size, (step + 1) * self.batch_size)
        epochs = positions // self.examples
        self._orders = {epoch: self._order(epoch) for epoch in np.unique(epochs).tolist()}
        rows = np.empty(self.batch_size, dtype=np.int64)
        for epoch, order in self._orders.items():
            inside = epochs == epoch
            rows[inside] = order[positions[inside] % self.examples]
        return rows

    def _order(self, epoch: int) -> np.ndarray:
        kept = self._orders.get(epoch)
        return step_rng(self.seed, epoch, self.stream).permutation(self.examples) if kept is None else kept
