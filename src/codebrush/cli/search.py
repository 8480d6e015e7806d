"""`codebrush search`: find the pictures of a database that match a text, a picture or both."""

import sys
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from codebrush.cli.flags import JsonOption, given_flags, refuse
from codebrush.cli.output import check_folder, print_json, print_table, unread_entry
from codebrush.cli.pictures import frame_entry, seen_picture
from codebrush.errors import PromptError, UsageError

if TYPE_CHECKING:
    from torch import Tensor

    from codebrush.pipeline import Codebrush
    from codebrush.search.database import Database
    from codebrush.search.nearness import Nearness
    from codebrush.search.queries import Hit


class Mode(StrEnum):
    """What a query is compared with: the picture, its caption, or both."""

    VECTOR = "vector"
    TEXT = "text"
    HYBRID = "hybrid"


def search(
    context: typer.Context,
    db: Annotated[Path, typer.Option(help="Folder of a database made by codebrush index.")],
    query: Annotated[str | None, typer.Argument(help='Text to search for, like "a red flower".')] = None,
    image: Annotated[Path | None, typer.Option(help="Find pictures similar to this one.")] = None,
    image_weight: Annotated[float, typer.Option(min=0, max=1, help="Weight of --image; the text has the rest.")] = 0.5,
    without: Annotated[
        list[str] | None, typer.Option(help="Text for what the pictures should not show; may be repeated.")
    ] = None,
    where: Annotated[
        str | None, typer.Option(help='Search only rows that meet this SQL condition, like "width > 64".')
    ] = None,
    mode: Annotated[
        Mode, typer.Option(help="Search the pictures (vector), their captions (text), or both (hybrid).")
    ] = Mode.VECTOR,
    min_score: Annotated[
        float | None, typer.Option(min=-1, max=1, help="Leave out pictures whose cosine with the query is lower.")
    ] = None,
    k: Annotated[int, typer.Option("-k", min=1, max=10_000, help="Number of results.")] = 10,
    sheet: Annotated[Path | None, typer.Option(help="PNG file for a contact sheet of the results.")] = None,
    pack: Annotated[str, typer.Option(help="Model pack that the database was made with.")] = "emoji",
    json_output: JsonOption = False,
) -> None:
    """Find pictures by a text, by a picture, or by captions.

    The best come first. The text is taken literally: weights as in prompts have no effect. If no picture fits the text
    better than texts about other things, one line says so.
    """
    _check_query(context, query, image, without or (), mode)
    _check_sheet(sheet, image)
    from codebrush.pack.pack import clip_hash
    from codebrush.pipeline import Codebrush
    from codebrush.search import queries
    from codebrush.search.database import WORDS_UPDATED, Mark, open_database

    brush = Codebrush.from_pretrained(pack)
    database = open_database(db, Mark(brush.pack.name, clip_hash(brush.pack.member("clip"))), quiet=True)
    if sheet is not None and database.holds(sheet):
        raise UsageError(f"--sheet {sheet} is one of the pictures in {db}: name another file")
    if mode is not Mode.VECTOR and database.update_words():
        print(f"codebrush: {WORDS_UPDATED}", file=sys.stderr)
    vector = judged = None
    picture, frame = _picture(brush, database, image)
    mode = _mode_that_reads(brush, query, picture is not None, mode)
    if mode is not Mode.TEXT:
        texts, unwanted = _embedded(brush, [query] if query else []), _embedded(brush, without or ())
        vector = queries.combine(None if texts is None else texts[0], picture, unwanted, image_weight)
        judged = None if texts is None else _judged(brush, database, texts[0], where)
    asked: dict[str, Any] = {"where": where, "without": without or ()}
    hits = queries.search(database, vector, query, k=k, mode=mode.value, min_score=min_score, **asked)
    below = [] if hits or min_score is None else queries.search(database, vector, query, k=1, mode=mode.value, **asked)
    _draw(hits, sheet)
    if json_output:
        unread = unread_entry(brush.tokenizer, [*([] if query is None else [query]), *(without or ())])
        print_json(_report(hits, below, judged, sheet) | frame | unread)
    elif below:
        print(f"nothing found: the best is {below[0].score:.4f}, below --min-score {min_score:g}")
    else:
        by_words = mode is Mode.HYBRID and queries.search(database, None, query, k=1, mode="text", **asked)
        _print(hits, sheet, None if judged is None or by_words else judged.doubt)


def _check_query(
    context: typer.Context, query: str | None, image: Path | None, without: Sequence[str], mode: Mode
) -> None:
    """Raise UsageError for flags that do not go together, and for texts that are missing or empty."""
    given = given_flags(context)
    if mode is Mode.TEXT:
        refuse(given, ("image", "image_weight"), "cannot be used with --mode text, which searches only captions")
    if mode is not Mode.VECTOR:
        refuse(given, ("min_score",), f"is a cosine, and the scores of --mode {mode.value} are none")
    if image is None or query is None:
        refuse(given, ("image_weight",), "needs both a text and --image")
    if query is None and image is None:
        raise UsageError('there is nothing to search for: give a text, like "a red flower", or --image FILE')
    if query is not None and not query.strip():
        raise UsageError("the text to search for is empty")
    if not all(text.strip() for text in without):
        raise UsageError("a text for --without is empty")


def _check_sheet(sheet: Path | None, image: Path | None) -> None:
    """Raise UsageError if the file of --sheet cannot be written or is the picture to search for."""
    if sheet is None:
        return
    if sheet.suffix.lower() != ".png" or sheet.is_dir():
        raise UsageError(f"--sheet must be a file that ends in .png, not {sheet}")
    if image is not None and sheet.exists() and image.exists() and sheet.samefile(image):
        raise UsageError(f"--sheet {sheet} is the picture of --image: name another file")
    check_folder(sheet.absolute().parent, "--sheet")


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

    if query is None or mode is Mode.TEXT or not is_unreadable(query, brush.tokenizer):
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


def _report(hits: "list[Hit]", below: "list[Hit]", judged: "Nearness | None", sheet: Path | None) -> dict[str, Any]:
    """The results for --json, and whether any picture is near to the text: null where that is not known. If all are
    below the least score, none is near enough, and `best_score` is the highest.
    """
    shown = ("path", "score", "caption", "exists", "columns")
    near: dict[str, Any] = {"near": None, "level": None}
    if judged is not None:
        near = {"near": judged.near and not below, "level": judged.level}
    if below:
        near["best_score"] = below[0].score
    results = [{name: getattr(hit, name) for name in shown} | frame_entry(hit.frame) for hit in hits]
    return {"results": results, **near, **({"sheet": str(sheet)} if sheet is not None and hits else {})}


def _print(hits: "list[Hit]", sheet: Path | None, doubt: str | None) -> None:
    from rich.table import Table

    if not hits:
        print("nothing found")
        return
    if doubt is not None:
        print(f"codebrush: {doubt}", file=sys.stderr)
    table = Table("score", "picture", "caption", box=None, header_style="bold")
    for hit in hits:
        table.add_row(f"{hit.score:.4f}", hit.path if hit.exists else f"{hit.path} (gone)", hit.caption)
    print_table(table)
    if sheet is not None:
        print(f"contact sheet: {sheet}")
