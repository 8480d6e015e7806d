"""Adds a trained VQGAN to a pack as one that trainings on photographs begin from.

    python recipes/photos/add_start.py runs/photos-vqgan src/codebrush/packs/emoji

Writes PACK/starts/photographs and the entry "starts" of PACK/pack.json. `codebrush train` takes the pack's own VQGAN or
this one, whichever reconstructs a few of the pictures better.
"""

import argparse
import json
from pathlib import Path

import torch

from codebrush.files import write_json
from codebrush.models.vqgan import VQGAN
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
    info = json.loads((given.pack / "pack.json").read_text(encoding="utf-8"))
    info["starts"] = {"vqgan": {NAME: {"folder": folder, "licence": LICENCE}}}
    write_json(given.pack / "pack.json", info)


if __name__ == "__main__":
    main()
