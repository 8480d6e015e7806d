"""Trains a pack on captioned pictures: a tokenizer, then one stage after the other, by recipes or within a budget."""

import dataclasses
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from codebrush.conversion.convert import open_model
from codebrush.conversion.load import load_clip
from codebrush.conversion.tokenizers import tokenizer_of
from codebrush.data.sources.unread import amount
from codebrush.errors import TrainingError, UsageError
from codebrush.models.pretrained import PretrainedModel
from codebrush.pack.pack import PACK_FILE, Pack
from codebrush.pack.writing import PackMembers, write_pack
from codebrush.text.tokenizer import Tokenizer
from codebrush.training.dataset import load_captioned
from codebrush.training.engine.loop import Loop, LoopConfig, launch
from codebrush.training.member_folder import member_folder, pack_at
from codebrush.training.packs.budget import FINISH_SHARE, stage_seconds
from codebrush.training.packs.clock import Clock
from codebrush.training.packs.plan import TIMED_STEPS, WARM_STEPS, choose
from codebrush.training.packs.request import (
    REQUEST_FILE,
    PackRequest,
    check_same,
    read_request,
    work_folder,
    write_request,
)
from codebrush.training.registry import STAGES
from codebrush.training.run_folder import MODEL_FOLDER, has_begun, is_done, read_plan
from codebrush.training.run_stage import make_network, make_task, run_figures, run_stage
from codebrush.training.stage import GRID, Materials, Size, Stage, StagePlan
from codebrush.training.tokenizers import check_tokenizer, make_tokenizer
from codebrush.version import __version__

CLOCK_FILE = "clock.json"
Say = Callable[[str], None]


def train_pack(request: PackRequest, say: Say = print, draw: Callable[..., Any] | None = None) -> dict[str, Any]:
    """Train every stage that is not done and write the pack; returns stages, figures and paths.

    The work, and the request it began with, are in `<out>.work` beside the pack, where `resume` finds them. `draw`
    makes previews of a code transformer. If the plans ask for several processes each of them runs this; the first
    writes, prints and returns the figures.

    Raises:
        TrainingError: if there is an earlier training and no `resume`, `out` is not empty and no pack, or a recipe is
            missing.
        UsageError: if the request has a wrong value, or another one than the training began with.
    """
    work = work_folder(request.out)
    if not request.resume and any(has_begun(work / stage) for stage in STAGES):
        raise TrainingError(f"{work} holds an earlier training: add --resume to go on, or delete it to start again")
    if request.out.exists() and not (request.out / PACK_FILE).is_file() and any(request.out.iterdir()):
        raise TrainingError(f"{request.out} is not empty and not a pack: name another folder with --out")
    if request.image_size % GRID:
        raise UsageError(f"--image-size {request.image_size} is not a multiple of {GRID}: the codes would not fit")
    check_tokenizer(request.tokenizer)
    if request.resume and (first := read_request(request.out)) is not None:
        check_same(request, first)
    source = request.source.open()  # before any folder is made, so that a wrong source leaves nothing behind
    loops = [plan.loop for plan in request.plans.values()]
    fabric = launch(loops[0] if loops else LoopConfig(steps=1, batch_size=1))
    if fabric.is_global_zero:
        _open_work(request, work)
    fabric.barrier()
    clock = Clock(work / CLOCK_FILE, writes=fabric.is_global_zero)
    say = say if fabric.is_global_zero else (lambda text: None)
    try:
        materials = _materials(request, source, work, say, draw)
        for name, plan in request.plans.items():
            STAGES[name].check(plan, materials)
        clock.charge()
        training = _PackTraining(request, materials, work, clock, say)
        figures = {stage.name: training.run(stage) for stage in training.stages}
        if not fabric.is_global_zero:
            return {}
        pack = training.write(source, figures)
    finally:
        clock.charge()
    return {
        "pack": str(pack.folder),
        "work": str(work),
        "stages": figures,
        "skipped": len(training.materials.data.pixels.skipped),
        "seconds": round(clock.spent(), 1),
    }


