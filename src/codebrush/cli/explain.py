"""`codebrush explain`: heat maps of which pixels of a picture match which words of a text."""

import sys
import time
import warnings
from collections.abc import Mapping
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from codebrush.cli.flags import JsonOption, PackOption
from codebrush.cli.output import check_folder, print_json, progress_bar, unread_entry
from codebrush.cli.pictures import check_picture_file, seen_picture
from codebrush.errors import CodebrushError, ImageError, UsageError

if TYPE_CHECKING:
    from PIL import Image

    from codebrush.models.clip import CLIP
    from codebrush.pipeline import Codebrush
    from codebrush.understanding.overlay import Group
    from codebrush.understanding.presence import Presence


class Method(StrEnum):
    """How the heat maps are computed."""

    AUTO = "auto"
    GRADIENT = "gradient"
    OCCLUSION = "occlusion"


def explain(
    image: Annotated[Path, typer.Argument(help="Picture file.")],
    text: Annotated[str, typer.Argument(help="Text to explain, taken literally (no prompt weights).")],
    out: Annotated[Path, typer.Option(help="PNG file for the heat maps.")],
    method: Annotated[
        Method,
        typer.Option(
            help="By gradients of the image encoder (fast) or by covering the picture part by part (occlusion, slow). "
            "auto takes gradients of a vision transformer unless they are no better than random, else occlusion."
        ),
    ] = Method.AUTO,
    pack: PackOption = "emoji",
    json_output: JsonOption = False,
) -> None:
    """Draw heat maps of which pixels match which words.

    Says if the picture hardly shows what the text says, and measures how faithful the maps are to the pack's CLIP. Stop
    words like "a" get no map.
    """
    start = time.perf_counter()
    if out.suffix.lower() != ".png" or out.is_dir():
        raise UsageError(f"--out must be a file that ends in .png, not {out}")
    if out.exists() and image.exists() and out.samefile(image):
        raise UsageError(f"--out {out} is the picture itself: name another file")
    check_folder(out.absolute().parent)
    if not text.strip():
        raise UsageError("the text is empty: say in words what to look for in the picture")
    check_picture_file(image)
    from codebrush.data.decoding.images import save_png
    from codebrush.pipeline import Codebrush
    from codebrush.understanding.overlay import render_page

    brush = Codebrush.from_pretrained(pack)
    picture, frame = seen_picture(brush.clip, image)
    pixels, report = _heat(brush, picture, text, method)
    codes, code_report = _codes(brush, image)
    view, seen = _view(brush.clip, image)
    save_png(render_page(view, [pixels, *codes]), out)
    report = {"path": str(out), "seen": seen, **frame, **report, **code_report, **unread_entry(brush.tokenizer, [text])}
    report["seconds"] = round(time.perf_counter() - start, 3)
    print_json(report) if json_output else _print_report(report)


def _heat(brush: "Codebrush", picture: "Image.Image", text: str, method: Method) -> tuple["Group", dict[str, Any]]:
    """The panels of the text and its words, and their part of the report."""
    from codebrush.data.preprocess import pixels_for
    from codebrush.understanding.attribution import explain_and_measure
    from codebrush.understanding.overlay import Group, Panel, normalised_maps

    pixels = pixels_for(brush.clip, [picture])[0].to(brush.device)  # (3, H, W)
    presence = _presence(brush, picture, text)
    doubt = presence.doubt(text)
    if doubt is not None:
        print(f"codebrush: {doubt}", file=sys.stderr)
    with progress_bar("explaining") as progress:
        found, measured = explain_and_measure(brush.clip, brush.tokenizer, pixels, text, method.value, progress)
    words = found.words if len(found.words) > 1 else []  # the map of a single word is that of the text
    whole, *heats = normalised_maps([found.heat, *(word.heat for word in words)])
    panels = [
        Panel("the picture", f"read at {pixels.shape[-1]} x {pixels.shape[-2]} pixels"),
        Panel("the whole text" if words else found.text, f"cosine {found.score:.3f}", whole),
        *(Panel(word.word, f"adds {word.gain:+.3f}", heat) for word, heat in zip(words, heats, strict=True)),
    ]
    entries = [{"word": word.word, "gain": round(word.gain, 6)} for word in found.words]
    report = {"method": found.method, "score": found.score, "words": entries, "faithfulness": asdict(measured)}
    report |= {"better_than_random": measured.better_than_random, "shown": presence.shown, "level": presence.level}
    said = [*([] if doubt is None else [doubt]), *_unfaithful(report)]
    warning = "; ".join(said)
    return Group(f"Which pixels match: {found.text}", panels, warning[:1].upper() + warning[1:]), report


