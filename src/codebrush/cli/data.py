"""`codebrush data`: makes captioned pictures to train on: drawn scenes, emoji, or downloads from a list of URLs."""

import time
from pathlib import Path
from typing import Annotated

import typer

from codebrush.cli.flags.common import JsonOption
from codebrush.cli.output.printing import print_json, progress_bar
from codebrush.data.crawl.options import FetchLimits, GatherOptions
from codebrush.data.sources.unread import amount
from codebrush.errors import DataError

USUAL = GatherOptions()
data = typer.Typer(help="Draw or download captioned pictures to train on.", rich_markup_mode=None, add_completion=False)

OutOption = Annotated[Path, typer.Option(help="The folder to write; it must be new or empty.")]


@data.command()
def shapes(
    out: OutOption,
    count: Annotated[int, typer.Option(help="Number of scenes.")] = 1000,
    size: Annotated[int, typer.Option(help="Width and height of the pictures in pixels.")] = 64,
    seed: Annotated[int, typer.Option(help="Random seed.")] = 0,
    objects: Annotated[int | None, typer.Option(help="Number of shapes in each scene, 1 to 6.  [mixed]")] = None,
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
    size: Annotated[int, typer.Option(help="Width and height of the pictures in pixels.")] = 128,
    font: Annotated[Path | None, typer.Option(help="File of a colour-emoji font.  [an installed one]")] = None,
    limit: Annotated[int | None, typer.Option(help="Stop after this many emoji.  [all]")] = None,
    json_output: JsonOption = False,
) -> None:
    """Draw the emoji of a colour font, captioned with their names."""
    start = time.perf_counter()
    from codebrush.data.emoji import write_emoji

    with progress_bar("drawing") as progress:
        written = write_emoji(out, size=size, font=font, limit=limit, progress=progress)
    _report(out, written, start, json_output)


@data.command()
def gather(
    urls: Annotated[Path, typer.Argument(help="A .csv, .tsv, .jsonl or .parquet list of URLs with captions.")],
    out: Annotated[Path, typer.Option(help="The folder to write; that of an earlier run is completed.")],
    url_column: Annotated[str | None, typer.Option(help="Column of the URLs.  [url]")] = None,
    caption_column: Annotated[str | None, typer.Option(help="Column of the captions.  [caption, text ...]")] = None,
    workers: Annotated[int, typer.Option(help="Number of parallel downloads.")] = USUAL.workers,
    at_once: Annotated[int, typer.Option(help="Number of parallel downloads from one site.")] = USUAL.at_once,
    delay: Annotated[float, typer.Option(help="Minimum seconds between two requests to one site.")] = USUAL.delay,
    timeout: Annotated[
        float, typer.Option(help="Give up after this many seconds without data.")
    ] = USUAL.limits.timeout,
    deadline: Annotated[
        float, typer.Option(help="Give up on a picture after this many seconds.")
    ] = USUAL.limits.deadline,
    max_bytes: Annotated[int, typer.Option(help="Skip files with more bytes.")] = USUAL.limits.max_bytes,
    retries: Annotated[int, typer.Option(help="Number of retries after failures that may pass.")] = USUAL.retries,
    pause: Annotated[
        float, typer.Option(help="Seconds before the first retry; doubled for each further one.")
    ] = USUAL.pause,
    resize: Annotated[int | None, typer.Option(help="Scale larger pictures down to this shorter side.")] = USUAL.resize,
    shard_rows: Annotated[int, typer.Option(help="Rows of the list in each shard.")] = USUAL.shard_rows,
    contact: Annotated[str, typer.Option(help="Where sites can reach you; sent with every request.")] = USUAL.contact,
    allow_local: Annotated[bool, typer.Option("--allow-local", help="Fetch from private addresses too.")] = False,
    json_output: JsonOption = False,
) -> None:
    """Download the pictures of a list of URLs, with their captions, as far as the sites allow it.

    Obeys robots.txt, X-Robots-Tag (noai, noimageai, noindex, noimageindex) and TDM-Reservation. Run it again to fetch
    what is missing. Train on the folder, or curate it first; failures.jsonl lists what could not be fetched and why.
    """
    from codebrush.data.crawl.gather import gather as fetch
    from codebrush.data.crawl.gather import with_remedy
    from codebrush.data.crawl.url_lists import read_list

    limits = FetchLimits(timeout, deadline, max_bytes, allow_local)
    options = GatherOptions(workers, at_once, delay, retries, pause, resize, shard_rows, contact, limits)
    count = sum(1 for _ in read_list(urls, url_column, caption_column))
    if not count:
        raise DataError(f"{urls}: has no rows")
    with progress_bar("gathering") as progress:
        report = fetch(read_list(urls, url_column, caption_column), count, out, options, progress)
    if json_output:
        print_json(report)
        return
    are = "is" if report["fetched"] == 1 else "are"
    print(f"{report['fetched']:,} of {amount('picture', count)} {are} in {out}, {report['new']:,} of them new")
    for reason, number in report["failed"].items():
        print(f"  {number:,} failed: {with_remedy(reason)}")


def _report(out: Path, written: int, start: float, json_output: bool) -> None:
    report = {"path": str(out), "pictures": written, "seconds": round(time.perf_counter() - start, 3)}
    if json_output:
        print_json(report)
    else:
        print(f"{amount('picture', written)} with captions {'is' if written == 1 else 'are'} in {out}")
