"""`codebrush vary`, `edit`, `translate` and `interpolate` make pictures from pictures."""

import time
from collections.abc import Callable
from contextlib import nullcontext
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from codebrush.cli.flags.common import JsonOption, NegativeOption, PackOption, StyleOption, given_flags, refuse
from codebrush.cli.flags.sampling import (
    FLAGS,
    FLOW_FLAGS,
    UpscaleOption,
    sampling_options,
    stored_weights,
    with_sampling_flags,
)
from codebrush.cli.output.printing import (
    check_folder,
    print_json,
    print_pictures,
    progress_bar,
    prompt_entry,
    unread_entry,
)
from codebrush.cli.output.saving import free_run_name, save_run, slug
from codebrush.errors import UsageError
from codebrush.files import file_sha256

HOLES = ("mask", "box", "extend")


class Painter(StrEnum):
    """What draws."""

    SAMPLE = "sample"
    FLOW = "flow"


class Method(StrEnum):
    """How a picture is redrawn."""

    SAMPLE = "sample"
    FLOW = "flow"
    GUIDE = "guide"


PAINTERS = "sample: a transformer draws codes. flow: a diffusion transformer draws"
USUAL = "  [the pack's usual painter]"
PainterOption = Annotated[Painter | None, typer.Option("--method", help=f"{PAINTERS}.{USUAL}")]

ImageArgument = Annotated[Path, typer.Argument(help="The picture.")]
CountOption = Annotated[int, typer.Option("--n", "-n", help="How many pictures to make.")]
SeedOption = Annotated[int, typer.Option(help="Random seed; the same seed gives the same pictures.")]
OutOption = Annotated[Path, typer.Option(help="Folder for the pictures.")]


@with_sampling_flags(before="upscale")
def vary(
    context: typer.Context,
    image: ImageArgument,
    strength: Annotated[
        float | None,
        typer.Option(help="How far from the picture, 0 to 1; 1 keeps only what CLIP sees of it. For flows.  [0.7]"),
    ] = None,
    method: PainterOption = None,
    pack: PackOption = "emoji",
    n: CountOption = 4,
    seed: SeedOption = 0,
    upscale: UpscaleOption = None,
    out: OutOption = Path("outputs"),
    json_output: JsonOption = False,
) -> None:
    """Draw variations: new pictures that CLIP finds similar."""

    def draw(brush: Any, options: dict[str, Any]) -> list[Any]:
        return brush.vary(image, method=method, strength=strength, **options)

    _run(context, f"{image.stem}_varied_seed{seed}", draw)


class By(StrEnum):
    """How a picture is translated."""

    TRANSLATOR = "translator"
    CODES = "codes"
    FLOW = "flow"


@with_sampling_flags(before="upscale")
def translate(
    context: typer.Context,
    image: ImageArgument,
    to: Annotated[str, typer.Option(help="Style to translate into; one of the pack's.")],
    by: Annotated[
        By | None,
        typer.Option(
            help="Convert with a network, or draw new pictures as codes or by a flow.  [the first that the pack has]"
        ),
    ] = None,
    pack: PackOption = "emoji",
    n: Annotated[int | None, typer.Option("--n", "-n", help="How many pictures to draw.  [1]")] = None,
    seed: Annotated[int | None, typer.Option(help="Random seed of what is drawn.  [0]")] = None,
    upscale: UpscaleOption = None,
    out: OutOption = Path("outputs"),
    json_output: JsonOption = False,
) -> None:
    """Convert a picture into another style."""

    def draw(brush: Any, options: dict[str, Any]) -> list[Any]:
        from codebrush.generation.editing.translation import uses_translator

        way = None if by is None else by.value
        count = n if n is not None or uses_translator(brush.pack, way, {}) else 1
        return brush.translate(image, to, by=way, **{**options, "n": count})

    _run(context, f"{image.stem}_{slug(to)}_seed{seed or 0}", draw)


