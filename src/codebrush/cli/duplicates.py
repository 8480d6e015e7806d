"""`codebrush similar` and `codebrush duplicates`: how alike two pictures are, and which of many are nearly the same."""

import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from codebrush.cli.output import print_json, progress_bar

PackOption = Annotated[str, typer.Option(help="Built-in name, folder or hub id of the models.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]


def similar(
    a: Annotated[Path, typer.Argument(help="A picture.")],
    b: Annotated[Path, typer.Argument(help="Another.")],
    pack: PackOption = "emoji",
    json_output: JsonOption = False,
) -> None:
    """Say how alike two pictures are: to CLIP (cosine, 1 is the same) and in outline (bits that differ, of 64)."""
    from codebrush.pipeline import Codebrush
    from codebrush.search.duplicates import COSINE, DISTANCE, compare

    alike = compare(Codebrush.from_pretrained(pack).clip, str(a), str(b))
    near = alike.identical or (alike.cosine >= COSINE and alike.distance <= DISTANCE)
    if json_output:
        print_json({"a": str(a), "b": str(b), **asdict(alike), "near_identical": near})
        return
    verdict = "the same in every pixel" if alike.identical else "nearly the same" if near else "not the same"
    print(f"{verdict}: cosine {alike.cosine:.3f}, {alike.distance} of 64 bits differ")


def duplicates(
    paths: Annotated[list[str], typer.Argument(help="Folders, pictures, .parquet, .tar, .csv, .jsonl files, hub ids.")],
    cosine: Annotated[float | None, typer.Option(min=-1, max=1, help="Least cosine of a pair.  [0.98]")] = None,
    distance: Annotated[int | None, typer.Option(min=0, max=64, help="Most differing bits of a pair.  [8]")] = None,
    image_column: Annotated[str | None, typer.Option(help="Column of the pictures.  [found]")] = None,
    pack: PackOption = "emoji",
    json_output: JsonOption = False,
) -> None:
    """Find pictures that are nearly the same: copies that were scaled, compressed, cropped a little. Deletes nothing.

    Each cluster is told with the one to keep, that of the most pixels, first; each of the others agrees with it.
    """
    start = time.perf_counter()
    from codebrush.pipeline import Codebrush
    from codebrush.search.duplicates import COSINE, DISTANCE, find_duplicates
    from codebrush.search.pictures import open_pictures

    sources = [open_pictures(path, image_column=image_column) for path in dict.fromkeys(paths)]
    clip = Codebrush.from_pretrained(pack).clip
    thresholds = (COSINE if cosine is None else cosine, DISTANCE if distance is None else distance)
    with progress_bar("looking") as progress:
        report = find_duplicates(sources, clip, *thresholds, progress)
    for each in report.skipped:
        print(f"codebrush: skipped {each['path']}: {each['reason']}", file=sys.stderr)
    clusters: list[dict[str, Any]] = [
        {
            "representative": cluster.representative,
            "duplicates": [{"path": path, **asdict(alike)} for path, alike in cluster.duplicates],
        }
        for cluster in report.clusters
    ]
    seconds = round(time.perf_counter() - start, 3)
    if json_output:
        print_json({"pictures": report.pictures, "clusters": clusters, "skipped": report.skipped, "seconds": seconds})
        return
    for cluster in clusters:
        print(cluster["representative"])
        for each in cluster["duplicates"]:
            print(f"  {each['path']}  (cosine {each['cosine']:.3f}, {each['distance']} bits)")
    spare = sum(len(cluster["duplicates"]) for cluster in clusters)
    print(f"{spare:,} of {report.pictures:,} pictures are nearly the same as another; {seconds:.1f} seconds")