def _unfaithful(report: Mapping[str, Any]) -> list[str]:
    """One line if a measure finds the map no better than random, otherwise none."""
    poor = [name for name, better in report["better_than_random"].items() if not better]
    remedy = "do not rely on it" if report["method"] == Method.OCCLUSION else "try --method occlusion"
    return [f"by {' and '.join(poor)}, this map is no better than random: {remedy}"] if poor else []


def _presence(brush: "Codebrush", picture: "Image.Image", text: str) -> "Presence":
    """Whether the picture shows what the text says."""
    from codebrush.data.text_embedding import embed_other_texts, embed_texts
    from codebrush.understanding.presence import presences

    texts = embed_texts(brush.clip, brush.tokenizer, [text], 1, on_long="truncate")
    others = embed_other_texts(brush.clip, brush.tokenizer)
    return presences(brush.embed_images([picture])[0], texts, others)[0]


def _view(clip: "CLIP", image: Path) -> tuple["Image.Image", float]:
    """The part of the picture that the encoder reads, at the size of a panel, and its share of the picture, 0 to 1."""
    from codebrush.data.decoding.images import decode_image, resize_square
    from codebrush.data.preprocess import clip_resize
    from codebrush.understanding.overlay import PANEL

    mode = clip.config.resize_mode
    plain, squeezed = mode == "plain", mode == "squeeze"
    whole = decode_image(image, keep_mode=not plain, wanted=PANEL)
    height, width = clip.image_shape
    sides = whole.width * height, whole.height * width  # equal where the picture has the shape that the encoder reads
    seen = 1.0 if squeezed else round(min(sides) / max(sides), 3)
    longest = max(height, width)
    shape = round(PANEL * height / longest), round(PANEL * width / longest)
    return resize_square(whole, PANEL) if plain else clip_resize(whole, shape, crop=not squeezed), seen


def _codes(brush: "Codebrush", image: Path) -> tuple[list["Group"], dict[str, Any]]:
    """For a picture that a code transformer generated: how its codes attended to the words of its prompt, as panels and
    a part of the report. Both are empty for other pictures."""
    from codebrush.data.decoding.images import read_manifest
    from codebrush.understanding.codes_attention import prompt_attention
    from codebrush.understanding.overlay import Group, Panel, normalised_maps

    try:
        manifest = read_manifest(image)
    except ImageError:  # most pictures have no manifest
        return [], {}
    prompt = manifest.get("prompt")
    if manifest.get("method") != "sample" or not isinstance(prompt, str):
        return [], {}
    try:
        codes = brush.replay(manifest).codes
        words = prompt_attention(brush.clip, brush.tokenizer, brush.transformer, codes, prompt)
    except CodebrushError as error:  # the heat maps are drawn all the same
        warnings.warn(f"the attention of the picture's codes is not shown: {error}", stacklevel=2)
        return [], {}
    panels = [
        Panel(word.word, f"{word.share:.1%} of attention", heat, smooth=False)
        for word, heat in zip(words, normalised_maps([word.heat for word in words]), strict=True)
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
    print(f"insertion {f['insertion']:.3f}, random {f['insertion_random']:.3f} (higher is better)")
    print(f"deletion {f['deletion']:.3f}, random {f['deletion_random']:.3f} (lower is better)")
    for line in _unfaithful(report):
        print(line)
    if report["seen"] < 1:
        print(f"the encoder crops the picture: only its middle {report['seen']:.0%} was seen")
