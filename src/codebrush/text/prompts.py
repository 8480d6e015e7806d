"""A prompt as typed in; its parts and their weights out. And the sentences that class labels are put into.

The syntax, which only `generate` and `edit` read:

    a dog                         one part of weight 1
    a dog:1.2 | blurry:-0.5       parts stand between bars; a weight touches its colon
    a dog:1:0.4                   under a distance of 0.4 this part guides no more: its stop
    flag: France                  a colon before a space, or at the end of a part, is text
    at 12\\:30 | this \\| that      a backslash before a colon, a bar or a backslash makes it text

So `at 12:30` means the text `at 12` with the weight 30, and `re:zero` is an error that says how to escape the
colon. Any other backslash is text. Runs of spaces, tabs, line breaks and control characters count as one
space.
"""

import math
import re
import unicodedata
from dataclasses import dataclass

from codebrush.errors import PromptError

LONGEST_PROMPT = 4_000  # characters
LARGEST_WEIGHT = 100.0

# The embeddings of several wordings of one label, averaged, classify better than any one of them
# (Radford et al. 2021, section 3.1.4).
ZERO_SHOT_TEMPLATES = (
    "{}",
    "a picture of a {}",
    "a photo of a {}",
    "a drawing of a {}",
    "a small icon of a {}",
    "one {} and nothing else",
    "this shows the {}",
)

_SCANNER = re.compile(r"\\(?P<escaped>[\\:|])|(?P<bar>\|)|(?P<colon>:(?=[^ |]))|(?P<text>.)", re.DOTALL)
_NUMBER = re.compile(r"[+-]?((\d+\.?\d*|\.\d+)(e[+-]?\d+)?|nan|inf|infinity)", re.ASCII | re.IGNORECASE)


@dataclass(frozen=True)
class WeightedText:
    """One part of a prompt: its text without escapes, and how much it counts; negative means away from it.

    `stop`, for guidance alone, is the distance under which the part no longer counts; of a part of negative weight it
    is minus the distance over which it does not.
    """

    text: str
    weight: float = 1.0
    stop: float | None = None


@dataclass(frozen=True)
class Prompt:
    """The parts of a prompt in the order they were written; at least one has a positive weight."""

    parts: tuple[WeightedText, ...]


def parse_prompt(text: str) -> Prompt:
    """Read a prompt in the syntax above.

    Weights are finite and within -100 and 100. A prompt that is blank, over 4,000 characters or not valid
    Unicode, an empty part, a weight that is no such number, and a prompt without a positive weight are each a
    PromptError.
    """
    if not isinstance(text, str):
        raise PromptError(f"a prompt is a text, not {type(text).__name__}")
    if len(text) > LONGEST_PROMPT:
        raise PromptError(f"the prompt has {len(text):,} characters: at most {LONGEST_PROMPT:,} are read")
    text = _clean(text)
    if _is_blank(text):
        raise PromptError("the prompt is empty: say in words what the picture should show")
    parts = tuple(_read_part(words, weight, text) for words, weight in _split(text))
    if not any(part.weight > 0 for part in parts):
        raise PromptError(
            f'no part of the prompt "{_short(text)}" has a positive weight: say what should be in the picture'
        )
    return Prompt(parts)


def read_number(text: str) -> float | None:
    """The number that `text` is, which may be nan or infinite; None where it is none, or has more to it."""
    return float(text) if _NUMBER.fullmatch(text) else None


def _clean(text: str) -> str:
    if any("\ud800" <= letter <= "\udfff" for letter in text):
        raise PromptError(
            "the prompt is not valid Unicode (half of a surrogate pair): type or encode it again as UTF-8"
        )
    spaced = "".join(" " if unicodedata.category(letter) == "Cc" else letter for letter in text)
    return " ".join(spaced.split())


def _is_blank(text: str) -> bool:
    return all(letter.isspace() or unicodedata.category(letter) == "Cf" for letter in text)


def _split(text: str) -> list[tuple[str, str | None]]:
    """The text and the weight, as written, of each part; the weight is None where no colon touches one."""
    words: list[str] = []
    weight: list[str] | None = None
    parts: list[tuple[str, str | None]] = []
    for match in _SCANNER.finditer(text):
        if match["bar"]:
            parts.append(("".join(words), None if weight is None else "".join(weight)))
            words, weight = [], None
        elif weight is not None:
            weight.append(match[0])
        elif match["colon"]:
            weight = []
        else:
            words.append(match["escaped"] or match["text"])
    parts.append(("".join(words), None if weight is None else "".join(weight)))
    return parts


def _read_part(words: str, weight: str | None, prompt: str) -> WeightedText:
    words = words.strip()
    if _is_blank(words):
        raise PromptError(
            f'a part of the prompt "{_short(prompt)}" is empty: words belong beside a bar and before a weight'
        )
    if weight is None:
        return WeightedText(words)
    weight, colon, stop = weight.strip().partition(":")
    value = _read_number("weight", weight, words)
    if abs(value) > LARGEST_WEIGHT:
        place = f'the weight "{_short(weight)}" of "{_short(words)}"'
        raise PromptError(f"{place} is too large: weights lie between {-LARGEST_WEIGHT:g} and {LARGEST_WEIGHT:g}")
    return WeightedText(words, value, _read_number("stop", stop, words) if colon else None)


def _read_number(kind: str, number: str, words: str) -> float:
    place = f'the {kind} "{_short(number)}" of "{_short(words)}"'
    value = read_number(number)
    if value is None:
        raise PromptError(f"{place} is no number: write one such as 1.2, or \\: where the colon is text")
    if "n" in number.lower():
        raise PromptError(f"{place} is not finite: write a number such as 1.2, or \\: where the colon is text")
    if math.isinf(value):
        raise PromptError(f"{place} is too large: write a number such as 1.2")
    return value


def _short(text: str) -> str:
    return text if len(text) <= 60 else text[:57] + "..."
