"""What `codebrush search` does with a query: find, judge whether anything is near, and show.

The pack and the database stay loaded, so that a prompt can ask one query after the other.
"""

import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from codebrush.cli.output import print_json, print_table, unread_entry
from codebrush.cli.pictures import frame_entry, seen_picture
from codebrush.errors import CodebrushError, PromptError

if TYPE_CHECKING:
    from torch import Tensor

    from codebrush.pipeline import Codebrush
    from codebrush.search.database import Database
    from codebrush.search.nearness import Nearness
    from codebrush.search.queries import Hit

OFFERED = "imagenet"  # the published pack that is offered where the built-in one finds nothing


class Mode(StrEnum):
    """What a query is compared with: the picture, its caption, both, or the meaning of captions and categories."""

    VECTOR = "vector"
    TEXT = "text"
    HYBRID = "hybrid"
    MEANING = "meaning"


def typed_texts() -> Iterator[str]:
    """The texts that are typed at a prompt until an empty line or the end, or all lines of an input that is no
    terminal."""
    is_terminal = sys.stdin is not None and sys.stdin.isatty()
    if is_terminal:
        with suppress(ImportError):
            import readline  # noqa: F401 - gives the prompt editing and a history
    while True:
        try:
            text = input("search: " if is_terminal else "").strip()
        except (EOFError, KeyboardInterrupt, OSError, RuntimeError):  # the last two: there is no input
            return
        if text:
            yield text
        elif is_terminal:
            return


@dataclass(frozen=True)
class Found:
    """What a query found: the rows, the best one if all were below the least score, whether anything is near, and the
    texts of captions and columns by whose meaning rows were found, if any were."""

    hits: "list[Hit]"
    below: "list[Hit]"
    judged: "Nearness | None"
    meant: Sequence[str] | None = None


@dataclass(frozen=True)
class Session:
    """A loaded pack and database, and the flags that hold for every query."""

    brush: "Codebrush"
    database: "Database"
    image: Path | None
    image_weight: float
    without: Sequence[str]
    where: str | None
    mode: Mode
    min_score: float | None
    k: int
    sheet: Path | None
    json_output: bool

    def answer_each(self, texts: Iterable[str]) -> None:
        """Answer one text after the other; what is wrong with one is one line, and the next is asked."""
        for text in texts:
            try:
                self.answer(text)
            except CodebrushError as error:
                print(f"codebrush: {error}", file=sys.stderr)

    def answer(self, query: str | None) -> None:
        """Search for a query, with the picture of --image if there is one, and show what is found."""
        from codebrush.search import queries

        picture, frame = _picture(self.brush, self.database, self.image)
        mode = _mode_that_reads(self.brush, query, picture is not None, self.mode)
        found = self._found(query, picture, mode)
        _draw(found.hits, self.sheet)
        if self.json_output:
            unread = unread_entry(self.brush.tokenizer, [*([] if query is None else [query]), *self.without])
            print_json(_report(found, self.sheet) | frame | unread)
            return
        if found.below:
            best = f"{found.below[0].score:.4f}"
            print(f"nothing found: the best is {best}, below --min-score {self.min_score:g}")
            return
        by_words = mode is Mode.HYBRID and queries.search(
            self.database, None, query, k=1, mode="text", where=self.where, without=self.without
        )
        doubt = None if found.judged is None or by_words else found.judged.doubt
        if doubt is not None and found.meant:
            named = ", ".join(found.meant)
            doubt += f"; first come pictures whose captions or columns are near in meaning: {named}"
        elif doubt is not None and (offer := _offer(self.brush)):
            doubt += f"\ncodebrush: {offer}"
        _print(found.hits, self.sheet, None if mode is Mode.MEANING else doubt)

    def _found(self, query: str | None, picture: "Tensor | None", mode: Mode) -> Found:
        from codebrush.search import queries
        from codebrush.search.meaning import by_meaning

        vector = judged = unwanted = None
        if mode is not Mode.TEXT:
            texts, unwanted = _embedded(self.brush, [query] if query else []), _embedded(self.brush, self.without)
            if texts is not None or picture is not None:
                vector = queries.combine(None if texts is None else texts[0], picture, unwanted, self.image_weight)
            judged = None if texts is None else _judged(self.brush, self.database, texts[0], self.where)
        if mode is Mode.MEANING and query is not None:
            meant = by_meaning(self.database, query, vector, self.k, self.where)
            return Found(meant.hits, [], judged, meant.texts)
        asked: dict[str, Any] = {"where": self.where, "without": self.without, "mode": mode.value}
        hits = queries.search(self.database, vector, query, k=self.k, min_score=self.min_score, **asked)
        has_least = self.min_score is not None
        below = [] if hits or not has_least else queries.search(self.database, vector, query, k=1, **asked)
        plain = mode is Mode.VECTOR and picture is None and unwanted is None and not has_least
        if query is None or not plain or judged is None or judged.near:
            return Found(hits, below, judged)
        # No picture looks like the text: those whose captions or columns mean it come first.
        meant = by_meaning(self.database, query, vector, self.k, self.where)
        first = [replace(hit, score=look) for hit, look in zip(meant.hits, meant.looks, strict=True)]
        known = {hit.path for hit in first}
        return Found([*first, *(hit for hit in hits if hit.path not in known)][: self.k], below, judged, meant.texts)


