"""A pack in; a sheet of the same 64 prompts with the same seed out, to lay beside that of another pack.

    python recipes/emoji/sheet.py PACK --out sheet.png

`prompts.txt` holds 40 labels of training concepts, 8 with a style, 12 labels of concepts that no model has seen, and 4
compositions. Each picture is the best of eight by the pack's own CLIP.
"""

import argparse
from pathlib import Path

from codebrush import Codebrush
from codebrush.data.images import contact_sheet

PROMPTS = Path(__file__).parent / "prompts.txt"
COLUMNS = 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pack")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    brush = Codebrush.from_pretrained(options.pack)
    prompts = PROMPTS.read_text(encoding="utf-8").splitlines()
    drawn = [brush.generate(prompt, n=1, seed=0, rerank=8)[0].image for prompt in prompts]
    contact_sheet(drawn, prompts, columns=COLUMNS).save(options.out)


if __name__ == "__main__":
    main()
