"""Answers the queries of `codebrush search` on the terminal.

The pack and the database stay loaded, so that a prompt can ask one query after the other.
"""

import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from codebrush.cli.flags.pictures import frame_entry, seen_picture
from codebrush.cli.output.printing import print_json, print_table, unread_entry
from codebrush.errors import CodebrushError

if TYPE_CHECKING:
    from codebrush.pipeline import Codebrush
    from codebrush.search.database import Database
    from codebrush.search.finding import Found, Query
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
class Session:
    """A loaded pack and database, and what holds for every query."""

    brush: "Codebrush"
    database: "Database"
    asked: "Query"  # what the flags say, without a text and a picture
    image: Path | None
    sheet: Path | None
    json_output: bool

    def answer_each(self, texts: Iterable[str]) -> None:
        """Answer one text after the other; what is wrong with one is one line, and the next is asked."""
        from codebrush.search.memory_index import MemoryIndexes

        self.database.memory = MemoryIndexes()  # one text alone is found on disk before they are in memory
        for text in texts:
            try:
                self.answer(text)
            except CodebrushError as error:
                print(f"codebrush: {error}", file=sys.stderr)

    def answer(self, query: str | None) -> None:
        """Search for a query, with the picture of --image if there is one, and show what is found."""
        from codebrush.search.finding import find
        from codebrush.understanding.classification import pack_temperature

        brush, asked, frame = (
            self.brush,
            replace(self.asked, text=query, thumbnails=self.sheet is not None),
            dict[str, int](),
        )
        if self.image is not None:  # embedded by the database's rule
            seen, frame = seen_picture(brush.clip, self.image)
            asked = replace(asked, picture=brush.embed_images([seen], self.database.embedder.fit)[0])
        temperature = pack_temperature(brush.pack.info)
        found = find(
            self.database, brush.clip, brush.tokenizer, asked, temperature=temperature, known=brush.known_texts
        )
        if found.note:
            print(f"codebrush: {found.note}", file=sys.stderr)
        _draw(found.hits, self.sheet)
        if self.json_output:
            unread = unread_entry(brush.tokenizer, [*([] if query is None else [query]), *asked.without])
            print_json(_report(found, self.sheet) | frame | unread)
        elif found.below:
            best = f"{found.below[0].score:.4f}"
            print(f"nothing found: the best is {best}, below --min-score {asked.min_score:g}")
        else:
            _print(found.hits, self.sheet, self._doubt(found))

    def _doubt(self, found: "Found") -> str | None:
        """What is said above the results if no picture is near."""
        doubt = None if found.judged is None or found.by_captions else found.judged.doubt
        if doubt is None or self.asked.mode == "meaning":
            return None
        if found.meant:
            named = ", ".join(found.meant)
            return f"{doubt}; first come pictures whose captions or columns are near in meaning: {named}"
        offer = _offer(self.brush)
        return doubt if offer is None else f"{doubt}\ncodebrush: {offer}"


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


def _report(found: "Found", sheet: Path | None) -> dict[str, Any]:
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
