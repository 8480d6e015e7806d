"""Measures the models of a pack on captioned pictures, part by part, into one report."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from codebrush.data.decoding.images import stack
from codebrush.data.preprocess import pixels_for
from codebrush.data.sources.captioned_images import CaptionedImages
from codebrush.errors import CodebrushError
from codebrush.evaluation.alignment import clip_score, cross_retrieval, r_precision, zero_shot
from codebrush.evaluation.calibration import calibrate, expected_calibration_error
from codebrush.evaluation.distribution import SetDistances
from codebrush.evaluation.fidelity import Fidelity
from codebrush.evaluation.rows import Reading, embed_texts, row_labels
from codebrush.models.clip import CLIP
from codebrush.models.perceptual import CLIPPerceptual
from codebrush.models.vqgan import VQGAN
from codebrush.progress import Progress
from codebrush.text.tokenizer import Tokenizer

PARTS = ("zero-shot", "retrieval", "clip-score", "reconstruction", "drawing")
NEED_EMBEDDINGS = {"zero-shot", "retrieval", "clip-score"}  # parts that use the embeddings of the pictures
LEFT_OUT = "not asked for"


@dataclass(frozen=True)
class Judge:
    """The CLIP that measures the pictures a pack makes; `name` says whose it is."""

    name: str
    clip: CLIP
    tokenizer: Tokenizer

    def embed(self, pictures: Sequence[Image.Image]) -> Tensor:
        """Unit embeddings (B, E) of pictures, on the CPU."""
        return self.clip.encode_image(pixels_for(self.clip, pictures).to(self.clip.log_scale.device)).cpu()


@dataclass(frozen=True)
class Subject:
    """The models to measure, all on one device; those of parts that are left out may be missing.

    `embed_labels` returns unit vectors (L, E) for labels, `temperature` is that of the classification, `image_size` is
    in pixels, and `draw(text, n)` draws n pictures of a literal text and returns the best by the pack's own CLIP.
    """

    clip: CLIP
    tokenizer: Tokenizer
    judge: Judge
    embed_labels: Callable[[Sequence[str]], Tensor]
    temperature: float = 1.0
    image_size: int = 0
    vqgan: VQGAN | None = None
    draw: Callable[[str, int], Image.Image] | None = None


@dataclass(frozen=True)
class EvaluationOptions:
    """What to measure and how.

    `label` is the column with the true labels (None: "label", if it exists). `prompts` is the number of captions to
    draw; for each, `rerank` pictures are drawn and the best is measured.
    """

    parts: frozenset[str] = frozenset(PARTS)
    label: str | None = None
    prompts: int = 50
    rerank: int = 1
    seed: int = 0


@dataclass
class _Report:
    """The figures so far, the reasons why parts are missing, and the seconds of each phase."""

    figures: dict[str, Any] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    phases: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Add the time of the block to the phase `name`."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.phases[name] = round(self.phases.get(name, 0.0) + time.perf_counter() - start, 3)

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Time a part; if it cannot be measured, record the reason and go on."""
        with self.timed(name):
            try:
                yield
            except CodebrushError as error:
                self.missing[name] = str(error)


@torch.no_grad()
def evaluate(
    subject: Subject,
    source: CaptionedImages,
    options: EvaluationOptions = EvaluationOptions(),
    progress: Callable[[str], Progress | None] = lambda _: None,
) -> dict[str, Any]:
    """Measure the parts in `options.parts` on the pictures of `source`, which are read once and in batches.

    Embeddings and features are kept in memory, pixels are not. In the report "pictures" is how many were read, None if
    only drawing was measured, which uses captions alone. "skipped" lists pictures that could not be read, "left_out"
    the parts that could not be measured, each with the reason. `progress(phase)` returns the callback for a phase.

    Raises:
        DataError: if no picture can be read, or the label column that was named does not exist.
    """
    report = _Report(missing={part: LEFT_OUT for part in PARTS if part not in options.parts})
    labels = _labels(source, options, report)
    reading = Reading(source, progress("reading"))
    embeddings, reconstruction = _read(subject, reading, options.parts, report)
    if labels is not None:
        with report.part("zero-shot"):
            report.figures["zero_shot"] = _zero_shot(subject, embeddings, [labels[row] for row in reading.rows])
    if options.parts & {"retrieval", "clip-score"}:
        with report.part("captions"):
            _captions(subject, embeddings, source, reading.rows, options.parts, report)
    if reconstruction is not None:
        report.figures["reconstruction"] = reconstruction
    if "drawing" in options.parts:
        with report.part("drawing"):
            report.figures["drawing"] = _drawing(subject, source, options, progress("drawing"))
    return {
        "pictures": len(reading.rows) if reading.rows else None,
        **report.figures,
        "judge": {"clip": subject.judge.name, "image_size": subject.judge.clip.config.image.image_size},
        "left_out": report.missing,
        "skipped": reading.skipped,
        "phases": report.phases,
    }


def _labels(source: CaptionedImages, options: EvaluationOptions, report: _Report) -> list[str | None] | None:
    if "zero-shot" not in options.parts:
        return None
    if options.label is not None:
        return row_labels(source, options.label)
    if "label" not in source.row(0):
        report.missing["zero-shot"] = "there is no column label: name the column with the true labels with --label"
        return None
    return row_labels(source, "label")


