"""What is done for each kind of job: calls of `Codebrush`, and where their results are kept."""

import itertools
import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from codebrush.data.decoding.images import save_png, to_pil
from codebrush.data.masks import white_where_clear
from codebrush.errors import ImageError
from codebrush.files import file_sha256
from codebrush.generation.advice import warn_of_failure
from codebrush.generation.editing.upscaling import as_drawn, drawing_before, file_manifest
from codebrush.generation.guided.run.run_folder import LOSSES_FILE, RUN_FILE
from codebrush.generation.manifest import interpolated_manifest
from codebrush.generation.origin import origin
from codebrush.generation.result import Result
from codebrush.generation.videos import write_video
from codebrush.pipeline import Codebrush
from codebrush.progress import Preview, Progress, shares, silent
from codebrush.serving.job import Job
from codebrush.serving.work.reading import embed, explain, read
from codebrush.serving.work.sent import called, called_apart, sent_picture, sent_pictures

OWN = ("prompt", "seed")  # what may differ between the jobs of one batch
DRAW, READ, LOOK, INDEX, TRAIN = "draw", "read", "look", "index", "train"
LANES = (DRAW, READ, LOOK, INDEX, TRAIN)  # each with a worker of its own
SPREAD = (DRAW, READ, INDEX)  # those that workers in other processes take on; the others need no models
FILM, FILM_FPS = "film.webp", 12


@dataclass(frozen=True)
class Kind:
    """One kind of job. `run` returns the result of each job of a batch; `group` is equal for what is one batch.

    `lane` says whose turn it waits for: what takes seconds at most is read beside what is drawn. One that is `long` has
    no time limit, and stops as soon as the server does, to go on after its next start. `admit` raises JobError for a
    request that the jobs of this kind which have not ended do not go with."""

    run: Callable[[Codebrush, Sequence[Job], Progress], list[dict[str, Any]]]
    group: Callable[[Mapping[str, Any]], str | None] = lambda request: None
    lane: str = DRAW
    long: bool = False
    admit: Callable[[Mapping[str, Any], Sequence[Job]], None] = lambda request, live: None


def batch_key(kinds: Mapping[str, Kind], job: Job, draws_codes: Callable[[str], bool]) -> tuple[str, str, str] | None:
    """Equal for jobs that are drawn together; None for one that is drawn alone. `draws_codes` says of a pack whether
    it draws code after code, unless another method is asked for."""
    if job.request.get("method") is None and not draws_codes(job.pack):
        return None
    key = None if job.attempts else kinds[job.kind].group(job.request)  # one that was begun when the server was killed
    return None if key is None else (job.kind, job.pack, key)


def _options(request: Mapping[str, Any]) -> str | None:
    """All but the prompt and the seed."""
    if request.get("method") not in (None, "sample"):
        return None
    return json.dumps({name: value for name, value in request.items() if name not in OWN}, sort_keys=True)


def _generate(brush: Codebrush, jobs: Sequence[Job], progress: Progress) -> list[dict[str, Any]]:
    first = dict(jobs[0].request)
    if first.get("method") == "guide":
        return [_guide(brush, jobs[0], progress)]
    prompts, seeds = ([job.request[name] for job in jobs] for name in OWN)
    options = {name: value for name, value in first.items() if name not in (*OWN, "previews")}
    count = first.get("previews", 0)
    shown = [itertools.count(1) for _ in jobs]
    preview = Preview(count, lambda number, pictures: jobs[number].show(pictures, next(shown[number])))
    drawn = brush.generate(prompts, seed=seeds, progress=progress, preview=preview if count else None, **options)
    # Of one that was cancelled meanwhile nothing is kept: its folder may be gone.
    return [{} if job.ended else _kept(job, results) for job, results in zip(jobs, drawn, strict=True)]


def _guide(brush: Codebrush, job: Job, progress: Progress) -> dict[str, Any]:
    """A guided run in the job's folder, from its file `start` if there is one; one that was stopped there goes on."""
    request, folder = dict(job.request), job.folder / "run"
    scale, count = request.pop("upscale", None), request.pop("previews", 0)
    enlarge = brush.enlarger.results(scale) if scale else as_drawn  # refuses a pack without upscaler before the run
    guiding, enlarging = drawing_before(enlarge, progress)
    due = Preview(count, lambda *_: None).due
    if (folder / RUN_FILE).exists():
        run = brush.resume(folder)
    else:
        del request["method"]
        if (start := request.pop("start", None)) is not None:
            request["init"] = str(job.folder / start)
        run = brush.guide(request.pop("prompt"), folder=folder, **request)
    n = run.request.n
    for number, step in enumerate(run):
        if number:
            job.losses.append(step.losses["loss"])
        else:
            job.losses[:] = _losses(folder)
        done = step.steps * step.pictures.start + step.step * len(step.pictures)
        if due(done - 1, done, step.steps * n):
            job.show([to_pil(image) for image in step.images()], done)
        (guiding or silent)(done, step.steps * n)
    warn_of_failure(brush.pack, run.request.prompt, run.results)
    result = _kept(job, [_by_name(each, job) for each in enlarge(run.results, enlarging)]) | {"losses": _losses(folder)}
    shutil.rmtree(folder, ignore_errors=True)  # the pictures say how they were made
    return result


def _losses(run: Path) -> list[float]:
    """Those of the steps of a guided run so far, also of steps that it took before it was stopped and went on."""
    return [json.loads(line)["loss"] for line in (run / LOSSES_FILE).read_text(encoding="utf-8").splitlines()]


