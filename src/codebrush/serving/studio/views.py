"""HTML of jobs: how far one is, its pictures, its loss curve. What users wrote is escaped."""

import time
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from codebrush.serving.job import Job

MOST_POINTS = 300  # of a curve
WORDS = {
    "queued": "Waiting", "running": "Running", "cancelling": "Stopping",
    "done": "Done", "failed": "Failed", "cancelled": "Cancelled",
}  # fmt: skip
KINDS = {
    "generate": "Paint",
    "edit": "Edit",
    "vary": "Vary",
    "translate": "Translate",
    "interpolate": "Interpolate",
    "upscale": "Upscale",
    "replay": "Replay",
    "index": "Index",
    "train": "Train",
}
# In a gr.HTML of these, a click on a button with `data-action` is the event "click", with all its data in the event.
# One with `data-confirm` asks that first.
CLICKS = """element.addEventListener('click', event => {
  const button = event.target.closest('[data-action]');
  if (!button || (button.dataset.confirm && !confirm(button.dataset.confirm))) return;
  trigger('click', {...button.dataset});
});"""


def progress(job: Job, waiting: int = 0) -> str:
    """How far a job is, with its half-drawn pictures and its loss curve; `waiting` jobs are in the queue."""
    if job.state == "queued":
        line = f"Waiting: {waiting} in the queue" if waiting > 1 else "Waiting"
        return f'<div class="cb-progress"><progress aria-label="Progress"></progress><p>{line}</p></div>'
    bar = f'max="{job.of}" value="{job.step}"' if job.of else ""
    line = f"Step {job.step:,} of {job.of:,}" if job.of else "Beginning"
    left = job.seconds_left
    if left is not None:
        line += f", about {seconds(left)} left"
    parts = [f'<progress aria-label="Progress" {bar}></progress><p>{line}</p>', half_drawn(job), curve(job.losses)]
    return f'<div class="cb-progress">{"".join(parts)}</div>'


def failure(line: str) -> str:
    """A line about what went wrong."""
    return f'<p class="cb-failure" role="alert">{escape(line)}</p>'


def cancelled(job: Job) -> str:
    """A line about a job that was cancelled, with what was drawn of it."""
    return f'<p role="alert">Cancelled.</p>{half_drawn(job)}'


def finished(job: Job) -> str:
    """A line about a job that is done, and its loss curve if it has one."""
    result = job.result or {}
    count = len(result.get("images", ()))
    took = f" in {seconds(job.finished - job.started)}" if job.finished and job.started else ""
    made = f": {count} picture{'s' if count != 1 else ''}{took}" if count else took
    seed = f", seed {job.request['seed']}" if "seed" in job.request else ""
    parts = [warnings(job.warnings), film(job), curve(result.get("losses", ()))]
    return f'<p role="status">Done{made}{seed}</p>{"".join(parts)}'


def film(job: Job) -> str:
    """The film of a job that made one, and a link that saves it."""
    name = (job.result or {}).get("film")
    if not name:
        return ""
    source = f"/files/{job.id}/{name}"
    return (
        f'<figure class="cb-large"><img src="{source}" alt="The film"></figure>'
        f'<a class="cb-download" href="{source}" download="codebrush_{job.id[4:12]}_{name}">Download film</a>'
    )


def warnings(lines: Sequence[str]) -> str:
    """What there is to expect of a result, such as words that the pack hardly knows."""
    return "".join(f'<p class="cb-note">{escape(line)}</p>' for line in lines)


def about(job: Job, number: int, manifest: Mapping[str, Any]) -> str:
    """A picture at full size, with how it was made, and a link that saves it."""
    assert job.result is not None
    said = f"Picture {number + 1}: {caption(job.result['images'][number])}"
    return (
        f'<div class="cb-about"><figure class="cb-large"><img src="{picture_url(job, number)}" alt="{escape(said)}">'
        f"<figcaption>{escape(said)} {download(job, number)}</figcaption></figure>{settings(manifest)}</div>"
    )


def half_drawn(job: Job) -> str:
    """The latest half-drawn pictures of a job."""
    if not job.shown:
        return ""
    version = len(job.shown)
    source = f"/files/{job.id}/latest.png?version={version}&amp;picture="
    pictures = (
        f'<img src="{source}{number}" alt="Half-drawn picture {number + 1}">' for number in range(len(job.shown[-1]))
    )
    return f'<div class="cb-grid">{"".join(pictures)}</div>'


