"""A report of `evaluate` in; the same figures as tables in Markdown out."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from codebrush.models.image_encoder import image_shape

PERCENT, PLAIN, FINE, COUNT = "{:.1%}", "{:.2f}", "{:.4f}", "{:,.0f}"
ROWS = (  # where a figure lies, what it is called, how it is written
    ("zero_shot.top1", "zero-shot top-1", PERCENT),
    ("zero_shot.top5", "zero-shot top-5", PERCENT),
    ("zero_shot.mean_per_class", "zero-shot top-1, mean of the classes'", PERCENT),
    ("zero_shot.labels", "labels to choose from", COUNT),
    ("zero_shot.temperature", "temperature of the probabilities", PLAIN),
    ("zero_shot.ece", "expected calibration error at it", PERCENT),
    ("zero_shot.calibration.temperature", "temperature fitted on half of the pictures", PLAIN),
    ("zero_shot.calibration.ece_before", "calibration error at 1, the other half", PERCENT),
    ("zero_shot.calibration.ece_after", "calibration error at the fitted one, the other half", PERCENT),
    *(
        (f"retrieval.{way}.recall_at_{k}", f"{way.replace('_', ' ')} recall@{k}", PERCENT)
        for way in ("image_to_text", "text_to_image")
        for k in (1, 5, 10)
    ),
    ("retrieval.image_to_text.among", "texts to choose from", COUNT),
    ("retrieval.text_to_image.among", "pictures to choose from", COUNT),
    ("clip_score.torchmetrics", "CLIP score of pictures and captions (100 x cosine)", PLAIN),
    ("reconstruction.psnr", "PSNR (dB)", PLAIN),
    ("reconstruction.ssim", "SSIM", FINE),
    ("reconstruction.perceptual", "perceptual distance (1)", FINE),
    ("reconstruction.rfid", "rFID (2)", FINE),
    ("reconstruction.kid", "KID (2)", FINE),
    ("reconstruction.kid_std", "KID, deviation over subsets (2)", FINE),
    ("reconstruction.codebook_usage", "codebook in use", PERCENT),
    ("reconstruction.codebook_perplexity", "codebook perplexity", PLAIN),
    ("drawing.r_precision", "R-precision of drawn pictures (3)", PERCENT),
    ("drawing.candidates", "texts that a drawn picture is told from", COUNT),
    ("drawing.clip_score.torchmetrics", "CLIP score of drawn pictures (100 x cosine) (3)", PLAIN),
    ("drawing.prompts", "prompts drawn", COUNT),
    ("drawing.seconds_a_prompt", "seconds a prompt", PLAIN),
)


def markdown(report: Mapping[str, Any]) -> str:
    """The figures of a report as a Markdown table, with what they were measured over above and below it."""
    split = f", split {report['split']}" if report.get("split") else ""
    lines = [f"# {report['pack']} on {report['source']}{split}", "", _measured(report), ""]
    lines += ["| figure | value |", "|---|---:|"]
    lines += [f"| {name} | {form.format(value)} |" for name, value, form in _cells(report)]
    lines += ["", *(f"- {note}" for note in _notes(report)), ""]
    return "\n".join(lines)


def _measured(report: Mapping[str, Any]) -> str:
    """What was looked at: pictures of the source, or where none was read, the captions that were drawn."""
    if report["pictures"] is not None:
        return f"{report['pictures']:,} pictures."
    if "drawing" not in report:
        return "Nothing was measured."
    drawing = report["drawing"]
    return f"{drawing['prompts']:,} of {drawing['captions']:,} captions, drawn; the pictures were not read."


def _cells(report: Mapping[str, Any]) -> Iterator[tuple[str, float, str]]:
    for path, name, form in ROWS:
        found: Any = report
        for key in path.split("."):
            found = found.get(key) if isinstance(found, Mapping) else None
        if found is not None:
            yield name, found, form


def _notes(report: Mapping[str, Any]) -> Iterator[str]:
    calibration = report.get("zero_shot", {}).get("calibration")
    reconstruction, drawing = report.get("reconstruction"), report.get("drawing")
    height, width = image_shape(report["judge"]["image_size"])
    yield f"the judge is the CLIP of {report['judge']['clip']}, which sees {width} x {height} pixels"
    if calibration:
        entry = json.dumps(calibration["pack_json"])[1:-1]
        heat = calibration["pack_json"]["classification"]["temperature"]
        yield (
            f"the fitted temperature is {heat}: codebrush classify uses it where the pack's pack.json holds {entry}, "
            f"or with --temperature {heat}"
        )
    if reconstruction:
        used = reconstruction["features"]
        yield f"(1) over {used['perceptual']}: 0 alike, 4 opposite"
        yield f"(2) over {used['rfid']}; KID over {used['kid']}: neither compares with Inception's figures"
    if drawing:
        each = drawing["drawn_each"]
        yield f"(3) by the judge; {'one picture' if each == 1 else f'the best of {each} by the pack itself'} a prompt"
    for part, reason in report["left_out"].items():
        yield f"left out: {part}: {reason}"
    if report["skipped"]:
        yield f"{len(report['skipped']):,} pictures could not be read, {report['skipped'][0]['path']} first"
    yield f"{report['seconds']:.1f} seconds"
