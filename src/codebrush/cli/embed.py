"""`codebrush embed`: write the CLIP embeddings of pictures to a Parquet file."""

import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from codebrush.cli.flags.cluster import AddressOption, EngineName, EngineOption, WorkersOption, cluster_of
from codebrush.cli.flags.common import FitOption, JsonOption, PackOption
from codebrush.cli.flags.sources import (
    CaptionOption,
    ExcludeOption,
    ImageColumnOption,
    MaxPixelsOption,
    PathsArgument,
    StrictOption,
)
from codebrush.cli.output.printing import check_folder, print_json, print_skipped, progress_bar
from codebrush.data.sources.unread import amount
from codebrush.errors import UsageError


def embed(
    context: typer.Context,
    paths: PathsArgument,
    out: Annotated[Path, typer.Option(help="Parquet file to write; one that exists is replaced.")],
    caption: CaptionOption = None,
    image_column: ImageColumnOption = None,
    exclude: ExcludeOption = None,
    strict: StrictOption = False,
    max_pixels: MaxPixelsOption = None,
    fit: FitOption = None,
    engine: EngineOption = EngineName.LOCAL,
    address: AddressOption = None,
    workers: WorkersOption = None,
    pack: PackOption = "emoji",
    json_output: JsonOption = False,
) -> None:
    """Write the CLIP embeddings of pictures to a Parquet file.

    Each picture is a row with its path, source, caption, width, height and embedding, a unit vector; the file's
    metadata say which CLIP made them. Pictures that cannot be read are reported and skipped.
    """
    start = time.perf_counter()
    if out.suffix.lower() != ".parquet" or out.is_dir():
        raise UsageError(f"--out must be a file that ends in .parquet, not {out}")
    check_folder(out.absolute().parent)
    cluster = cluster_of(context)
    from codebrush.distributed.embedding import embed_engine
    from codebrush.pack.pack import clip_hash
    from codebrush.pipeline import Codebrush
    from codebrush.search.database import Embedder
    from codebrush.search.embedding import embed_pictures
    from codebrush.search.pictures import open_pictures

    named: dict[str, Any] = {"image_column": image_column, "strict": strict, "exclude": exclude or ()}
    sources = [open_pictures(path, caption or (), **named) for path in dict.fromkeys(paths)]
    brush = Codebrush.from_pretrained(pack)
    embedder = Embedder(brush.pack.name, clip_hash(brush.pack.member("clip")), None if fit is None else fit.value)
    with cluster as joined, progress_bar("embedding") as progress:
        shared = None if joined is None else embed_engine(joined)
        report = embed_pictures(sources, brush.clip, embedder, out, progress, shared)
    print_skipped(report.skipped)
    seconds = round(time.perf_counter() - start, 3)
    if json_output:
        unread = [each.unread.report for each in sources]
        print_json({"path": str(out), **asdict(report), "unread": unread, "seconds": seconds})
        return
    print(f"{out}: {amount('picture', report.rows)} embedded, {len(report.skipped):,} skipped; {seconds:.1f} seconds")
