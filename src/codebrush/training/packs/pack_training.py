"""Captioned pictures -> a pack: a tokenizer, and one stage after the other for its members, by recipes or a budget."""

import dataclasses
import json
import os
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from codebrush.conversion.convert import open_model
from codebrush.conversion.load import load_clip
from codebrush.conversion.tokenizers import tokenizer_of
from codebrush.data.code_cache import encode_once
from codebrush.errors import TrainingError, UsageError
from codebrush.models.code_transformer import CodeTransformer
from codebrush.models.pretrained import PretrainedModel
from codebrush.models.translator import Translator
from codebrush.models.upscaler import Upscaler
from codebrush.pack.pack import OPTIONAL, PACK_FILE, Pack, local_pack
from codebrush.pack.writing import write_pack
from codebrush.text.tokenizer import Tokenizer, train_bpe
from codebrush.training.dataset import Captioned, load_captioned
from codebrush.training.engine.forgetting import read_gate
from codebrush.training.engine.loop import Loop, LoopConfig, is_first, launch
from codebrush.training.engine.reporting import METRICS
from codebrush.training.packs.bank import make_bank
from codebrush.training.packs.plan import GRID, SHARES, TIMED_STEPS, WARM_STEPS, Size, choose, sizes
from codebrush.training.packs.request import (
    REQUEST_FILE,
    PackRequest,
    check_same,
    read_request,
    work_folder,
    write_request,
)
from codebrush.training.stages import (
    MODEL_FOLDER,
    Materials,
    Recipe,
    StagePlan,
    at_own_size,
    has_begun,
    is_done,
    make_network,
    make_task,
    read_plan,
    run_stage,
    with_words,
)
from codebrush.training.tasks.clip import CLIPRecipe
from codebrush.training.tasks.code_transformer import TransformerRecipe, translation_of
from codebrush.training.tasks.upscaler import UpscalerRecipe, fitting_target
from codebrush.version import __version__

STAGES = ("clip", "vqgan", "transformer", "prior", "captioner", "upscaler", "translator")
TOKENIZERS = ("wordpiece", "bpe")
CLOCK_FILE = "clock.json"
RECONSTRUCTED = 0.25  # of the pictures that an upscaler learns from are made worse by the VQGAN first
BANK_SHARE = 0.02  # of a budget, at most, to embed the pictures of a bank
FINISH_SECONDS = 5.0  # kept back for writing the pack
Say = Callable[[str], None]


class Clock:
    """Seconds that are spent, by stage, over all the processes that worked on a pack one after the other.

    They are stored with each checkpoint; what a killed process did after its last one is forgotten, time and steps.
    """

    def __init__(self, path: Path, writes: bool = True):
        self.path, self.writes, self.last = path, writes, time.monotonic()
        self.seconds: dict[str, float] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}

    def spent(self) -> float:
        """Seconds since the first process began, pauses between processes left out."""
        return sum(self.seconds.values()) + time.monotonic() - self.last

    def charge(self, to: str = "between") -> None:
        """Count the time since the last call as spent on the stage `to`, and remember it for a process that resumes."""
        now = time.monotonic()
        self.seconds[to] = self.seconds.get(to, 0.0) + now - self.last
        self.last = now
        if self.writes:
            part = Path(f"{self.path}.part")
            part.write_text(json.dumps(self.seconds), encoding="utf-8")
            os.replace(part, self.path)