def _read(
    subject: Subject, reading: Reading, parts: frozenset[str], report: _Report
) -> tuple[Tensor, dict[str, Any] | None]:
    """Unit embeddings (N, E) of the readable pictures, on the CPU, and the reconstruction figures over all of them."""
    device = subject.clip.log_scale.device
    embeddings = [torch.zeros(0, subject.clip.embed_dim)]
    judge, measures = subject.judge, None
    if "reconstruction" in parts and subject.vqgan is not None:
        measures = Fidelity(subject.vqgan, CLIPPerceptual(judge.clip)), SetDistances(judge.clip.embed_dim)
    wanted = max(*subject.clip.image_shape, subject.image_size)
    for pictures in reading.batches(wanted) if parts & NEED_EMBEDDINGS or measures is not None else ():
        if parts & NEED_EMBEDDINGS:
            with report.timed("embedding"):
                embeddings.append(subject.clip.encode_image(pixels_for(subject.clip, pictures).to(device)).cpu())
        if measures is not None:
            with report.timed("reconstruction"):
                images = stack(pictures, subject.image_size).to(device)  # (B, 3, H, W)
                made = measures[0].update(images)
                measures[1].update(judge.clip.encode_image(images), judge.clip.encode_image(made))
    if measures is None:
        return torch.cat(embeddings), None
    fidelity, distances = measures
    found: dict[str, Any] = fidelity.compute()
    with report.part("distances"):
        found |= distances.compute()
    found["features"] = {
        "perceptual": "every stage of the judge's image tower",
        "rfid": f"the judge's unit image embeddings, {judge.clip.embed_dim} wide",
        "kid": "the same, with the kernel (cosine + 1)^3",
    }
    return torch.cat(embeddings), found


def _zero_shot(subject: Subject, embeddings: Tensor, labels: Sequence[str | None]) -> dict[str, Any]:
    """Zero-shot figures over the pictures that have a label."""
    named = [(row, label) for row, label in enumerate(labels) if label is not None]
    names = [label for _, label in named]
    classes = sorted(set(names))
    if len(classes) < 2:
        raise CodebrushError(f"zero-shot needs two or more different labels: all are {classes}")
    images, vectors = embeddings[[row for row, _ in named]], subject.embed_labels(classes).cpu()  # (N, E), (L, E)
    found: dict[str, Any] = zero_shot(images, classes, vectors, names)
    place = {label: index for index, label in enumerate(classes)}
    targets = torch.tensor([place[name] for name in names])
    logits = float(subject.clip.log_scale.exp()) * images @ vectors.T  # (N, L)
    found |= {"temperature": subject.temperature}
    found["ece"] = expected_calibration_error(logits.double() / subject.temperature, targets)
    try:
        fitted = calibrate(logits, targets)
    except CodebrushError:  # too few pictures
        return {**found, "calibration": None}
    pack_json = {
        "classification": {"temperature": round(fitted.temperature, 4)}
    }  # the entry that makes it the pack's default
    return {**found, "calibration": {**asdict(fitted), "pack_json": pack_json}}


def _captions(
    subject: Subject,
    embeddings: Tensor,
    source: CaptionedImages,
    rows: Sequence[int],
    parts: frozenset[str],
    report: _Report,
) -> None:
    """Retrieval and CLIP score over the pictures and their captions, into `report`."""
    place: dict[str, int] = {}
    owners = [[place.setdefault(text, len(place)) for text in dict.fromkeys(source.captions(row))] for row in rows]
    texts = embed_texts(subject.clip, subject.tokenizer, list(place))  # (T, E)
    if "retrieval" in parts:
        report.figures["retrieval"] = cross_retrieval(embeddings, texts, owners)
    if "clip-score" in parts:
        report.figures["clip_score"] = clip_score(embeddings, texts, owners)


def _drawing(
    subject: Subject, source: CaptionedImages, options: EvaluationOptions, progress: Progress | None
) -> dict[str, Any]:
    """Draw a random choice of the distinct first captions, and let the judge match the pictures with their prompts."""
    if subject.draw is None:
        raise CodebrushError("the pack has no code or flow transformer to draw with")
    prompts = list(dict.fromkeys(source.captions(row)[0] for row in range(len(source))))
    if len(prompts) < 2:
        raise CodebrushError("drawing needs two or more different captions to compare a picture with")
    generator = torch.Generator().manual_seed(options.seed)
    picked = sorted(torch.randperm(len(prompts), generator=generator)[: options.prompts].tolist())
    drawn, own, refused, start = [], [], [], time.perf_counter()
    for done, place in enumerate(picked, 1):
        try:
            picture = subject.draw(prompts[place], options.rerank)
        except CodebrushError as error:
            refused.append({"prompt": prompts[place], "reason": str(error)})
        else:
            drawn.append(subject.judge.embed([picture]))
            own.append(place)
        if progress is not None:
            progress(done, len(picked))
    if not own:
        raise CodebrushError(f"none of the prompts could be drawn: {refused[0]['reason']}")
    seconds = (time.perf_counter() - start) / len(picked)
    images, texts = torch.cat(drawn), embed_texts(subject.judge.clip, subject.judge.tokenizer, prompts)
    return {
        **r_precision(images, own, texts, seed=options.seed),
        "clip_score": clip_score(images, texts, [[place] for place in own]),
        "prompts": len(own),
        "captions": len(prompts),
        "drawn_each": options.rerank,
        "refused": refused,
        "seconds_a_prompt": round(seconds, 3),
    }
