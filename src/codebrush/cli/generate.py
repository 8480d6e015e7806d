"""`codebrush generate` makes pictures from a prompt; `codebrush replay` makes a picture again from its manifest."""

import time
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from codebrush.cli.flags.common import (
    PACK_HELP,
    HelpAllOption,
    JsonOption,
    NegativeOption,
    StyleOption,
    given_flags,
    refuse,
)
from codebrush.cli.flags.guidance import FORMER_NAMES, NAMES, PRESET_NAMES, with_guide_flags
from codebrush.cli.flags.sampling import (
    FLOW_FLAGS,
    WEIGHTS_FLAG,
    UpscaleOption,
    sampling_options,
    stored_weights,
    with_sampling_flags,
)
from codebrush.cli.output.following import Afterwards, run_report
from codebrush.cli.output.printing import check_folder, print_json, print_pictures, progress_bar, prompt_entry
from codebrush.cli.output.saving import (
    free_file,
    free_folder,
    free_run_name,
    picture_entry,
    save_enlarged,
    save_run,
    slug,
)
from codebrush.errors import PackError, UsageError
from codebrush.generation.guided.guide_options import FLOW_GUIDING

if TYPE_CHECKING:
    from codebrush.generation.guided.run.guided_run import GuidedRun
    from codebrush.pipeline import Codebrush

OUTPUTS = Path("outputs")
DEFAULT_PACK = "emoji"
RETRIEVAL, GUIDANCE = "Retrieval", "Guidance"  # headings in the help
RETRIEVAL_NAMES = ("prior", "neighbours", "bank")
METHOD_HELP = (
    "sample: a transformer draws codes from the prompt. flow: a diffusion transformer turns noise into the picture "
    "(rectified flow). retrieve: like sample, from similar known pictures too. guide: CLIP changes the picture step by "
    "step until it fits the prompt (VQGAN-CLIP).  [the pack's usual painter, sample or flow]"
)
PRIOR_HELP = (
    "Source of the image embedding: similar pictures, a network, or the text itself.  [retrieval; flow: no embedding]"
)
VIDEO_NAMES = ("fps", "between")
WITH_GUIDANCE = NAMES | {*FORMER_NAMES, "preset", "video", *VIDEO_NAMES}  # flags of the method guide alone
WITH_RESUME = {"resume", "pack", "video", *VIDEO_NAMES, "upscale", "json_output"}


class Method(StrEnum):
    """How pictures are made."""

    SAMPLE = "sample"
    FLOW = "flow"
    RETRIEVE = "retrieve"
    GUIDE = "guide"


class Prior(StrEnum):
    """Where the image embedding of the method retrieve comes from."""

    RETRIEVAL = "retrieval"
    MLP = "mlp"
    NONE = "none"


def _retrieval(text: str, **settings: Any) -> Any:
    return typer.Option(help=text, rich_help_panel=RETRIEVAL, **settings)


def _guidance(text: str, **settings: Any) -> Any:
    return typer.Option(help=text, rich_help_panel=GUIDANCE, **settings)


@with_guide_flags
@with_sampling_flags(before="prior", steps=False)
def generate(
    context: typer.Context,
    prompt: Annotated[str | None, typer.Argument(help='What to draw: "a dog", or "a dog:1.2 | blurry:-0.5".')] = None,
    pack: Annotated[str | None, typer.Option(help=f"{PACK_HELP}  [emoji]")] = None,
    n: Annotated[int | None, typer.Option("--n", "-n", help="How many pictures to make.  [4; guide: 1]")] = None,
    seed: Annotated[int, typer.Option(help="Random seed; the same seed gives the same pictures.")] = 0,
    style: StyleOption = None,
    negative_prompt: NegativeOption = None,
    method: Annotated[Method | None, typer.Option(help=METHOD_HELP)] = None,
    prior: Annotated[Prior | None, _retrieval(PRIOR_HELP)] = None,
    neighbours: Annotated[int | None, _retrieval("How many similar pictures to blend.  [4]")] = None,
    bank: Annotated[Path | None, _retrieval("Database of codebrush index to look in.  [pack's own]")] = None,
    preset: Annotated[str | None, _guidance("Set of values for these options.", metavar=f"<{PRESET_NAMES}>")] = None,
    resume: Annotated[Path | None, _guidance("Continue the stopped run in this folder; takes no prompt.")] = None,
    video: Annotated[str | None, _guidance("Also make a video: mp4, gif or webp, or the name of a FILE.")] = None,
    fps: Annotated[int | None, _guidance("Frames per second of the video.  [10]", min=1, max=240)] = None,
    between: Annotated[
        int | None,
        _guidance("Frames to interpolate between two stored ones.  [as for ten seconds]", min=0, max=1000),
    ] = None,
    upscale: UpscaleOption = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the pictures.  [outputs; with guide a new folder in it]")
    ] = None,
    json_output: JsonOption = False,
    help_all: HelpAllOption = False,
    *,
    guidance: dict[str, Any],
) -> None:
    """Draw pictures of a prompt, best first by the pack's scorer, or by CLIP score if it has none.

    With --method guide, CLIP's gradient changes the picture step by step until it fits the prompt (VQGAN-CLIP). The
    Guidance options tune it. Those you leave out take their value from --preset, then the pack, then the brackets.
    """
    start = time.perf_counter()
    method = _method_of(context.params)
    _check_flags(context, method)
    sampling = {**sampling_options(context.params), "style": style, "negative_prompt": negative_prompt}
    draw = _drawn if resume is None and method is not Method.GUIDE else _guided
    report = draw({**context.params, "method": method}, sampling, guidance)
    report["seconds"] = round(time.perf_counter() - start, 3)
    print_json(report) if json_output else print_pictures(report)


