"""Row filters that people type, like "style != noto" or "label in a, b".

The conditions are parsed with regular expressions and compared by plain functions: nothing in them is executed.
"""

import math
import operator
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from codebrush.errors import DataError

COMPARISONS: dict[str, Callable[[Any, Any], bool]] = {
    "==": operator.eq,
    "=": operator.eq,
    "!=": operator.ne,
    "<=": operator.le,
    "<": operator.lt,
    ">=": operator.ge,
    ">": operator.gt,
}
_COLUMN = r"\s*(?:`(?P<quoted>[^`]+)`|(?P<plain>[^\s=!<>`]+))"
_UNARY = re.compile(_COLUMN + r"\s+is\s+(?P<negated>not\s+)?null\s*", re.IGNORECASE)
_MEMBER = re.compile(_COLUMN + r"\s+(?P<negated>not\s+)?in\s+(?P<values>.+)", re.IGNORECASE | re.DOTALL)
_BINARY = re.compile(_COLUMN + r"\s*(?P<operator>==|=|!=|<=|<|>=|>)\s*(?P<value>.*)", re.DOTALL)
_LIST_ITEM = re.compile(r"""\s*(?:"([^"]*)"|'([^']*)'|([^,]*?))\s*(?:,|$)""")


@dataclass(frozen=True)
class Clause:
    """One condition on one column; `operator` is one of COMPARISONS, "in", "not in", "is null" or "is not null"."""

    text: str
    column: str
    operator: str
    values: tuple[str, ...] = ()

    def keeps(self, value: Any) -> bool:
        """Whether a row with the cell `value` is kept.

        An empty text or list is null. Null differs from every value: it passes `!=` and `not in` and no other
        comparison. A list passes if one of its entries does; for `!=` and `not in`, if all of them do.
        """
        if self.operator in ("is null", "is not null"):
            return is_empty(value) == (self.operator == "is null")
        negated = self.operator in ("!=", "not in")
        if is_empty(value):
            return negated
        entries = value if isinstance(value, list) else [value]
        positive = "==" if negated or self.operator == "in" else self.operator
        matched = any(_compare(entry, positive, wanted) for entry in entries for wanted in self.values)
        return matched != negated


def parse_clause(text: str) -> Clause:
    """Parse "column op value"; op is one of == = != < <= > >= in, not in, is null, is not null.

    Values and the items of `in a, b` may be quoted. Column names with odd characters are put in backquotes.

    Raises:
        DataError: if the condition cannot be parsed.
    """
    if match := _UNARY.fullmatch(text):
        return Clause(text, _column(match), "is not null" if match["negated"] else "is null")
    if (match := _BINARY.fullmatch(text)) and _unquote(match["value"]):
        return Clause(text, _column(match), match["operator"], (_unquote(match["value"]),))
    if (match := _MEMBER.fullmatch(text)) and (items := _items(match["values"])):
        return Clause(text, _column(match), "not in" if match["negated"] else "in", items)
    examples = "style != noto, n >= 3, label in cat, dog, or label is null"
    raise DataError(f'cannot read the condition "{text}"; conditions are like {examples}')


def is_empty(value: Any) -> bool:
    """Whether a cell is null, NaN, blank text, or a list of such."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return True
    if isinstance(value, str):
        return not value.strip()
    return isinstance(value, list) and all(is_empty(entry) for entry in value)


def _column(match: re.Match[str]) -> str:
    return match["quoted"] or match["plain"]


def _unquote(value: str) -> str:
    value = value.strip()
    return value[1:-1] if len(value) > 1 and value[0] == value[-1] and value[0] in "\"'" else value


def _items(values: str) -> tuple[str, ...]:
    values = values.strip()
    if (values[:1], values[-1:]) in (("(", ")"), ("[", "]")):
        values = values[1:-1]
    found = (match[1] or match[2] or match[3] for match in _LIST_ITEM.finditer(values))
    return tuple(item for item in found if item)


def _compare(value: Any, name: str, wanted: str) -> bool:
    """Compare as numbers if both are numbers, otherwise as text; booleans regardless of upper and lower case."""
    if isinstance(value, bool):
        return COMPARISONS[name](str(value).lower(), wanted.lower())
    left, right = _number(value), _number(wanted)
    if left is not None and right is not None:
        return COMPARISONS[name](left, right)
    return COMPARISONS[name](str(value), wanted)


def _number(value: Any) -> float | None:
    try:
        return float(value)
    except (TypeError, ValueError):
        return None
