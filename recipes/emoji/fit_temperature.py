"""Fits the temperature of a pack's classification on the val split and writes it into its pack.json.

    python recipes/emoji/fit_temperature.py src/codebrush/packs/emoji emoji.parquet

`codebrush evaluate` fits it (Guo et al. 2017) on half of the labelled pictures; the report has the calibration error of
the other half before and after.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

from judging import NO_TONE

from codebrush.files import write_json
from codebrush.pack.pack import PACK_FILE


def main() -> None:
    """See the top of the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pack", type=Path)
    parser.add_argument("parquet")
    given = parser.parse_args()
    asked = ("--split", "val", "--where", NO_TONE, "--caption", "{label}", "--leave-out", "drawing", "--json")
    command = (sys.executable, "-m", "codebrush", "evaluate", str(given.pack), given.parquet, *asked)
    report = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    calibration = report["zero_shot"]["calibration"]
    print(json.dumps(calibration, indent=2))
    info = json.loads((given.pack / PACK_FILE).read_text(encoding="utf-8"))
    write_json(given.pack / PACK_FILE, info | calibration["pack_json"])


if __name__ == "__main__":
    main()
