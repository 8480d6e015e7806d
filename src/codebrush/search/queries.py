"""Searches a database by text, picture, caption and SQL condition, best first."""

import glob
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from codebrush.data.curation.phrases import STOP_WORDS
from codebrush.data.sources.file_names import existing
from codebrush.errors import UsageError
from codebrush.search.conditions import text_as_number, with_columns
from codebrush.search.database import FRAME, Database, quoted
from codebrush.search.messages import condition_fault
from codebrush.search.vector_index import (
    ALL,
    FLAT,
    THUMBNAIL,
    IndexSettings,
    nearest,
    settings_of,
    shown_columns,
)

WITHOUT_WEIGHT = 0.5  # of an unwanted text, at least; the query has weight 1
CANCELLED = 0.25  # of the query's length: if less is left beside the unwanted texts, it asks for nothing
FUSED = 100  # rows of each list that a hybrid search merges, at least; otherwise ten times k
RANK_OFFSET = 60  # of reciprocal rank fusion, as in the paper
MAX_RESULTS = 10_000
Mode = Literal["vector", "text", "hybrid"]
LONG_WORD = re.compile(r"[^\W_]{3,}")
STOP_WORD = re.compile(rf"(?<![^\W_])(?:{'|'.join(sorted(STOP_WORDS))})(?![^\W_])", re.IGNORECASE)


@dataclass(frozen=True)
class Hit:
    """One result. `score` is the cosine with the query (vector), the BM25 score of the caption (text), or the sum of
    reciprocal ranks (hybrid), comparable within one search only. `columns` are all others that a condition can use.
    `frame` is the number of the frame or page that was embedded, from 0; None if the file holds a single picture.
    `thumbnail` is an image file; b"" if there is none or it was not asked for.
    """

    path: str
    score: float
    caption: str
    thumbnail: bytes
    columns: dict[str, Any] = field(default_factory=dict)
    frame: int | None = None

    @property
    def exists(self) -> bool:
        """Whether the picture's file, or the data source with it, still exists; one on a hub is assumed to."""
        if self.columns.get("modified") is not None:
            return existing(Path(self.path)).exists()
        source = self.columns.get("source") or ""
        return not os.path.isabs(source) or os.path.exists(source) or any(glob.iglob(source, recursive=True))


def combine(
    text: Tensor | None, image: Tensor | None, without: Tensor | None = None, image_weight: float = 0.5
) -> Tensor:
    """The unit vector (E,) to search for, from unit vectors of a text (E,), a picture (E,) and unwanted texts (U, E).

    With text and picture, the picture has weight `image_weight` (0 to 1) and the text the rest. Unwanted texts are
    subtracted with half that weight, or as much more as they have in common with the query: it never points to them.

    Raises:
        UsageError: if the weight is out of range, neither is given, or the unwanted texts leave nothing of the query.
    """
    if not 0 <= image_weight <= 1:
        raise UsageError(f"the weight of the picture is {image_weight:g}; it must be between 0 and 1")
    wanted = [vector for vector in (text, image) if vector is not None]
    if not wanted:
        raise UsageError("there is nothing to search for: give a text, a picture or both")
    weights = (1 - image_weight, image_weight) if len(wanted) == 2 else (1.0,)
    query = torch.stack([weight * vector for weight, vector in zip(weights, wanted, strict=True)]).sum(0)  # (E,)
    if without is not None and len(without):
        common = torch.linalg.lstsq(without.double().T, query.double()[:, None], driver="gelsd").solution  # (U, 1)
        left = query.double() - without.double().T @ common[:, 0]  # (E,)
        if left.norm() < CANCELLED * query.norm():
            raise UsageError("the query and the unwanted texts cancel out: leave one of them out")
        query = query - (without @ query).clamp(min=WITHOUT_WEIGHT) @ without
    if not query.norm() > 1e-6:
        raise UsageError("the parts of the query cancel out: leave one of them out")
    return F.normalize(query, dim=0)


