"""What tests of workers look at."""

from typing import Any

import numpy as np

from codebrush.search.database import Database


def rows_of(database: Database) -> list[dict[str, Any]]:
    """All rows by their path, embeddings as bytes."""
    rows = [row for part in database.rows(database.table.schema.names) for row in part.to_pylist()]
    for row in rows:
        row["embedding"] = np.asarray(row["embedding"], np.float32).tobytes()
    return sorted(rows, key=lambda row: row["path"])


def working_processes() -> list[Any]:
    """The processes of workers of this test's cluster."""
    import psutil

    return [each for each in psutil.Process().children(recursive=True) if "ray::Worker" in " ".join(each.cmdline())]
