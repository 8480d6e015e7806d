"""`codebrush search`: find the pictures of a database that match a text, a picture or both."""

import sys
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Annotated

import typer

from codebrush.cli.flags.common import JsonOption, given_flags, refuse
from codebrush.cli.output.printing import check_folder
from codebrush.cli.output.search_session import Mode, Session, typed_texts
from codebrush.errors import UsageError


def search(
    context: typer.Context,
    db: Annotated[str, typer.Option(help="Folder or address of a database made by codebrush index.")],
    query: Annotated[
        str | None,
        typer.Argument(help='Text to search for, like "a red flower". Without it and --image, a prompt asks.'),
    ] = None,
    image: Annotated[Path | None, typer.Option(help="Find pictures similar to this one.")] = None,
    image_weight: Annotated[float, typer.Option(min=0, max=1, help="Weight of --image; the text has the rest.")] = 0.5,
    without: Annotated[
        list[str] | None, typer.Option(help="Text for what the pictures should not show; may be repeated.")
    ] = None,
    where: Annotated[
        str | None, typer.Option(help='Search only rows that meet this SQL condition, like "width > 64".')
    ] = None,
    mode: Annotated[
        Mode,
        typer.Option(
            help="Search the pictures (vector), their captions (text), both (hybrid), or captions and columns by what "
            "their words mean (meaning)."
        ),
    ] = Mode.VECTOR,
    min_score: Annotated[
        float | None, typer.Option(min=-1, max=1, help="Leave out pictures whose cosine with the query is lower.")
    ] = None,
    k: Annotated[int, typer.Option("--n", "-n", "-k", min=1, max=10_000, help="Number of results.")] = 10,
    sheet: Annotated[Path | None, typer.Option(help="PNG file for a contact sheet of the results.")] = None,
    pack: Annotated[str, typer.Option(help="Model pack that the database was made with.")] = "emoji",
    json_output: JsonOption = False,
) -> None:
    """Find pictures by a text, by a picture, or by captions.

    The best come first. The text is taken literally: weights as in prompts have no effect. If no picture fits the text
    better than texts about other things, one line says so, and those whose captions or columns are near in meaning come
    first ("a vehicle" finds an automobile). Without a text and --image, a prompt asks for one text after the
    other (from stdin, one a line, if that is no terminal).
    """
    _check_query(context, query, image, without or (), mode)
    _check_sheet(sheet, image)
    from codebrush.search.places import check_installed

    check_installed()  # before a pack is loaded
    texts = _texts() if query is None and image is None else None
    from codebrush.pack.pack import clip_hash
    from codebrush.pipeline import Codebrush
    from codebrush.search.database import WORDS_UPDATED, Embedder, open_database
    from codebrush.search.finding import Query

    brush = Codebrush.from_pretrained(pack)
    database = open_database(db, Embedder(brush.pack.name, clip_hash(brush.pack.member("clip"))), quiet=True)
    if sheet is not None and database.holds(sheet):
        raise UsageError(f"--sheet {sheet} is one of the pictures in {db}: name another file")
    if mode in (Mode.TEXT, Mode.HYBRID) and database.update_words():
        print(f"codebrush: {WORDS_UPDATED}", file=sys.stderr)
    asked = Query(
        picture_weight=image_weight, without=without or (), where=where, mode=mode.value, min_score=min_score, k=k
    )
    session = Session(brush, database, asked, image, sheet, json_output)
    session.answer(query) if texts is None else session.answer_each(texts)


def _texts() -> Iterator[str]:
    """The texts of the prompt. Raises UsageError if the input is no terminal and has none."""
    texts = typed_texts()
    if sys.stdin is not None and sys.stdin.isatty():
        return texts
    first = next(texts, None)
    if first is None:
        raise UsageError('there is nothing to search for: give a text, like "a red flower", or --image FILE')
    return chain([first], texts)


def _check_query(
    context: typer.Context, query: str | None, image: Path | None, without: Sequence[str], mode: Mode
) -> None:
    """Raise UsageError for flags that do not go together, and for texts that are missing or empty."""
    given = given_flags(context)
    if mode is Mode.TEXT:
        refuse(given, ("image", "image_weight"), "cannot be used with --mode text, which searches only captions")
    if mode is Mode.MEANING:
        reason = "cannot be used with --mode meaning, which searches captions and columns"
        refuse(given, ("image", "image_weight", "without"), reason)
    if mode is not Mode.VECTOR:
        refuse(given, ("min_score",), f"is a cosine, and the scores of --mode {mode.value} are none")
    if image is None or query is None:
        refuse(given, ("image_weight",), "needs both a text and --image")
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
