"""`codebrush data`: captioned pictures to train on, drawn by rule, from a font, or fetched from a list of URLs."""

import time
from pathlib import Path
from typing import Annotated

import typer

from codebrush.cli.output import print_json, progress_bar
from codebrush.errors import DataError

data = typer.Typer(help="Write captioned pictures to train on.", rich_markup_mode=None, add_completion=False)

OutOption = Annotated[Path, typer.Option(help="The new folder.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]


@data.command()
def shapes(
    out: OutOption,
    count: Annotated[int, typer.Option(help="How many scenes.")] = 1000,
    size: Annotated[int, typer.Option(help="Side of the pictures in pixels.")] = 64,
    seed: Annotated[int, typer.Option(help="Another seed, other scenes.")] = 0,
    objects: Annotated[int | None, typer.Option(help="Shapes in each scene.  [mixed]")] = None,
    json_output: JsonOption = False,
) -> None:
    """Draw scenes of coloured shapes with captions that are exactly true."""
    start = time.perf_counter()
    from codebrush.data.synthetic.scene_folder import write_shapes

    written = write_shapes(out, count, size=size, seed=seed, objects=objects)
    _report(out, written, start, json_output)


@data.command()
def emoji(
    out: OutOption,
    size: Annotated[int, typer.Option(help="Side of the pictures in pixels.")] = 128,
    font: Annotated[Path | None, typer.Option(help="A colour-emoji font.  [an installed one]")] = None,
    limit: Annotated[int | None, typer.Option(help="Stop after so many.  [all]")] = None,
    json_output: JsonOption = False,
) -> None:
    """Draw the emoji of an installed colour font, with their names and keywords."""
    start = time.perf_counter()
    from codebrush.data.emoji import write_emoji

    with progress_bar("drawing") as progress:
        written = write_emoji(out, size=size, font=font, limit=limit, progress=progress)
    _report(out, written, start, json_output)


@data.command()
def gather(
    urls: Annotated[Path, typer.Argument(help="A .csv, .tsv, .jsonl or .parquet list of URLs with captions.")],
    out: Annotated[Path, typer.Option(help="The folder; one of an earlier run is completed.")],
    url_column: Annotated[str | None, typer.Option(help="Column of the URLs.  [url]")] = None,
    caption_column: Annotated[str | None, typer.Option(help="Column of the captions.  [caption, text ...]")] = None,
    workers: Annotated[int, typer.Option(help="Pictures fetched at once.")] = 16,
    at_once: Annotated[int, typer.Option(help="Pictures fetched at once from one site.")] = 2,
    delay: Annotated[float, typer.Option(help="Seconds between requests to one site.")] = 0.1,
    timeout: Annotated[float, typer.Option(help="Seconds without a byte.")] = 10.0,
    deadline: Annotated[float, typer.Option(help="Seconds for one picture.")] = 60.0,
    max_bytes: Annotated[int, typer.Option(help="Most bytes of a picture.")] = 20_000_000,
    retries: Annotated[int, typer.Option(help="Further tries where waiting may help.")] = 2,
    pause: Annotated[float, typer.Option(help="Seconds before the first of them; doubled for each further one.")] = 1.0,
    resize: Annotated[int | None, typer.Option(help="Shorter side of what is larger, in pixels.  [kept]")] = None,
    shard_rows: Annotated[int, typer.Option(help="Rows of the list for each shard.")] = 1_000,
    contact: Annotated[str, typer.Option(help="Whom sites can write to: an address or page, sent along.")] = "",
    allow_local: Annotated[bool, typer.Option("--allow-local", help="Ask private addresses too.")] = False,
    json_output: JsonOption = False,
) -> None:
    """Fetch pictures with captions from the web, as far as their sites allow it.

    Heeds robots.txt, X-Robots-Tag (noai, noimageai, noindex, noimageindex) and TDM-Reservation. Run again, it fetches
    what is missing. The folder can be trained on, or curated first; failures.jsonl says what is not there and why.
    """
    from codebrush.data.crawl.fetcher import FetchLimits
    from codebrush.data.crawl.gather import GatherOptions, with_remedy
    from codebrush.data.crawl.gather import gather as fetch
    from codebrush.data.crawl.url_lists import read_list

    limits = FetchLimits(timeout, deadline, max_bytes, allow_local)
    options = GatherOptions(workers, at_once, delay, retries, pause, resize, shard_rows, contact, limits)
    count = sum(1 for _ in read_list(urls, url_column, caption_column))
    if not count:
        raise DataError(f"{urls}: holds no row")
    with progress_bar("gathering") as progress:
        report = fetch(read_list(urls, url_column, caption_column), count, out, options, progress)
    if json_output:
        print_json(report)
        return
    print(f"{report['fetched']:,} of {count:,} pictures are in {out}, {report['new']:,} of them new")
    for reason, number in report["failed"].items():
        print(f"  {number:,} failed: {with_remedy(reason)}")


def _report(out: Path, written: int, start: float, json_output: bool) -> None:
    report = {"path": str(out), "pictures": written, "seconds": round(time.perf_counter() - start, 3)}
    if json_output:
        print_json(report)
    else:
        print(f"{written} pictures with captions are in {out}")
