"""The flags of commands that read captioned pictures: which source, which of its rows and which of its columns."""

from typing import Annotated

import typer

KINDS = "a folder, .parquet, .tar, .csv, .tsv or .jsonl files, a glob, or a Hugging Face dataset id"

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
LimitOption = Annotated[int | None, typer.Option(min=1, help="Use only the first N rows.")]
