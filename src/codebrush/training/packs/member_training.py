"""Trains the members of a pack one after the other, by recipes or within a budget, and writes the pack of them.

Within a budget each stage gets its share of the time that is left, and the one that is served first what it needs. A
stage with too little time is left out, or its member is that of the pack that training begins from.
"""

import dataclasses
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from codebrush.data.sources.unread import amount
from codebrush.errors import TrainingError, UsageError
from codebrush.files import write_json
from codebrush.models.pretrained import PretrainedModel
from codebrush.pack.pack import Pack
from codebrush.pack.writing import PackMembers, write_pack
from codebrush.training.engine.loop import Loop, LoopConfig, is_first
from codebrush.training.packs.budget import (
    FINISH_SHARE,
    MOST_FOR_FIRST,
    Claim,
    seconds_left,
    spell_seconds,
    stage_seconds,
)
from codebrush.training.packs.clock import Clock
from codebrush.training.packs.plan import TIMED_STEPS, TIMING_SHARE, WARM_STEPS, choose
from codebrush.training.packs.request import PackRequest
from codebrush.training.packs.start import Start
from codebrush.training.registry import ENTRIES, STAGES
from codebrush.training.run_folder import has_begun, is_done, read_plan
from codebrush.training.run_stage import make_network, make_task, run_figures, run_stage
from codebrush.training.stage import Materials, Size, Stage, StagePlan
from codebrush.version import __version__

LEFT_OUT_FILE = "left-out.json"
SMALL_SIDE = 64  # pixels, of pictures that a short budget may be enough for
PREVIEWED = 600.0  # seconds of a stage within a budget, from which on it draws previews on the way
Say = Callable[[str], None]


