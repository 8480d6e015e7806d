"""SQL conditions of `--where`: columns by the names that a user knows, in the source or here, whatever their case and
quotes.
"""

import re
from collections.abc import Mapping, Sequence

from codebrush.errors import UsageError
from codebrush.search.pictures import column_name

# Text in single quotes, names in double or back quotes, plain names and numbers, and everything else.
_PART = re.compile(r"""'(?:[^']|'')*'|"(?P<double>[^"]*)"|`(?P<back>[^`]*)`|(?P<name>[\w.]*\w)|.""", re.DOTALL)
_COMPARED = re.compile(r"\s*(?:[=<>!]|(?:not\s+)?(?:in|like|between)\b|is\b)", re.IGNORECASE)
_COMPARING = re.compile(r"(?:[=<>(,+*/-]|\b(?:like|between|in))\s*$", re.IGNORECASE)
_TEXT = re.compile(r"'(?:[^']|'')*'")
_NUMBER, _OPERATOR = r"(-?\d[\d.]*)", r"\s*(<=|>=|<>|!=|=|<|>)\s*"
_NO_NUMBER = re.compile(r"Cannot cast string '(.*?)' to value of")
_KEYWORDS = frozenset(("and", "or", "not", "is", "null", "in", "like", "between", "true", "false"))


def with_columns(where: str, columns: Sequence[str], sources: Mapping[str, Sequence[str]] | None = None) -> str:
    """A condition with each name that spells a column in another way ("a b", `Label`) as the column is called.

    `sources` are columns that have another name in their source: that name -> those of the columns. A number is a
    column of that name (2024 = 'yes') where it stands in front of a comparison and not behind one.

    Raises:
        UsageError: if a name in a source is that of several columns.
    """
    sources = sources or {}

    def exact(match: re.Match[str]) -> str:
        quoted = next((name for name in (match["double"], match["back"]) if name is not None), None)
        name = match["name"] if quoted is None else quoted
        if name is None or (quoted is None and not _names_column(match)):
            return match[0]
        if quoted is None and name in columns and name == name.lower() and not name[0].isdigit():
            return match[0]
        found = _column(name, columns, sources)
        return match[0] if found is None else f"`{found}`"

    return _PART.sub(exact, where)


def _names_column(match: re.Match[str]) -> bool:
    """Whether a plain word can be the name of a column: no keyword, no function, no number to compare with."""
    after, before = match.string[match.end() :], match.string[: match.start()]
    if match["name"][0].isdigit() and match["name"].replace(".", "").isdigit():
        return _COMPARED.match(after) is not None and _COMPARING.search(before.rstrip("(")) is None
    return match["name"].lower() not in _KEYWORDS and not after.lstrip().startswith("(")


def _column(name: str, columns: Sequence[str], sources: Mapping[str, Sequence[str]]) -> str | None:
    if name in columns:
        return name
    here = [each for each in sources.get(name, ()) if each in columns]
    if len(here) > 1:
        raise UsageError(f"the column {name} is called {' or '.join(here)} here, by its source: use one of these names")
    if here:
        return here[0]
    for wanted in (name.lower(), column_name(name).lower()):
        same = [each for each in columns if each.lower() == wanted]
        if len(same) == 1:
            return same[0]
    return None


def text_as_number(where: str, texts: Sequence[str], error: str) -> str | None:
    """What to write if LanceDB's `error` says that a column of text, one of `texts`, was read as numbers; else None.

    `where` is a condition as `with_columns` gives it.
    """
    plain = _TEXT.sub("''", where)
    names = {column: rf"(?:`{re.escape(column)}`|(?<![\w`.]){re.escape(column)}(?![\w`.]))" for column in texts}
    if found := _NO_NUMBER.search(error):
        cast = [each for each, name in names.items() if re.search(rf"cast\s*\([^)]*?{name}", plain, re.IGNORECASE)]
        column = cast[0] if len(cast) == 1 else " or ".join(cast) or "a column"
        replaced = f"replace({_quoted(column)}, ',', '.')"
        is_comma = re.fullmatch(r"-?\d+,\d+", found[1]) and len(cast) == 1
        remedy = (
            f"cast({replaced} as float)" if is_comma else f"try_cast({_quoted(column)} as float), which leaves it out"
        )
        return f"{column} holds {found[1]!r}, which this cast cannot read: write {remedy}"
    if "could not convert to literal of type 'Utf8'" not in error:
        return None
    for column, name in names.items():
        cast = f"cast({_quoted(column)} as float)"
        if found := re.search(rf"{name}{_OPERATOR}{_NUMBER}", plain):
            return f"{column} is text: write {cast} {found[1]} {found[2]}"
        if found := re.search(rf"{_NUMBER}{_OPERATOR}{name}", plain):
            return f"{column} is text: write {found[1]} {found[2]} {cast}"
        if found := re.search(rf"{name}\s+((?:not\s+)?(?:between|in)\b)", plain, re.IGNORECASE):
            return f"{column} is text: write {cast} {found[1]} ..."
    return None


def _quoted(column: str) -> str:
    return column if re.fullmatch(r"[a-z_][a-z0-9_]*", column) else f"`{column}`"
