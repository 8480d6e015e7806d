"""The distilled word table: one vector for each of some 80,000 English words that the WordPiece vocabulary only spells.

A row is the direction in which the small sentence encoder of the token table (`codebrush.text.token_table`) sees the
whole word, along the first of the same principal components. recipes/distil_token_table.py makes the table; NOTICE
names its sources.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from codebrush.errors import PackError, first_line
from codebrush.files import atomic_file
from codebrush.text.token_table import WORDPIECE_FOLDER

WORDS_FILE = "word_table.safetensors"
LARGEST = 127  # of a code


class WordTable:
    """Unit vectors of words. Raises PackError if the file is missing or damaged."""

    def __init__(self, path: str | Path = WORDPIECE_FOLDER / WORDS_FILE):
        if not Path(path).is_file():
            raise PackError(
                f"{path} is missing: install the package again, or make it with recipes/distil_token_table.py"
            )
        try:
            with safe_open(path, "pt") as file:
                self._codes = file.get_tensor("codes")  # (W, D) int8
                words = bytes(file.get_tensor("words").numpy()).decode().split("\n")
        except (SafetensorError, OSError, UnicodeDecodeError) as error:
            raise PackError(f"{path} is damaged ({first_line(error)}): install the package again") from error
        self.places = {word: place for place, word in enumerate(words)}
        """The words in small letters, and the row of each."""
        if len(self.places) != len(self._codes):
            raise PackError(f"{path} is damaged (its words and rows differ in number): install the package again")

    def vector(self, word: str) -> Tensor | None:
        """The unit vector (D,) of a word in small letters or of its singular; None if the table has neither."""
        for form in (word, *singulars_of(word)):
            if (place := self.places.get(form)) is not None:
                return F.normalize(self._codes[place].float(), dim=0)
        return None


def singulars_of(word: str) -> list[str]:
    """The words that a word may be the plural of, by its ending: of "cherries" cherrie, cherri and cherry."""
    endings = {"s": "", "es": "", "ies": "y"}
    return [word.removesuffix(ending) + singular for ending, singular in endings.items() if word.endswith(ending)]


def write_word_table(path: Path, words: Sequence[str], rows: Tensor, facts: dict[str, str]) -> None:
    """Write the directions of `rows` (W, D) for `words`, which hold no line breaks, with `facts` as metadata."""
    codes = (rows / rows.abs().amax(dim=1, keepdim=True) * LARGEST).round().to(torch.int8)
    letters = torch.frombuffer(bytearray("\n".join(words).encode()), dtype=torch.uint8)
    with atomic_file(path) as part:
        save_file({"codes": codes, "words": letters}, part, metadata=facts)
