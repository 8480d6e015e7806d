"""The flags of commands that read captioned pictures: which source, which of its rows and which of its columns."""

import os
from typing import Annotated

import typer

KINDS = "a folder, .parquet, .tar, .csv, .tsv or .jsonl files, a glob, or a Hugging Face dataset id"


def _set_pixel_limit(context: typer.Context, limit: int | None) -> int | None:
    """Set the limit for this command and the processes it starts; an environment variable reaches them all."""
    from codebrush.data.decoding.large_pictures import LIMIT_VARIABLE

    if limit is not None:
        before = os.environ.get(LIMIT_VARIABLE)
        os.environ[LIMIT_VARIABLE] = str(limit)
        context.call_on_close(lambda: _restore(LIMIT_VARIABLE, before))
    return limit


def _restore(variable: str, before: str | None) -> None:
    if before is None:
        os.environ.pop(variable, None)
    else:
        os.environ[variable] = before


SourceArgument = Annotated[str, typer.Argument(help=f"Captioned pictures: {KINDS}.")]
LabelledArgument = Annotated[str, typer.Argument(help=f"Labelled pictures: {KINDS}.")]
PathsArgument = Annotated[
    list[str], typer.Argument(help="Folders, picture files, .parquet, .tar, .csv, .tsv or .jsonl files, hub ids.")
]
CaptionOption = Annotated[
    list[str] | None, typer.Option(help='Caption made of columns, like "{label}, {style} style"; may be repeated.')
]
SplitOption = Annotated[str | None, typer.Option(help="Use only the rows of this split.  [all rows]")]
WhereOption = Annotated[
    list[str] | None, typer.Option(help='Use only rows that match, like "style != noto"; may be repeated.')
]
ImageColumnOption = Annotated[str | None, typer.Option(help="Column with the pictures.  [found automatically]")]
StrictOption = Annotated[
    bool, typer.Option("--strict", help="Stop at the first thing that cannot be read, instead of leaving it out.")
]
ExcludeOption = Annotated[
    list[str] | None,
    typer.Option(help="Leave out files and folders by name or path, like '*.bak' or 'drafts/*'; may be repeated."),
]
MaxPixelsOption = Annotated[
    int | None,
    typer.Option(
        min=1,
        callback=_set_pixel_limit,
        expose_value=False,
        help="Refuse pictures of more pixels.  [89,478,485; JPEG read smaller: 268,435,456]",
    ),
]
LimitOption = Annotated[int | None, typer.Option(min=1, help="Use only the first N rows.")]
DbOption = Annotated[
    str, typer.Option(help="Folder of the database, or an address like s3://bucket/pictures; made if there is none.")
]