@with_sampling_flags(before="upscale", steps=False)
def edit(
    context: typer.Context,
    image: ImageArgument,
    prompt: Annotated[str, typer.Argument(help="What to draw; leave it out to fill a hole with what fits.")] = "",
    mask: Annotated[
        Path | None, typer.Option(help="Mask of the picture's size: white is redrawn (inpainting).")
    ] = None,
    box: Annotated[str | None, typer.Option(help="Box to redraw, as x,y,w,h in pixels.")] = None,
    extend: Annotated[
        str | None, typer.Option(help="Pixels to add at the edges (outpainting): left=64, or top=20,right=20.")
    ] = None,
    strength: Annotated[
        float | None,
        typer.Option(help="How much of the picture to redraw, 0 to 1; of a chosen part only a flow.  [0.6; a part: 1]"),
    ] = None,
    style: StyleOption = None,
    negative_prompt: NegativeOption = None,
    method: Annotated[
        Method | None, typer.Option(help=f"{PAINTERS}. guide: CLIP changes the picture step by step.{USUAL}")
    ] = None,
    pack: PackOption = "emoji",
    steps: Annotated[
        int | None,
        typer.Option(help="Steps of guidance, a flow or a masked code transformer.  [guide: 40; flow: 16; masked: 12]"),
    ] = None,
    n: CountOption = 1,
    seed: SeedOption = 0,
    upscale: UpscaleOption = None,
    out: OutOption = Path("outputs"),
    json_output: JsonOption = False,
) -> None:
    """Redraw a picture, or a part of it, under a prompt.

    A mask or a box chooses the part (inpainting), --extend draws beyond the edges (outpainting). The rest keeps its
    pixels, up to a narrow border that is blended.
    """
    words = {"style": style, "negative_prompt": negative_prompt}
    if method is Method.GUIDE:
        unused = (*HOLES, *FLAGS, *FLOW_FLAGS)
        refuse(given_flags(context), unused, "cannot be used with --method guide: leave one of them out")
        return _guided(context, image, prompt, strength, words)
    hole = {"mask": mask, "box": _read_box(box), "extend": _read_extend(extend)}

    def draw(brush: Any, options: dict[str, Any]) -> list[Any]:
        return brush.edit(image, prompt, method=method, strength=strength, **words, **hole, **options)

    return _run(context, f"{image.stem}_{slug(prompt or 'filled')}_seed{seed}", draw)


class Through(StrEnum):
    """What is interpolated."""

    LATENTS = "latents"
    EMBEDDINGS = "embeddings"
    NOISE = "noise"


def interpolate(
    keys: Annotated[list[str], typer.Argument(help="Two or more prompts, pictures or latents (.safetensors).")],
    frames: Annotated[int, typer.Option(min=2, help="How many pictures, with the first and the last.")] = 24,
    through: Annotated[
        Through,
        typer.Option(help="Interpolate VQGAN latents, or CLIP embeddings or a flow's noise and draw each frame."),
    ] = (Through.LATENTS),
    video: Annotated[
        str | None, typer.Option(help="Make a video instead of pictures: mp4, gif or webp, or the name of a FILE.")
    ] = None,
    fps: Annotated[int, typer.Option(min=1, max=240, help="Frames per second of the video.")] = 12,
    method: PainterOption = None,
    pack: PackOption = "emoji",
    seed: SeedOption = 0,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the pictures, and for a video named without one.  [outputs]")
    ] = None,
    json_output: JsonOption = False,
) -> None:
    """Draw the frames between prompts or pictures."""
    start = time.perf_counter()
    from codebrush.data.decoding.images import save_png
    from codebrush.generation.editing.interpolation import is_prompt
    from codebrush.generation.manifest import interpolated_manifest
    from codebrush.generation.origin import origin
    from codebrush.generation.videos import check_video, video_path, write_video
    from codebrush.pipeline import Codebrush

    folder = Path("outputs") if out is None else out
    name = free_run_name(folder, f"{'_'.join(slug(Path(key).stem) for key in keys[:2])}_seed{seed}")
    film = None if video is None else video_path(video, folder, f"{name}_film")
    if film is not None:
        film = film if out is None or film.name != video else out / film
        check_video(film)
        folder = film.parent
    check_folder(folder)
    brush = Codebrush.from_pretrained(pack)
    with progress_bar("drawing") as progress:
        frames_made = brush.interpolate(keys, frames, seed, through=through.value, method=method, progress=progress)
        pictures = list(frames_made)
    if film is not None:
        write_video(pictures, film, fps)
        report: dict[str, Any] = {"images": [], "video": str(film), "frames": len(pictures)}
    else:
        paths = [folder / f"{name}_{number:04d}.png" for number in range(len(pictures))]
        files = {key: file_sha256(key) for key in keys if not is_prompt(key)}
        made_by = origin(brush.pack, brush.device)
        for number, (picture, path) in enumerate(zip(pictures, paths, strict=True)):
            save_png(picture, path, interpolated_manifest(keys, through.value, frames, seed, number, files, made_by))
        report = {"images": [{"path": str(path), "seed": seed, "index": n} for n, path in enumerate(paths)]}
    report |= unread_entry(brush.tokenizer, [key for key in keys if is_prompt(key)])
    report["seconds"] = round(time.perf_counter() - start, 3)
    if json_output:
        print_json(report)
    else:
        print(f"{len(pictures)} pictures: {report.get('video', folder)}  ({report['seconds']:.1f} seconds)")