def _offer(brush: "Codebrush") -> str | None:
    """One line about a published CLIP, for the built-in pack, which has seen little but drawings."""
    from codebrush.hub.catalogue import load_catalogue
    from codebrush.pack.pack import BUILT_IN

    if brush.pack.folder.parent != BUILT_IN:
        return None
    catalogue = load_catalogue()
    models = catalogue.pack_models(catalogue.pack(OFFERED)).values()
    size = sum(model.size or 0 for model in models) / 1e9
    return (
        "the built-in pack has seen little but emoji and icons; for photographs, codebrush packs download "
        f"{OFFERED} ({size:.1f} GB) and index with --pack {OFFERED}"
    )


def _draw(hits: "list[Hit]", sheet: Path | None) -> None:
    """Write the contact sheet if one is asked for and anything was found."""
    if sheet is None:
        return
    if not hits:
        print(f"codebrush: nothing was found, so --sheet {sheet} was not written", file=sys.stderr)
        return
    from codebrush.data.contact_sheet import contact_sheet
    from codebrush.data.decoding.images import decode_image, save_png

    pictures = [decode_image(hit.thumbnail) for hit in hits]
    save_png(contact_sheet(pictures, [f"{hit.score:.3f} {hit.caption or Path(hit.path).name}" for hit in hits]), sheet)


def _picture(brush: "Codebrush", database: "Database", image: Path | None) -> "tuple[Tensor | None, dict[str, int]]":
    """The embedding (E,) of the picture to search for, by the database's rule, and its frame for the report."""
    if image is None:
        return None, {}
    picture, frame = seen_picture(brush.clip, image)
    return brush.embed_images([picture], database.mark.fit)[0], frame


def _mode_that_reads(brush: "Codebrush", query: str | None, has_picture: bool, mode: Mode) -> Mode:
    """The mode in which a query can be searched for: if the pack reads nothing of it, only captions may have it.

    Raises PromptError if nothing is left to compare pictures with.
    """
    from codebrush.text.reading import REMEDY, is_unreadable, named_texts

    if query is None or mode in (Mode.TEXT, Mode.MEANING) or not is_unreadable(query, brush.tokenizer):
        return mode
    lost = f"the pack cannot read {named_texts([query])}"
    if mode is Mode.VECTOR and not has_picture:
        raise PromptError(f"{lost}, so no picture can be found by it: {REMEDY}, or search captions with --mode text")
    left = (["pictures like --image"] if has_picture else []) + (["captions"] if mode is Mode.HYBRID else [])
    print(f"codebrush: {lost}, so only {' and '.join(left)} are searched for", file=sys.stderr)
    return mode if has_picture else Mode.TEXT


def _embedded(brush: "Codebrush", texts: Sequence[str]) -> "Tensor | None":
    """The embeddings (N, E) of those of the texts of which the pack reads anything, which may be none."""
    from codebrush.text.reading import is_unreadable

    known = [text for text in texts if not is_unreadable(text, brush.tokenizer)]
    return brush.embed_text(known) if known else None


def _judged(brush: "Codebrush", database: "Database", text: "Tensor", where: str | None) -> "Nearness | None":
    from codebrush.search.nearness import nearness
    from codebrush.understanding.classification import pack_temperature

    temperature = pack_temperature(brush.pack.info)
    return nearness(database, text, brush.clip, brush.tokenizer, temperature=temperature, where=where)


def _report(found: Found, sheet: Path | None) -> dict[str, Any]:
    """The results for --json, and whether any picture is near to the text: null where that is not known. If all are
    below the least score, none is near enough, and `best_score` is the highest. `by_meaning` names the captions and
    cells by whose meaning they were found.
    """
    hits, below, judged = found.hits, found.below, found.judged
    shown = ("path", "score", "caption", "exists", "columns")
    near: dict[str, Any] = {"near": None, "level": None}
    if judged is not None:
        near = {"near": judged.near and not below, "level": judged.level}
    if below:
        near["best_score"] = below[0].score
    if found.meant:
        near["by_meaning"] = list(found.meant)
    results = [{name: getattr(hit, name) for name in shown} | frame_entry(hit.frame) for hit in hits]
    return {"results": results, **near, **({"sheet": str(sheet)} if sheet is not None and hits else {})}


def _from_here(path: str) -> str:
    """A path without the current folder, if it lies in there."""
    return path.removeprefix(os.path.join(os.getcwd(), ""))


def _print(hits: "list[Hit]", sheet: Path | None, doubt: str | None) -> None:
    from rich.table import Table

    if not hits:
        print("nothing found")
        return
    if doubt is not None:
        print(f"codebrush: {doubt}", file=sys.stderr)
    table = Table("score", "picture", "caption", box=None, header_style="bold")
    for hit in hits:
        path = _from_here(hit.path)
        table.add_row(f"{hit.score:.4f}", path if hit.exists else f"{path} (gone)", hit.caption)
    print_table(table)
    if sheet is not None:
        print(f"contact sheet: {sheet}")
