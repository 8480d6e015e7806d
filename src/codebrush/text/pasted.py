"""Understands prompts that were written for other programs, and says what in them has no meaning here.

    (a dog)  ((a dog))  {a dog}   more weight: 1.1 for each bracket, 1.05 for each brace (AUTOMATIC1111, NovelAI)
    [a dog]                       less: 1 / 1.1
    (a dog:1.3)  (a dog)1.3  (a dog)++    the weight is 1.3; 1.1 for each plus, 1 / 1.1 for each minus (also compel)
    a dog AND a cat               parts, as "a dog | a cat"
    \\( \\) \\[ \\] \\{ \\}             brackets that are text, as are those without a counterpart, and (16:9)
    \\AND \\BREAK \\--x \\_\\_x          words that are text

Words whose weight is not that of their part stay in the part's text, and what their weight is above it (below it) leads
to them (away from them) as a part of its own: "a (red:1.3) apple" is "a red apple | red:0.3". A weight of 0 leaves them
out.

Left out and named: <lora:...> and other tags, embedding:..., __wildcards__, and --options as of Midjourney. Words that
change on the way ([a:b:0.5], [a|b]) or are chosen at random ({a|b}) are named, and read as one of them.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from codebrush.errors import PromptError
from codebrush.text.prompts import MAX_PROMPT_LENGTH, parse_prompt, read_number

MORE, BRACE = 1.1, 1.05
GAP = "\0"  # where something was taken out
_GAPS = re.compile(r"[\s,]*\0[\s,\0]*")
DEEPEST = 20  # brackets within each other
PAIRS = {"(": ")", "[": "]", "{": "}"}
_TAG = re.compile(
    r"(?<!\\)<\w+:[^<>|]*>|\bembedding:[^\s,()\[\]]+|(?<!\\)__[\w/-]+__|(?<=\s)--[a-z]+\b[^|]*?(?=\s--[a-z]|[|]|$)",
    re.IGNORECASE,
)
_WEIGHT = re.compile(r"(?P<text>.*[^\s:].*):\s*(?P<number>[+-]?(\d+\.?\d*|\.\d+))\s*", re.DOTALL)
_RATIO = re.compile(r"\d:\d+\s*$")  # of sides, or a time: its colon is text
_SWITCH = re.compile(r"(?:(?P<first>[^:]*):)?(?P<then>[^:]*):\s*(\d+\.?\d*|\.\d+)\s*")
_SUFFIX = re.compile(r"(?P<number>\d*\.\d+)(?=[\s,;|)\]}]|$)|(?P<signs>\++|-+)(?=[\s,;|)\]}]|$)")
_AND = re.compile(r"\s+AND\s+")
_BREAK = re.compile(r"\s*(?<!\\)\bBREAK\b[\s,]*")
_TEXT = re.compile(  # where a backslash is needed for text to be text
    r"(?=\bAND\b|\bBREAK(?![^\W_])|(?<!\S)--[a-z]|__)|(?<=_)(?=_)", re.IGNORECASE
)
_KEPT = re.compile(r"\\(?=AND\b|BREAK(?![^\W_])|--[a-z\\]|_)", re.IGNORECASE)  # such a backslash
_FOREIGN = re.compile(r"[()\[\]{}]|<\w+:|\bembedding:|__\w|\s--[a-z]|\bAND\b|\bBREAK\b|\\--|\\_", re.IGNORECASE)

Run = tuple[str, float]  # plain text and its weight within its part


def pasted(prompt: str) -> tuple[str, list[str]]:
    """A prompt in the syntax of `codebrush.text.prompts`, and a line for each thing that has no meaning here.

    One that has nothing of other programs comes back as it is, and so does what is no prompt at all.

    Raises:
        PromptError: if more than 20 brackets stand within each other.
    """
    if not isinstance(prompt, str) or len(prompt) > MAX_PROMPT_LENGTH or not _FOREIGN.search(prompt):
        return prompt, []
    said: list[str] = []
    text = _TAG.sub(lambda match: _named(match[0], said), prompt.replace(GAP, " "))
    if not text.isupper():
        text = _BREAK.sub(", ", _AND.sub(" | ", text))
    scan = _Scan(text)
    if text == prompt and not _KEPT.search(prompt) and not any(each in prompt for each in (*PAIRS, *PAIRS.values())):
        return prompt, []
    parts = [written for part in scan.parts(said) for written in part]
    return " | ".join(parts), said


def typed(prompt: str) -> str:
    """A prompt in the syntax of `codebrush.text.prompts` alone, as it is typed where other programs' is read too."""
    if pasted(prompt)[0] == prompt:
        return prompt
    parts = []
    for part in parse_prompt(prompt).parts:
        text = _TEXT.sub(r"\\", re.sub(r"([\\:|()\[\]{}<>])", r"\\\1", part.text))
        numbers = [] if part.weight == 1 and part.stop is None else [part.weight]
        parts.append(":".join([text, *map(repr, numbers), *([] if part.stop is None else [repr(part.stop)])]))
    return " | ".join(parts)


