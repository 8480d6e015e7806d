"""Trains a pack on captioned pictures: a tokenizer, then one stage after the other, by recipes or within a budget."""

import math
import shutil
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from codebrush.data.sources.unread import amount
from codebrush.errors import CodebrushError, TrainingError, UsageError
from codebrush.files import atomic_file, held_alone
from codebrush.models.vqgan import VQGAN
from codebrush.pack.members import PAINTERS
from codebrush.pack.pack import PACK_FILE
from codebrush.text.tokenizer import Tokenizer
from codebrush.training.dataset import Captioned, evenly, load_captioned
from codebrush.training.engine.fabric import launch, processes_started
from codebrush.training.engine.loop_config import LoopConfig
from codebrush.training.engine.reporting import METRICS
from codebrush.training.member_folder import pack_at
from codebrush.training.packs.clock import Clock
from codebrush.training.packs.member_training import MemberTraining, Say
from codebrush.training.packs.pack_writing import write_trained
from codebrush.training.packs.places import (
    CLOCK_FILE,
    CURVES,
    RECONSTRUCTIONS,
    REQUEST_FILE,
    SAMPLES,
    SECOND_FILE,
    work_folder,
)
from codebrush.training.packs.reconstructions import reconstructions
from codebrush.training.packs.request import PackRequest, check_same, read_request, write_request
from codebrush.training.packs.start import Start
from codebrush.training.packs.verdict import Measured, verdict
from codebrush.training.registry import STAGES
from codebrush.training.run_folder import MODEL_FOLDER, has_begun
from codebrush.training.stage import GRID, Materials
from codebrush.training.tokenizers import check_tokenizer, make_tokenizer

IMAGE_SIZE = 64  # of packs that begin from nothing, unless the request says otherwise
LOOKED_AT = 64  # pictures by which it is seen whether they have to be enlarged
FEW, SHEET = 4, 16  # samples that are drawn where there is no time for a whole sheet, and those of one


def train_pack(
    request: PackRequest,
    say: Say = print,
    draw: Callable[..., Any] | None = None,
    began: float | None = None,
) -> dict[str, Any]:
    """Train every stage that is not done and write the pack; returns stages, figures, paths and a verdict in words.

    The pack has sheets of samples and reconstructions and the curves of its training. Until it is written the work,
    and the request it began with, are in `<out>.work` beside it, where `resume` finds them. `draw` draws samples with
    a code transformer. A budget counts from `began`, a time of `time.monotonic`; None is this call. If the plans ask
    for several processes each of them runs this; the first writes, prints and returns the figures.

    Raises:
        TrainingError: if there is an earlier training and no `resume`, `out` holds a pack or other things, or a recipe
            is missing.
        UsageError: if the request has a wrong value, or another one than the training began with, or its budget is too
            short for a pack.
    """
    began = time.monotonic() if began is None else began
    work = work_folder(request.out)
    _check_folders(request, work)
    size = request.image_size or IMAGE_SIZE
    if size % GRID:
        raise UsageError(f"--image-size {size} is not a multiple of {GRID}: the codes would not fit")
    check_tokenizer(request.tokenizer)
    if request.resume and (first := read_request(request.out)) is not None:
        check_same(request, first)
    source = request.source.open()  # before any folder is made, so that a wrong source leaves nothing behind
    fabric = launch(_launched(request))
    say = say if fabric.is_global_zero else (lambda text: None)
    with held_alone(work) if fabric.is_global_zero else nullcontext():
        if fabric.is_global_zero:
            _open_work(request, work)
        fabric.barrier()
        clock = Clock(work / CLOCK_FILE, writes=fabric.is_global_zero, began=began)
        try:
            training = _open_training(request, source, work, clock, say, draw)
            made = {stage.name: training.run(stage) for stage in training.stages}
            figures = {stage: each for stage, each in made.items() if each is not None}
            if not fabric.is_global_zero:
                return {}
            report = _finish(training, source, figures)
        finally:
            if work.is_dir():
                clock.charge()
        if not request.keep_work:
            shutil.rmtree(work)
    return {
        **report,
        **({"work": str(work)} if request.keep_work else {}),
        "skipped": len(training.materials.stored.pixels.skipped),
        "seconds": round(clock.spent(), 1),
    }


def _launched(request: PackRequest) -> LoopConfig:
    """The loop whose processes train all stages.

    Raises:
        TrainingError: if the recipes ask for different numbers of processes.
        UsageError: if a budget, whose plans are for one process, is given to several.
    """
    loops = {stage: plan.loop for stage, plan in request.plans.items()}
    if not loops and processes_started() > 1:
        raise UsageError("--budget trains in one process: start one, or give --recipes with loop.devices")
    (name, first), *others = loops.items() or [("", LoopConfig(steps=1, batch_size=1))]
    for stage, loop in others:
        if (loop.devices, loop.nodes) != (first.devices, first.nodes):
            raise TrainingError(
                f"{stage}.yaml asks for loop.devices {loop.devices} and loop.nodes {loop.nodes}, {name}.yaml for "
                f"{first.devices} and {first.nodes}: the same processes train all stages, so give all the same"
            )
    return first


def _check_folders(request: PackRequest, work: Path) -> None:
    begun, finished = any(has_begun(work / stage) for stage in STAGES), (request.out / PACK_FILE).is_file()
    if begun and not request.resume:
        raise TrainingError(f"{work} holds an earlier training: add --resume to go on, or delete it to start again")
    if finished and not begun:
        raise TrainingError(
            f"{request.out} is a finished pack: name another folder with --out, or delete it to train it again"
        )
    if request.out.exists() and not finished and any(request.out.iterdir()):
        raise TrainingError(f"{request.out} is not empty and not a pack: name another folder with --out")