class MemberTraining:
    """The stages of a pack, and what they have made so far.

    `decoding` are the seconds that decoding the pictures took.
    """

    def __init__(
        self, request: PackRequest, materials: Materials, start: Start, work: Path, clock: Clock, say: Say,
        decoding: float = 0.0,
    ):  # fmt: skip
        self.request, self.materials, self.start, self.work = request, materials, start, work
        self.clock, self.say, self.decoding = clock, say, decoding
        self.cache = work / "cache"
        self.timed: dict[tuple[str, str], float] = {}  # seconds of a step, by stage and size
        path = work / LEFT_OUT_FILE
        self.left_out: dict[str, str] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        self.needs: dict[str, float] = {}  # seconds of the stages that are served first

    @property
    def stages(self) -> list[Stage]:
        """Those that recipes ask for, that every pack needs, and, within a budget, that have a share of it."""
        plans, budgeted = self.request.plans, self.request.budget is not None
        return [
            stage
            for name, stage in STAGES.items()
            if name in plans or not stage.optional or (budgeted and stage.share > 0)
        ]

    def open(self) -> None:
        """Within a budget: time the stages that are served first, and say what the plan is.

        Raises:
            UsageError: if the budget is too short for them.
        """
        if self.request.budget is None:
            return
        for stage in self.stages:
            if stage.served_first and not is_done(self.work / stage.name):
                self.needs[stage.name] = self._needed(stage)
        left = self._left()
        self.say(f"budget {spell_seconds(self.request.budget)}, {left:.0f} s of it for training:")
        for number, stage in enumerate(self.stages):
            seconds = stage_seconds(left, self._claims(self.stages[number:]))
            left -= seconds
            self.say(f"  {stage.name:<12}about {seconds:.0f} s, {self.start.origin(stage)}")
        self.clock.charge()

    def run(self, stage: Stage) -> dict[str, Any] | None:
        """Train a stage, or read its network if it is done; returns its figures, or None if it is left out."""
        folder, request = self.work / stage.name, self.request
        done, begun = is_done(folder), has_begun(folder)
        until = None
        if not begun and (stage.name in self.left_out or not self._affordable(stage)):
            self._leave_out(stage)
            return None
        start = None if done else self._begin_from(stage)
        if not done:
            self.materials = stage.precompute(self.materials, self.cache)
        if begun:
            plan = read_plan(folder)
        elif stage.name in request.plans:
            plan = request.plans[stage.name]
            plan = replace(plan, loop=plan.loop.with_threads(request.threads))
        elif (found := self._plan_within_budget(stage, start)) is None:
            self._leave_out(stage)
            return None
        else:
            plan = found
        if request.budget is not None:
            gone = self.clock.seconds.get(stage.name, 0.0) + self.clock.running()
            until = time.monotonic() + plan.facts.get("budget_seconds", request.budget) - gone
        steps = f"{amount('step', plan.loop.steps)} of {amount('picture', plan.loop.batch_size)}"
        self.say(f"{stage.name}: {steps}, {self.start.origin(stage)}")
        saved = lambda: self.clock.charge(stage.name)  # noqa: E731
        network = run_stage(plan, self.materials, folder, resume=True, start=start, saved=saved, until=until)
        self.clock.charge("between" if done else stage.name)
        self.materials.models[stage.name] = network
        seconds = None if request.budget is None else FINISH_SHARE * request.budget
        self.materials = stage.finish(network, plan, self.materials, seconds)
        self.clock.charge()
        figures = run_figures(plan, network, folder, self.clock.seconds.get(stage.name, 0.0))
        seen = figures["steps"] * plan.loop.batch_size
        return {**figures, "pictures": seen, "from": self.start.name if stage.name in self.start.fits else "nothing"}

    def _begin_from(self, stage: Stage) -> PretrainedModel | None:
        found = self.start.model(stage)
        if found is None:
            return None
        network, tokenizer = found
        if tokenizer is not None:
            self.materials.tokenizers[stage.name] = tokenizer
        return network

    def _leave_out(self, stage: Stage) -> None:
        """Go on without training a stage: with the start's member, without one, or not at all.

        Raises:
            UsageError: if the pack needs the member and there is none.
        """
        reason = self.left_out[stage.name]
        if self.start.keeps(stage):
            self.say(f"{stage.name}: {self.start.name}'s is taken as it is: {reason}")
            network = self._begin_from(stage)
            assert network is not None
            self.materials.models[stage.name] = network
        elif stage.member.required:
            raise UsageError(f"the budget is too short for the {stage.member.label}: {reason}")
        else:
            self.say(f"{stage.name}: left out: {reason}")
        if is_first():
            write_json(self.work / LEFT_OUT_FILE, self.left_out)
        self.clock.charge()

    # The budget.

    def _left(self) -> float:
        assert self.request.budget is not None
        return seconds_left(self.request.budget, self.clock.spent())

    def _claims(self, stages: Sequence[Stage]) -> list[Claim]:
        return [Claim(stage.share, self.needs.get(stage.name, 0.0)) for stage in stages]

    def _needed(self, stage: Stage) -> float:
        """The seconds that a stage needs that is served first.

        Raises:
            UsageError: if the budget is too short for it.
        """
        assert self.request.budget is not None
        begins = self._begin_from(stage)
        size = self._candidates(stage, begins)[0]
        earlier = dict(self.materials.models)
        for name in ENTRIES[stage.name].reads:
            earlier.setdefault(name, self._stand_in(STAGES[name]))
        kept, self.materials.models = self.materials.models, earlier
        try:
            per_picture = self._step(stage, size, begins, self._left()) / size.batch_size
        finally:
            self.materials.models = kept
        least = per_picture * size.least(begins is not None)
        if not has_begun(self.work / stage.name) and least > MOST_FOR_FIRST * self._left():
            is_large = not self.request.plans and self.materials.image_size > SMALL_SIDE
            smaller = f", or smaller pictures with --image-size {SMALL_SIDE}" if is_large else ""
            wanted = self.request.budget + least / MOST_FOR_FIRST - self._left()
            raise UsageError(
                f"--budget {spell_seconds(self.request.budget)} is too short: its {stage.member.label} alone, "
                f"{self.start.origin(stage)}, needs {spell_seconds(least)} on this machine: give "
                f"--budget {spell_seconds(1.2 * wanted)} or more{smaller}"
            )
        return per_picture * size.examples * (0.3 if begins is not None else 1.0)

    def _stand_in(self, stage: Stage) -> PretrainedModel:
        """A network like the one that an earlier stage will make, to time another with."""
        begins = self._begin_from(stage)
        size = self._candidates(stage, begins)[0]
        return begins or stage.make(self._plan_of(stage, size, 1, None), self.materials)

    def _affordable(self, stage: Stage) -> bool:
        """Whether there is time for a stage beside what decoding its pictures takes; if not, it is noted why."""
        if self.request.budget is None or stage.name in self.request.plans:
            return True
        begins = self.start.model(stage)
        plan = self._plan_of(stage, self._candidates(stage, begins)[0], 1, None if begins is None else begins[0])
        seconds = self._seconds(stage)
        if plan.image_size in (0, self.materials.image_size) or self.decoding < seconds / 2:
            return True
        self.left_out[stage.name] = f"{seconds:.0f} s are too few to decode the pictures at {plan.image_size} pixels"
        return False

    def _seconds(self, stage: Stage) -> float:
        remaining = self.stages[[each.name for each in self.stages].index(stage.name) :]
        return stage_seconds(self._left(), self._claims(remaining))

    def _candidates(self, stage: Stage, start: Any) -> list[Size]:
        """The sizes to choose from: of a stage that begins from a network there is one, that network's."""
        rows = max(2, len(self.materials.data))
        sizes = stage.sizes(self.materials.image_size)
        if start is not None:  # which needs many small changes more than precise ones
            sizes = [replace(sizes[0], batch_size=max(1, sizes[0].batch_size // 2))]
        return [replace(size, batch_size=min(size.batch_size, rows)) for size in sizes]

    def _step(self, stage: Stage, size: Size, start: PretrainedModel | None, seconds: float) -> float:
        """Seconds of a step, timed once."""
        if (stage.name, size.name) not in self.timed:
            plan = self._plan_of(stage, size, WARM_STEPS + TIMED_STEPS, start)
            step = measure_step(plan, self.materials, self.cache, start, TIMING_SHARE * seconds)
            self.timed[stage.name, size.name] = step
        return self.timed[stage.name, size.name]

    def _plan_within_budget(self, stage: Stage, start: PretrainedModel | None) -> StagePlan | None:
        """A plan that fits the stage's share of the budget; None, and it is noted why, if that is too small."""
        if self.request.budget is None:
            raise TrainingError(f"there is no recipe for the stage {stage.name}: add one, or give a --budget")
        seconds = self._seconds(stage)
        candidates = self._candidates(stage, start)
        size, steps, per_step = choose(candidates, seconds, lambda size: self._step(stage, size, start, seconds))
        seen, least = steps * size.batch_size, size.least(start is not None)
        if seen < least:
            self.left_out[stage.name] = (
                f"in {seconds:.0f} s it would see {amount('picture', seen)}, and {least} are the least"
            )
            return None
        plan = self._plan_of(stage, size, steps, start, previews=seconds >= PREVIEWED)
        return replace(plan, facts={"size": size.name, "seconds_per_step": per_step, "budget_seconds": seconds})

    def _plan_of(
        self, stage: Stage, size: Size, steps: int, start: PretrainedModel | None, previews: bool = False
    ) -> StagePlan:
        request = self.request
        recipe = stage.adapt(size.recipe, self.materials, start, request.tokenizer == "wordpiece")
        if start is not None:
            recipe = replace(recipe, learning_rate=stage.start_rate * recipe.learning_rate)
        every = max(1, steps // 20)
        loop = LoopConfig(
            steps=steps,
            batch_size=size.batch_size,
            seed=request.seed,
            warmup=max(1, min(100, steps // 10)),
            ema_decay=0.999 if steps > 5000 else 0.99 if steps > 300 else 0.9,
            log_every=min(50, every),
            checkpoint_every=min(500, every),
            preview_every=max(1, steps // 5) if previews else 0,  # each takes as long as several steps
        )
        return StagePlan(stage.name, recipe, loop.with_threads(request.threads))

    def write(self, source: Any, figures: dict[str, Any], measured: dict[str, Any]) -> Pack:
        """Write the pack of all that was trained, or taken over from the start."""
        request, materials = self.request, self.materials
        for stage in STAGES.values():
            if stage.name not in materials.models and self.start.keeps(stage):
                materials.models[stage.name] = self._begin_from(stage)  # pyright: ignore[reportArgumentType]
        began, licence = self.start.facts(), request.licence
        provenance = {
            "source": Path(request.source.source).name,
            "rows": dataclasses.asdict(request.source) | {"source": Path(request.source.source).name},
            "data_sha256": source.fingerprint,
            "seconds": round(self.clock.spent(), 1),
            "torch": torch.__version__,
            "stages": figures,
            "plans": {stage: dataclasses.asdict(read_plan(self.work / stage)) for stage in figures},
            "measured": measured,
            "left_out": self.left_out,
        }
        if began is not None:
            provenance["start"] = {**began, "kept": sorted(self.start.kept)}
            licence = f"{licence}; begun from {began['pack']}: {began['licence']}"
        return write_pack(
            request.out,
            PackMembers(materials.models, materials.tokenizers),
            name=request.name or request.out.name,
            extras=materials.extras,
            version=__version__,
            licence=licence,
            provenance=provenance,
        )


def measure_step(
    plan: StagePlan, materials: Materials, cache: Path, start: PretrainedModel | None = None, most: float = 60.0
) -> float:
    """Seconds of one step of `plan`, timed for about `most` seconds on a throw-away network.

    Only decoded pictures are left, in `cache`.
    """
    prepared = STAGES[plan.stage].prepare(plan, materials, cache)
    network = make_network(plan, prepared, None if start is None else type(start).from_config(start.config))
    with tempfile.TemporaryDirectory() as folder:
        loop = Loop(make_task(plan, prepared, network), plan.loop, Path(folder))
        return loop.time_steps(WARM_STEPS, TIMED_STEPS, most)
