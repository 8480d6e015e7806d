"""Makes the modules of benchmarks/ importable, as they are where a benchmark runs."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks"))
