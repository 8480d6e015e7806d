"""Adds a trained VQGAN to a pack as one that trainings on photographs begin from.

    python recipes/photos/add_start.py runs/photos-vqgan src/codebrush/packs/emoji

Writes PACK/starts/photographs and the entry "starts" of PACK/pack.json. `codebrush train` takes the pack's own VQGAN or
this one, whichever reconstructs a few of the pictures better.
"""

import argparse
from pathlib import Path

import torch

from codebrush.models.vqgan import VQGAN
from codebrush.pack.writing import add_entries
from codebrush.training.run_folder import MODEL_FOLDER

NAME = "photographs"
LICENCE = "CC BY-SA 4.0; trained on crops of the photographs named in NOTICE"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("pack", type=Path)
    given = parser.parse_args()
    folder = f"starts/{NAME}"
    VQGAN.from_pretrained(given.run / MODEL_FOLDER).save_pretrained(given.pack / folder, torch.float16)
    add_entries(given.pack, {"starts": {"vqgan": {NAME: {"folder": folder, "licence": LICENCE}}}})


if __name__ == "__main__":
    main()
