"""Writes a report of `evaluate` as a Markdown table."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from codebrush.data.sources.unread import amount
from codebrush.models.encoders.image_shape import image_shape

PERCENT, PLAIN, FINE, COUNT = "{:.1%}", "{:.2f}", "{:.4f}", "{:,.0f}"
ROWS = (  # path of a figure in the report, its name, its format
    ("zero_shot.top1", "zero-shot top-1", PERCENT),
    ("zero_shot.top5", "zero-shot top-5", PERCENT),
    ("zero_shot.mean_per_class", "zero-shot top-1, mean over classes", PERCENT),
    ("zero_shot.labels", "labels to choose from", COUNT),
    ("zero_shot.temperature", "temperature", PLAIN),
    ("zero_shot.ece", "expected calibration error at that temperature", PERCENT),
    ("zero_shot.calibration.temperature", "temperature fitted on half of the pictures", PLAIN),
    ("zero_shot.calibration.ece_before", "calibration error of the other half at temperature 1", PERCENT),
    ("zero_shot.calibration.ece_after", "calibration error of the other half at the fitted temperature", PERCENT),
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
    ("reconstruction.kid_std", "KID, standard deviation over subsets (2)", FINE),
    ("reconstruction.codebook_usage", "codebook usage", PERCENT),
    ("reconstruction.codebook_perplexity", "codebook perplexity", PLAIN),
    ("drawing.r_precision", "R-precision of drawn pictures (3)", PERCENT),
    ("drawing.candidates", "texts to choose from for a drawn picture", COUNT),
    ("drawing.clip_score.torchmetrics", "CLIP score of drawn pictures (100 x cosine) (3)", PLAIN),
    ("drawing.prompts", "prompts drawn", COUNT),
    ("drawing.seconds_a_prompt", "seconds per prompt", PLAIN),
)


def markdown(report: Mapping[str, Any]) -> str:
    """The figures of a report as a Markdown table, with what was measured above it and notes below it."""
    split = f", split {report['split']}" if report.get("split") else ""
    lines = [f"# {report['pack']} on {report['source']}{split}", "", _measured(report), ""]
    lines += ["| figure | value |", "|---|---:|"]
    lines += [f"| {name} | {template.format(value)} |" for name, value, template in _cells(report)]
    lines += ["", *(f"- {note}" for note in _notes(report)), ""]
    return "\n".join(lines)


def _measured(report: Mapping[str, Any]) -> str:
    """How many pictures were measured, or if none was read, how many captions were drawn."""
    if report["pictures"] is not None:
        return f"{amount('picture', report['pictures'])}."
    if "drawing" not in report:
        return "Nothing was measured."
    drawing = report["drawing"]
    return f"{drawing['prompts']:,} of {drawing['captions']:,} captions were drawn; the pictures were not read."


def _cells(report: Mapping[str, Any]) -> Iterator[tuple[str, float, str]]:
    for path, name, template in ROWS:
        found: Any = report
        for key in path.split("."):
            found = found.get(key) if isinstance(found, Mapping) else None
        if found is not None:
            yield name, found, template


def _notes(report: Mapping[str, Any]) -> Iterator[str]:
    calibration = report.get("zero_shot", {}).get("calibration")
    reconstruction, drawing = report.get("reconstruction"), report.get("drawing")
    height, width = image_shape(report["judge"]["image_size"])
    yield f"the judge is the CLIP of {report['judge']['clip']}, which sees {width} x {height} pixels"
    if calibration:
        entry = json.dumps(calibration["pack_json"])[1:-1]
        temperature = calibration["pack_json"]["classification"]["temperature"]
        yield (
            f"the fitted temperature is {temperature}: codebrush classify uses it if the pack's pack.json holds "
            f"{entry}, or with --temperature {temperature}"
        )
    if reconstruction:
        used = reconstruction["features"]
        yield f"(1) over {used['perceptual']}: 0 is identical, 4 opposite"
        yield f"(2) over {used['rfid']}; KID over {used['kid']}: neither compares with values on Inception features"
    if drawing:
        each = drawing["drawn_each"]
        drawn = "one picture" if each == 1 else f"the best of {each} by the pack's own CLIP"
        yield f"(3) by the judge; {drawn} per prompt"
    for part, reason in report["left_out"].items():
        yield f"left out: {part}: {reason}"
    if report["skipped"]:
        yield f"{amount('picture', len(report['skipped']))} could not be read, {report['skipped'][0]['path']} first"
    yield f"{report['seconds']:.1f} seconds"