def curve(losses: Sequence[float], label: str = "Loss", steps: int = 0) -> str:
    """A line through the losses of `steps` steps (0: one each), as SVG; "" for fewer than two."""
    if len(losses) < 2:
        return ""
    low, high = min(losses), max(losses)
    across, down = 300 / (len(losses) - 1), 80 / ((high - low) or 1)
    every = -(-len(losses) // MOST_POINTS)
    drawn = [*range(0, len(losses) - 1, every), len(losses) - 1]
    points = " ".join(f"{number * across:.1f},{85 - (losses[number] - low) * down:.1f}" for number in drawn)
    said = f"{label} over {steps or len(losses)} steps: from {losses[0]:.3f} to {losses[-1]:.3f}"
    return (
        f'<figure class="cb-curve"><svg viewBox="0 0 300 90" preserveAspectRatio="none" role="img" aria-label="{said}">'
        f'<polyline points="{points}"/></svg><figcaption>{said}</figcaption></figure>'
    )


def gallery(job: Job, chosen: int | None = 0) -> str:
    """The pictures of a job that is done, as buttons, with their scores and verdicts."""
    pictures = [] if job.result is None else job.result.get("images", [])
    buttons = [_picture(job, number, image, number == chosen) for number, image in enumerate(pictures)]
    return f'<div class="cb-grid" role="group" aria-label="Pictures, best first">{"".join(buttons)}</div>'


def _picture(job: Job, number: int, image: Mapping[str, Any], chosen: bool) -> str:
    said = f"Picture {number + 1}: {caption(image)}"
    verdict = image.get("verdict") or ""
    label = f'<span class="cb-verdict cb-{escape(verdict)}">{escape(verdict)}</span>' if verdict else ""
    return (
        f'<button type="button" class="cb-picture" data-action="choose" data-job="{job.id}" data-number="{number}" '
        f'aria-pressed="{"true" if chosen else "false"}" aria-label="{escape(said)}">'
        f'<img src="{picture_url(job, number)}" alt=""><span class="cb-under">{label}{_score(image)}</span></button>'
    )


def caption(image: Mapping[str, Any]) -> str:
    """The verdict and scores of a picture in words."""
    said = [image["verdict"]] if image.get("verdict") else []
    if "scorer_score" in image:
        said.append(f"score {image['scorer_score']:.2f}")
    if "clip_score" in image:
        said.append(f"CLIP {image['clip_score']:.2f}")
    return ", ".join(said) or "{} x {}".format(*image["size"])


def _score(image: Mapping[str, Any]) -> str:
    score = image.get("scorer_score", image.get("clip_score"))
    by = "" if "scorer_score" in image else "CLIP "
    return "" if score is None else f"<span>{by}{score:.2f}</span>"


def picture_url(job: Job, number: int) -> str:
    """Where a picture of a job is served."""
    return f"/files/{job.id}/{number}.png"


def download(job: Job, number: int) -> str:
    """A link that saves a picture, with how it was made in it."""
    name = f"codebrush_{job.id[4:12]}_{number}.png"
    return f'<a class="cb-download" href="{picture_url(job, number)}" download="{name}">Download PNG</a>'


def settings(manifest: Mapping[str, Any]) -> str:
    """What a picture was made with, as a list."""
    rows = {"method": manifest.get("method"), "prompt": manifest.get("prompt"), "seed": manifest.get("seed")}
    rows["candidate"] = manifest.get("index")
    rows["size"] = "x".join(map(str, manifest.get("size", ())))
    rows |= {name: value for name, value in dict(manifest.get("options", {})).items() if value not in (None, "")}
    if strength := dict(manifest.get("edit") or {}).get("strength"):
        rows["strength"] = strength
    rows["upscaled"] = ", ".join(f"{step.get('scale')}x" for step in manifest.get("upscaled", []))
    rows["pack"] = dict(manifest.get("pack", {})).get("name")
    shown = {name: value for name, value in rows.items() if value not in (None, "")}
    lines = (
        f"<dt>{escape(name.replace('_', ' '))}</dt><dd>{escape(_said(value))}</dd>" for name, value in shown.items()
    )
    return f'<dl class="cb-settings">{"".join(lines)}</dl>'


def _said(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_said(each)}" for name, each in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(_said, value))
    return format(value, "g") if isinstance(value, float) else str(value)


def seconds(count: float) -> str:
    """A time as people say it."""
    if count < 90:
        return f"{max(1, round(count))} s"
    if count < 600:
        minutes, rest = divmod(round(count), 60)
        return f"{minutes} min {rest} s" if rest else f"{minutes} min"
    return f"{round(count / 60)} min" if count < 5400 else f"{count / 3600:.1f} h"


def ago(then: float) -> str:
    """How long ago a time was."""
    return f"{seconds(time.time() - then)} ago"
