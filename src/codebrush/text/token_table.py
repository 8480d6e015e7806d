"""The distilled token table: a row for each token of the built-in WordPiece vocabulary, in the order of ids.

A row is what a small sentence encoder makes of that token alone, cut to 128 principal components and weighted
by log rank, so that the plain mean of a text's rows already says what the text is about.
recipes/distil_token_table.py makes it; NOTICE names the source. The idea is model2vec's (Tulkens and van
Dongen, 2024).
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
    """(V, 128) float32: the row of token id i of `Tokenizer.wordpiece()` is row i. The padding token's row is
    zero.

    A missing or damaged file is a PackError.
    """
    path = Path(folder) / TABLE_FILE
    if not path.is_file():
        raise PackError(f"{path} is missing: install the package again, or make it with recipes/distil_token_table.py")
    try:
        return load_file(path)[TABLE_KEY].float()
    except (SafetensorError, OSError, KeyError) as error:
        raise PackError(f"{path} is damaged ({error}): install the package again") from error
