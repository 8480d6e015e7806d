"""`codebrush generate`: a prompt to pictures. `codebrush replay`: a picture to the same picture again."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from codebrush.cli.output import (
    check_folder,
    free_file,
    free_run_name,
    print_json,
    print_pictures,
    progress_bar,
    slug,
)

if TYPE_CHECKING:
    from codebrush.pipeline import Result

PackOption = Annotated[str, typer.Option(help="Built-in name, folder or hub id of the models.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
OUTPUTS = Path("outputs")


def generate(
    prompt: Annotated[str, typer.Argument(help='What to draw: "a dog", or "a dog:1.2 | blurry:-0.5".')],
    pack: PackOption = "emoji",
    n: Annotated[int, typer.Option("--n", "-n", help="How many pictures to keep.")] = 4,
    seed: Annotated[int, typer.Option(help="Another seed, other pictures.")] = 0,
    cfg: Annotated[float | None, typer.Option(help="Strength of guidance; 1 is none.  [pack's own]")] = None,
    temperature: Annotated[float | None, typer.Option(help="0 is the likeliest code.  [pack's own]")] = None,
    top_k: Annotated[int | None, typer.Option(help="Draw among so many codes; 0 is all.  [pack's own]")] = None,
    top_p: Annotated[float | None, typer.Option(help="Draw among this much of the mass.  [pack's own]")] = None,
    min_p: Annotated[float | None, typer.Option(help="Least share of the likeliest.  [pack's own]")] = None,
    rerank: Annotated[int | None, typer.Option(help="Candidates to draw and score.  [4 times n]")] = None,
    out: Annotated[Path, typer.Option(help="Folder for the pictures.")] = OUTPUTS,
    json_output: JsonOption = False,
) -> None:
    """Draw pictures from words, best first by CLIP's score."""
    start = time.perf_counter()
    from codebrush.pipeline import Codebrush

    brush = Codebrush.from_pretrained(pack)
    check_folder(out)
    with progress_bar("drawing") as progress:
        results = brush.generate(
            prompt,
            n=n,
            seed=seed,
            cfg=cfg,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
            rerank=rerank,
            progress=progress,
        )
    report = _save_run(results, out, free_run_name(out, f"{slug(prompt)}_seed{seed}"))
    report["seconds"] = round(time.perf_counter() - start, 3)
    print_json(report) if json_output else print_pictures(report)


def replay(
    file: Annotated[Path, typer.Argument(help="A picture that codebrush made.")],
    pack: Annotated[str | None, typer.Option(help="Its models, where it does not know their place.")] = None,
    out: Annotated[Path | None, typer.Option(help="File for the picture.  [outputs/NAME_replay.png]")] = None,
    json_output: JsonOption = False,
) -> None:
    """Draw a picture again from what it says about how it was made."""
    start = time.perf_counter()
    from codebrush.data.images import decode_image, read_manifest, save_png
    from codebrush.errors import UsageError
    from codebrush.pipeline import Codebrush

    if out is not None and (out.suffix.lower() != ".png" or out.is_dir()):
        raise UsageError(f"--out must be a file that ends in .png, not {out}")
    manifest = read_manifest(file)
    brush = Codebrush.from_pretrained(pack if pack is not None else _pack_of(file, manifest))
    target = free_file(OUTPUTS / f"{file.stem}_replay.png") if out is None else out
    check_folder(target.parent)
    result = brush.replay(manifest)
    save_png(result.image, target, result.manifest)
    original = decode_image(file)
    picture = _entry(target, result)
    picture["identical"] = (original.size, original.tobytes()) == (result.image.size, result.image.tobytes())
    if not picture["identical"]:
        typer.echo(f"codebrush: warning: the pixels differ from those of {file}", err=True)
    report = {"images": [picture], "seconds": round(time.perf_counter() - start, 3)}
    print_json(report) if json_output else print_pictures(report)


def _save_run(results: Sequence["Result"], folder: Path, name: str) -> dict[str, Any]:
    from codebrush.data.images import contact_sheet, save_png

    paths = [folder / f"{name}_{result.manifest['index']:02d}.png" for result in results]
    for result, path in zip(results, paths, strict=True):
        save_png(result.image, path, result.manifest)
    sheet = folder / f"{name}_sheet.png"
    captions = [f"{result.manifest['index']:02d}: {result.score:.3f}" for result in results]
    save_png(contact_sheet([result.image for result in results], captions), sheet)
    images = [_entry(path, result) for path, result in zip(paths, results, strict=True)]
    return {"images": images, "sheet": str(sheet)}


def _entry(path: Path, result: "Result") -> dict[str, Any]:
    seed, index = result.manifest["seed"], result.manifest["index"]
    return {"path": str(path), "seed": seed, "index": index, "clip_score": result.score}


def _pack_of(file: Path, manifest: dict[str, Any]) -> str:
    """Where the picture says its models are: on this machine only, as a picture must not make it download."""
    from codebrush.errors import PackError
    from codebrush.pack import local_pack

    made_with = manifest.get("pack")
    source = made_with.get("source") if isinstance(made_with, dict) else None
    if not isinstance(source, str) or local_pack(source) is None:
        raise PackError(f"{file} was made with the pack {source!r}, which is not here: name it with --pack")
    return source