def train_pack(request: PackRequest, say: Say = print, draw: Callable[..., Any] | None = None) -> dict[str, Any]:
    """Run every stage that is not done and write the pack; returns stages, figures and paths.

    The work lies in `<out>.work` beside the pack, where `resume` finds it again, with the request that it began with.
    Where the plans ask for several processes each runs this; the first writes, speaks and returns the figures.
    """
    work = work_folder(request.out)
    if not request.resume and any(has_begun(work / stage) for stage in STAGES):
        raise TrainingError(f"{work} holds an earlier training: add --resume to go on, or delete it to start anew")
    if request.out.exists() and not (request.out / PACK_FILE).is_file() and any(request.out.iterdir()):
        raise TrainingError(f"{request.out} is not empty and is no pack: name another folder with --out")
    if request.image_size % GRID:
        raise UsageError(f"--image-size {request.image_size} is no multiple of {GRID}: the codes would not fit")
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
        materials = _materials(request, source, work, say)
        if "translator" in request.plans:
            make_network(request.plans["translator"], materials)  # a wrong column is told before the other stages
        clock.charge()
        figures = {stage: _stage(stage, request, materials, work, clock, say, draw) for stage in _stages(request)}
        if not fabric.is_global_zero:
            return {}
        pack = _write(request, materials, work, source, clock, figures)
    finally:
        clock.charge()
    return {
        "pack": str(pack.folder),
        "work": str(work),
        "stages": figures,
        "skipped": len(materials.data.pixels.skipped),
        "seconds": round(clock.spent(), 1),
    }


def _stages(request: PackRequest) -> list[str]:
    """The stages of a training; recipes may leave out the prior, the captioner and the upscaler, and only recipes say
    which column holds the styles of a translator."""
    budgeted = request.budget is not None
    return [
        stage
        for stage in STAGES
        if stage in request.plans or stage not in OPTIONAL or (budgeted and stage != "translator")
    ]


def _open_work(request: PackRequest, work: Path) -> None:
    work.mkdir(parents=True, exist_ok=True)
    if not request.resume:  # what an attempt that began no stage has left
        (work / CLOCK_FILE).unlink(missing_ok=True)
    if not (request.resume and (work / REQUEST_FILE).is_file()):
        write_request(request)


def _materials(request: PackRequest, source: Any, work: Path, say: Say) -> Materials:
    size = request.image_size
    start = None if request.start is None else local_pack(str(request.start))
    if start is not None and (start / PACK_FILE).is_file():
        size = Pack(start).image_size  # its transformer draws a grid of no other size
    for stage in ("clip", "vqgan"):  # the pack's pictures are the VQGAN's; those of later stages are their own affair
        if stage in request.plans:
            size = request.plans[stage].image_size or size
    data = load_captioned(source, size, work / "cache")
    say(f"{len(data)} pictures with captions from {request.source.source}")
    for name, reason in data.pixels.skipped[:5]:
        say(f"left out {name}: {reason}")
    if len(data.pixels.skipped):
        say(f"{len(data.pixels.skipped)} pictures left out because they cannot be read")
    clip_folder = work / "clip" / MODEL_FOLDER
    if clip_folder.is_dir():
        tokenizer = Tokenizer.from_pretrained(clip_folder)
    elif request.start is not None:
        place = member_folder(request.start, "clip")
        tokenizer = tokenizer_of(load_clip(place), place)
    else:
        tokenizer = make_tokenizer(request.tokenizer, data)
    return Materials(data, tokenizer)


def make_tokenizer(kind: str, data: Captioned) -> Tokenizer:
    """The distilled table's WordPiece, or a BPE trained on the captions."""
    check_tokenizer(kind)
    if kind == "wordpiece":
        return Tokenizer.wordpiece()
    return train_bpe(text for row in range(len(data)) for text in data.captions(row))


def check_tokenizer(kind: str) -> None:
    """Raises TrainingError for an unknown one."""
    if kind not in TOKENIZERS:
        raise TrainingError(f"--tokenizer '{kind}' is unknown: use {' or '.join(TOKENIZERS)}")


def member_folder(place: Path, stage: str) -> Path:
    """Where the network of `stage` lies in a pack (or a built-in one's name), a stage's folder, or one of its own."""
    place = local_pack(str(place)) or place
    if (place / PACK_FILE).is_file():
        pack = Pack(place)
        if not pack.has(stage):
            raise TrainingError(f"the pack {place} has no {stage}: name a folder that has one")
        return pack.member(stage)
    return place / MODEL_FOLDER if (place / MODEL_FOLDER).is_dir() else place


