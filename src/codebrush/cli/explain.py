"""`codebrush explain`: heat maps of which pixels of a picture match which words of a text."""

import sys
import time
from collections.abc import Mapping
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from codebrush.cli.flags.common import JsonOption, PackOption
from codebrush.cli.flags.pictures import check_picture_file, frame_entry
from codebrush.cli.output.printing import check_folder, print_json, progress_bar, unread_entry
from codebrush.errors import CodebrushError, ImageError, UsageError
from codebrush.warned import warn

if TYPE_CHECKING:
    from codebrush.pipeline import Codebrush
    from codebrush.understanding.explaining import ExplainedPicture
    from codebrush.understanding.overlay import Group


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
    with progress_bar("explaining") as progress:
        found = brush.explain(image, text, method.value, progress)
    if found.doubt is not None:
        print(f"codebrush: {found.doubt}", file=sys.stderr)
    pixels, report = _heat(found)
    codes, code_report = _codes(brush, image)
    save_png(render_page(found.view, [pixels, *codes]), out)
    about = {"path": str(out), "seen": found.seen, **frame_entry(found.frame)}
    report = {**about, **report, **code_report, **unread_entry(brush.tokenizer, [text])}
    report["seconds"] = round(time.perf_counter() - start, 3)
    print_json(report) if json_output else _print_report(report)


def _heat(found: "ExplainedPicture") -> tuple["Group", dict[str, Any]]:
    """The panels of the text and its words, and their part of the report."""
    from codebrush.understanding.overlay import Group, Panel

    height, width = found.maps.heat.shape
    panels = [Panel("the picture", f"read at {width} x {height} pixels"), *found.panels]
    maps, measured, presence = found.maps, found.faithfulness, found.presence
    entries = [{"word": word.word, "gain": round(word.gain, 6)} for word in maps.words]
    report = {"method": maps.method, "score": maps.score, "words": entries, "faithfulness": asdict(measured)}
    report |= {"better_than_random": measured.better_than_random, "shown": presence.shown, "level": presence.level}
    said = [*([] if found.doubt is None else [found.doubt]), *_unfaithful(report)]
    warning = "; ".join(said)
    return Group(f"Which pixels match: {maps.text}", panels, warning[:1].upper() + warning[1:]), report


def _unfaithful(report: Mapping[str, Any]) -> list[str]:
    """One line if a measure finds the map no better than random, otherwise none."""
    poor = [name for name, better in report["better_than_random"].items() if not better]
    remedy = "do not rely on it" if report["method"] == Method.OCCLUSION else "try --method occlusion"
    return [f"by {' and '.join(poor)}, this map is no better than random: {remedy}"] if poor else []


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
        warn(f"the attention of the picture's codes is not shown: {error}")
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
