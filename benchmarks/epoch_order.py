"""How long a training step takes to find its rows, with each epoch's order drawn once and drawn anew at every step.

    python benchmarks/epoch_order.py [--rows 1000000] [--batch 256] [--rounds 5]

"kept" is what training does; "anew" draws the order of the epoch again at each step. The two take turns. Prints
seconds and ratios.
"""

import argparse

import numpy as np
from alternation import alternated

from codebrush.training.engine.rows import ShuffledRows

STEPS = 20  # a round


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    kept = ShuffledRows(options.rows, options.batch, seed=0)

    def with_kept_order() -> list[np.ndarray]:
        return [kept.of_step(step) for step in range(STEPS)]

    def with_new_orders() -> list[np.ndarray]:
        return [ShuffledRows(options.rows, options.batch, seed=0).of_step(step) for step in range(STEPS)]

    assert all(np.array_equal(a, b) for a, b in zip(with_kept_order(), with_new_orders(), strict=True))
    alternated(
        f"{STEPS} steps of {options.rows} rows", {"anew": with_new_orders, "kept": with_kept_order}, options.rounds
    )


if __name__ == "__main__":
    main()
