"""Makes captions from the columns of a row by templates like "{label}, {style} style"."""

import string
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from codebrush.data.sources.filters import is_empty
from codebrush.errors import DataError


@dataclass(frozen=True)
class Template:
    """A caption with names of columns in braces.

    A list in a column is joined with commas; with `each`, every entry of the only column becomes one caption.
    """

    text: str
    columns: tuple[str, ...]
    each: bool = False

    @classmethod
    def parse(cls, text: str) -> "Template":
        """Read a template.

        Raises:
            DataError: if braces do not close or hold anything but a column's name.
        """
        try:
            fields = [field for field in string.Formatter().parse(text) if field[1] is not None]
        except ValueError as error:
            raise DataError(f'cannot read the caption template "{text}": {error}') from error
        for _, name, form, conversion in fields:
            if not name or form or conversion:
                raise DataError(f'the caption template "{text}" may only hold names of columns, like {{label}}')
        return cls(text, tuple(str(name) for _, name, _, _ in fields))

    def fill(self, cell: Callable[[str], Any]) -> list[str]:
        """The captions of one row, whose cells `cell` returns by column; none if one of the columns is empty."""
        values = {name: cell(name) for name in self.columns}
        if any(is_empty(value) for value in values.values()):
            return []
        if self.each:
            (value,) = values.values()
            entries = value if isinstance(value, list) else [value]
            return [cell_text(entry) for entry in entries if not is_empty(entry)]
        parts = string.Formatter().parse(self.text)
        return ["".join(literal + (cell_text(values[name]) if name else "") for literal, name, _, _ in parts)]


def cell_text(value: Any) -> str:
    """A cell as text; the entries of a list are joined with commas."""
    if isinstance(value, list):
        return ", ".join(cell_text(entry) for entry in value if not is_empty(entry))
    return str(value).strip()