def _stage(
    stage: str,
    request: PackRequest,
    materials: Materials,
    work: Path,
    clock: Clock,
    say: Say,
    draw: Callable[..., Any] | None,
) -> dict[str, Any]:
    folder = work / stage
    done = is_done(folder)
    start: PretrainedModel | None = None
    if request.start is not None and not done:
        start = _start(request.start, stage, say)
    if stage == "transformer" and not done:
        assert materials.vqgan is not None
        materials.codes = encode_once(materials.vqgan, materials.data.pixels, work / "cache")
        materials.draw = (lambda network: draw(materials, network)) if draw else None
    if stage == "captioner":
        words = folder / MODEL_FOLDER if done else start and member_folder(request.start or Path(), stage)
        materials.words = Tokenizer.from_pretrained(words) if words else None
    if has_begun(folder):
        plan = read_plan(folder)
    elif stage in request.plans:
        # Never 0 in a stored plan: another number of threads adds up in another order.
        loop = request.plans[stage].loop
        threads = request.threads or loop.threads or torch.get_num_threads()
        plan = replace(request.plans[stage], loop=replace(loop, threads=threads))
    else:
        plan = _plan(stage, request, materials, work / "cache", clock, start)
    if stage == "captioner" and not done:
        materials.words = with_words(plan, materials).words
    say(f"{stage}: {plan.loop.steps} steps of {plan.loop.batch_size} pictures")
    network = run_stage(plan, materials, folder, resume=True, start=start, saved=lambda: clock.charge(stage))
    clock.charge("between" if done else stage)
    setattr(materials, stage, network)
    if isinstance(plan.recipe, TransformerRecipe):
        materials.translation = translation_of(plan.recipe, materials.data)
    if isinstance(network, CodeTransformer) and network.config.image_embedding:
        assert materials.clip is not None
        if is_first():
            seconds = None if request.budget is None else BANK_SHARE * request.budget
            materials.bank = make_bank(materials.clip, materials.data, seconds=seconds)
        clock.charge()
    return {
        "steps": plan.loop.last,
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "seconds": round(clock.seconds.get(stage, 0.0), 1),
        "metrics": last_metrics(folder),
    } | ({} if (gate := read_gate(folder)) is None else {"steps": gate["step"], "gate": gate})


def _start(place: Path, stage: str, say: Say) -> PretrainedModel | None:
    """The network to begin `stage` from; None where a pack of published models has none of its kind."""
    pack = local_pack(str(place)) or place
    if (pack / PACK_FILE).is_file() and not Pack(pack).has(stage):
        say(f"{place} has no {stage}: a fresh one is trained")
        return None
    return open_model(stage, member_folder(place, stage))


def last_metrics(folder: Path) -> dict[str, float]:
    """The last line of a stage's metrics."""
    path = folder / METRICS
    return json.loads(path.read_text(encoding="utf-8").splitlines()[-1]) if path.is_file() else {}


