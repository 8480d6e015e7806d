"""Measures how well a CLIP understands words that are in no training caption: whether each finds a fitting picture.

    python recipes/emoji/open_words.py emoji.parquet PACK_OR_MODEL [...] --style fluent-3d

`synonyms.csv` holds 453 words, each with the label of a training concept: in WordNet 3.1 the word is a synonym or a
hyponym, at most two steps away, of the label or of one of its keywords, and neither the word nor its plural occurs in
any label or keyword of the training split. A word counts as found if a picture with that label is among the first five
of all pictures of one style; "one token" counts only words that are one token of the vocabulary. The first line is a
baseline without pictures: it searches the labels, with the mean of the distilled token table's rows as the embedding.
Each CLIP is measured alone and with the labels of its training as help (`codebrush.data.known_texts`).
"""

import argparse
import csv
from pathlib import Path

import torch
import torch.nn.functional as F
from judging import emoji, labels_of
from torch import Tensor

from codebrush.data.decoding.images import stack
from codebrush.data.known_texts import KnownTexts
from codebrush.data.sources.captioned_images import CaptionedImages
from codebrush.evaluation.alignment import cross_retrieval
from codebrush.evaluation.rows import embed_texts
from codebrush.models.clip import CLIP
from codebrush.pack.pack import open_clip
from codebrush.text.token_table import token_table
from codebrush.text.tokenizer import Tokenizer

SYNONYMS = Path(__file__).parent / "synonyms.csv"
BATCH = 64
FRAME = 2  # the start and end tokens of every text


def synonyms() -> tuple[list[str], list[str]]:
    """The words, and the label of each."""
    with SYNONYMS.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    return [row["word"] for row in rows], [row["label"] for row in rows]


def found(pictures: Tensor, labels: list[str], texts: Tensor, meant: list[str]) -> dict[str, float]:
    """recall@k of unit text vectors (W, E), whose labels are `meant`, over unit image vectors (N, E) with `labels`."""
    places = {label: [word for word, its in enumerate(meant) if its == label] for label in set(meant)}
    return cross_retrieval(pictures, texts, [places.get(label, []) for label in labels])["text_to_image"]


def table_means(tokenizer: Tokenizer, texts: list[str]) -> Tensor:
    """The mean of each text's rows of the distilled table, as unit vectors (B, 128)."""
    tokens = tokenizer(texts, on_long="truncate")
    words = (tokens != tokenizer.pad_id) & (tokens != tokenizer.start_id) & (tokens != tokenizer.end_id)
    return F.normalize((token_table()[tokens] * words[..., None]).sum(1), dim=1)


@torch.no_grad()
def embeddings(clip: CLIP, source: CaptionedImages) -> Tensor:
    """Unit vectors of all pictures (N, E)."""
    parts = [range(first, min(first + BATCH, len(source))) for first in range(0, len(source), BATCH)]
    return torch.cat([clip.encode_image(stack([source.image(row) for row in part], clip.image_size)) for part in parts])


def open_words(parquet: str, clips: list[str], style: str) -> dict[str, dict[str, float]]:
    """recall@k of all words, and recall@5 of those that are one token, for the table and each of `clips`."""
    words, meant = synonyms()
    source = emoji(parquet, "train", f"style == {style}")
    labels = [source.captions(row)[0] for row in range(len(source))]
    plain = Tokenizer.wordpiece()
    whole = ((plain(words) != plain.pad_id).sum(1) - FRAME == 1).nonzero().flatten().tolist()

    def figures(pictures: Tensor, names: list[str], texts: Tensor) -> dict[str, float]:
        part = found(pictures, names, texts[whole], [meant[place] for place in whole])
        of_whole = {"one_token_recall_at_5": part["recall_at_5"], "one_token_words": part["queries"]}
        return {**found(pictures, names, texts, meant), **of_whole}

    once = sorted(set(labels))
    result = {"table": figures(table_means(plain, once), once, table_means(plain, words))}
    for name in clips:
        clip, tokenizer = open_clip(name)
        with torch.no_grad():
            texts = embed_texts(clip, tokenizer, words)
        pictures, known = embeddings(clip, source), KnownTexts(clip, tokenizer, labels_of(emoji(parquet, "train")))
        result[name] = figures(pictures, labels, texts)
        result[f"{name} with known labels"] = figures(pictures, labels, known.helped(words, texts))
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parquet")
    parser.add_argument("clip", nargs="+", help="packs, or model folders of training runs")
    parser.add_argument("--style", default="fluent-3d")
    options = parser.parse_args()
    for name, part in open_words(options.parquet, options.clip, options.style).items():
        recalls = ", ".join(f"@{k} {100 * part[f'recall_at_{k}']:.1f} %" for k in (1, 5, 10))
        whole = f"@5 {100 * part['one_token_recall_at_5']:.1f} % of {part['one_token_words']:.0f} that are one token"
        print(f"{name}: recall {recalls} of {part['queries']:.0f} words, {whole}, among {part['among']:.0f}")


if __name__ == "__main__":
    main()