def _by_name(result: Result, job: Job) -> Result:
    """A guided picture whose manifest has the name and the hash of its start picture, and not where the server has it:
    whoever knows a job's id may see its pictures."""
    place, manifest = f"{job.folder}{os.sep}", result.manifest
    options = {name: _without(place, value) for name, value in manifest["options"].items()}
    files = {_without(place, name): digest for name, digest in manifest["files"].items()}
    return replace(result, manifest={**manifest, "options": options, "files": files})


def _without(place: str, value: Any) -> Any:
    return value.removeprefix(place) if isinstance(value, str) else value


def _kept(job: Job, results: Sequence[Result]) -> dict[str, Any]:
    """Store pictures in the job's folder as the command line does; returns what the job says of them."""
    images = []
    for number, result in enumerate(results):
        file = f"picture_{number:02d}.png"
        save_png(result.image, job.folder / file, result.manifest)
        entry = {"file": file, "seed": result.manifest["seed"], "index": result.manifest["index"]}
        entry |= {"clip_score": result.score, "size": list(result.image.size), "codes": result.codes.numel()}
        if result.judged is not None:
            entry |= {"scorer_score": result.judged, "verdict": result.verdict}
        images.append(entry)
    return {"images": images}


def _redraw(brush: Codebrush, jobs: Sequence[Job], progress: Progress) -> list[dict[str, Any]]:
    """Edits, variations and translations of the pictures in the job's folder."""
    (job,) = jobs
    request = dict(job.request)
    names, masked, _ = (request.pop(name) for name in ("pictures", "mask", "max_pixels"))
    copies = (request["n"] or 1) * (request.get("upscale") or 1) ** 2 if masked else 1  # others are of the pack's size
    pictures = sent_pictures(job, names, copies=copies)
    task = {"edit": brush.edit, "vary": brush.vary, "translate": brush.translate}[job.kind]
    mask = {"mask": white_where_clear(sent_picture(job, "mask"))} if masked else {}
    count, shown = request.pop("previews", 0), itertools.count(1)
    preview = Preview(count, lambda _, pictures: job.show(pictures, next(shown)))
    options = {**mask, **request, **({"preview": preview} if count else {})}
    return [_kept(job, [*task(pictures, progress=progress, **options).results])]


def _interpolate(brush: Codebrush, jobs: Sequence[Job], progress: Progress) -> list[dict[str, Any]]:
    """The frames between the pictures in the job's folder, and a film of them."""
    (job,) = jobs
    request = dict(job.request)
    names, count, seed = (request.pop(name) for name in ("pictures", "frames", "seed"))
    pictures = sent_pictures(job, names)
    request = {name: value for name, value in request.items() if name not in ("max_pixels", "names")}
    keys = called_apart(job, names)
    files = {key: file_sha256(job.folder / name) for key, name in zip(keys, names, strict=True)}
    frames = list(brush.interpolate(pictures, count, seed, progress=progress, **request))
    images, made_by = [], origin(brush.pack, brush.device)
    for number, frame in enumerate(frames):
        file = f"frame_{number:02d}.png"
        manifest = interpolated_manifest(keys, request.get("through", "latents"), count, seed, number, files, made_by)
        save_png(frame, job.folder / file, manifest)
        images.append({"file": file, "size": list(frame.size), "codes": 0})
    write_video(frames, job.folder / FILM, FILM_FPS)
    return [{"images": images, "film": FILM}]


def _upscale(brush: Codebrush, jobs: Sequence[Job], progress: Progress) -> list[dict[str, Any]]:
    """The pictures in the job's folder, enlarged; what they say of themselves is kept."""
    (job,) = jobs
    names, most, scale = (job.request[name] for name in ("pictures", "max_pixels", "scale"))
    images = []
    for name, share in zip(names, shares(progress, len(names)), strict=True):
        picture = sent_picture(job, name)
        if picture.width * picture.height * scale**2 > most:
            raise ImageError(f"enlarged {scale} times the picture would have more than {most:,} pixels")
        (large,) = brush.upscale([picture], scale, share)
        manifest = file_manifest(job.folder / name, scale, large.size, brush.pack, called(job, name))
        save_png(large, job.folder / f"{name}.png", manifest)
        images.append({"file": f"{name}.png", "size": list(large.size), "codes": 0})
    return [{"images": images}]


def _replay(brush: Codebrush, jobs: Sequence[Job], progress: Progress) -> list[dict[str, Any]]:
    """The picture of a manifest again, from the sources in the job's folder and no other file."""
    (job,) = jobs
    names, compared = job.request["sources"], job.request["picture"]
    for name in names:
        sent_picture(job, name)  # a picture, and no larger than it may be
    sources = [job.folder / name for name in names]
    result = brush.replay(job.request["manifest"], sources, named_files=False, progress=progress)
    kept = _kept(job, [result])
    if compared is not None:
        there, here = (
            (image.mode, image.size, image.tobytes()) for image in (sent_picture(job, compared), result.image)
        )
        kept["images"][0]["identical"] = there == here
    return [kept]


KINDS: Mapping[str, Kind] = {
    "generate": Kind(_generate, _options),
    **dict.fromkeys(("edit", "vary", "translate"), Kind(_redraw)),
    "interpolate": Kind(_interpolate),
    "upscale": Kind(_upscale),
    "replay": Kind(_replay),
    "embed": Kind(embed, lane=READ),
    **dict.fromkeys(("classify", "caption", "ask"), Kind(read, lane=READ)),
    "explain": Kind(explain),  # which may take a minute
}
