"""HTML of trainings: how far one is, its curves and pictures, what it said; and of the pictures it begins with."""

from collections.abc import Collection, Mapping
from html import escape
from typing import Any

from codebrush.pack.members import MEMBERS
from codebrush.serving.job import CANCELLING, Job
from codebrush.serving.studio import views
from codebrush.serving.studio.parts import note
from codebrush.serving.work.training import Trainer
from codebrush.serving.work.training_report import SHEETS
from codebrush.training.packs.places import RECONSTRUCTIONS, SAMPLES

SHEET_TITLES = {SAMPLES: "What it draws", RECONSTRUCTIONS: "Pictures, and what the VQGAN makes of them"}
LAST_PREVIEWS = 4
GB, MB = 1024**3, 1024**2


def check(result: Mapping[str, Any]) -> str:
    """What a training would find."""
    captions = "".join(f"<li>{escape(caption)}</li>" for caption in result["captions"])
    count = result["pictures"]
    found = f"{count:,} captioned picture{'' if count == 1 else 's'}, such as"
    few = note("That is few: packs learn from hundreds of pictures and more.") if count < 100 else ""
    problems = "".join(f'<p class="cb-failure">{escape(line)}</p>' for line in result["problems"])
    return f'<div role="status"><p>{found}</p><ul class="cb-said-list">{captions}</ul>{few}{problems}</div>'


def progress(job: Job) -> str:
    """How far a training is, by its time."""
    if job.state == "queued":
        return views.progress(job)
    name = escape(job.request["name"])
    if not job.of:
        return f'<div class="cb-progress"><progress aria-label="Progress"></progress><p>{name}: beginning</p></div>'
    line = f"{name}: {views.seconds(job.step)} of {views.seconds(job.of)}"
    line += ", stopping: it saves first" if job.state == CANCELLING else ""
    bar = f'<progress aria-label="Progress" max="{job.of}" value="{job.step}"></progress>'
    return f'<div class="cb-progress">{bar}<p>{line}</p></div>'


def finished(job: Job) -> str:
    """That a training is done, and its verdict."""
    lines = "".join(map(note, (job.result or {}).get("verdict", ())))
    name = escape(job.request["name"])
    return f'<p role="status">Done: <strong>{name}</strong> is now in the list of packs of every tab.</p>{lines}'


def report(trainer: Trainer, job: Job) -> str:
    """Curves, pictures and words of a training."""
    about = trainer.report(job)
    curves = "".join(_curve(stage, points) for stage, points in about["curves"].items())
    said = "".join(f"<li>{escape(line)}</li>" for line in about["said"])
    words = (
        f'<details open><summary>What it said</summary><ul class="cb-said-list">{said}</ul></details>' if said else ""
    )
    disk = note(f"{size(about['disk_bytes'])} on disk") if about["disk_bytes"] else ""
    return f'{_pictures(trainer, job)}<div class="cb-curves">{curves}</div>{words}{disk}'


def _member(stage: str) -> str:
    """What a stage trains, as the beginning of a line."""
    label = MEMBERS[stage].label if stage in MEMBERS else stage
    return label[:1].upper() + label[1:]


def _curve(stage: str, points: list[dict[str, float]]) -> str:
    own = f"{stage}_loss"
    name = own if points and own in points[-1] else next((key for key in (points or [{}])[-1] if "loss" in key), own)
    values = [point[name] for point in points if name in point]
    steps = round(points[-1]["step"]) if points else 0
    return views.curve(values, f"{_member(stage)}: loss", steps)


def _pictures(trainer: Trainer, job: Job) -> str:
    """The last previews, or the sheets of the finished pack."""
    names = list(trainer.pictures(job))
    sheets = [name for name in names if name in SHEETS]
    shown = sheets or [name for name in names if name not in SHEETS][-LAST_PREVIEWS:]
    figures = [
        f'<figure><img src="/files/{job.id}/training/{escape(name)}" alt="{escape(_title(name))}">'
        f"<figcaption>{escape(_title(name))}</figcaption></figure>"
        for name in shown
    ]
    return f'<div class="cb-sheets">{"".join(figures)}</div>' if figures else ""


def _title(name: str) -> str:
    if name in SHEET_TITLES:
        return SHEET_TITLES[name]
    stage, _, step = name.removesuffix(".png").rpartition("_")
    return f"{_member(stage)} after {int(step):,} steps" if step.isdecimal() else name


def listed(trainer: Trainer, running: Collection[str], packs: Collection[str]) -> str:
    """The trainings that can be resumed, and the packs that were trained here, with buttons."""
    entries = []
    for name in trainer.places.stopped():
        begun = None if name in running else trainer.begun(name)
        if begun is None:
            continue
        taken = trainer.places.seconds(name)
        about = (
            f"{views.seconds(taken)} of {views.seconds(begun['seconds'])}, {size(trainer.places.size(name))} on disk"
        )
        sure = f"Delete the stopped training '{name}', {views.seconds(taken)} of work? It cannot be brought back."
        buttons = _button("resume", "Resume", name) + _button("delete", "Delete", name, sure)
        entries.append(_entry(name, about, buttons))
    own = [name for name in packs if name not in trainer.given and name not in running]
    trained = [
        _entry(
            name, f"{size(trainer.places.size(name))} on disk",
            _button("delete", "Delete", name, f"Delete the pack '{name}'? It cannot be brought back."),
        )
        for name in own
    ]  # fmt: skip
    lists = {"Stopped trainings": entries, "Packs trained here": trained}
    return "".join(
        f'<h3>{title}</h3><ul class="cb-jobs">{"".join(lines)}</ul>' for title, lines in lists.items() if lines
    )


def _entry(name: str, about: str, buttons: str) -> str:
    return (
        f'<li class="cb-job cb-plain"><div><strong>{escape(name)}</strong><span>{about}</span></div>'
        f'<div class="cb-row">{buttons}</div></li>'
    )


def _button(action: str, label: str, name: str, sure: str = "") -> str:
    """A button; if `sure` is given it is asked first."""
    said = f'data-action="{action}" data-name="{escape(name)}" aria-label="{label} {escape(name)}"'
    asked = f' data-confirm="{escape(sure)}"' if sure else ""
    return f'<button type="button" class="cb-small" {said}{asked}>{label}</button>'


def size(count: int) -> str:
    """Bytes as people say them."""
    return f"{count / GB:.1f} GB" if count >= GB else f"{max(1, round(count / MB))} MB"
