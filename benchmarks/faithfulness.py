"""How faithful a pack's heat maps are, by insertion and deletion compared with random maps.

    python benchmarks/faithfulness.py emoji emoji.parquet --caption "{label}" --where "skin_tone is null" --pictures 40

Prints means over the pictures, and the share of pictures whose map beats the mean of the random ones.
"""

import argparse
import statistics

import numpy as np
import torch

from codebrush.data.preprocess import pixels_for
from codebrush.data.sources.captioned_images import open_source
from codebrush.pipeline import Codebrush
from codebrush.understanding.attribution import explain
from codebrush.understanding.faithfulness import faithfulness


def main() -> None:
    """See the top of the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pack")
    parser.add_argument("source")
    parser.add_argument("--caption", default="{caption}")
    parser.add_argument("--where", action="append", default=[])
    parser.add_argument("--split", default="test")
    parser.add_argument("--pictures", type=int, default=40)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    brush = Codebrush.from_pretrained(options.pack)
    source = open_source(options.source, split=options.split, where=options.where, captions=[options.caption])
    chosen = np.linspace(0, len(source) - 1, min(options.pictures, len(source))).astype(int)
    print("| method | insertion | random | better | deletion | random | better |\n|---|---|---|---|---|---|---|")
    for method in ("gradient", "occlusion"):
        found = []
        for number in chosen.tolist():
            pixels = pixels_for(brush.clip, [source.image(number)])[0]
            heat = explain(brush.clip, brush.tokenizer, pixels, source.captions(number)[0], method)
            found.append(faithfulness(brush.clip, pixels, heat.direction, heat.heat))
        inserted = [each.insertion for each in found], [each.insertion_random for each in found]
        deleted = [each.deletion for each in found], [each.deletion_random for each in found]
        cells = [f"{statistics.mean(part):.3f}" for part in (*inserted, *deleted)]
        more = sum(one > other for one, other in zip(*inserted, strict=True)) / len(found)
        less = sum(one < other for one, other in zip(*deleted, strict=True)) / len(found)
        cells = [*cells[:2], f"{more:.0%}", *cells[2:], f"{less:.0%}"]
        print(f"| {method}, {len(found)} pictures | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