def _plan(
    stage: str,
    request: PackRequest,
    materials: Materials,
    cache: Path,
    clock: Clock,
    start: PretrainedModel | None,
) -> StagePlan:
    if request.budget is None:
        raise TrainingError(f"there is no recipe for the stage {stage}: add one, or give a --budget")
    left = max(1.0, request.budget - clock.spent() - FINISH_SECONDS)
    stages = _stages(request)
    share = SHARES[stage] / sum(SHARES.get(name, 0.0) for name in stages[stages.index(stage) :])
    seconds = max(1.0, left * share)
    threads = request.threads or torch.get_num_threads()

    def plan_of(size: Size, steps: int) -> StagePlan:
        recipe = _fitted(size.recipe, request, materials, start)
        every = max(1, steps // 20)
        loop = LoopConfig(
            steps=steps,
            batch_size=size.batch_size,
            seed=request.seed,
            warmup=max(1, min(100, steps // 10)),
            ema_decay=0.999 if steps > 5000 else 0.99 if steps > 300 else 0.9,
            threads=threads,
            log_every=min(50, every),
            checkpoint_every=min(500, every),
            preview_every=steps // 5 if steps >= 100 else steps,  # each takes as long as several steps
        )
        return StagePlan(stage, recipe, loop)

    def time_steps(size: Size) -> float:
        plan = plan_of(size, WARM_STEPS + TIMED_STEPS)
        return measure_step(plan, at_own_size(plan, materials, cache), start)

    candidates = sizes(stage, request.image_size)
    if start is not None:
        candidates = candidates[:1]  # the start's own size is what is trained
    size, steps, per_step = choose(candidates, seconds, time_steps)
    plan = plan_of(size, steps)
    return replace(plan, facts={"size": size.name, "seconds_per_step": per_step, "budget_seconds": seconds})


def _fitted(recipe: Recipe, request: PackRequest, materials: Materials, start: PretrainedModel | None) -> Recipe:
    """A candidate's recipe, as the request, the pictures and what it starts from have it."""
    if isinstance(recipe, CLIPRecipe):
        return replace(recipe, token_table=request.tokenizer == "wordpiece")
    if isinstance(recipe, UpscalerRecipe):
        vqgan, size = materials.vqgan, materials.data.pixels.pixels.shape[1]
        assert vqgan is not None
        scale = start.config.scale if isinstance(start, Upscaler) else recipe.scale
        recipe = replace(recipe, scale=scale, target_size=fitting_target(materials.data, size, scale))
        return replace(recipe, reconstructed=0.0 if recipe.small_size % vqgan.factor else RECONSTRUCTED)
    return recipe


def measure_step(plan: StagePlan, materials: Materials, start: PretrainedModel | None = None) -> float:
    """Seconds of one step of `plan`, from a throw-away network; nothing is left behind."""
    materials = with_words(plan, materials)
    network = make_network(plan, materials, None if start is None else type(start).from_config(start.config))
    with tempfile.TemporaryDirectory() as folder:
        loop = Loop(make_task(plan, materials, network), plan.loop, Path(folder))
        return loop.time_steps(WARM_STEPS, TIMED_STEPS)


def _kept_translator(request: PackRequest, materials: Materials) -> Translator | None:
    """That of the pack to start from, where it takes pictures of this size: no other member is needed for it."""
    place = None if request.start is None else local_pack(str(request.start))
    if place is None or not (place / PACK_FILE).is_file() or not Pack(place).has("translator"):
        return None
    kept = Pack(place).translator
    return None if materials.data.pixels.pixels.shape[1] % kept.config.factor else kept


def _write(
    request: PackRequest,
    materials: Materials,
    work: Path,
    source: Any,
    clock: Clock,
    figures: Mapping[str, Any],
) -> Pack:
    assert materials.clip and materials.vqgan and materials.transformer
    provenance = {
        "source": Path(request.source.source).name,
        "rows": dataclasses.asdict(request.source) | {"source": Path(request.source.source).name},
        "data_sha256": source.fingerprint,
        "seconds": round(clock.spent(), 1),
        "torch": torch.__version__,
        "stages": figures,
        "plans": {stage: dataclasses.asdict(read_plan(work / stage)) for stage in figures},
    }
    return write_pack(
        request.out,
        name=request.name or request.out.name,
        clip=materials.clip,
        tokenizer=materials.tokenizer,
        vqgan=materials.vqgan,
        transformer=materials.transformer,
        captioner=materials.captioner,
        words=materials.words,
        upscaler=materials.upscaler,
        bank=materials.bank,
        translation=materials.translation,
        prior=materials.prior,
        translator=materials.translator or _kept_translator(request, materials),
        version=__version__,
        licence=request.licence,
        provenance=provenance,
    )
