"""Pictures from Python and from the command line beside a busy core, in turn: a library user must not wait longer.

    python benchmarks/busy_core.py [--pictures 1] [--rounds 3] [--spinning]

A process that computes without end takes one core. Each way is a process of its own with as many threads as there are
cores: Python that imports torch before codebrush, Python that imports codebrush alone, and the command line. With
--spinning also Python whose OpenMP threads spin, as they do where nobody sets a policy; it may take minutes. Prints the
seconds of each round and the median ratios to the command line.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from functools import partial

from alternation import alternated

DRAW = "from codebrush import Codebrush\nCodebrush.from_pretrained('emoji').generate('a red apple', n={pictures})\n"
BUSY = "import os\nos.sched_setaffinity(0, [min(os.sched_getaffinity(0))])\nwhile True: pass"


def ways(pictures: int, folder: str, spinning: bool) -> Mapping[str, Callable[[], object]]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_", "KMP_"))}
    draw = DRAW.format(pictures=pictures)
    command = ["-m", "codebrush", "generate", "a red apple", "--n", str(pictures), "--out", folder]
    started = {
        "Python, torch first": (["-c", f"import torch\n{draw}"], clean),
        "Python": (["-c", draw], clean),
        "command line": (command, clean),
    }
    if spinning:  # 300000 is what OpenMP takes where nothing is set
        started = {"Python, spinning": (["-c", draw], clean | {"GOMP_SPINCOUNT": "300000"})} | started
    return {
        name: partial(subprocess.run, [sys.executable, *arguments], env=environment, check=True, capture_output=True)
        for name, (arguments, environment) in started.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--spinning", action="store_true")
    options = parser.parse_args()
    busy = subprocess.Popen([sys.executable, "-c", BUSY])
    try:
        with tempfile.TemporaryDirectory() as folder:
            alternated("drawing", ways(options.pictures, folder, options.spinning), options.rounds)
    finally:
        busy.kill()


if __name__ == "__main__":
    main()
