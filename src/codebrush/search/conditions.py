"""SQL conditions of `--where`: columns by the names that a user knows, whatever their case and quotes."""

import re
from collections.abc import Sequence

from codebrush.search.pictures import column_name

# Text in single quotes, names in double or back quotes, plain names, and everything else.
_PART = re.compile(r"""'(?:[^']|'')*'|"(?P<double>[^"]*)"|`(?P<back>[^`]*)`|(?P<name>[^\W\d]\w*)|.""", re.DOTALL)


def with_columns(where: str, columns: Sequence[str]) -> str:
    """A condition with each name that spells a column in another way ("a b", `Label`) as the column is called."""

    def exact(match: re.Match[str]) -> str:
        quoted = next((name for name in (match["double"], match["back"]) if name is not None), None)
        name = match["name"] if quoted is None else quoted
        if name is None or (quoted is None and (name in columns or name.lower() in columns)):
            return match[0]
        found = _column(name, columns)
        return match[0] if found is None else f"`{found}`"

    return _PART.sub(exact, where)


def _column(name: str, columns: Sequence[str]) -> str | None:
    if name in columns:
        return name
    wanted = column_name(name).lower()
    same = [each for each in columns if each.lower() == wanted]
    return same[0] if len(same) == 1 else None
