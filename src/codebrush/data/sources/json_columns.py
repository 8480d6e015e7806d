"""Turns JSON objects, one a row, into columns of Arrow types that hold every cell, whatever its kind."""

import json
import re
from collections.abc import Collection
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Dataset

BATCH = 1_000  # JSON objects in memory at once
HALVES = re.compile("[\ud800-\udfff]")  # one half of a character that UTF-16 writes as two


class _MisfitError(Exception):
    """The cells of a column do not fit its type."""

    def __init__(self, column: str) -> None:
        super().__init__(column)
        self.column = column


def described(texts: "Dataset", reserved: Collection[str] = ()) -> "Dataset | None":
    """The objects in the column `json` of `texts` as columns, but for the keys in `reserved`; None if all are empty.

    Numbers of several types become the wider one. A column of texts, numbers and truth values becomes text, one with
    lists among them a list of texts; objects among other values are JSON text.
    """
    import pyarrow as pa
    from datasets import Features

    kinds = _kinds(texts, reserved)
    while kinds:
        schema = pa.schema(list(kinds.items()))
        try:
            return texts.map(
                _typed,
                batched=True,
                batch_size=BATCH,
                features=Features.from_arrow_schema(schema),
                remove_columns=texts.column_names,
                fn_kwargs={"schema": schema},
            )
        except _MisfitError as misfit:
            lists = pa.types.is_list(kinds[misfit.column])
            kinds[misfit.column] = pa.list_(pa.string()) if lists else pa.string()
    return None


def read_object(text: str) -> dict[str, Any]:
    """The JSON object in `text`, with halves of characters replaced by U+FFFD, and NaN by null.

    Raises:
        ValueError: if it is not JSON, or not an object.
    """
    try:
        value = json.loads(text, parse_constant=_constant)
    except RecursionError:
        raise ValueError("its lists or objects are too deep") from None
    if not isinstance(value, dict):
        raise ValueError("not a JSON object")
    return _whole(value) if re.search(r"\\u[dD]", text) or HALVES.search(text) else value


def _constant(name: str) -> float | None:
    """The value of NaN, by which pandas writes an empty cell, Infinity and -Infinity, which JSON does not have."""
    return None if name == "NaN" else float(name)


def whole_characters(text: str) -> str:
    """`text` with halves of characters, which no file can hold, replaced by U+FFFD."""
    return HALVES.sub("\ufffd", text)


def _whole(value: Any) -> Any:
    if isinstance(value, str):
        return whole_characters(value)
    if isinstance(value, list):
        return [_whole(entry) for entry in value]
    if isinstance(value, dict):
        return {whole_characters(key): _whole(entry) for key, entry in value.items()}
    return value


def _kinds(texts: "Dataset", reserved: Collection[str]) -> dict[str, "pa.DataType"]:
    """The keys of the objects, with the Arrow types of their values."""
    import pyarrow as pa

    kinds: dict[str, pa.DataType] = {}
    for rows in texts.iter(BATCH):
        objects = _objects(rows)
        for name in dict.fromkeys(name for row in objects for name in row):
            if name not in reserved:
                kinds[name] = _kind(kinds.get(name, pa.null()), [row.get(name) for row in objects])
    return kinds


def _kind(known: "pa.DataType", cells: list[Any]) -> "pa.DataType":
    """The common type of these cells and of earlier ones of the type `known`; texts if there is no other."""
    import pyarrow as pa

    lists = any(isinstance(cell, list) for cell in cells)
    if pa.types.is_string(known) and not lists:
        return known
    try:
        schemas = [pa.schema([("cells", kind)]) for kind in (known, pa.array(cells).type)]
        return pa.unify_schemas(schemas, promote_options="permissive").field(0).type
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError, OverflowError):
        return pa.list_(pa.string()) if lists or pa.types.is_list(known) else pa.string()


def _typed(rows: Any, schema: "pa.Schema") -> "pa.Table":
    """The JSON objects of `rows` as the columns of `schema`. Raises _MisfitError if a cell does not fit."""
    import pyarrow as pa

    objects = _objects(rows)
    columns = []
    for field in schema:
        cells = [row.get(field.name) for row in objects]
        if pa.types.is_string(field.type):
            cells = [_text(cell) for cell in cells]
        elif pa.types.is_list(field.type) and pa.types.is_string(field.type.value_type):
            cells = [_texts(cell) for cell in cells]
        try:
            columns.append(pa.array(cells, field.type))
        except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError) as error:  # like 2**60 + 1 among floats
            raise _MisfitError(field.name) from error
    return pa.Table.from_arrays(columns, schema=schema)


def _text(cell: Any) -> str | None:
    return cell if cell is None or isinstance(cell, str) else json.dumps(cell, ensure_ascii=False)


def _texts(cell: Any) -> list[str | None] | None:
    return None if cell is None else [_text(entry) for entry in (cell if isinstance(cell, list) else [cell])]


def _objects(rows: Any) -> list[dict[str, Any]]:
    return [read_object(text) if text else {} for text in rows["json"]]


def common_columns(parts: "list[Dataset]") -> "Dataset":
    """The rows of several tables under each other; columns of several types take one that holds them all."""
    import pyarrow as pa
    from datasets import Features, concatenate_datasets

    try:
        return concatenate_datasets(parts)
    except (ValueError, TypeError, pa.ArrowInvalid, pa.ArrowTypeError):
        texts = [
            part.map(
                _as_json,
                batched=True,
                batch_size=BATCH,
                remove_columns=part.column_names,
                features=Features.from_arrow_schema(pa.schema([("json", pa.string())])),
            )
            for part in parts
        ]
        columns = described(concatenate_datasets(texts))
        assert columns is not None
        return columns


def _as_json(rows: dict[str, list[Any]]) -> dict[str, list[str]]:
    objects = (dict(zip(rows, cells, strict=True)) for cells in zip(*rows.values(), strict=True))
    return {"json": [json.dumps(row, default=str) for row in objects]}
