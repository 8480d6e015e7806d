"""Gives each database column one type, and converts the cells of data sources, whose types may differ, to it.

LanceDB cannot turn an integer column into a float column later. So numbers are float64 from the start, which holds
every integer up to 2^53 exactly and compares with integers as expected; larger ones, like ids, are int64.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from codebrush.search.pictures import Value

if TYPE_CHECKING:
    import pyarrow as pa

EXACT = 2**53  # float64 holds every integer up to this
TYPE_NAMES = {"bool": "true or false", "int64": "whole numbers", "double": "numbers", "string": "text"}


def column_kind(values: Iterable[Value]) -> "pa.DataType":
    """The type of a new column whose first cells are `values`."""
    import pyarrow as pa

    values = list(values)
    if any(isinstance(value, str) for value in values):
        return pa.string()
    if all(isinstance(value, bool) for value in values):
        return pa.bool_()
    is_long = any(isinstance(value, int) and abs(value) > EXACT for value in values)
    return pa.int64() if is_long and not any(isinstance(value, float) for value in values) else pa.float64()


def convert_cell(value: Value | None, kind: "pa.DataType") -> Any:
    """A cell converted to the type of a column; None if that would lose something."""
    import pyarrow as pa

    if value is None or (pa.types.is_boolean(kind) and not isinstance(value, str) and value not in (0, 1)):
        return None
    try:
        return pa.scalar(value).cast(kind).as_py()
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OverflowError):
        return None


def type_name(kind: "pa.DataType") -> str:
    """What a column of this type holds, for messages."""
    return TYPE_NAMES.get(str(kind), str(kind))
