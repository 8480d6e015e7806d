"""Captioned pictures -> a pack: tokenizer, CLIP, VQGAN and code transformer in order, by recipes or by a budget."""

import dataclasses
import json
import os
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from codebrush import __version__
from codebrush.data.codes import encode_once
from codebrush.errors import TrainingError, UsageError
from codebrush.models.clip import CLIP
from codebrush.models.code_transformer import CodeTransformer
from codebrush.models.pretrained import PretrainedModel
from codebrush.models.vqgan import VQGAN
from codebrush.pack import PACK_FILE, Pack, local_pack, write_pack
from codebrush.text.tokenizer import Tokenizer, train_bpe
from codebrush.training.captioned import Captioned, SourceConfig, load_captioned
from codebrush.training.clip import CLIPRecipe
from codebrush.training.loop import Loop, LoopConfig
from codebrush.training.plan import GRID, SHARES, TIMED_STEPS, WARM_STEPS, Size, choose, sizes
from codebrush.training.reporting import METRICS
from codebrush.training.stages import (
    MODEL_FOLDER,
    MODELS,
    Materials,
    StagePlan,
    has_begun,
    is_done,
    make_network,
    make_task,
    read_plan,
    run_stage,
)

STAGES = ("clip", "vqgan", "transformer")
FINISH_SECONDS = 5.0  # kept back for writing the pack
Say = Callable[[str], None]


@dataclass(frozen=True)
class PackRequest:
    """What `codebrush train SOURCE` was asked for; `plans` (from recipes) or `budget` (seconds) decide the sizes."""

    source: SourceConfig
    out: Path
    budget: float | None = None
    plans: Mapping[str, StagePlan] = dataclasses.field(default_factory=dict)
    image_size: int = 64
    tokenizer: str = "wordpiece"
    seed: int = 0
    threads: int = 0
    resume: bool = False
    start: Path | None = None
    name: str = ""
    licence: str = "unspecified"


class Clock:
    """Seconds of the budget that are spent, over all the processes that worked on it."""

    def __init__(self, path: Path):
        self.path, self.started = path, time.monotonic()
        self.before = float(json.loads(path.read_text())["spent"]) if path.is_file() else 0.0

    def spent(self) -> float:
        """Seconds since the first process began, pauses between processes left out."""
        return self.before + time.monotonic() - self.started

    def store(self) -> None:
        """Remember the time for a process that resumes."""
        part = Path(f"{self.path}.part")
        part.write_text(json.dumps({"spent": self.spent()}), encoding="utf-8")
        os.replace(part, self.path)


def train_pack(request: PackRequest, say: Say = print, draw: Callable[..., Any] | None = None) -> dict[str, Any]:
    """Run every stage that is not done and write the pack; returns stages, figures and paths.

    The work lies in `<out>.work` beside the pack, where `resume` finds it again.
    """
    out = Path(os.path.abspath(request.out))
    work = out.with_name(out.name + ".work")
    if not request.resume and any(has_begun(work / stage) for stage in STAGES):
        raise TrainingError(f"{work} holds an earlier training: add --resume to go on, or delete it to start anew")
    if request.out.exists() and not (request.out / PACK_FILE).is_file() and any(request.out.iterdir()):
        raise TrainingError(f"{request.out} is not empty and is no pack: name another folder with --out")
    if request.image_size % GRID:
        raise UsageError(f"--image-size {request.image_size} is no multiple of {GRID}: the codes would not fit")
    source = request.source.open()  # before any folder is made, so that a wrong source leaves nothing behind
    work.mkdir(parents=True, exist_ok=True)
    if not request.resume:  # what an attempt that began no stage has left
        (work / "clock.json").unlink(missing_ok=True)
    clock = Clock(work / "clock.json")
    try:
        materials = _materials(request, source, work, say)
        figures: dict[str, Any] = {}
        for stage in STAGES:
            figures[stage] = _stage(stage, request, materials, work, clock, say, draw)
            clock.store()
        pack = _write(request, materials, work, source, clock, figures)
    finally:
        clock.store()
    return {
        "pack": str(pack.folder),
        "work": str(work),
        "stages": figures,
        "skipped": len(materials.data.pixels.skipped),
        "seconds": round(clock.spent(), 1),
    }


def _materials(request: PackRequest, source: Any, work: Path, say: Say) -> Materials:
    size = request.image_size
    start = None if request.start is None else local_pack(str(request.start))
    if start is not None and (start / PACK_FILE).is_file():
        size = Pack(start).image_size  # its transformer draws a grid of no other size
    for plan in request.plans.values():
        size = getattr(plan.recipe, "image_size", size)
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
        tokenizer = Tokenizer.from_pretrained(member_folder(request.start, "clip"))
    else:
        tokenizer = make_tokenizer(request.tokenizer, data)
    return Materials(data, tokenizer)


