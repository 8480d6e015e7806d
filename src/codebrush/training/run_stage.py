"""Runs one stage: from its plan and what earlier stages made to a folder with the trained model."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from codebrush.errors import TrainingError
from codebrush.files import held_alone
from codebrush.models.pretrained import PretrainedModel
from codebrush.text.tokenizer import Tokenizer
from codebrush.training.engine.fabric import launch, lost_processes_named
from codebrush.training.engine.loop import Loop
from codebrush.training.engine.rows import ShuffledRows
from codebrush.training.engine.task import Hooks, TrainingTask
from codebrush.training.forgetting import read_gate, remove_passed
from codebrush.training.guards import guarded, without_held_out
from codebrush.training.registry import STAGES
from codebrush.training.run_folder import (
    MODEL_FOLDER,
    change_on_nan,
    has_begun,
    is_done,
    last_metrics,
    read_plan,
    save_model,
    write_plan,
)
from codebrush.training.stage import Materials, StagePlan
from codebrush.training.streamed import Streamed

HOLDS_A_RUN = "{folder} already holds a training run: add --resume, or name another folder"


def make_network(plan: StagePlan, materials: Materials, start: PretrainedModel | None = None) -> PretrainedModel:
    """The network that a stage trains: `start`, grown where the recipe asks for more, or a fresh one.

    Torch's generator is seeded with the plan's seed in both cases, because what the task adds, like a discriminator, is
    drawn from it too.
    """
    torch.manual_seed(plan.loop.seed)
    stage = STAGES[plan.stage]
    return stage.make(plan, materials) if start is None else stage.grow(start, plan, materials)


def make_task(plan: StagePlan, materials: Materials, network: Any) -> TrainingTask:
    """What the loop trains for a plan."""
    return STAGES[plan.stage].task(network, plan, materials)


def run_stage(
    plan: StagePlan,
    materials: Materials,
    folder: Path,
    *,
    resume: bool = False,
    start: PretrainedModel | None = None,
    saved: Callable[[], None] | None = None,
    until: float | None = None,
) -> PretrainedModel:
    """Train to the plan's last step and return the averaged network, which is also saved in `folder`/model.

    With `resume`, a stage that began in `folder` continues with the plan and the pictures that it began with, on the
    devices and with the `on_nan` of `plan`. `saved` is called at each checkpoint; `until` is the time of
    `time.monotonic` after which no step begins. A tokenizer of the stage's own is added to `materials`. If the plan
    asks for several processes each of them runs this, and the first writes.

    Raises:
        TrainingError: if `folder` holds a stage and `resume` is not given, the pictures are not those it began with, a
            model of an earlier stage is missing, the plan describes no network, or another process has ended.
    """
    stage = STAGES[plan.stage]
    if begun := has_begun(folder):
        if not resume:
            raise TrainingError(HOLDS_A_RUN.format(folder=folder))
        stored = read_plan(folder)
        plan = replace(stored, loop=stored.loop.moved_to(plan.loop).with_on_nan(plan.loop.on_nan))
        _check_same_rows(plan, materials, folder)
        if is_done(folder):
            if stage.member.tokenizer_misfits:
                materials.tokenizers[stage.name] = Tokenizer.from_pretrained(folder / MODEL_FOLDER)
            return stage.member.model.from_pretrained(folder / MODEL_FOLDER)
    prepared = stage.prepare(plan, materials, folder.parent / "cache")
    _check_same_rows(plan, prepared, folder)
    try:
        network = make_network(plan, prepared, start)
        task = make_task(plan, prepared, network)
    except ValueError as error:
        raise TrainingError(f"the {plan.stage} cannot be built: {error}") from error
    fabric = launch(plan.loop)
    with lost_processes_named(), held_alone(folder) if fabric.is_global_zero else nullcontext():
        if fabric.is_global_zero and not begun and has_begun(folder):  # by another process, while this one prepared
            raise TrainingError(HOLDS_A_RUN.format(folder=folder))
        hooks = _weighted(stage.hooks(plan, prepared, folder), plan, prepared, task)
        if not isinstance(prepared.data, Streamed):  # of which no row can be read out of turn
            hooks = guarded(hooks, stage.guard(plan, prepared, task), plan.loop.guard_every, folder)
        if fabric.is_global_zero:  # only now: what cannot be carried out must not block a better plan
            _keep_plan(plan, prepared, folder, begun)
        fabric.barrier()
        trained = Loop(task, plan.loop, folder, fabric, saved, hooks).run(until=until)
        assert isinstance(trained, PretrainedModel)
        if fabric.is_global_zero:
            save_model(trained, prepared.tokenizers.get(stage.name), folder)
        fabric.barrier()
        if fabric.is_global_zero:
            remove_passed(folder)
    materials.tokenizers.update(prepared.tokenizers)
    return trained.cpu()


def run_figures(plan: StagePlan, network: PretrainedModel, folder: Path, seconds: float) -> dict[str, Any]:
    """What a finished run reports: its steps, parameters, seconds, last metrics, and its gate if it had one."""
    figures = {
        "steps": int(last_metrics(folder).get("step", plan.loop.last)),
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "seconds": round(seconds, 1),
        "metrics": last_metrics(folder),
    }
    gate = read_gate(folder)
    return figures if gate is None else {**figures, "steps": gate["step"], "gate": gate}


def _keep_plan(plan: StagePlan, prepared: Materials, folder: Path, begun: bool) -> None:
    """Write the plan of a run that begins; of one that goes on, what it may change of it."""
    if begun:
        change_on_nan(folder, plan.loop.on_nan)
        return
    streamed = {"streamed": True} if isinstance(prepared.data, Streamed) else {}
    write_plan(replace(plan, facts={**plan.facts, **streamed, **_fingerprints(prepared)}), folder)


def _weighted(hooks: Hooks, plan: StagePlan, materials: Materials, task: TrainingTask) -> Hooks:
    """`hooks` with the rows of each step by the weights of the pictures, if they have any, and without those held
    out."""
    if isinstance(materials.data, Streamed):
        if plan.loop.held_out:
            raise TrainingError("of a streamed source no pictures can be held out: set loop.held_out to 0")
        return materials.data.hooks(hooks, plan.loop)
    data, others = materials.data, (materials.replay, materials.gate, materials.decoys)
    if any(rows is not None and rows.weight is not None for rows in others):
        raise TrainingError("only the source of a stage has a weight: take it out of replay, gate and decoys")
    held_out, batch_size, seed = plan.loop.held_out, plan.loop.batch_size, plan.loop.seed
    if data.weights is None:
        return without_held_out(hooks, task, held_out, batch_size, seed, None)
    if hooks.rows is not None or task.examples != len(data):
        raise TrainingError(f"the {plan.stage} of this recipe chooses its rows itself: take out source.weight")
    if held_out:
        return without_held_out(hooks, task, held_out, batch_size, seed, data.weights)
    shuffled = ShuffledRows(len(data), batch_size, seed, weights=data.weights)
    return replace(hooks, rows=shuffled.of_step)


def _fingerprints(materials: Materials) -> dict[str, str]:
    sets = {name: getattr(materials, name) for name in ("data", "replay", "gate", "decoys")}
    return {f"{name}_sha256": rows.fingerprint for name, rows in sets.items() if rows is not None}


def _check_same_rows(plan: StagePlan, materials: Materials, folder: Path) -> None:
    """TrainingError for other rows than those of the plan's facts."""
    for name, now in _fingerprints(materials).items():
        if plan.facts.get(name, now) != now:
            raise TrainingError(f"{folder} began with other pictures or captions: name those, or another folder")
