"""Words that no training caption holds in; how often each CLIP finds the picture that they mean out.

    python recipes/emoji/open_words.py emoji.parquet PACK_OR_MODEL [...] --style fluent-3d

`synonyms.csv` holds 453 words, each with the label of a training concept: WordNet 3.1 has the word as a synonym of the
label or of one of its keywords, or as one of its kinds, two steps away at most, and neither the word nor its plural
occurs in any label or keyword of the training split. A word finds its picture when one of that label is among the first
five of all pictures of one style. The first line is the baseline that knows no picture: the nearest labels by the mean of
the distilled token table's rows.
"""

import argparse
import csv
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from codebrush.data.captions import open_source
from codebrush.data.images import stack
from codebrush.evaluation.alignment import cross_retrieval
from codebrush.models.clip import CLIP
from codebrush.pack import open_clip
from codebrush.text.token_table import token_table
from codebrush.text.tokenizer import Tokenizer

SYNONYMS = Path(__file__).parent / "synonyms.csv"
BATCH = 64


def synonyms() -> tuple[list[str], list[str]]:
    """The words, and the label that each means."""
    with SYNONYMS.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    return [row["word"] for row in rows], [row["label"] for row in rows]


def found(pictures: Tensor, labels: list[str], texts: Tensor, meant: list[str]) -> dict[str, float]:
    """recall@k of unit texts (W, E) over unit pictures (N, E), which are called `labels`."""
    places = {label: [word for word, its in enumerate(meant) if its == label] for label in set(meant)}
    return cross_retrieval(pictures, texts, [places.get(label, []) for label in labels])["text_to_image"]


def by_table(tokenizer: Tokenizer, words: list[str], labels: list[str], meant: list[str]) -> dict[str, float]:
    """The same with labels for pictures, by the mean of the table's rows alone."""
    table, ends = token_table(), {tokenizer.start_id, tokenizer.end_id, tokenizer.pad_id}

    def mean(text: str) -> Tensor:
        ids = [token for token in tokenizer([text], on_long="truncate")[0].tolist() if token not in ends]
        return F.normalize(table[ids].mean(0), dim=0)

    once = sorted(set(labels))
    return found(torch.stack([mean(label) for label in once]), once, torch.stack([mean(word) for word in words]), meant)


@torch.no_grad()
def by_clip(clip: CLIP, tokenizer: Tokenizer, parquet: str, style: str, words: list[str], meant: list[str]):
    where = ("skin_tone is null", f"style == {style}")
    source = open_source(parquet, split="train", where=where, captions=("{label}",))
    labels = [source.captions(row)[0] for row in range(len(source))]
    pictures = torch.cat(
        [
            clip.encode_image(
                stack([source.image(row) for row in range(first, min(first + BATCH, len(source)))], clip.image_size)
            )
            for first in range(0, len(source), BATCH)
        ]
    )
    texts = torch.cat(
        [clip.encode_text(tokenizer(words[first : first + BATCH])) for first in range(0, len(words), BATCH)]
    )
    return found(pictures, labels, texts, meant), labels


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parquet")
    parser.add_argument("clip", nargs="+", help="packs, or model folders of training runs")
    parser.add_argument("--style", default="fluent-3d")
    options = parser.parse_args()
    words, meant = synonyms()
    lines = []
    for name in options.clip:
        clip, tokenizer = open_clip(name)
        figures, labels = by_clip(clip.eval(), tokenizer, options.parquet, options.style, words, meant)
        lines.append((name, figures))
    lines.insert(0, ("table alone, words to labels", by_table(Tokenizer.wordpiece(), words, labels, meant)))
    for name, figures in lines:
        shown = "  ".join(f"recall@{k} {100 * figures[f'recall_at_{k}']:.1f} %" for k in (1, 5, 10))
        print(f"{name}: {shown}  ({figures['queries']:.0f} words, {len(labels)} pictures)")


if __name__ == "__main__":
    main()