def _named(tag: str, said: list[str]) -> str:
    tag = tag.strip()
    if tag.startswith("--no "):
        said.append(
            f'"{_short(tag)}" is an option of another program, so it counts for nothing: say it as the negative prompt'
        )
    else:
        said.append(f'"{_short(tag)}" is for another program, so it counts for nothing here')
    return GAP


@dataclass
class _Scan:
    """Reads a text from its beginning; `ends` is where the bracket ends that begins at a place, if it does."""

    text: str
    ends: dict[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        open_at: list[int] = []
        for place, letter in _unescaped(self.text):
            if letter in PAIRS:
                open_at.append(place)
                if len(open_at) > DEEPEST:
                    raise PromptError(
                        f"the prompt has more than {DEEPEST} brackets within each other: write \\( for text"
                    )
            elif letter in PAIRS.values() and any(PAIRS[self.text[begin]] == letter for begin in open_at):
                while PAIRS[self.text[open_at[-1]]] != letter:
                    open_at.pop()
                self.ends[open_at.pop()] = place

    def parts(self, said: list[str]) -> Iterator[list[str]]:
        """For each part of the prompt the parts that it is written as."""
        for begin, end in self.split("|"):
            scan = _Scan(self.text[begin:end])
            colons = [at for at, _ in scan.split(":") if at and scan.text[at : at + 1].strip()]
            body, tail = (scan.text[: colons[0] - 1], scan.text[colons[0] :]) if colons else (scan.text, "")
            written = _written(_Scan(body).runs(said), tail)
            if written:
                yield written

    def split(self, mark: str) -> Iterator[tuple[int, int]]:
        """Where the text between marks that stand in no bracket begins and ends."""
        begin, past = 0, -1
        for place, letter in _unescaped(self.text):
            if place <= past:
                continue
            if place in self.ends:
                past = self.ends[place]
            elif letter == mark:
                yield begin, place
                begin = place + 1
        yield begin, len(self.text)

    def runs(self, said: list[str]) -> list[Run]:
        """The text in runs of one weight each, without brackets and escapes."""
        runs: list[Run] = []
        place = 0
        while place < len(self.text):
            letter = self.text[place]
            if letter == "\\" and self.text[place + 1 : place + 2] in (
                *PAIRS,
                *PAIRS.values(),
                "\\",
                ":",
                "|",
                "<",
                ">",
            ):
                runs.append((self.text[place + 1], 1.0))
                place += 2
            elif _KEPT.match(self.text, place):
                place += 1
            elif place in self.ends:
                end = self.ends[place]
                suffix = _SUFFIX.match(self.text, end + 1) if letter == "(" else None
                runs += _bracket(letter, self.text[place + 1 : end], suffix, said)
                place = suffix.end() if suffix else end + 1
            else:
                runs.append((letter, 1.0))
                place += 1
        return runs


def _unescaped(text: str) -> Iterator[tuple[int, str]]:
    escaped = False
    for place, letter in enumerate(text):
        if escaped or letter == "\\":
            escaped = not escaped
        else:
            yield place, letter


def _bracket(kind: str, inner: str, suffix: re.Match[str] | None, said: list[str]) -> list[Run]:
    """The runs of what stands in a bracket."""
    factor = {"(": MORE, "[": 1 / MORE, "{": BRACE}[kind]
    scan = _Scan(inner)
    choices = [inner[begin:end] for begin, end in scan.split("|")]
    if kind != "(" and len(choices) > 1:
        how = "take turns on the way" if kind == "[" else "are chosen among at random"
        said.append(f'"{_short(choices[0])}" is read of "{_short(inner)}", whose words {how} in other programs')
        return _Scan(choices[0]).runs(said)
    if kind == "[" and (switch := _SWITCH.fullmatch(inner)):
        read = switch["then"].strip() or (switch["first"] or "").strip()
        said.append(f'"{_short(read)}" is read of "[{_short(inner)}]", whose words change on the way in other programs')
        return _Scan(read).runs(said)
    if kind == "(":
        if suffix and suffix["number"]:
            factor = float(suffix["number"])
        elif suffix:
            factor = MORE ** len(suffix["signs"]) if suffix["signs"][0] == "+" else MORE ** -len(suffix["signs"])
        elif (weight := _WEIGHT.fullmatch(inner)) and not _RATIO.search(inner):
            scan, factor = _Scan(weight["text"]), float(weight["number"])
    return [(text, weight * factor) for text, weight in scan.runs(said)]


def _written(runs: list[Run], tail: str) -> list[str]:
    """A part, and what leads to those of its words whose weight is another, in the syntax of prompts. `tail` is the
    part's own weight, and stop, as it was written."""
    merged: list[Run] = []
    for text, weight in runs:
        if merged and merged[-1][1] == weight:
            merged[-1] = (merged[-1][0] + text, weight)
        else:
            merged.append((text, weight))
    weights = {weight for text, weight in merged if text.strip(" ,\0")}
    if not weights and not any(GAP in text for text, _ in merged):
        weights = {weight for text, weight in merged if text.strip()}
    if not weights:
        return []
    number, colon, stop = tail.strip().partition(":")
    own = read_number(number) if tail else 1.0
    common = weights.pop() if len(weights) == 1 else 1.0
    words = "".join(text if weight > 0 or common == weight else GAP for text, weight in merged)
    if own is None or (common == 1 and not weights):  # no number is refused as it would be without brackets
        return [f"{_plain(words)}:{tail}" if tail else _plain(words)]
    found = [(words, own * common)] if _tidy(words) else []
    if weights:
        for weight in dict.fromkeys(weight for _, weight in merged if weight not in (0.0, 1.0)):
            same = ", ".join(tidy for text, each in merged if each == weight and (tidy := _tidy(text.strip(" ,"))))
            found.append((same, own * (weight if weight < 0 else weight - 1)))
    return [f"{_plain(text)}{_number(weight, colon + stop)}" for text, weight in found]


def _number(weight: float, stop: str) -> str:
    return f":{round(weight, 6)!r}{stop}" if stop or weight != 1 else ""


def _plain(text: str) -> str:
    text = _tidy(text).replace("\\", "\\\\")
    return text.replace(":", "\\:").replace("|", "\\|")


def _tidy(text: str) -> str:
    """A text without the spaces, and the commas beside a GAP, where something was taken out."""
    if GAP in text:
        text = _GAPS.sub(lambda match: ", " if "," in match[0] else " ", text).strip(" ,")
    return " ".join(text.split())


def _short(text: str) -> str:
    text = text.strip()
    return text if len(text) <= 40 else f"{text[:37]}..."
