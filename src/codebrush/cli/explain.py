"""`codebrush explain`: a picture and a text in; which pixels answered to which words, as a page of heat maps, out."""

import time
import warnings
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from codebrush.cli.output import check_folder, print_json, progress_bar
from codebrush.cli.pictures import check_picture_file
from codebrush.errors import CodebrushError, ImageError, UsageError

if TYPE_CHECKING:
    from PIL import Image

    from codebrush.models.clip import CLIP
    from codebrush.pipeline import Codebrush
    from codebrush.understanding.overlay import Group


class Method(StrEnum):
    """How heat is found."""

    AUTO = "auto"
    GRADIENT = "gradient"
    OCCLUSION = "occlusion"


def explain(
    image: Annotated[Path, typer.Argument(help="The picture.")],
    text: Annotated[str, typer.Argument(help="What to look for in it, taken literally.")],
    out: Annotated[Path, typer.Option(help="PNG file for the heat maps.")],
    method: Annotated[
        Method, typer.Option(help="By the encoder's gradients, or slowly by covering the picture piece by piece.")
    ] = Method.AUTO,
    pack: Annotated[str, typer.Option(help="Built-in name, folder or hub id of the models.")] = "emoji",
    json_output: Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")] = False,
) -> None:
    """Show which pixels of a picture answered to which words, and how true to the encoder that is."""
    start = time.perf_counter()
    if out.suffix.lower() != ".png" or out.is_dir():
        raise UsageError(f"--out must be a file that ends in .png, not {out}")
    if out.exists() and image.exists() and out.samefile(image):
        raise UsageError(f"--out {out} is the picture itself: name another file")
    check_folder(out.absolute().parent)
    if not text.strip():
        raise UsageError("the text is empty: say in words what should be found in the picture")
    check_picture_file(image)
    from codebrush.data.images import save_png
    from codebrush.pipeline import Codebrush
    from codebrush.understanding.overlay import page

    brush = Codebrush.from_pretrained(pack)
    pixels, report = _heat(brush, image, text, method)
    codes, code_report = _codes(brush, image)
    view, seen = _view(brush.clip, image)
    save_png(page(view, [pixels, *codes]), out)
    report = {"path": str(out), "seen": seen, **report, **code_report, "seconds": round(time.perf_counter() - start, 3)}
    print_json(report) if json_output else _print_report(report)


def _heat(brush: "Codebrush", image: Path, text: str, method: Method) -> tuple["Group", dict[str, Any]]:
    """The panels of the text and its words, and what the report says of them."""
    from dataclasses import asdict

    from codebrush.data.preprocess import pixels_for
    from codebrush.understanding.attribution import explain as explained
    from codebrush.understanding.faithfulness import faithfulness
    from codebrush.understanding.overlay import Group, Panel, scaled

    pixels = pixels_for(brush.clip, [image])[0].to(brush.device)  # (3, S, S)
    with progress_bar("reading") as progress:
        found = explained(brush.clip, brush.tokenizer, pixels, text, method.value, progress)
    with progress_bar("measuring") as progress:
        measured = faithfulness(brush.clip, pixels, found.direction, found.heat, progress)
    words = found.words if len(found.words) > 1 else []  # the map of an only word is that of the text
    whole, *heats = scaled([found.heat, *(word.heat for word in words)])
    said = " ".join(word.word for word in found.words)
    panels = [
        Panel("the picture", f"read at {pixels.shape[-1]} x {pixels.shape[-1]} pixels"),
        Panel("the whole text" if words else said, f"cosine {found.score:.3f}", whole),
        *(Panel(word.word, f"adds {word.gain:+.3f}", heat) for word, heat in zip(words, heats, strict=True)),
    ]
    entries = [{"word": word.word, "gain": round(word.gain, 6)} for word in found.words]
    report = {"method": found.method, "score": found.score, "words": entries, "faithfulness": asdict(measured)}
    report["better_than_random"] = measured.better_than_random
    return Group(f"What answered to: {said}", panels), report


def _view(clip: "CLIP", image: Path) -> tuple["Image.Image", float]:
    """The square that the encoder reads, in enough pixels to look at, and which part of the picture it is."""
    from codebrush.data.images import decode_image, resize_square
    from codebrush.data.preprocess import clip_resize
    from codebrush.understanding.overlay import PANEL

    plain, squeezed = clip.config.fit == "plain", clip.config.fit == "squeeze"
    whole = decode_image(image, keep_mode=not plain)
    seen = 1.0 if squeezed else round(min(whole.size) / max(whole.size), 3)
    return resize_square(whole, PANEL) if plain else clip_resize(whole, PANEL, crop=not squeezed), seen


def _codes(brush: "Codebrush", image: Path) -> tuple[list["Group"], dict[str, Any]]:
    """For a picture that the pack drew: which words of its prompt its codes attended to. Otherwise nothing."""
    from codebrush.data.images import read_manifest
    from codebrush.understanding.codes_attention import prompt_attention
    from codebrush.understanding.overlay import Group, Panel, scaled

    try:
        manifest = read_manifest(image)
    except ImageError:  # most pictures say nothing of how they were made
        return [], {}
    prompt = manifest.get("prompt")
    if manifest.get("method") != "sample" or not isinstance(prompt, str):
        return [], {}
    try:
        codes = brush.replay(manifest).codes
        words = prompt_attention(brush.clip, brush.tokenizer, brush.transformer, codes, prompt)
    except CodebrushError as error:  # the pixels are explained all the same
        warnings.warn(f"the picture's codes are not explained: {error}", stacklevel=2)
        return [], {}
    panels = [
        Panel(word.word, f"{word.share:.1%} of attention", heat, smooth=False)
        for word, heat in zip(words, scaled([word.heat for word in words]), strict=True)
    ]
    entries = [
        {"word": word.word, "part": word.part, "share": round(word.share, 6), "map": _rounded(word.heat)}
        for word in words
    ]
    return [Group(f"Which codes attended to each word of its prompt: {prompt}", panels)], {"codes": entries}


def _rounded(heat: Any) -> list[list[float]]:
    return [[round(value, 6) for value in row] for row in heat.tolist()]


def _print_report(report: dict[str, Any]) -> None:
    print(f"{report['path']}: cosine {report['score']:.3f}, by {report['method']}")
    for word in report["words"]:
        print(f"  {word['word']}: adds {word['gain']:+.3f}")
    for word in report.get("codes", ()):
        print(f"  {word['word']} (prompt): {word['share']:.1%} of the codes' attention")
    f = report["faithfulness"]
    print(f"insertion {f['insertion']:.3f}, random {f['insertion_random']:.3f} (higher is truer)")
    print(f"deletion {f['deletion']:.3f}, random {f['deletion_random']:.3f} (lower is truer)")
    poor = [name for name, better in report["better_than_random"].items() if not better]
    if poor:
        remedy = "do not rely on it" if report["method"] == Method.OCCLUSION else "try --method occlusion"
        print(f"by {' and '.join(poor)} this map is no better than chance: {remedy}")
    if report["seen"] < 1:
        print(f"the encoder reads a square: {report['seen']:.0%} of the picture was seen, its middle")
