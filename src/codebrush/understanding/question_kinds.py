"""Says whether an answer is of the kind that a question asks for: a number, a colour, yes or no, or something else.

It knows English questions as people type them ("how many dogs", "what color is it?"). A question of no known kind takes
any answer.
"""

import re

from PIL import ImageColor

NUMBERS = frozenset(
    ["none", "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]
)
COLOURS = frozenset((*ImageColor.colormap, "grey"))
SHADES = frozenset(("light", "dark", "pale", "bright", "and", "with"))
_COUNT = re.compile(r"(how many|count|(what is |what's )?the number of)\b")
_YES_OR_NO = re.compile(
    r"(is|are|was|were|am|do|does|did|can|could|has|have|had|will|would|should|isn't|aren't|doesn't|don't)\b"
)
_COLOUR = re.compile(r"\bcolou?rs?\b")
_SHAPE = re.compile(r"\bshapes?\b")
_OPEN = re.compile(r"(what|which|who|whose|whom|where|when|why|how|what's|who's|where's)\b")
_NUMERIC = re.compile(r"\b(how (much|old|tall|big|long|far|large)|number|numbers|digit|time|year|age|date|price)\b")


def fits_question(question: str, answer: str) -> bool:
    """Whether `answer` is of the kind that `question` asks for; an empty answer fits none."""
    asked, given = (" ".join(text.lower().split()).strip(" ?.!") for text in (question, answer))
    words = given.split()
    if not words:
        return False
    is_number = given.isdecimal() or given in NUMBERS
    if _COUNT.match(asked):
        return is_number
    is_yes_or_no = given in ("yes", "no")
    if _YES_OR_NO.match(asked):
        choice = rf"\b{re.escape(given)} or\b|\bor (an? |the )?{re.escape(given)}\b"
        return is_yes_or_no or re.search(choice, asked) is not None
    is_colour = all(word in COLOURS or word in SHADES for word in words) and not COLOURS.isdisjoint(words)
    if _COLOUR.search(asked):
        return is_colour
    if not (_OPEN.match(asked) or _SHAPE.search(asked)):
        return True
    if is_number and not _NUMERIC.search(asked):
        return False
    return not is_yes_or_no and not (is_colour and (_SHAPE.search(asked) or asked.startswith("where")))