def _open_work(request: PackRequest, work: Path) -> None:
    work.mkdir(parents=True, exist_ok=True)
    if not request.resume:  # what an attempt that began no stage has left
        (work / CLOCK_FILE).unlink(missing_ok=True)
    if not (request.resume and (work / REQUEST_FILE).is_file()):
        write_request(request)


def _materials(request: PackRequest, source: Any, work: Path, say: Say, draw: Callable[..., Any] | None) -> Materials:
    size = request.image_size
    if (start := pack_at(request.start)) is not None:
        size = start.image_size  # its transformer draws a grid of no other size
    for name, plan in request.plans.items():  # the pack's pictures are the VQGAN's; later stages may use other sizes
        if STAGES[name].sets_image_size:
            size = plan.image_size or size
    data = load_captioned(source, size, work / "cache")
    say(f"{amount('picture', len(data))} with captions from {request.source.source}")
    for name, reason in data.pixels.skipped[:5]:
        say(f"left out {name}: {reason}")
    if len(data.pixels.skipped):
        say(f"{amount('unreadable picture', len(data.pixels.skipped))} left out")
    clip_folder = work / "clip" / MODEL_FOLDER
    if clip_folder.is_dir():
        tokenizer = Tokenizer.from_pretrained(clip_folder)
    elif request.start is not None:
        place = member_folder(request.start, "clip")
        tokenizer = tokenizer_of(load_clip(place), place)
    else:
        tokenizer = make_tokenizer(request.tokenizer, data)
    return Materials(data, {"clip": tokenizer}, draw=draw)