def _method_of(values: dict[str, Any]) -> Method:
    """The method that was asked for, or else the painter that the pack has."""
    if values["method"] is not None:
        return values["method"]
    if values["resume"] is not None or values["prompt"] is None:
        return Method.SAMPLE  # a stopped run keeps its own, and without a prompt nothing is drawn
    from codebrush.generation.sampling.painters import usual_painter
    from codebrush.pack.pack import open_pack

    return Method(usual_painter(open_pack(DEFAULT_PACK if values["pack"] is None else values["pack"])))


def _check_flags(context: typer.Context, method: Method) -> None:
    """Raises UsageError if there is nothing to do, or a flag is given that would have no effect."""
    values, spelt = context.params, given_flags(context)
    if values["resume"] is not None:
        allowed = WITH_RESUME | ({"method"} if method == Method.GUIDE else set())
        refuse(spelt, set(spelt) - allowed, "cannot be used with --resume: a resumed run keeps its own options")
    elif values["prompt"] is None:
        context.fail("Missing argument 'prompt': say what to draw, or name a stopped run with --resume")
    elif method != Method.GUIDE:
        _check_guiding(spelt, flow=method == Method.FLOW)
    if method not in (Method.RETRIEVE, Method.FLOW):
        refuse(spelt, RETRIEVAL_NAMES, "is an option of retrieval: add --method retrieve")
    if method == Method.FLOW:
        refuse(spelt, WEIGHTS_FLAG, "is for code transformers: leave it out, or add --method sample")
    else:
        refuse(spelt, FLOW_FLAGS, "is an option of the flow: add --method flow")


def _check_guiding(spelt: dict[str, str], *, flow: bool) -> None:
    """Raises UsageError if an option of guidance is given for a method that has no use for it."""
    shared = {"size", "steps"}
    if flow and "clip_guidance" in spelt:
        refuse(spelt, WITH_GUIDANCE - shared - FLOW_GUIDING, "is of no use to --clip-guidance: leave it out")
        return
    if flow:
        refuse(spelt, FLOW_GUIDING, "is an option of guidance: add --clip-guidance")
    refuse(spelt, WITH_GUIDANCE - shared, "is an option of guidance: add --method guide")


def _drawn(values: dict[str, Any], tuning: dict[str, Any], guidance: dict[str, Any]) -> dict[str, Any]:
    """Draw with a painter; `values` are those of the flags, `tuning` the options of sampling and words."""
    options = {"n": 4 if values["n"] is None else values["n"], "seed": values["seed"], "size": guidance.get("size")}
    options |= {**tuning, "upscale": int(values["upscale"] or 1), "method": str(values["method"])}
    options |= {name: str(values[name]) for name in RETRIEVAL_NAMES if values[name] is not None}
    if values["neighbours"] is not None:
        options["neighbours"] = values["neighbours"]
    options |= {name: value for name, value in guidance.items() if name != "size"}
    out = OUTPUTS if values["out"] is None else values["out"]
    return _sample(values["prompt"], values["pack"], stored_weights(values), out, options)


