"""Understands prompts that were written for other programs, and says what in them has no meaning here.

    (a dog)  ((a dog))  {a dog}   more weight: 1.1 for each bracket, 1.05 for each brace (AUTOMATIC1111, NovelAI)
    [a dog]                       less: 1 / 1.1
    (a dog:1.3)  (a dog)1.3  (a dog)++    the weight is 1.3; 1.1 for each plus, 1 / 1.1 for each minus (also compel)
    a dog AND a cat  (a | b)      parts, as "a dog | a cat"; within other words "(red | blue)" is "(red, blue)"
    a dog::2 a cat  2::a dog::    parts of these weights (Midjourney, NovelAI)
    \\( \\) \\[ \\] \\{ \\}             brackets that are text, as are those without a counterpart, and (16:9)
    at 12:30 in the 16:9 format   times and ratios between words are text
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
_NUMBERED = "ar|aspect|c|chaos|cw|exp|iw|niji|ow|q|quality|r|repeat|s|seed|stop|stylize|sv|sw|v|version|w|weird|zoom"
_ALONE = "creative|draft|fast|hd|public|raw|relax|stealth|test|testp|tile|turbo|uplight|video"
# Options as of Midjourney. A dash that an editor has made of two hyphens is one before the names that are known.
_OPTION = (
    rf"(?<!\S)(?:--|[\u2013\u2014])(?:(?:{_ALONE})\b|(?:{_NUMBERED})\b(?:[\s=]+[\d.:/x]+(?![^\W\d]))?|style\s+\w+)"
    r"|(?<!\S)--[a-z]+\b[^|]*?(?=\s--[a-z]|[|]|$)"
)
_TAG = re.compile(
    rf"(?<!\\)<\w+:[^<>|]*>|\bembedding:[^\s,()\[\]]+|(?<!\\)__[\w/-]+__|{_OPTION}",
    re.IGNORECASE,
)
# A time or a ratio with more words of its part behind it.
_PROSE = re.compile(r"(?<![\w.:\\+-])\d+(?::\d+)+(?!\d|:|\.\d|\s*(?:$|[|)\]}]))", re.ASCII)
_DOUBLED = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?=[\s,]|$)", re.ASCII)  # a weight behind a double colon
_WEIGHT = re.compile(r"(?P<text>.*[^\s:].*)::?\s*(?P<number>[+-]?(\d+\.?\d*|\.\d+))\s*", re.DOTALL)
_RATIO = re.compile(r"\d:\d+\s*$")  # of sides, or a time: its colon is text
_SWITCH = re.compile(r"(?:(?P<first>[^:]*):)?(?P<then>[^:]*):\s*(\d+\.?\d*|\.\d+)\s*")
_SUFFIX = re.compile(r"(?P<number>\d*\.\d+)(?=[\s,;|)\]}]|$)|(?P<signs>\++|-+)(?=[\s,;|)\]}]|$)")
_AND = re.compile(r"\s+AND\s+")
_BREAK = re.compile(r"\s*(?<!\\)\bBREAK\b[\s,]*")
_TEXT = re.compile(  # where a backslash is needed for text to be text
    r"(?=\bAND\b|\bBREAK(?![^\W_])|(?<!\S)(?:--|[\u2013\u2014])[a-z]|__)|(?<=_)(?=_)", re.IGNORECASE
)
_KEPT = re.compile(
    r"\\(?=AND\b|BREAK(?![^\W_])|--[a-z\\]|[\u2013\u2014][a-z]|[_<>])", re.IGNORECASE
)  # such a backslash
_FOREIGN = re.compile(
    r"[()\[\]{}]|<\w+:|\bembedding:|__\w|(?<!\S)(?:--|[\u2013\u2014])[a-z]|\bAND\b|\bBREAK\b|\\--|\\[\u2013\u2014_<>]"
    r"|::|\d:\d",
    re.IGNORECASE,
)

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
    text = _PROSE.sub(lambda match: match[0].replace(":", "\\:"), text)
    own = not any(each in prompt for each in (*PAIRS, *PAIRS.values(), "::"))
    if own and text == prompt and not _KEPT.search(prompt):
        return prompt, []
    parts = [written for part in _Scan(text).parts(said) for written in part]
    return " | ".join(parts), said


def typed(prompt: str) -> str:
    """A prompt in the syntax of `codebrush.text.prompts` alone, as it is typed where other programs' is read too."""
    if pasted(prompt)[0] == prompt:
        return prompt
    parts = []
    for part in parse_prompt(prompt).parts:
        numbers = [] if part.weight == 1 and part.stop is None else [part.weight]
        parts.append(
            ":".join([_escaped(part.text), *map(repr, numbers), *([] if part.stop is None else [repr(part.stop)])])
        )
    return " | ".join(parts)


