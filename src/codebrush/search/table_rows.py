"""Makes rows of the database's table of pictures that were examined."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from codebrush.search.columns import column_kind, convert_cell, type_name
from codebrush.search.database import FRAME, Database
from codebrush.search.examining import Change
from codebrush.search.index_report import IndexReport
from codebrush.search.pictures import Candidate, Value

if TYPE_CHECKING:
    import pyarrow as pa

VALUE_LENGTH = 80  # characters of a cell in a report


def add_columns(database: Database, candidates: Iterable[Candidate]) -> None:
    """Add the columns of a source that the table does not have yet."""
    import pyarrow as pa

    existing = set(database.table.schema.names)
    new: dict[str, list[Value]] = {}
    for name, value in (cell for each in candidates for cell in each.columns.items() if cell[0] not in existing):
        new.setdefault(name, []).append(value)
    if new:
        database.add_columns(pa.field(name, column_kind(values)) for name, values in new.items())


def add_frame_column(database: Database, changes: Iterable[Change]) -> None:
    """Add the column of frames if one of the pictures has several."""
    import pyarrow as pa

    if any(each.decoded is not None and each.decoded.frame is not None for each in changes):
        database.add_columns([pa.field(FRAME, pa.int64())])


def rows_of(
    schema: "pa.Schema", changes: Sequence[Change], embeddings: np.ndarray | None, report: IndexReport
) -> "pa.Table":
    """Rows in the `schema` of the database; without embeddings only of what may change without the picture.

    Cells that do not fit their column are left empty and go into the report.
    """
    import pyarrow as pa

    decoded = [each.decoded for each in changes if embeddings is not None and each.decoded is not None]
    cells: dict[str, list[Any]] = {
        "path": [each.candidate.path for each in changes],
        "source": [each.candidate.source for each in changes],
        "caption": [each.candidate.caption for each in changes],
        "text_hash": [each.candidate.text_hash for each in changes],
        "size": [each.state.size for each in changes],
        "modified": [each.state.modified for each in changes],
        "hash": [each.state.hash for each in changes],
    }
    if embeddings is not None:
        cells["width"], cells["height"] = [each.width for each in decoded], [each.height for each in decoded]
        cells["thumbnail"] = [each.thumbnail for each in decoded]
        cells |= {FRAME: [each.frame for each in decoded]} if FRAME in schema.names else {}
    for name in schema.names[schema.get_field_index("thumbnail") + 1 :]:
        if name != FRAME:
            kind = schema.field(name).type
            cells[name] = [_cell(each.candidate, name, kind, report) for each in changes]
    arrays = {name: pa.array(values, schema.field(name).type) for name, values in cells.items()}
    if embeddings is not None:
        flat = pa.array(np.ascontiguousarray(embeddings, np.float32).reshape(-1))  # (B * E,)
        arrays["embedding"] = pa.FixedSizeListArray.from_arrays(flat, embeddings.shape[1])
    names = [name for name in schema.names if name in arrays]
    return pa.table([arrays[name] for name in names], schema=pa.schema([schema.field(name) for name in names]))


def _cell(candidate: Candidate, name: str, kind: "pa.DataType", report: IndexReport) -> Any:
    """A cell in its column's type, which an earlier source may have set; one that does not fit is reported."""
    value = candidate.columns.get(name)
    cell = convert_cell(value, kind)
    if cell is None and value is not None:
        entry = next((each for each in report.unfit if each["column"] == name), None)
        if entry is None:
            entry = {"column": name, "holds": type_name(kind), "cells": 0, "path": candidate.path}
            entry["value"] = str(value)[:VALUE_LENGTH]
            report.unfit.append(entry)
        entry["cells"] += 1
    return cell