def _guided(values: dict[str, Any], tuning: dict[str, Any], guidance: dict[str, Any]) -> dict[str, Any]:
    """Make pictures by guidance, or go on with a stopped run; the arguments are as in `_drawn`."""
    prompt, seed, resume, scale = (values[name] for name in ("prompt", "seed", "resume", "upscale"))
    folder = resume or values["out"] or free_folder(OUTPUTS / f"{slug(prompt or '')}_seed{seed}_guide")
    given = {name: values[name] for name in ("video", *VIDEO_NAMES)} | {"upscale": scale and int(scale)}
    after = Afterwards.of(given, folder, resumed=resume is not None)
    words = {name: tuning[name] for name in ("style", "negative_prompt")}
    sampling = {name: value for name, value in tuning.items() if name not in words}
    options = {"n": 1 if values["n"] is None else values["n"], "seed": seed, "preset": values["preset"]}
    options |= {"sampling": sampling, "frames": after.frames, **words, **guidance}
    brush, guided = _open_run(prompt, values["pack"], stored_weights(values), folder, options)
    enlarge = brush.enlarger.results(after.upscale) if after.upscale else None  # refuses a wrong pack before the run
    report = run_report(guided, brush.pack, folder, after, resumed=resume is not None)
    if prompt is not None:
        report |= prompt_entry(brush.tokenizer, guided.request.prompt, words["style"])
    if enlarge is not None:
        enlarged = save_enlarged(enlarge(guided.results), folder, f"x{after.upscale}")
        report["images"] = [image | large for image, large in zip(report["images"], enlarged, strict=True)]
    if after.video is not None:
        report["video"] = str(guided.write_video(after.video_file(folder), after.fps, after.between))
    return report


def _sample(prompt: str, pack: str | None, weights: str, out: Path, options: dict[str, Any]) -> dict[str, Any]:
    from codebrush.pipeline import Codebrush

    brush = Codebrush.from_pretrained(DEFAULT_PACK if pack is None else pack, weights=weights)
    check_folder(out)
    with progress_bar("drawing") as progress:
        results = brush.generate(prompt, **options, progress=progress)
    name = slug(prompt) if options["style"] is None else f"{slug(prompt)}_{slug(options['style'])}"
    report = save_run(results, out, free_run_name(out, f"{name}_seed{options['seed']}"))
    return report | prompt_entry(brush.tokenizer, results[0].manifest["prompt"], options["style"])


def _open_run(
    prompt: str | None, pack: str | None, weights: str, folder: Path, options: dict[str, Any]
) -> tuple["Codebrush", "GuidedRun"]:
    """The pack, and a new guided run in `folder`; without a prompt, the run stored there."""
    from codebrush.generation.guided.run.run_folder import read_run
    from codebrush.pipeline import Codebrush

    check_folder(folder)
    if prompt is None:
        source = _pack_of(folder, read_run(folder)) if pack is None else pack
        brush = Codebrush.from_pretrained(source)
        return brush, brush.resume(folder)
    brush = Codebrush.from_pretrained(DEFAULT_PACK if pack is None else pack, weights=weights)
    return brush, brush.guide(prompt, folder=folder, **options)


def replay(
    file: Annotated[Path, typer.Argument(help="A PNG that codebrush made.")],
    pack: Annotated[str | None, typer.Option(help="Pack to use, if it is no longer where it was.")] = None,
    source: Annotated[
        list[Path] | None,
        typer.Option(help="Picture or mask it was made from, if no longer where it was. May be given several times."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="File for the picture.  [outputs/NAME_replay.png]")] = None,
    json_output: JsonOption = False,
) -> None:
    """Make a picture again from the record in its PNG.

    An edit needs the picture that it was made from: where it was, or named with --source, as for one that a server
    edited.
    """
    start = time.perf_counter()
    from codebrush.data.decoding.images import decode_image, read_manifest, save_png
    from codebrush.methods import check_method
    from codebrush.pipeline import Codebrush

    if out is not None and (out.suffix.lower() != ".png" or out.is_dir()):
        raise UsageError(f"--out must be the name of a .png file, not {out}")
    manifest = read_manifest(file)
    check_method(manifest)
    brush = Codebrush.from_pretrained(pack if pack is not None else _pack_of(file, manifest))
    target = free_file(OUTPUTS / f"{file.stem}_replay.png") if out is None else out
    check_folder(target.parent)
    with progress_bar("drawing") as progress:
        result = brush.replay(manifest, source or [], progress=progress)
    save_png(result.image, target, result.manifest)
    original = decode_image(file, keep_mode=True)
    picture = picture_entry(target, result)
    there, here = ((image.mode, image.size, image.tobytes()) for image in (original, result.image))
    picture["identical"] = there == here
    if not picture["identical"]:
        typer.echo(f"codebrush: warning: the pixels differ from those of {file}", err=True)
    report = {"images": [picture], "seconds": round(time.perf_counter() - start, 3)}
    print_json(report) if json_output else print_pictures(report)


def _pack_of(file: Path, manifest: dict[str, Any]) -> str:
    """The pack that a picture was made with. It must be on this machine: a picture must not start a download."""
    from codebrush.pack.pack import local_pack

    made_with = manifest.get("pack")
    source = made_with.get("source") if isinstance(made_with, dict) else None
    if not isinstance(source, str) or local_pack(source) is None:
        raise PackError(f"{file} was made with the pack {source!r}, which is not on this machine: name it with --pack")
    return source
