"""`codebrush upscale` enlarges pictures two or four times."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from codebrush.cli.flags.common import JsonOption, PackOption
from codebrush.cli.flags.pictures import each_readable, picture_files
from codebrush.cli.flags.sampling import Scale
from codebrush.cli.output.printing import check_folder, print_json, progress_bar
from codebrush.cli.output.saving import free_file

if TYPE_CHECKING:
    from codebrush.pipeline import Codebrush

KEPT = ("seed", "index", "clip_score")  # keys of a manifest that the report repeats


def upscale(
    images: Annotated[list[Path], typer.Argument(help="Pictures of any format and size.")],
    scale: Annotated[Scale, typer.Option(help="How many times as wide and high.")] = Scale.TWICE,
    pack: PackOption = "emoji",
    out: Annotated[Path, typer.Option(help="Folder for the pictures.")] = Path("outputs"),
    json_output: JsonOption = False,
) -> None:
    """Enlarge pictures, keeping transparency. Files that cannot be read are reported and skipped."""
    start = time.perf_counter()
    from codebrush.pipeline import Codebrush

    files, skipped = picture_files(images)
    brush = Codebrush.from_pretrained(pack)
    _ = brush.enlarger  # raises PackError before any picture is read
    check_folder(out)
    made = each_readable(files, skipped, lambda _, path: _upscale(brush, path, int(scale), out))
    report = {"images": made, "skipped": skipped, "seconds": round(time.perf_counter() - start, 3)}
    if json_output:
        print_json(report)
        return
    for each in made:
        print(f"{each['path']}  ({each['size'][0]} x {each['size'][1]})")


def _upscale(brush: "Codebrush", path: Path, scale: int, out: Path) -> dict[str, Any]:
    """Enlarge one picture; returns its entry in the report."""
    from codebrush.data.decoding.images import save_png
    from codebrush.generation.editing.upscaling import file_manifest

    with progress_bar(path.name) as progress:
        (image,) = brush.upscale([path], scale, progress)
    manifest = file_manifest(path, scale, image.size, brush.pack)
    target = free_file(out / f"{path.stem}_x{scale}.png")
    save_png(image, target, manifest)
    kept = {name: manifest[name] for name in KEPT if name in manifest}
    return {"path": str(target), "source": str(path), "size": list(image.size), **kept}