def _open_work(request: PackRequest, work: Path) -> None:
    work.mkdir(parents=True, exist_ok=True)
    if not request.resume:  # what an attempt that began no stage has left
        for name in (CLOCK_FILE, SECOND_FILE):
            (work / name).unlink(missing_ok=True)
    if not (request.resume and (work / REQUEST_FILE).is_file()):
        write_request(request)


def _open_training(
    request: PackRequest, source: Any, work: Path, clock: Clock, say: Say, draw: Callable[..., Any] | None
) -> MemberTraining:
    """The training with its pictures and its start, checked as far as can be before the first stage."""
    began = time.monotonic()
    try:
        materials, start = _materials(request, source, work, say, draw)
        for name, plan in request.plans.items():
            STAGES[name].check(plan, materials)
        clock.charge()
        training = MemberTraining(request, materials, start, work, clock, say, time.monotonic() - began)
        training.open()
        if lost := start.lost([stage.name for stage in training.stages], training.left_out):
            say(f"the new pack will not have {start.name}'s {' and '.join(lost)}: nothing here trains one")
    except CodebrushError:
        if not any(has_begun(work / stage) for stage in STAGES):
            shutil.rmtree(work)  # there is nothing to go on with
        raise
    return training


def _materials(
    request: PackRequest, source: Any, work: Path, say: Say, draw: Callable[..., Any] | None
) -> tuple[Materials, Start]:
    pack = pack_at(request.start)
    size = request.image_size or (IMAGE_SIZE if pack is None else pack.image_size)
    for name, plan in request.plans.items():  # the pack's pictures are the VQGAN's; later stages may use other sizes
        if STAGES[name].sets_image_size:
            size = plan.image_size or size
    start = Start(request.start, STAGES.values(), size, learned_words=request.tokenizer == "bpe")
    data = load_captioned(source, size, work / "cache")
    say(f"{amount('picture', len(data))} with captions from {request.source.source}")
    for name, reason in data.pixels.skipped[:5]:
        say(f"left out {name}: {reason}")
    if len(data.pixels.skipped):
        say(f"{amount('unreadable picture', len(data.pixels.skipped))} left out")
    _tell_small(data, size, say)
    if request.budget is not None:
        start.choose_vqgan(data)
    clip_folder = work / "clip" / MODEL_FOLDER
    if clip_folder.is_dir():
        tokenizer = Tokenizer.from_pretrained(clip_folder)
    else:
        tokenizer = start.tokenizer() or make_tokenizer(request.tokenizer, data)
    return Materials(data, {"clip": tokenizer}, draw=draw), start


def _tell_small(data: Captioned, size: int, say: Say) -> None:
    """Say so if many pictures have to be enlarged."""
    sides = sorted(data.sides(evenly(len(data), LOOKED_AT)))
    small = sum(side < size for side in sides)
    if small < len(sides) / 4:
        return
    usual = sides[small // 2]
    remedy = f"; --image-size {usual // GRID * GRID} trains on them as they are" if usual >= IMAGE_SIZE else ""
    say(
        f"{small / len(sides):.0%} of the pictures are smaller than {size} pixels (such as {usual}) and are enlarged: "
        f"what is drawn is no sharper than they are{remedy}"
    )


def _draw_samples(draw: Callable[..., Any], materials: Materials, painter: Any, left: float) -> Any:
    """A sheet of samples, of FEW if drawing those shows that the usual number would take more than `left` seconds."""
    if math.isinf(left):
        return draw(materials, painter, SHEET)
    began = time.monotonic()
    few = draw(materials, painter, FEW)
    whole = SHEET / FEW * (time.monotonic() - began)
    return few if time.monotonic() + whole > began + left else draw(materials, painter, SHEET)


def _finish(training: MemberTraining, source: Any, figures: dict[str, Any]) -> dict[str, Any]:
    """Measure what was trained, write the pack with its sheets and curves, and judge it in words."""
    request, materials, work = training.request, training.materials, training.work
    painters = [name for name in PAINTERS.values() if name in materials.models]
    painter = materials.models[painters[0]] if painters else None  # which draws the sheet
    left = training.seconds_for_sheets()
    began = time.monotonic()
    psnr, rebuilt = reconstructions(materials.need(VQGAN), materials.stored, began + left / 3)
    left -= time.monotonic() - began
    samples = None
    if painter is not None and materials.draw is not None:
        samples = _draw_samples(materials.draw, materials, painter, left)
    kept = {stage: training.start.name for stage in training.left_out if stage in training.start.kept}
    judged = verdict(Measured(psnr, tuple(painters), request.budget, figures, kept))
    pack = write_trained(training, source, figures, {"psnr": round(psnr, 2), "verdict": judged})
    sheets = {RECONSTRUCTIONS: rebuilt, SAMPLES: samples}
    for name, sheet in sheets.items():
        (pack.folder / name).unlink(missing_ok=True)
        if sheet is not None:
            with atomic_file(pack.folder / name) as part:
                sheet.save(part, format="PNG")
    curves = pack.folder / CURVES
    shutil.rmtree(curves, ignore_errors=True)
    curves.mkdir()
    for stage in figures:
        if (work / stage / METRICS).is_file():
            shutil.copyfile(work / stage / METRICS, curves / f"{stage}.jsonl")
    return {
        "pack": str(pack.folder),
        "stages": figures,
        "left_out": training.left_out,
        "kept": kept,
        "psnr": round(psnr, 2),
        "verdict": judged,
        "draws": bool(painters),
        "sheets": [str(pack.folder / name) for name, sheet in sheets.items() if sheet is not None],
    }
