"""The syntax of prompts: parts with weights. Also the sentences that class labels are put into.

The syntax, which only `generate` and `edit` read (and that of other programs: see `codebrush.text.pasted`):

    a dog                         one part of weight 1
    a dog:1.2 | blurry:-0.5       bars separate parts; a weight follows its colon without a space
    a dog:1:0.4                   guidance stops using this part below a distance of 0.4: its stop
    flag: France                  a colon before a space, or at the end of a part, is text
    at 12\\:30 | this \\| that      a backslash makes the colon, bar or backslash behind it text

So `at 12:30` means the text `at 12` with the weight 30, which is warned about (`doubts`), and `re:zero` is an error
that says how to escape the colon. Any other backslash is text. Runs of spaces, tabs, line breaks and control characters
count as one space.
"""

import math
import re
import unicodedata
from dataclasses import dataclass
from typing import Any

from codebrush.errors import PromptError

MAX_PROMPT_LENGTH = 4_000  # characters
MAX_WEIGHT = 100.0
USUAL_WEIGHT = 10.0  # a larger one is warned about

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
_TIME = re.compile(r"\d+(:\d+)*", re.ASCII)  # behind a colon: the rest of a time or a ratio
_NUMBER = re.compile(r"[+-]?((\d+\.?\d*|\.\d+)(e[+-]?\d+)?|nan|inf|infinity)", re.ASCII | re.IGNORECASE)


@dataclass(frozen=True)
class WeightedText:
    """One part of a prompt: its text without escapes, and its weight, -100 to 100; a negative one leads away from it.

    `stop` is for guidance alone: below this distance the part is no longer used. With a negative weight it is minus the
    distance above which the part is not used.
    """

    text: str
    weight: float = 1.0
    stop: float | None = None


@dataclass(frozen=True)
class Prompt:
    """The parts of a prompt in the order in which they were written; at least one has a positive weight."""

    parts: tuple[WeightedText, ...]


def parse_prompt(text: str) -> Prompt:
    """Read a prompt in the syntax above.

    Raises:
        PromptError: if the prompt is blank, longer than 4,000 characters or not valid Unicode, if a part is empty, if a
            weight is not a number from -100 to 100, or if no weight is positive.
    """
    if not isinstance(text, str):
        raise PromptError(f"a prompt is a text, not {type(text).__name__}")
    if len(text) > MAX_PROMPT_LENGTH:
        raise PromptError(f"the prompt has {len(text):,} characters: at most {MAX_PROMPT_LENGTH:,} are read")
    text = _clean(text)
    if _is_blank(text):
        raise PromptError("the prompt is empty: describe what the picture should show")
    parts = tuple(_read_part(part, weight, text) for part, weight in _split(text))
    if not any(part.weight > 0 for part in parts):
        raise PromptError(
            f'no part of the prompt "{_short(text)}" has a positive weight: describe what should be in the picture'
        )
    return Prompt(parts)


def doubts(text: str) -> list[str]:
    """A line for each part of a valid prompt whose weight was hardly meant as one: a time or ratio (`12:30`, `16:9`),
    or a number beyond what changes anything.
    """
    if ":" not in text:
        return []
    found = []
    for part, (_, written) in zip(parse_prompt(text).parts, _split(_clean(text)), strict=True):
        read = f'"{_short(part.text)}" is read with the weight {part.weight:g}'
        if part.text[-1:].isdigit() and _TIME.fullmatch((written or "").strip()):
            found.append(f"{read}: where the colon is text, as in 12:30, write \\: for it")
        elif abs(part.weight) > USUAL_WEIGHT:
            found.append(f"{read}, which drowns everything else: weights usually lie between -2 and 2")
    return found


def understood(text: str) -> list[dict[str, Any]]:
    """The parts of a prompt with their weights, and stops if there are any, as plain values for a report."""
    parts = ({"text": part.text, "weight": part.weight, "stop": part.stop} for part in parse_prompt(text).parts)
    return [{name: value for name, value in part.items() if value is not None} for part in parts]


def read_number(text: str) -> float | None:
    """The number that `text` spells, which may be nan or infinite; None if it is anything else."""
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
    """The text of each part, and its weight as it was written, or None where it has none."""
    letters: list[str] = []
    weight: list[str] | None = None
    parts: list[tuple[str, str | None]] = []
    for match in _SCANNER.finditer(text):
        if match["bar"]:
            parts.append(("".join(letters), None if weight is None else "".join(weight)))
            letters, weight = [], None
        elif weight is not None:
            weight.append(match[0])
        elif match["colon"]:
            weight = []
        else:
            letters.append(match["escaped"] or match["text"])
    parts.append(("".join(letters), None if weight is None else "".join(weight)))
    return parts


def _read_part(text: str, weight: str | None, prompt: str) -> WeightedText:
    text = text.strip()
    if _is_blank(text):
        raise PromptError(
            f'a part of the prompt "{_short(prompt)}" is empty: write text between the bars and before each weight'
        )
    if weight is None:
        return WeightedText(text)
    weight, colon, stop = weight.strip().partition(":")
    value = _read_number("weight", weight, text)
    if abs(value) > MAX_WEIGHT:
        place = f'the weight "{_short(weight)}" of "{_short(text)}"'
        raise PromptError(f"{place} is too large: weights lie between {-MAX_WEIGHT:g} and {MAX_WEIGHT:g}")
    return WeightedText(text, value, _read_number("stop", stop, text) if colon else None)


def _read_number(kind: str, number: str, text: str) -> float:
    place = f'the {kind} "{_short(number)}" of "{_short(text)}"'
    value = read_number(number)
    if value is None:
        raise PromptError(f"{place} is not a number: write one such as 1.2, or \\: where the colon is text")
    if "n" in number.lower():
        raise PromptError(f"{place} is not finite: write a number such as 1.2, or \\: where the colon is text")
    if math.isinf(value):
        raise PromptError(f"{place} is too large: write a number such as 1.2")
    return value


def _short(text: str) -> str:
    return text if len(text) <= 60 else text[:57] + "..."