def search(
    database: Database,
    vector: Tensor | None,
    text: str | None = None,
    *,
    k: int = 10,
    where: str | None = None,
    mode: Mode = "vector",
    without: Sequence[str] = (),
    min_score: float | None = None,
    thumbnails: bool = True,
) -> list[Hit]:
    """The `k` best rows (1 to 10,000) that meet the SQL condition `where`, best first.

    Mode "vector" finds embeddings near the unit `vector` (E,). "text" finds captions with any word of `text` and none
    of the texts `without`, whatever their endings; stop words like "a" only count if there are no other words. Emoji
    and words in scripts without blanks, and if nothing is found all words of three letters or more, are found inside
    other words too, with the score 0. "hybrid" merges both lists by reciprocal rank fusion (Cormack et al. 2009).
    `min_score`, -1 to 1, leaves out rows whose cosine is lower, in mode "vector" alone. Without `thumbnails` their
    files are not read, which is faster.

    Raises:
        UsageError: if `k` or `min_score` is out of range, the mode lacks its text or vector, or the condition cannot be
            read.
        DataError: if the database is damaged.
    """
    if not 1 <= k <= MAX_RESULTS:
        raise UsageError(f"k is {k}; it must be between 1 and {MAX_RESULTS:,}")
    if mode != "vector" and not (text or "").strip():
        raise UsageError(f"the mode {mode} searches for words in captions: give a text")
    if mode != "text" and vector is None:
        raise UsageError(f"the mode {mode} searches for pictures that resemble a text or a picture: give one")
    if min_score is not None:
        check_min_score(min_score, mode)
    asked = where
    if where is not None:
        check_condition(database, where)
        where = with_columns(where, database.table.schema.names, database.source_names())
    most = max(FUSED, 10 * k) if mode == "hybrid" else k
    lists: list[list[Hit]] = []
    with database.guarded():
        try:
            if mode != "text":
                lists.append(_by_picture(database, vector, where, most, thumbnails))
            if mode != "vector":
                lists.append(_by_words(database.table, text or "", without, where, most, thumbnails))
        except (ValueError, RuntimeError) as error:  # `check_condition` looks at as few rows as it can
            if where is not None:
                _raise_for_text(database, where, asked or where, error)
            raise
    hits = _fused(lists) if mode == "hybrid" else lists[0]
    return [hit for hit in hits if min_score is None or hit.score >= min_score][:k]


def hits_of(database: Database, scores: Mapping[str, float], thumbnails: bool = True) -> list[Hit]:
    """The rows of these paths with these scores, best first; with their thumbnails if asked for."""
    if not scores:
        return []
    where = f"path IN ({', '.join(quoted(path) for path in scores)})"
    with database.guarded():
        shown = shown_columns(database.table.schema, thumbnails)
        rows = database.table.search().where(where).select(shown).limit(len(scores)).to_list()
    hits = [replace(_hit(row), score=scores[row["path"]]) for row in rows]
    places = {path: place for place, path in enumerate(scores)}
    return sorted(hits, key=lambda hit: places[hit.path])


def check_min_score(min_score: float, mode: Mode) -> None:
    """Raise UsageError if a least score is not a cosine, or the scores of the mode are none."""
    if not -1 <= min_score <= 1:
        raise UsageError(f"the least score is {min_score:g}; it is a cosine, between -1 and 1")
    if mode != "vector":
        raise UsageError(f"the mode {mode} has other scores than cosines: use the mode vector with a least score")


def check_condition(database: Database, where: str) -> None:
    """Raise a UsageError if a condition is malformed, uses an unknown column, or is followed by something else."""
    asked, where = where, with_columns(where, database.table.schema.names, database.source_names())
    with database.guarded():
        try:
            _passing(database, where)
        except (ValueError, RuntimeError) as error:
            _raise_for_text(database, where, asked, error)
            for own in ("path = ''", "size IS NULL"):  # these fail too if the database is damaged
                _passing(database, own)
            raise _unreadable(database, asked, condition_fault(error)) from error
        try:  # LanceDB reads a condition to its end and ignores what comes after it
            is_whole = not _passing(database, f"({where}\n) AND false")
        except (ValueError, RuntimeError):
            is_whole = False
        if not is_whole:
            raise _unreadable(database, asked, "only its beginning is a condition: leave out the rest")


def _raise_for_text(database: Database, where: str, asked: str, error: Exception) -> None:
    """Raise a UsageError if the error came from text that a condition takes for numbers."""
    texts = [field.name for field in database.table.schema if str(field.type) == "string"]
    if hint := text_as_number(where, texts, str(error)):
        raise UsageError(f'cannot read the condition "{asked}": {hint}') from error


def _passing(database: Database, where: str) -> int:
    """1 if any row meets a condition, else 0."""
    return database.table.search().where(where).select(["path"]).limit(1).to_arrow().num_rows


def _unreadable(database: Database, where: str, reason: str) -> UsageError:
    elsewhere = {column: name for name, columns in database.source_names().items() for column in columns}
    names = [
        f"{name} ({elsewhere[name]} in its source)" if name in elsewhere else name
        for name in shown_columns(database.table.schema)
        if name != THUMBNAIL
    ]
    return UsageError(f'cannot read the condition "{where}" ({reason}); the columns are {", ".join(names)}')


