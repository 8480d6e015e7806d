"""Finds the pictures of a database for a query of any kind, and says whether any of them is near to it.

A text is compared with pictures, with captions or with what captions and categories mean. Where no picture looks like
it, those whose captions or categories mean it come first.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from codebrush.data.known_texts import KnownTexts
from codebrush.data.text_embedding import embed_texts
from codebrush.errors import PromptError
from codebrush.models.clip import CLIP
from codebrush.search.database import Database
from codebrush.search.meaning import by_meaning
from codebrush.search.nearness import Nearness, nearness
from codebrush.search.queries import Hit, combine, search
from codebrush.text.reading import REMEDY, is_unreadable, named_texts
from codebrush.text.tokenizer import Tokenizer

Mode = Literal["vector", "text", "hybrid", "meaning"]
BATCH = 32  # texts encoded together


@dataclass(frozen=True, kw_only=True)
class Query:
    """What to search for: a `text`, taken literally, the unit vector (E,) of a `picture`, or both.

    `picture_weight`, 0 to 1, is the share of the picture beside a text, `without` are texts for what must not show, and
    `where` is an SQL condition that rows must meet. `mode` says what the text is compared with: pictures ("vector"),
    captions ("text"), both ("hybrid"), or the meaning of captions and categories. `k` is how many pictures are found,
    and pictures whose cosine is below `min_score` are left out. Without `thumbnails` theirs are not read.
    """

    text: str | None = None
    picture: Tensor | None = None
    picture_weight: float = 0.5
    without: Sequence[str] = ()
    where: str | None = None
    mode: Mode = "vector"
    min_score: float | None = None
    k: int = 10
    thumbnails: bool = True


@dataclass(frozen=True)
class Found:
    """What a query found.

    `hits` are the rows, best first, and `below` the best one if all were below the least score. `judged` says whether
    any picture is near to the text, None if that is not known; where none is, `by_captions` says whether captions that
    were searched too have words of it. `meant` are the texts of captions and categories by whose meaning rows were
    found, if any were. `note` is what a reader should know of how the query was read; "" if nothing.
    """

    hits: list[Hit]
    below: list[Hit]
    judged: Nearness | None
    by_captions: bool = False
    meant: Sequence[str] = ()
    note: str = ""


@torch.no_grad()
def find(
    database: Database,
    clip: CLIP,
    tokenizer: Tokenizer,
    query: Query,
    *,
    temperature: float = 1.0,
    known: KnownTexts | None = None,
) -> Found:
    """Search a database with the CLIP that it was made with; `temperature` is as in `nearness`.

    Pictures are compared with texts as `known` labels help to understand them; whether one is near at all is judged by
    the text alone.

    Raises:
        PromptError: if the pack reads nothing of the text and there is nothing else to compare pictures with.
        UsageError: if the condition cannot be read.
        DataError: if the database is damaged.
    """
    mode, note = _mode_that_reads(tokenizer, query)
    text, where = query.text, query.where
    vector = judged = unwanted = None
    if mode != "text":
        wanted, helped = _embedded(clip, tokenizer, [] if text is None else [text], known)
        _, unwanted = _embedded(clip, tokenizer, query.without, known)
        if helped is not None or query.picture is not None:
            own = None if helped is None else helped[0]
            vector = combine(own, query.picture, unwanted, query.picture_weight)
        if wanted is not None:
            judged = nearness(database, wanted[0], clip, tokenizer, temperature=temperature, where=where)
    if mode == "meaning" and text is not None:
        meant = by_meaning(database, text, vector, query.k, where, query.thumbnails)
        return Found(meant.hits, [], judged, meant=meant.texts, note=note)
    asked: dict[str, Any] = {"where": where, "without": query.without, "mode": mode, "thumbnails": query.thumbnails}
    hits = search(database, vector, text, k=query.k, min_score=query.min_score, **asked)
    has_least = query.min_score is not None
    below = [] if hits or not has_least else search(database, vector, text, k=1, **asked)
    doubtful = judged is not None and not judged.near
    by_captions = mode == "hybrid" and doubtful and bool(search(database, None, text, k=1, **{**asked, "mode": "text"}))
    plain = mode == "vector" and query.picture is None and unwanted is None and not has_least
    if text is None or not (plain and doubtful):
        return Found(hits, below, judged, by_captions, note=note)
    meant = by_meaning(database, text, vector, query.k, where, query.thumbnails)
    first = [replace(hit, score=look) for hit, look in zip(meant.hits, meant.looks, strict=True)]
    meant_paths = {hit.path for hit in first}
    others = [hit for hit in hits if hit.path not in meant_paths]
    return Found([*first, *others][: query.k], below, judged, meant=meant.texts, note=note)


def _mode_that_reads(tokenizer: Tokenizer, query: Query) -> tuple[Mode, str]:
    """The mode in which a query can be searched for, and a note if the pack reads nothing of it: then only captions may
    have it. Raises PromptError if nothing is left to compare pictures with."""
    if query.text is None or query.mode in ("text", "meaning") or not is_unreadable(query.text, tokenizer):
        return query.mode, ""
    lost, has_picture = f"the pack cannot read {named_texts([query.text])}", query.picture is not None
    if query.mode == "vector" and not has_picture:
        raise PromptError(f"{lost}, so no picture can be found by it: {REMEDY}, or search captions with --mode text")
    left = (["pictures like --image"] if has_picture else []) + (["captions"] if query.mode == "hybrid" else [])
    return query.mode if has_picture else "text", f"{lost}, so only {' and '.join(left)} are searched for"


def _embedded(
    clip: CLIP, tokenizer: Tokenizer, texts: Sequence[str], known: KnownTexts | None
) -> tuple[Tensor, Tensor] | tuple[None, None]:
    """The unit vectors (N, E) of those of the texts of which the pack reads anything, alone and as the `known` labels
    help to understand them; None if it reads none."""
    read = [text for text in texts if not is_unreadable(text, tokenizer)]
    if not read:
        return None, None
    vectors = embed_texts(clip, tokenizer, read, BATCH)
    return vectors, vectors if known is None else known.helped(read, vectors)
