"""Which rows each step of a run sees, and the random stream of a step: both follow from the seed and the step alone."""

import numpy as np

SHUFFLES = 1 << 20  # the stream that shuffles epochs; steps use those of the processes, from 1


def step_rng(seed: int, step: int, stream: int = 0) -> np.random.Generator:
    """The random stream named by (seed, step, stream)."""
    return np.random.default_rng(np.random.SeedSequence([seed, step, stream]))


class ShuffledRows:
    """The rows of each step of a run: consecutive stretches of one endless sequence of shuffled epochs.

    Another `stream` shuffles differently. With `weights` (N,), of which none is below 0, an epoch holds each row as
    often as its weight says, rounded up or down by chance, so that the mean over epochs is the weight. The order of an
    epoch is drawn once and kept while steps need it: shuffling ten million rows takes half a second.
    """

    def __init__(
        self,
        examples: int,
        batch_size: int,
        seed: int,
        stream: int = SHUFFLES,
        weights: np.ndarray | None = None,
    ):
        self.batch_size, self.seed, self.stream = batch_size, seed, stream
        self.examples = examples if weights is None else max(1, round(float(weights.sum())))  # of an epoch
        self._ends = None if weights is None else weights.cumsum() * (self.examples / weights.sum())
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
        if kept is not None:
            return kept
        rng = step_rng(self.seed, epoch, self.stream)
        if self._ends is None:
            return rng.permutation(self.examples)
        marks = np.arange(self.examples) + rng.random()  # one for each row of the epoch (systematic sampling)
        return rng.permutation(np.searchsorted(self._ends, marks, side="right").clip(max=len(self._ends) - 1))