class _PackTraining:
    """The stages of a pack, and what they have made so far."""

    def __init__(self, request: PackRequest, materials: Materials, work: Path, clock: Clock, say: Say):
        self.request, self.materials, self.work, self.clock, self.say = request, materials, work, clock, say
        self.cache = work / "cache"

    @property
    def stages(self) -> list[Stage]:
        """Those that recipes ask for, that every pack needs, and, within a budget, that have a share of it."""
        plans, budgeted = self.request.plans, self.request.budget is not None
        return [
            stage
            for name, stage in STAGES.items()
            if name in plans or not stage.optional or (budgeted and stage.share > 0)
        ]

    def run(self, stage: Stage) -> dict[str, Any]:
        """Train a stage, or read its network if it is done; returns its figures."""
        folder, request = self.work / stage.name, self.request
        done = is_done(folder)
        start = None if done else self._start(stage)
        if not done:
            self.materials = stage.precompute(self.materials, self.cache)
        plan = read_plan(folder) if has_begun(folder) else self._plan(stage, start)
        self.say(f"{stage.name}: {amount('step', plan.loop.steps)} of {amount('picture', plan.loop.batch_size)}")
        network = run_stage(
            plan, self.materials, folder, resume=True, start=start, saved=lambda: self.clock.charge(stage.name)
        )
        self.clock.charge("between" if done else stage.name)
        self.materials.models[stage.name] = network
        seconds = None if request.budget is None else FINISH_SHARE * request.budget
        self.materials = stage.finish(network, plan, self.materials, seconds)
        self.clock.charge()
        return run_figures(plan, network, folder, self.clock.seconds.get(stage.name, 0.0))

    def _start(self, stage: Stage) -> PretrainedModel | None:
        """The network to begin from; None for a fresh one, also where a pack to start from has none of its kind."""
        place = self.request.start
        if place is None:
            return None
        pack = pack_at(place)
        if pack is not None and not pack.has(stage.name):
            self.say(f"{place} has no {stage.name}: a fresh one is trained")
            return None
        folder = member_folder(place, stage.name)
        start = open_model(stage.name, folder)
        if (tokenizer := stage.tokenizer_beside(start, folder)) is not None:
            self.materials.tokenizers[stage.name] = tokenizer
        return start

    def _plan(self, stage: Stage, start: PretrainedModel | None) -> StagePlan:
        """The recipe's plan, or one that fits the stage's share of the budget."""
        request = self.request
        if stage.name not in request.plans:
            return self._plan_within_budget(stage, start)
        plan = request.plans[stage.name]
        return replace(plan, loop=plan.loop.with_threads(request.threads))

    def _plan_within_budget(self, stage: Stage, start: PretrainedModel | None) -> StagePlan:
        request = self.request
        if request.budget is None:
            raise TrainingError(f"there is no recipe for the stage {stage.name}: add one, or give a --budget")
        names = [each.name for each in self.stages]
        remaining = self.stages[names.index(stage.name) :]
        seconds = stage_seconds(request.budget, self.clock.spent(), [each.share for each in remaining])

        def time_steps(size: Size) -> float:
            plan = self._plan_of(stage, size, WARM_STEPS + TIMED_STEPS, start)
            return measure_step(plan, self.materials, self.cache, start)

        candidates = stage.sizes(request.image_size)
        if start is not None:
            candidates = candidates[:1]  # the start's own size is what is trained
        size, steps, per_step = choose(candidates, seconds, time_steps)
        plan = self._plan_of(stage, size, steps, start)
        return replace(plan, facts={"size": size.name, "seconds_per_step": per_step, "budget_seconds": seconds})

    def _plan_of(self, stage: Stage, size: Size, steps: int, start: PretrainedModel | None) -> StagePlan:
        request = self.request
        recipe = stage.adapt(size.recipe, self.materials, start, request.tokenizer == "wordpiece")
        every = max(1, steps // 20)
        loop = LoopConfig(
            steps=steps,
            batch_size=size.batch_size,
            seed=request.seed,
            warmup=max(1, min(100, steps // 10)),
            ema_decay=0.999 if steps > 5000 else 0.99 if steps > 300 else 0.9,
            log_every=min(50, every),
            checkpoint_every=min(500, every),
            preview_every=steps // 5 if steps >= 100 else steps,  # each takes as long as several steps
        )
        return StagePlan(stage.name, recipe, loop.with_threads(request.threads))

    def write(self, source: Any, figures: dict[str, Any]) -> Pack:
        """Write the pack of all that was trained."""
        request, materials = self.request, self.materials
        models = dict(materials.models)
        if (start := pack_at(request.start)) is not None:
            for name in STAGES.keys() - models.keys():
                if (kept := STAGES[name].kept(start, materials.image_size)) is not None:
                    models[name] = kept
        provenance = {
            "source": Path(request.source.source).name,
            "rows": dataclasses.asdict(request.source) | {"source": Path(request.source.source).name},
            "data_sha256": source.fingerprint,
            "seconds": round(self.clock.spent(), 1),
            "torch": torch.__version__,
            "stages": figures,
            "plans": {stage: dataclasses.asdict(read_plan(self.work / stage)) for stage in figures},
        }
        return write_pack(
            request.out,
            PackMembers(models, materials.tokenizers),
            name=request.name or request.out.name,
            extras=materials.extras,
            version=__version__,
            licence=request.licence,
            provenance=provenance,
        )


def measure_step(plan: StagePlan, materials: Materials, cache: Path, start: PretrainedModel | None = None) -> float:
    """Seconds of one step of `plan`, measured on a throw-away network; only decoded pictures are left, in `cache`."""
    prepared = STAGES[plan.stage].prepare(plan, materials, cache)
    network = make_network(plan, prepared, None if start is None else type(start).from_config(start.config))
    with tempfile.TemporaryDirectory() as folder:
        loop = Loop(make_task(plan, prepared, network), plan.loop, Path(folder))
        return loop.time_steps(WARM_STEPS, TIMED_STEPS)