def plain_text(text: str) -> tuple[str, list[str]]:
    """The words of a text without weights, such as one of those that guidance includes, written as a prompt of other
    programs or of this one; and a line for each thing that has no meaning there. What is no prompt stays as it is.

    Raises:
        PromptError: if more than 20 brackets stand within each other.
    """
    prompt, said = pasted(text)
    if isinstance(text, str) and said and not prompt.strip():
        return "", said
    try:
        parts = parse_prompt(prompt).parts
    except PromptError:
        return text, []
    if any(part.weight != 1 or part.stop is not None for part in parts):
        said = [*said, f'the weights in "{_short(text)}" count for nothing: this is for texts without weights']
    kept = [part.text for part in parts if part.weight > 0]
    within = [one for one in kept if not any(one != other and one in other for other in kept)]  # emphasis repeats words
    return ", ".join(dict.fromkeys(within)), said


def typed_text(text: str) -> str:
    """A text as it is typed where `plain_text` reads it."""
    return text if plain_text(text) == (text, []) else _escaped(text)


def _escaped(text: str) -> str:
    return _TEXT.sub(r"\\", re.sub(r"([\\:|()\[\]{}<>])", r"\\\1", text))


def _named(tag: str, said: list[str]) -> str:
    tag = tag.strip()
    if tag.lower().startswith("--no "):
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
            for text in _Scan(self.text[begin:end]).doubled():
                scan = _Scan(text)
                colons = [at for at, _ in scan.split(":") if at and scan.text[at : at + 1].strip()]
                body, tail = (scan.text[: colons[0] - 1], scan.text[colons[0] :]) if colons else (scan.text, "")
                for one in _Scan(body).joined():
                    written = _written(_Scan(one).runs(said), tail)
                    if written:
                        yield written

    def doubled(self) -> list[str]:
        """The parts of one that double colons divide, each with its weight behind a colon."""
        places = list(self.split(":"))
        doubles = [begin for begin, end in places[1:-1] if begin == end]
        found, begin, ahead = [], 0, None
        for double in doubles:
            text = self.text[begin : double - 1].strip(" ,")
            weight = _DOUBLED.match(self.text, double + 1)
            begin = weight.end() if weight else double + 1
            if ahead is None and weight is None and _DOUBLED.fullmatch(text):
                ahead = text  # as NovelAI writes it, before the words
                continue
            number = ahead if weight is None else weight[0]
            found.append(text if number is None or not text else f"{text}:{number}")
            ahead = None
        rest = self.text[begin:].strip(" ,") if doubles else self.text
        found.append(rest if ahead is None or not rest else f"{rest}:{ahead}")
        return [text for text in found if text or not doubles]

    def joined(self) -> list[str]:
        """The parts that a part is which is one bracket with bars in it: each is a bracket of the same weight."""
        text = self.text.strip()
        scan = _Scan(text)
        if not text.startswith("(") or 0 not in scan.ends:
            return [self.text]
        end = scan.ends[0]
        suffix = _SUFFIX.match(text, end + 1)
        if end + 1 != len(text) and (suffix is None or suffix.end() != len(text)):
            return [self.text]
        inner, factor = _weighed(text[1:end], suffix)
        parts = [inner[begin:stop] for begin, stop in _Scan(inner).split("|")]
        if len(parts) == 1:
            return [self.text]
        return [f"({part if _weight_of(part) is None else f'({part})'}:{factor!r})" for part in parts if part.strip()]

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
    choices = [inner[begin:end] for begin, end in _Scan(inner).split("|")]
    if kind != "(" and len(choices) > 1:
        how = "take turns on the way" if kind == "[" else "are chosen among at random"
        said.append(f'"{_short(choices[0])}" is read of "{_short(inner)}", whose words {how} in other programs')
        return _Scan(choices[0]).runs(said)
    if kind == "[" and (switch := _SWITCH.fullmatch(inner)):
        read = switch["then"].strip() or (switch["first"] or "").strip()
        said.append(f'"{_short(read)}" is read of "[{_short(inner)}]", whose words change on the way in other programs')
        return _Scan(read).runs(said)
    factor = BRACE if kind == "{" else 1 / MORE
    if kind == "(":
        inner, factor = _weighed(", ".join(each.strip() for each in choices) if len(choices) > 1 else inner, suffix)
    return [(text, weight * factor) for text, weight in _Scan(inner).runs(said)]


def _weighed(inner: str, suffix: re.Match[str] | None) -> tuple[str, float]:
    """What stands in a round bracket without its weight, and the weight, which may stand behind the bracket."""
    if suffix and suffix["number"]:
        return inner, float(suffix["number"])
    if suffix:
        return inner, MORE ** len(suffix["signs"]) if suffix["signs"][0] == "+" else MORE ** -len(suffix["signs"])
    weight = _weight_of(inner)
    return (inner, MORE) if weight is None else (weight["text"].rstrip(":"), float(weight["number"]))


def _weight_of(inner: str) -> re.Match[str] | None:
    """The weight at the end of a text, unless it is a time or a ratio."""
    return None if _RATIO.search(inner) else _WEIGHT.fullmatch(inner)


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
    tail = tail.replace(GAP, " ").strip()
    number, colon, stop = tail.partition(":")
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
