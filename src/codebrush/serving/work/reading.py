"""What is done for jobs that read texts and pictures, and draw nothing."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch

from codebrush.data.decoding.images import save_png
from codebrush.files import atomic_file
from codebrush.pipeline import Codebrush
from codebrush.progress import Progress
from codebrush.serving.job import Job
from codebrush.serving.work.sent import sent_picture, sent_pictures
from codebrush.understanding.explaining import ExplainedPicture


def embed(brush: Codebrush, jobs: Sequence[Job], progress: Progress) -> list[dict[str, Any]]:
    """Texts and pictures as vectors, (B, E) little-endian float32 in a file of the job's folder."""
    (job,) = jobs
    inputs = job.request["inputs"]
    texts = [entry["text"] for entry in inputs if "text" in entry]
    names = [entry["file"] for entry in inputs if "file" in entry]
    pictures = sent_pictures(job, names, keep_mode=False)
    vectors = {"text": iter(brush.embed_text(texts) if texts else ()), "file": iter(brush.embed_images(pictures))}
    found = [next(vectors["text" if "text" in entry else "file"]) for entry in inputs]
    rows = torch.stack(found).cpu().numpy().astype("<f4")
    with atomic_file(job.folder / "vectors.f32") as part:
        rows.tofile(part)
    tokens = sum(map(len, brush.tokenizer.ids(texts))) if texts else 0
    progress(len(inputs), len(inputs))
    return [{"file": "vectors.f32", "tokens": tokens + len(pictures)}]


def read(brush: Codebrush, jobs: Sequence[Job], progress: Progress) -> list[dict[str, Any]]:
    """What the pictures in the job's folder show: their labels, captions or answers."""
    (job,) = jobs
    options = job.request["options"]
    pictures = sent_pictures(job, job.request["pictures"], keep_mode=False)
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


def explain(brush: Codebrush, jobs: Sequence[Job], progress: Progress) -> list[dict[str, Any]]:
    """Heat maps of a picture in the job's folder for some texts, which are stored there."""
    (job,) = jobs
    (name,) = job.request["pictures"]
    found = brush.explain(sent_picture(job, name), job.request["texts"], job.request["method"], progress)
    return [{"data": [_explained(job, number, each) for number, each in enumerate(found)]}]


def _explained(job: Job, number: int, found: ExplainedPicture) -> dict[str, Any]:
    """What a job says of a text; maps are the names of files."""
    files = [f"map_{number:02d}_{place:02d}.png" for place in range(len(found.panels))]
    for file, picture in zip(files, found.overlays(), strict=True):
        save_png(picture, job.folder / file)
    maps, measured = found.maps, found.faithfulness
    own = files[1:] or [None] * len(maps.words)  # the map of a single word is that of the text
    words = [{"word": word.word, "gain": word.gain, "map": file} for word, file in zip(maps.words, own, strict=True)]
    return {
        "text": maps.text, "cosine": maps.score, "method": maps.method,
        "shown": found.presence.shown, "level": found.presence.level, "doubt": found.doubt,
        "map": files[0], "words": words, "words_without_map": found.words_without_map,
        "faithfulness": asdict(measured), "better_than_random": measured.better_than_random, "seen": found.seen,
    }  # fmt: skip
