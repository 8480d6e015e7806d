"""`codebrush similar` compares two pictures; `codebrush duplicates` finds near-duplicates among many."""

import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from codebrush.cli.flags.common import JsonOption, PackOption
from codebrush.cli.flags.sources import ExcludeOption, ImageColumnOption, MaxPixelsOption, PathsArgument, StrictOption
from codebrush.cli.output.printing import print_json, print_skipped, progress_bar
from codebrush.data.sources.unread import amount


def similar(
    a: Annotated[Path, typer.Argument(help="First picture.")],
    b: Annotated[Path, typer.Argument(help="Second picture.")],
    pack: PackOption = "emoji",
    json_output: JsonOption = False,
) -> None:
    """Compare two pictures by CLIP embedding and image hash.

    Prints the cosine of the embeddings (1 is identical) and how many of 64 bits of the perceptual hashes differ. An
    animation is judged by its first frame that is not of one colour.
    """
    from codebrush.pipeline import Codebrush
    from codebrush.search.duplicates import compare

    alike = compare(Codebrush.from_pretrained(pack).clip, str(a), str(b))
    if json_output:
        numbers = asdict(alike)
        del numbers["frames"]
        frames = {name: frame for name, frame in zip(("a", "b"), alike.frames, strict=True) if frame is not None}
        print_json({"a": str(a), "b": str(b), **numbers, **({"frames": frames} if frames else {})})
        return
    verdict = "identical" if alike.identical else "near-duplicates" if alike.near_identical else "different"
    differ = "differs" if alike.distance == 1 else "differ"
    print(f"{verdict}: cosine {alike.cosine:.3f}, {alike.distance} of 64 bits {differ}")


def duplicates(
    paths: PathsArgument,
    cosine: Annotated[
        float | None, typer.Option(min=-1, max=1, help="Match pairs whose CLIP cosine is at least this.  [0.9]")
    ] = None,
    distance: Annotated[
        int | None,
        typer.Option(min=0, max=64, help="Match pairs with at most this many differing hash bits of 64.  [8]"),
    ] = None,
    image_column: ImageColumnOption = None,
    exclude: ExcludeOption = None,
    strict: StrictOption = False,
    max_pixels: MaxPixelsOption = None,
    pack: PackOption = "emoji",
    json_output: JsonOption = False,
) -> None:
    """Find near-duplicates among pictures. Nothing is deleted.

    Near-duplicates are copies that were resized or compressed. Each cluster starts with the picture to keep: not in a
    bin or among thumbnails, then with the most pixels, then compressed without loss. The others match it in both
    measures. Pictures of one colour are not compared, and an animation is judged by its first frame of more than one.
    """
    start = time.perf_counter()
    from codebrush.pipeline import Codebrush
    from codebrush.search.duplicates import COSINE, DISTANCE, find_duplicates
    from codebrush.search.pictures import open_pictures

    named: dict[str, Any] = {"image_column": image_column, "strict": strict, "exclude": exclude or ()}
    sources = [open_pictures(path, **named) for path in dict.fromkeys(paths)]
    clip = Codebrush.from_pretrained(pack).clip
    thresholds = (COSINE if cosine is None else cosine, DISTANCE if distance is None else distance)
    with progress_bar("comparing") as progress:
        report = find_duplicates(sources, clip, *thresholds, progress)
    print_skipped(report.skipped)
    clusters: list[dict[str, Any]] = [
        {
            "representative": cluster.representative,
            "duplicates": [{"path": path, **asdict(alike)} for path, alike in cluster.duplicates],
        }
        for cluster in report.clusters
    ]
    seconds = round(time.perf_counter() - start, 3)
    if json_output:
        about = {name: getattr(report, name) for name in ("skipped", "plain", "frames")}
        about["unread"] = [each.unread.report for each in sources]
        print_json({"pictures": report.pictures, "clusters": clusters, **about, "seconds": seconds})
        return
    for cluster in clusters:
        print(cluster["representative"])
        for each in cluster["duplicates"]:
            print(f"  {each['path']}  (cosine {each['cosine']:.3f}, {amount('bit', each['distance'])})")
    if report.plain:
        were = "was" if len(report.plain) == 1 else "were"
        print(f"{len(report.plain):,} of one colour {were} not compared, {report.plain[0]} first")
    spare = sum(len(cluster["duplicates"]) for cluster in clusters)
    are = "is a near-duplicate" if spare == 1 else "are near-duplicates"
    print(f"{spare:,} of {amount('picture', report.pictures)} {are} of another; {seconds:.1f} seconds")
