"""Draws a sheet of 64 fixed prompts with a fixed seed, to compare a pack with another one.

    python recipes/emoji/sheet.py PACK --out sheet.png

`prompts.txt` holds 40 labels of training concepts, 8 more with a style, 12 labels of concepts that no model has seen,
and 4 compositions. Each picture is the best of eight by the pack's own CLIP.
"""

import argparse
from pathlib import Path

from PIL import Image

from codebrush import Codebrush
from codebrush.data.contact_sheet import contact_sheet

PROMPTS = Path(__file__).parent / "prompts.txt"
COLUMNS, RERANK = 16, 8


def drawn_sheet(brush: Codebrush, prompts: list[str], rerank: int) -> Image.Image:
    """The best of `rerank` candidates for each prompt, labelled with the prompt."""
    drawn = [brush.generate(prompt, n=1, seed=0, rerank=rerank)[0].image for prompt in prompts]
    return contact_sheet(drawn, prompts, columns=COLUMNS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pack")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    prompts = PROMPTS.read_text(encoding="utf-8").splitlines()
    drawn_sheet(Codebrush.from_pretrained(options.pack), prompts, RERANK).save(options.out)


if __name__ == "__main__":
    main()
