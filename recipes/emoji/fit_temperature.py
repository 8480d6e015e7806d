"""Fits the temperature of a pack's classification on the val split and writes it into its pack.json.

    python recipes/emoji/fit_temperature.py src/codebrush/packs/emoji emoji.parquet

`codebrush evaluate` fits it (Guo et al. 2017) on half of the labelled pictures; the report has the calibration error of
the other half before and after.
"""

import argparse
import json
from pathlib import Path

from judging import evaluated

from codebrush.pack.writing import add_entries


def main() -> None:
    """See the top of the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pack", type=Path)
    parser.add_argument("parquet")
    given = parser.parse_args()
    calibration = evaluated(given.pack, given.parquet, "val")["zero_shot"]["calibration"]
    print(json.dumps(calibration, indent=2))
    add_entries(given.pack, calibration["pack_json"])


if __name__ == "__main__":
    main()
