"""What is done for each kind of job: calls of `Codebrush`, and where their results are kept."""

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image

from codebrush.data.decoding.images import decode_image, save_png, to_pil
from codebrush.data.masks import white_where_clear
from codebrush.files import atomic_file
from codebrush.generation.advice import warn_of_failure
from codebrush.generation.guided.run_folder import RUN_FILE
from codebrush.generation.result import Result
from codebrush.pipeline import Codebrush
from codebrush.progress import Preview, Progress
from codebrush.serving.jobs import Job

OWN = ("prompt", "seed")  # what may differ between the jobs of one batch
DRAW, READ = "draw", "read"
LANES = (DRAW, READ)  # each with a worker of its own


@dataclass(frozen=True)
class Kind:
    """One kind of job. `run` returns the result of each job of a batch; `group` is equal for what is one batch; `lane`
    says whose turn it waits for: what takes seconds at most is read beside what is drawn."""

    run: Callable[[Codebrush, Sequence[Job], Progress], list[dict[str, Any]]]
    group: Callable[[Mapping[str, Any]], str | None] = lambda request: None
    lane: str = DRAW


def batch_key(job: Job) -> tuple[str, str, str] | None:
    """Equal for jobs that are drawn together; None for one that is drawn alone."""
    key = KINDS[job.kind].group(job.request)
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
    preview = Preview(count, lambda number, pictures: jobs[number].show(pictures)) if count else None
    drawn = brush.generate(prompts, seed=seeds, progress=progress, preview=preview, **options)
    return [_kept(job, results) for job, results in zip(jobs, drawn, strict=True)]


def _guide(brush: Codebrush, job: Job, progress: Progress) -> dict[str, Any]:
    """A guided run in the job's folder, from its file `start` if there is one; one that was stopped there goes on."""
    request, folder = dict(job.request), job.folder / "run"
    scale, count = request.pop("upscale", None), request.pop("previews", 0)
    enlarge = brush.enlarger.results(scale) if scale else list  # refuses a pack without upscaler before the run
    preview = Preview(count, lambda _, pictures: job.show(pictures))
    if (folder / RUN_FILE).exists():
        run = brush.resume(folder)
    else:
        del request["method"]
        if (start := request.pop("start", None)) is not None:
            request["init"] = str(job.folder / start)
        run = brush.guide(request.pop("prompt"), folder=folder, **request)
    n = run.request.n
    for step in run:
        job.losses.append(step.losses["loss"])
        if preview.due(step.step, step.steps):
            preview.show(0, [to_pil(image) for image in step.images()])
        progress(step.steps * step.pictures.start + step.step * len(step.pictures), step.steps * n)
    warn_of_failure(brush.pack, run.request.prompt, run.results)
    result = _kept(job, enlarge(run.results))
    shutil.rmtree(folder, ignore_errors=True)  # the pictures say how they were made
    return result | {"losses": job.losses}


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
    """Edits and variations of the pictures in the job's folder."""
    (job,) = jobs
    request = dict(job.request)
    names, most, masked = (request.pop(name) for name in ("pictures", "max_pixels", "mask"))

    def read(name: str) -> Image.Image:
        return decode_image((job.folder / name).read_bytes(), keep_mode=True, max_pixels=most)

    pictures = [read(name) for name in names]
    task = brush.vary if job.kind == "vary" else brush.edit
    mask = {"mask": white_where_clear(read("mask"))} if masked else {}
    return [_kept(job, [*task(pictures, progress=progress, **mask, **request).results])]


def _embed(brush: Codebrush, jobs: Sequence[Job], progress: Progress) -> list[dict[str, Any]]:
    """Texts and pictures as vectors, (B, E) little-endian float32 in a file of the job's folder."""
    (job,) = jobs
    inputs = job.request["inputs"]
    texts = [entry["text"] for entry in inputs if "text" in entry]
    names = [entry["file"] for entry in inputs if "file" in entry]
    pictures = [decode_image((job.folder / name).read_bytes(), max_pixels=job.request["max_pixels"]) for name in names]
    vectors = {"text": iter(brush.embed_text(texts) if texts else ()), "file": iter(brush.embed_images(pictures))}
    found = [next(vectors["text" if "text" in entry else "file"]) for entry in inputs]
    rows = torch.stack(found).cpu().numpy().astype("<f4")
    with atomic_file(job.folder / "vectors.f32") as part:
        rows.tofile(part)
    tokens = sum(map(len, brush.tokenizer.ids(texts))) if texts else 0
    progress(len(inputs), len(inputs))
    return [{"file": "vectors.f32", "tokens": tokens + len(pictures)}]


def _read(brush: Codebrush, jobs: Sequence[Job], progress: Progress) -> list[dict[str, Any]]:
    """What the pictures in the job's folder show: their labels, captions or answers."""
    (job,) = jobs
    names, most, options = (job.request[name] for name in ("pictures", "max_pixels", "options"))
    pictures = [decode_image((job.folder / name).read_bytes(), max_pixels=most) for name in names]
    data: list[Any]
    if job.kind == "classify":
        found = brush.classify(pictures, **options)
        data = [[{"label": label, "probability": share} for label, share in each] for each in found]
    elif job.kind == "caption":
        data = [[{"text": one.text, "score": one.score} for one in each] for each in brush.caption(pictures, **options)]
    else:
        answers = brush.ask(pictures, **options)
        data = [{"answer": one.text, "confidence": one.confidence, "guess": one.guess} for one in answers]
    progress(len(pictures), len(pictures))
    return [{"data": data}]


KINDS: Mapping[str, Kind] = {
    "generate": Kind(_generate, _options),
    **dict.fromkeys(("edit", "vary"), Kind(_redraw)),
    "embed": Kind(_embed, lane=READ),
    **dict.fromkeys(("classify", "caption", "ask"), Kind(_read, lane=READ)),
}