def _read_box(text: str | None) -> tuple[int, int, int, int] | None:
    if text is None:
        return None
    try:
        x, y, width, height = (int(part) for part in text.split(","))
    except ValueError:
        raise UsageError(f"--box must be four whole numbers x,y,w,h, like 10,10,32,32, not {text}") from None
    return x, y, width, height


def _read_extend(text: str | None) -> dict[str, int] | None:
    if text is None:
        return None
    try:
        return {side.strip(): int(count) for side, count in (part.split("=") for part in text.split(","))}
    except ValueError:
        raise UsageError(f"--extend must be pixels by side, like left=64 or top=20,right=20, not {text}") from None


def _run(
    context: typer.Context,
    name: str,
    draw: Callable[[Any, dict[str, Any]], list[Any]],
    *,
    shows_steps: bool = False,
) -> None:
    """Call `draw` with the flags of `context`, save the pictures and print the report."""
    start, given = time.perf_counter(), context.params
    from codebrush.pipeline import Codebrush

    brush, out = Codebrush.from_pretrained(given["pack"], weights=stored_weights(given)), given["out"]
    check_folder(out)
    options = {
        "n": given["n"],
        "seed": given["seed"],
        **sampling_options(given),
        "steps": given["steps"],
        "upscale": int(given["upscale"] or 1),
    }
    with nullcontext() if shows_steps else progress_bar("drawing") as progress:
        results = draw(brush, {**options, "progress": progress})
    report = save_run(results, out, free_run_name(out, name))
    if given.get("prompt"):
        report |= prompt_entry(brush.tokenizer, results[0].manifest["prompt"], given["style"])
    report["seconds"] = round(time.perf_counter() - start, 3)
    print_json(report) if given["json_output"] else print_pictures(report)


def _guided(
    context: typer.Context, image: Path, prompt: str, strength: float | None, words: dict[str, str | None]
) -> None:
    """Edit the picture by guidance."""
    from codebrush.cli.output.following import follow
    from codebrush.generation.advice import warn_of_failure
    from codebrush.generation.editing.canvas import warn_of_square
    from codebrush.generation.editing.editing import guided_edit

    start, steps = guided_edit(str(image), strength), context.params["steps"]

    def draw(brush: Any, options: dict[str, Any]) -> list[Any]:
        warn_of_square(image, brush.pack.image_size, "generate --method guide --init takes another --size")
        scale = options["upscale"]
        enlarge = brush.enlarger.results(scale) if scale > 1 else list
        asked = {} if steps is None else {"steps": steps}
        run = brush.guide(prompt, options["n"], options["seed"], **start, **asked, **words)
        follow(run)
        warn_of_failure(brush.pack, run.request.prompt, run.results)
        return enlarge(run.results)

    _run(context, f"{image.stem}_{slug(prompt)}_guided", draw, shows_steps=True)
