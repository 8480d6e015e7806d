"""The distilled token table: one vector for each token of the built-in WordPiece vocabulary, in the order of ids.

A row is the embedding of that token alone by a small sentence encoder, reduced to 128 principal components and weighted
by log rank, so that the plain mean of a text's rows already says what the text is about (model2vec, Tulkens and van
Dongen 2024). recipes/distil_token_table.py makes the table; NOTICE names the source.
"""

from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from codebrush.errors import PackError

WORDPIECE_FOLDER = Path(__file__).parent / "wordpiece"
TABLE_FILE = "token_table.safetensors"
TABLE_KEY = "token_table"


def token_table(folder: str | Path = WORDPIECE_FOLDER) -> Tensor:
    """The table (V, 128) float32: row i belongs to token id i of `Tokenizer.wordpiece()`, and that of padding is zero.

    Raises:
        PackError: if the file is missing or damaged.
    """
    path = Path(folder) / TABLE_FILE
    if not path.is_file():
        raise PackError(f"{path} is missing: install the package again, or make it with recipes/distil_token_table.py")
    try:
        return load_file(path)[TABLE_KEY].float()
    except (SafetensorError, OSError, KeyError) as error:
        raise PackError(f"{path} is damaged ({error}): install the package again") from error
