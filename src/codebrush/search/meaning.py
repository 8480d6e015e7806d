"""Finds pictures by what their captions and categories mean: "a vehicle" finds what is captioned "automobile", and what
has "transport-ground" in a column.

CLIP hardly connects a word above, such as vehicle or food, with pictures of the things below it. The distilled token
table, which knows no pictures, does: texts are compared by their mean word vectors (`codebrush.text.word_vectors`).
docs/log.md has the figures.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from codebrush.data.curation.phrases import STOP_WORDS
from codebrush.search.conditions import with_columns
from codebrush.search.database import Database
from codebrush.search.queries import Hit, check_condition, hits_of
from codebrush.text.word_vectors import word_vectors

if TYPE_CHECKING:
    import pyarrow as pa

LEAST = 0.5  # cosine of word vectors from which a text is near in meaning
MOST_TEXTS = 100_000  # different captions, or cells of a column, that are compared
CATEGORY_SHARE = 0.2  # a column with more different cells than this share of the rows names rows, not categories
FEW_CATEGORIES = 20  # as many are categories in any case
NO_CATEGORIES = ("path", "source", "hash", "text_hash", "split", "style")
NAMED = 5
_WORD = re.compile(r"[^\W_]+")


@dataclass(frozen=True)
class Meant:
    """The best rows by meaning, `hits`, with the cosine of word vectors as their score; the cosines of their pictures
    with the query's vector, `looks`; and the `texts` in captions and columns that are nearest in meaning.
    """

    hits: list[Hit]
    looks: list[float]
    texts: list[str]


def by_meaning(
    database: Database,
    text: str,
    vector: Tensor | None,
    k: int = 10,
    where: str | None = None,
    thumbnails: bool = True,
) -> Meant:
    """The `k` best rows that meet the SQL condition `where`, by the cosine (at least `LEAST`) of a text's word vector
    with that of their caption or of a cell of a text column with few different ones, whichever is higher. Equal ones
    are ordered by the cosine of their picture with the unit `vector` (E,), if there is one.

    Raises:
        UsageError: if the condition cannot be read.
        DataError: if the database is damaged.
    """
    if where is not None:
        check_condition(database, where)
        where = with_columns(where, database.table.schema.names, database.source_names())
    paths, columns, looks = _read(database, vector, where)
    query = word_vectors([content(text)])[0]  # (D,)
    best = np.full(len(paths), -np.inf)
    found: dict[str, float] = {}
    for name, cells in columns.items():
        coded = cells.dictionary_encode()
        texts, places = coded.dictionary.to_pylist(), coded.indices
        few = max(FEW_CATEGORIES, CATEGORY_SHARE * len(paths)) if name != "caption" else MOST_TEXTS
        if not texts or len(texts) > min(few, MOST_TEXTS):
            continue
        nearness = (word_vectors([content(each) for each in texts]) @ query).numpy()
        found |= {each: float(near) for each, near in zip(texts, nearness, strict=True) if near >= LEAST}
        places = places.fill_null(len(texts)).to_numpy(zero_copy_only=False)
        best = np.maximum(best, np.append(nearness, -np.inf)[places])
    order = np.lexsort((-looks, -best.round(3)))[:k]
    order = [row for row in order.tolist() if best[row] >= LEAST]
    wanted = {paths[row]: float(best[row]) for row in order}
    nearest = sorted(found, key=lambda each: (-found[each], each))[:NAMED]
    cosines = {paths[row]: float(looks[row]) for row in order}
    hits = hits_of(database, wanted, thumbnails)
    return Meant(hits, [cosines[hit.path] for hit in hits], nearest)


def content(text: str) -> str:
    """The words of a text in small letters without stop words, unless there are no others."""
    words = _WORD.findall(text.lower())
    return " ".join([word for word in words if word not in STOP_WORDS] or words)


def _read(
    database: Database, vector: Tensor | None, where: str | None
) -> "tuple[list[str], Mapping[str, pa.Array], np.ndarray]":
    """The paths of all rows, their text columns, and the cosines (N,) of their pictures with the vector, 0 without."""
    import pyarrow as pa

    kinds = {field.name: field.type for field in database.table.schema}
    names = [name for name, kind in kinds.items() if pa.types.is_string(kind) and name not in NO_CATEGORIES]
    batches, looks = [], [np.zeros(0)]
    searched = "embedding IS NOT NULL" + (f" AND ({where}\n)" if where else "")
    for part in database.rows(["path", *names, *(["embedding"] if vector is not None else [])], searched):
        batches.append(part.select(["path", *names]))
        looks.append(np.zeros(len(part)) if vector is None else _cosines(part["embedding"], vector))
    if not batches:
        return [], {}, looks[0]
    table = pa.Table.from_batches(batches)
    columns = {name: table[name].combine_chunks() for name in names}
    return table["path"].to_pylist(), columns, np.concatenate(looks)


def _cosines(embeddings: "pa.Array", vector: Tensor) -> np.ndarray:
    values = np.array(embeddings.flatten().to_numpy(zero_copy_only=False))
    vectors = torch.from_numpy(values).float().reshape(len(embeddings), -1)
    return (F.normalize(vectors, dim=-1) @ vector.float().cpu()).numpy()
