"""Which vector index a table has, by how many rows it holds, and how much of it a query searches.

`PLANS` is the one place that chooses. How much is searched is stored in the metadata of the column of embeddings, in
the same table and version as the index.
"""

import json
import math
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

import numpy as np

FLAT = "none"  # no index: all embeddings are compared
COLUMN = "embedding"
THUMBNAIL = "thumbnail"
SETTINGS = "codebrush:vector_index"  # key in the metadata of the column
ALL = 1_000_000  # probes: more than any index has partitions
NEAREST = 10  # results by which recall is measured
MOST_REFINED = 64  # times k: at most so many rows are compared exactly, and where nothing is measured yet
GROWN = 10  # an index made for so many times fewer, or more, rows is made anew
GROWN_A_LITTLE = 1.5  # and the recall of one with partitions is measured again
SAMPLED, ROUNDS = 64, 20  # rows a partition that it is trained on, and rounds; a tenth of LanceDB's 256 times 50


def shown_columns(schema: Any, thumbnails: bool = True) -> list[str]:
    """The columns of a table that a result shows: all but its embedding, and the thumbnail where it is wanted."""
    return [name for name in schema.names if name != COLUMN and (thumbnails or name != THUMBNAIL)]


@dataclass(frozen=True)
class Plan:
    """The vector index of tables with at least `rows` rows; `kind` is LanceDB's name of it, `bits` those of a value.

    Of IvfSq, queries search all, and compare twice as many rows exactly as they return. IvfRq has as many partitions as
    each has rows; queries search as few of them, and compare as few rows exactly, as reach the recall that is asked for
    (`recall.tune`).
    """

    rows: int
    kind: Literal["none", "IvfSq", "IvfRq"]
    bits: int = 32


# IVF_SQ is nearly as exact as comparing all embeddings, and its time and memory grow with the rows. RaBitQ (Gao and
# Long 2024) saves memory, and no time, at 200,000 rows; more were not measured, so its threshold is an estimate
# (docs/log.md).
PLANS = (
    Plan(0, FLAT),
    Plan(20_000, "IvfSq", bits=8),
    Plan(2_000_000, "IvfRq", bits=4),
)


@dataclass(frozen=True)
class IndexSettings:
    """An index and how it is searched: `probes` partitions, of which the best `refine` times k rows are compared
    exactly. The table had `rows` rows when it was made. LanceDB keeps partitions at a quarter to four times
    `partition_rows`, and joins and splits others, where that is not 0. The recalls are None until they are measured,
    which was at `measured_rows` rows.
    """

    kind: str
    rows: int = 0
    partition_rows: int = 0
    probes: int = ALL
    refine: int = 2
    measured_rows: int = 0
    recall_pictures: float | None = None
    recall_texts: float | None = None

    def is_measured_for(self, rows: int) -> bool:
        """Whether the recalls are known, and hold for so many rows: more or fewer partitions need other probes."""
        near = self.measured_rows < rows * GROWN_A_LITTLE and rows < self.measured_rows * GROWN_A_LITTLE
        return self.measured_rows > 0 and (near or not self.partition_rows)


def plan_for(rows: int, width: int) -> Plan:
    """The index for so many rows of embeddings of this width, of which RaBitQ needs a multiple of 8."""
    fitting = [plan for plan in PLANS if plan.rows <= rows and (plan.kind != "IvfRq" or width % 8 == 0)]
    return max(fitting, key=lambda plan: plan.rows)


def settings_of(schema: Any) -> IndexSettings | None:
    """What is stored of the index of a table; None if nothing is, as in databases from before version 0.3."""
    stored = (schema.field(COLUMN).metadata or {}).get(SETTINGS.encode())
    if stored is None:
        return None
    known = {field.name for field in fields(IndexSettings)}  # a later version may have stored more
    return IndexSettings(**{name: value for name, value in json.loads(stored).items() if name in known})


def store_settings(table: Any, settings: IndexSettings) -> None:
    """Store them in the table, as a version of its own."""
    table.update_field_metadata({"path": COLUMN, "metadata": {SETTINGS: json.dumps(asdict(settings))}})


def kind_of(table: Any) -> str:
    """LanceDB's name of the vector index that a table has; `FLAT` if it has none."""
    return next((index.index_type for index in table.list_indices() if COLUMN in index.columns), FLAT)


def update_index(table: Any) -> bool:
    """Make the vector index that a table should have, if it has none or one that no longer fits the number of rows.

    Returns whether the recall of its index, new or not, remains to be measured.
    """
    rows, made, settings = table.count_rows(), kind_of(table), settings_of(table.schema)
    plan = plan_for(rows, table.schema.field(COLUMN).type.list_size)
    if not _fits(plan, made, settings, rows):
        _make(table, plan, rows)
        return True
    return settings is not None and made != FLAT and not settings.is_measured_for(rows)


def nearest(table: Any, vector: np.ndarray, k: int, where: str | None, settings: IndexSettings) -> Any:
    """LanceDB's query for the `k` rows nearest to a vector (E,) that meet the SQL condition `where`, which goes before
    the search.
    """
    query = table.search(vector, vector_column_name=COLUMN, query_type="vector").distance_type("cosine").limit(k)
    # Rows that meet a condition may lie in any partition, and it is evaluated for all rows anyway; more neighbours lie
    # in more partitions. With two bounds LanceDB would search more than the lower one, without a condition too.
    probes = ALL if where is not None else math.ceil(settings.probes * math.sqrt(max(1, k / NEAREST)))
    refine = settings.refine
    if settings.partition_rows and k < NEAREST:  # as many rows are compared exactly as when the recall was measured
        refine = math.ceil(refine * NEAREST / k)
    query = query.nprobes(min(probes, ALL)).refine_factor(refine)
    return query if where is None else query.where(where)


def _fits(plan: Plan, made: str, settings: IndexSettings | None, rows: int) -> bool:
    if plan.kind == FLAT or made == FLAT:
        return plan.kind == FLAT  # a table that has shrunk keeps its index
    if settings is None:  # made before version 0.3
        return made == plan.kind
    outgrown = plan.rows > max((each.rows for each in PLANS if each.kind == made), default=0)
    return settings.kind == made and not outgrown and settings.rows < rows * GROWN and rows < settings.rows * GROWN


def _make(table: Any, plan: Plan, rows: int) -> None:
    from lancedb.index import IvfRq, IvfSq

    # First: until the recall of the new index is measured, queries search all of it, also if this process dies.
    store_settings(table, IndexSettings(FLAT, refine=MOST_REFINED))
    if plan.kind == "IvfSq":
        settings, config = IndexSettings(plan.kind, rows), IvfSq(distance_type="cosine")
    else:
        settings = IndexSettings(plan.kind, rows, round(math.sqrt(rows)), refine=MOST_REFINED)
        trained: dict[str, Any] = {"sample_rate": SAMPLED, "max_iterations": ROUNDS}
        trained["target_partition_size"] = settings.partition_rows  # a number of partitions would not be kept
        config = IvfRq(distance_type="cosine", num_bits=plan.bits, **trained)
    table.create_index(COLUMN, config=config, replace=True)
    store_settings(table, settings)
