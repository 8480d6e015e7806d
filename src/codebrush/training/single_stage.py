"""Trains one stage by a recipe file, from the models of earlier stages to a run folder with the trained model."""

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from codebrush.conversion.convert import open_model
from codebrush.errors import UsageError
from codebrush.models.pretrained import PretrainedModel
from codebrush.pack.members import MEMBERS
from codebrush.text.tokenizer import Tokenizer
from codebrush.training.dataset import Captioned
from codebrush.training.engine.fabric import gathered, is_first
from codebrush.training.member_folder import member_folder, pack_at
from codebrush.training.recipes import read_recipe
from codebrush.training.registry import STAGES
from codebrush.training.run_folder import MODEL_FOLDER, has_begun, read_plan
from codebrush.training.run_stage import run_figures, run_stage
from codebrush.training.stage import Materials, StagePlan
from codebrush.training.streamed import Streamed, open_pictures
from codebrush.training.tokenizers import make_tokenizer


def train_stage(
    stage: str,
    recipe: str | Path,
    out: Path,
    *,
    source: str | None = None,
    start: Path | None = None,
    given: Mapping[str, Path] | None = None,
    tokenizer: str | None = None,
    threads: int = 0,
    resume: bool = False,
    on_nan: Literal["stop", "skip"] | None = None,
    draw: Callable[..., Any] | None = None,
) -> dict[str, Any]:
    """Train one stage by its recipe into the run folder `out`; returns its figures (of several processes the first
    does).

    `given` are the folders (packs, runs or models) of earlier members that the stage reads, by name; their tokenizers
    come along. `start` is a model to begin from, or published weights. `tokenizer` None is wordpiece, or that of the
    start. A resumed run keeps its plan, its tokenizer and what it began from; it goes on with the fields MACHINES of
    the loop that the recipe has now, and with `on_nan`: the field of `LoopConfig`, None as the recipe says, or as the
    resumed run has it.

    Raises:
        UsageError: if a resumed run is given another start, tokenizer or number of threads than it began with.
        TrainingError: see `run_stage`.
    """
    began = time.monotonic()
    asked = read_recipe(recipe, source, stage)
    plan = _plan(asked.plan, out, None if start is None else member_folder(start, stage), tokenizer, threads, resume)
    plan = replace(plan, loop=plan.loop.with_on_nan(on_nan))
    trained = STAGES[stage]
    given = given or {}
    models, tokenizers = _open_given(given)
    network = None
    if "from" in plan.facts:
        place = Path(plan.facts["from"])
        network = open_model(stage, place)
        plan = trained.adapt_to_start(plan, network)
        if (found := trained.tokenizer_beside(network, place)) is not None:
            tokenizers[stage] = found
    size = plan.image_size or trained.picture_size(models, pack_at(given.get("clip")))
    cache = out.parent / "cache"
    before = plan.facts.get("streamed", False) if resume and has_begun(out) else None  # a resumed run reads as it did
    data = open_pictures(asked.sources, size, cache, streams=trained.streams, by_itself=before)
    if "clip" not in tokenizers:
        kind = plan.facts.get("tokenizer") or tokenizer or "wordpiece"
        tokenizers["clip"] = make_tokenizer(kind, data)
    materials = trained.precompute(Materials(data, tokenizers, models, draw=draw), cache)
    try:
        network = run_stage(plan, materials, out, resume=resume, start=network)
    finally:
        if isinstance(data, Streamed):
            data.close()
    seconds = round(time.monotonic() - began, 1)
    skipped = skipped_anywhere(data)
    if not is_first():
        return {}
    figures = {**run_figures(plan, network, out, seconds), "skipped": skipped}
    return {"model": str(out / MODEL_FOLDER), "stages": {stage: figures}, "seconds": seconds}


def skipped_anywhere(data: Captioned | Streamed) -> int:
    """How many pictures could not be decoded; of streamed ones in any of the processes, which must all call this."""
    if not isinstance(data, Streamed):
        return data.skipped
    return len({picture for broken in gathered(data.broken) for picture in broken})


def _open_given(given: Mapping[str, Path]) -> tuple[dict[str, PretrainedModel], dict[str, Tokenizer]]:
    """The models of the given members by name, and the tokenizers of those that have one beside them."""
    folders = {name: member_folder(place, name) for name, place in given.items()}
    models = {name: MEMBERS[name].model.from_pretrained(folder) for name, folder in folders.items()}
    read = {name: folder for name, folder in folders.items() if MEMBERS[name].tokenizer_misfits is not None}
    return models, {name: Tokenizer.from_pretrained(folder) for name, folder in read.items()}


def _plan(
    asked: StagePlan, out: Path, start: Path | None, tokenizer: str | None, threads: int, resume: bool
) -> StagePlan:
    """The plan that the run in `out` began with, or the recipe's plan with what the flags add to it."""
    began_from = None if start is None else str(start.resolve())
    if resume and has_begun(out):
        plan = read_plan(out)
        plan = replace(plan, loop=plan.loop.moved_to(asked.loop))
        _check_same("--from", began_from, plan.facts.get("from"), out)
        _check_same("--tokenizer", tokenizer, plan.facts.get("tokenizer", tokenizer), out)
        _check_same("--threads", threads or None, plan.loop.threads, out)
        return plan
    facts = {"tokenizer": tokenizer or "wordpiece", **({"from": began_from} if began_from else {})}
    return replace(asked, loop=asked.loop.with_threads(threads), facts=facts)


def _check_same(flag: str, now: object, before: object, out: Path) -> None:
    """UsageError for a flag that is given (not None) with another value than the run in `out` began with."""
    if now not in (None, before):
        raise UsageError(f"{flag} is {now} but was {before} when the run in {out} began: leave it out to go on")
