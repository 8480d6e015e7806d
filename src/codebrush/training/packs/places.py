"""Where `codebrush train SOURCE` writes: the folder that a pack is made in, and the files there and in the pack.

Imports nothing heavy.
"""

import os
from pathlib import Path

# In the work folder.
REQUEST_FILE, CLOCK_FILE, SECOND_FILE = "request.json", "clock.json", "second-painters.json"
CURVES = "training"  # the folder of a pack with the metrics of its stages
SAMPLES, RECONSTRUCTIONS = "samples.png", "reconstructions.png"  # in a pack


def work_folder(out: Path) -> Path:
    """The folder a pack is made in, beside the pack, which appears only when it is finished."""
    out = Path(os.path.abspath(out))
    return out.with_name(out.name + ".work")