def make_tokenizer(kind: str, data: Captioned) -> Tokenizer:
    """The distilled table's WordPiece, or a BPE trained on the captions."""
    if kind == "wordpiece":
        return Tokenizer.wordpiece()
    if kind == "bpe":
        return train_bpe(text for row in range(len(data)) for text in data.captions(row))
    raise TrainingError(f"--tokenizer '{kind}' is unknown: use wordpiece or bpe")


def member_folder(place: Path, stage: str) -> Path:
    """Where the network of `stage` lies in a pack (or a built-in one's name), a stage's folder, or one of its own."""
    place = local_pack(str(place)) or place
    if (place / PACK_FILE).is_file():
        return Pack(place).member(stage)
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
    started = time.monotonic()
    start: PretrainedModel | None = None
    if request.start is not None and not is_done(folder):
        start = MODELS[stage].from_pretrained(member_folder(request.start, stage))
    if stage == "transformer" and not is_done(folder):
        assert materials.vqgan is not None
        materials.codes = encode_once(materials.vqgan, materials.data.pixels, work / "cache")
        materials.draw = (lambda network: draw(materials, network)) if draw else None
    if has_begun(folder):
        plan = read_plan(folder)
    elif stage in request.plans:
        plan = request.plans[stage]
    else:
        plan = _plan(stage, request, materials, clock, start)
    say(f"{stage}: {plan.loop.steps} steps of {plan.loop.batch_size} pictures")
    network = run_stage(plan, materials, folder, resume=True, start=start)
    if isinstance(network, CLIP):
        materials.clip = network
    elif isinstance(network, VQGAN):
        materials.vqgan = network
    elif isinstance(network, CodeTransformer):
        materials.transformer = network
    return {
        "steps": plan.loop.steps,
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "seconds": round(time.monotonic() - started, 1),
        "metrics": last_metrics(folder),
    }


def read_recipes(folder: Path, rows: SourceConfig) -> tuple[SourceConfig, dict[str, StagePlan]]:
    """The plans of a folder of recipes, and the rows: gaps in `rows` are filled by the first recipe that names them."""
    from codebrush.training.recipes import read_recipe

    plans: dict[str, StagePlan] = {}
    for stage in STAGES:
        recipe = read_recipe(folder / f"{stage}.yaml", rows.source, stage)
        plans[stage] = recipe.plan
        filled = {name: value or getattr(recipe.source, name) for name, value in vars(rows).items()}
        rows = SourceConfig(**filled)
    return rows, plans


def last_metrics(folder: Path) -> dict[str, float]:
    """The last line of a stage's metrics."""
    path = folder / METRICS
    return json.loads(path.read_text(encoding="utf-8").splitlines()[-1]) if path.is_file() else {}


def _plan(
    stage: str,
    request: PackRequest,
    materials: Materials,
    clock: Clock,
    start: PretrainedModel | None,
) -> StagePlan:
    if request.budget is None:
        raise TrainingError(f"there is no recipe for the stage {stage}: add one, or give a --budget")
    left = max(1.0, request.budget - clock.spent() - FINISH_SECONDS)
    share = SHARES[stage] / sum(SHARES[name] for name in STAGES[STAGES.index(stage) :])
    seconds = max(1.0, left * share)
    threads = request.threads or torch.get_num_threads()

    def plan_of(size: Size, steps: int) -> StagePlan:
        recipe = size.recipe
        if isinstance(recipe, CLIPRecipe):
            recipe = replace(recipe, token_table=request.tokenizer == "wordpiece")
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
            preview_every=max(1, steps // 5),
        )
        return StagePlan(stage, recipe, loop)

    def time_steps(size: Size) -> float:
        return measure_step(plan_of(size, WARM_STEPS + TIMED_STEPS), materials, start)

    candidates = sizes(stage, request.image_size)
    if start is not None:
        candidates = candidates[:1]  # the start's own size is what is trained
    size, steps, per_step = choose(candidates, seconds, time_steps)
    plan = plan_of(size, steps)
    return replace(plan, facts={"size": size.name, "seconds_per_step": per_step, "budget_seconds": seconds})


def measure_step(plan: StagePlan, materials: Materials, start: PretrainedModel | None = None) -> float:
    """Seconds of one step of `plan`, from a throw-away network; nothing is left behind."""
    network = make_network(plan, materials) if start is None else type(start).from_config(start.config)
    with tempfile.TemporaryDirectory() as folder:
        loop = Loop(make_task(plan, materials, network), plan.loop, Path(folder))
        return loop.time_steps(WARM_STEPS, TIMED_STEPS)


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
        "plans": {stage: dataclasses.asdict(read_plan(work / stage)) for stage in STAGES},
    }
    return write_pack(
        request.out,
        name=request.name or request.out.name,
        clip=materials.clip,
        tokenizer=materials.tokenizer,
        vqgan=materials.vqgan,
        transformer=materials.transformer,
        version=__version__,
        licence=request.licence,
        provenance=provenance,
    )
