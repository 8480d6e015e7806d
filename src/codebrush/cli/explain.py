"""`codebrush explain`: a picture and a text in; which pixels answered to which words, as a page of heat maps, out."""

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from codebrush.cli.output import check_folder, print_json, progress_bar
from codebrush.errors import CodebrushError, ImageError, UsageError

if TYPE_CHECKING:
    from codebrush.pipeline import Codebrush
    from codebrush.understanding.overlay import Panel


def explain(
    image: Annotated[Path, typer.Argument(help="The picture.")],
    text: Annotated[str, typer.Argument(help="What to look for in it, taken literally.")],
    out: Annotated[Path, typer.Option(help="PNG file for the heat maps.")],
    method: Annotated[
        str, typer.Option(help="auto, gradient, or occlusion: slow, and asks nothing of the encoder but its answers.")
    ] = "auto",
    pack: Annotated[str, typer.Option(help="Models: a built-in name, a folder or a hub id.")] = "emoji",
    json_output: Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")] = False,
) -> None:
    """Show which pixels of a picture answered to which words, and how true to the encoder that is."""
    start = time.perf_counter()
    if out.suffix.lower() != ".png" or out.is_dir():
        raise UsageError(f"--out must be a file that ends in .png, not {out}")
    check_folder(out.absolute().parent)
    from codebrush.data.images import save_png
    from codebrush.pipeline import Codebrush
    from codebrush.understanding.overlay import page

    brush = Codebrush.from_pretrained(pack)
    picture, panels, report = _heat(brush, image, text, method)
    codes, code_panels = _codes(brush, image)
    sheet = page(picture, [panels, code_panels] if code_panels else [panels])
    save_png(sheet, out)
    report = {"path": str(out), **report, **codes, "seconds": round(time.perf_counter() - start, 3)}
    print_json(report) if json_output else _print_report(report)


def _heat(brush: "Codebrush", image: Path, text: str, method: str) -> tuple[Any, "list[Panel]", dict[str, Any]]:
    """The picture as the encoder sees it, its panels, and what the report says of them."""
    from dataclasses import asdict

    from codebrush.data.images import to_pil
    from codebrush.data.preprocess import pixels_for
    from codebrush.understanding.attribution import explain as explained
    from codebrush.understanding.faithfulness import faithfulness
    from codebrush.understanding.overlay import Panel, scaled

    pixels = pixels_for(brush.clip, [image])[0].to(brush.device)  # (3, S, S)
    with progress_bar("covering") as progress:
        found = explained(brush.clip, brush.tokenizer, pixels, text, method, progress)
    with progress_bar("measuring") as progress:
        measured = faithfulness(brush.clip, pixels, found.direction, found.heat, progress=progress)
    whole, *heats = scaled([found.heat, *(word.heat for word in found.words)])
    panels = [Panel("the picture", "as the encoder sees it"), Panel(text, f"cosine {found.score:.3f}", whole)]
    panels += [
        Panel(word.word, f"adds {word.gain:+.3f}", heat) for word, heat in zip(found.words, heats, strict=True)
    ]
    words = [{"word": word.word, "gain": round(word.gain, 6)} for word in found.words]
    report = {"method": found.method, "score": found.score, "words": words, "faithfulness": asdict(measured)}
    return to_pil(pixels), panels, report


def _codes(brush: "Codebrush", image: Path) -> tuple[dict[str, Any], "list[Panel]"]:
    """For a picture that the pack drew: which words of its prompt its codes attended to. Otherwise nothing."""
    from codebrush.data.images import read_manifest
    from codebrush.understanding.codes_attention import prompt_attention
    from codebrush.understanding.overlay import Panel, scaled

    try:
        manifest = read_manifest(image)
    except ImageError:
        return {}, []
    if manifest.get("method") != "sample":
        return {}, []
    try:
        codes = brush.replay(manifest).codes
        words = prompt_attention(brush.clip, brush.tokenizer, brush.transformer, codes, manifest["prompt"])
    except CodebrushError as error:  # the pixels are explained all the same
        print(f"codebrush: warning: its codes are not explained: {error}", file=sys.stderr)
        return {}, []
    panels = [
        Panel(word.word, f"{word.share:.1%} of attention", heat, smooth=False)
        for word, heat in zip(words, scaled([word.heat for word in words]), strict=True)
    ]
    entries = [
        {"word": word.word, "part": word.part, "share": round(word.share, 6), "map": _rounded(word.heat)}
        for word in words
    ]
    return {"codes": entries}, panels


def _rounded(heat: Any) -> list[list[float]]:
    return [[round(value, 6) for value in row] for row in heat.tolist()]


def _print_report(report: dict[str, Any]) -> None:
    print(f"{report['path']}: cosine {report['score']:.3f}, by {report['method']}")
    for word in report["words"]:
        print(f"  {word['word']}: adds {word['gain']:+.3f}")
    for word in report.get("codes", ()):
        print(f"  {word['word']} (prompt): {word['share']:.1%} of the codes' attention")
    f = report["faithfulness"]
    print(f"insertion {f['insertion']:.3f}, random {f['random_insertion']:.3f} (higher is truer)")
    print(f"deletion {f['deletion']:.3f}, random {f['random_deletion']:.3f} (lower is truer)")