def _by_picture(database: Database, vector: Tensor | None, where: str | None, most: int, thumbnails: bool) -> list[Hit]:
    assert vector is not None
    table, asked = database.table, vector.float().cpu().numpy()
    if where is None and (hits := _in_memory(database, asked, most, thumbnails)) is not None:
        return hits
    schema = table.schema  # LanceDB looks for a newer version each time
    columns = [*shown_columns(schema, thumbnails), "_distance"]

    def found(settings: IndexSettings) -> list[Hit]:
        return _ordered(nearest(table, asked, most, where, settings).select(columns), most)

    settings = settings_of(schema) or IndexSettings(FLAT)
    hits = found(settings)
    if len(hits) < most and where is None and settings.probes < ALL:  # the partitions searched had no more
        hits = found(replace(settings, probes=ALL))
    return hits


def _in_memory(database: Database, asked: np.ndarray, most: int, thumbnails: bool) -> list[Hit] | None:
    """The rows nearest to a vector (E,), with exact cosines; None if they are not to be found in memory."""
    if database.memory is None:
        return None
    opened = database.place, database.table, database.open_table
    rows = database.memory.nearest(*opened, asked, most, thumbnails)
    return None if rows is None else sorted(map(_hit, rows), key=lambda hit: (-hit.score, hit.path))


def _by_words(
    table: Any, text: str, without: Sequence[str], where: str | None, most: int, thumbnails: bool
) -> list[Hit]:
    columns = shown_columns(table.schema, thumbnails)
    query = table.search(_caption_query(text, without), query_type="fts").select([*columns, "_score"])
    hits = _ordered(query if where is None else query.where(where), most)
    known = {hit.path for hit in hits}
    parts = _parts(text, every=not hits)
    if parts and len(hits) < most:
        unwanted = {part for each in without for part in _parts(each, every=not hits)}
        condition = " OR ".join(_contains(part) for part in parts)
        for other in [f"NOT {_contains(part)}" for part in sorted(unwanted)] + ([where] if where else []):
            condition = f"({condition}) AND ({other}\n)"
        found = _ordered(table.search().where(condition).select(columns), most + len(hits))
        hits += [hit for hit in found if hit.path not in known]
    return hits


def _ordered(query: Any, most: int) -> list[Hit]:
    return sorted(map(_hit, query.limit(most).to_list()), key=lambda hit: (-hit.score, hit.path))


def _parts(text: str, every: bool) -> list[str]:
    """The words of a text that may stand inside others, and that the index of words therefore does not have: emoji and
    those in scripts without blanks, or `every` one of three letters or more but stop words ("boat" in "steamboats").
    """
    parts = [word for word in text.split() if not word.isascii()]
    parts += LONG_WORD.findall(_without_stop_words(text)) if every else []
    return list(dict.fromkeys(part.lower() for part in parts))


def _contains(part: str) -> str:
    return f"contains(lower(caption), {quoted(part)})"


def _fused(lists: Sequence[list[Hit]]) -> list[Hit]:
    """The hits of several lists by the sum of their reciprocal ranks; those with the same score share a rank."""
    fused: dict[str, Hit] = {}
    for hits in lists:
        rank, before = 0, None
        for place, hit in enumerate(hits, 1):
            rank, before = rank if hit.score == before else place, hit.score
            score = 1 / (RANK_OFFSET + rank)
            # While another process writes, a list or two may hold a row twice: its scores are added up here.
            known = fused.get(hit.path)
            fused[hit.path] = replace(known or hit, score=score + (known.score if known else 0))
    return sorted(fused.values(), key=lambda hit: (-hit.score, hit.path))


def _caption_query(text: str, without: Sequence[str]) -> Any:
    """A full-text query for the words of a text; nothing in it is read as an operator."""
    from lancedb.query import BooleanQuery, MatchQuery, Occur

    match: Any = MatchQuery  # its type annotations leave out its defaults
    wanted = match(_without_stop_words(text), "caption")
    unwanted = [(Occur.MUST_NOT, match(_without_stop_words(each), "caption")) for each in without]
    return BooleanQuery([(Occur.MUST, wanted), *unwanted]) if unwanted else wanted


def _without_stop_words(text: str) -> str:
    """A text without its stop words, unless it has no other words. The index has them, for texts like "the"."""
    rest = STOP_WORD.sub(" ", text)
    return rest if re.search(r"[^\W_]", rest) else text


def _hit(row: dict[str, Any]) -> Hit:
    score = 1 - row["_distance"] if "_distance" in row else row.get("_score", 0)
    own = ("path", "caption", "thumbnail", "_score", "_distance", FRAME)
    columns = {name: value for name, value in row.items() if name not in own}
    return Hit(row["path"], float(score), row["caption"] or "", row.get("thumbnail") or b"", columns, row.get(FRAME))
