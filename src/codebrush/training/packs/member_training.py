"""Trains the members of a pack one after the other, by recipes or within a budget.

Within a budget each stage gets its share of the time that is left, and the one that is served first what it needs. A
stage with too little time is left out, or its member is that of the pack that training begins from.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

from codebrush.data.sources.unread import amount
from codebrush.errors import TrainingError, UsageError
from codebrush.files import read_object, write_json
from codebrush.models.pretrained import PretrainedModel
from codebrush.pack.members import PAINTERS
from codebrush.training.dataset import evenly
from codebrush.training.engine.fabric import is_first
from codebrush.training.engine.non_finite import LossDiverged
from codebrush.training.packs.budget import (
    FINISH_SHARE,
    WRITING_SECONDS,
    Claim,
    seconds_left,
    spell_seconds,
    split,
    stage_seconds,
)
from codebrush.training.packs.clock import Clock
from codebrush.training.packs.places import SECOND_FILE
from codebrush.training.packs.plan import TIMED_STEPS, TIMING_SHARE, WARM_STEPS, Pace, choose, loop_of, too_short
from codebrush.training.packs.request import PackRequest
from codebrush.training.packs.start import Start
from codebrush.training.packs.timing import affordable, measure_step
from codebrush.training.packs.verdict import KNOWN
from codebrush.training.registry import ENTRIES, STAGES
from codebrush.training.run_folder import has_begun, is_done, read_plan
from codebrush.training.run_stage import run_figures, run_stage
from codebrush.training.stage import Materials, ModelSize, Stage, StagePlan

LEFT_OUT_FILE = "left-out.json"
SMALL_SIDE = 64  # pixels, of pictures that a short budget may be enough for
SEEN = 20.0  # dB of pictures through a VQGAN that has seen such: large steps make it worse before they make it better
SEEN_RATE = 0.2  # learning rate of that, as a share of a fresh one's
KNOWN_SHARE = 0.2  # of a budget, that must be enough for what such a VQGAN needs if it is to be trained
PREVIEWED = 600.0  # seconds of a stage within a budget, from which on it draws previews on the way
ENCODED = "encoded"  # fact of a plan: the pictures that it is trained on, evenly spaced among all
Say = Callable[[str], None]


class MemberTraining:
    """The stages of a pack, and what they have made so far. Decoding the pictures took `decoding` seconds."""

    def __init__(
        self, request: PackRequest, materials: Materials, start: Start, work: Path, clock: Clock, say: Say,
        decoding: float = 0.0,
    ):  # fmt: skip
        self.request, self.materials, self.start, self.work = request, materials, start, work
        self.clock, self.say, self.decoding = clock, say, decoding
        self.whole, self.cache = materials.stored, work / "cache"
        self.timed: dict[tuple[str, str], float] = {}  # seconds of a step, by stage and size
        self.left_out: dict[str, str] = read_object(work / LEFT_OUT_FILE)
        self.favoured: dict[str, bool] = read_object(work / SECOND_FILE)  # of second painters, as it was first planned
        self.paces: dict[str, Pace] = {}  # of the stages that were timed
        self.needs: dict[str, float] = {}  # seconds of the stages that are served first
        second = [name for name, stage in STAGES.items() if stage.share and start.is_second(stage, request.plans)]
        self.unfavoured = [name for name in second if not (has_begun(work / name) or self.favoured.get(name))]

    @property
    def stages(self) -> list[Stage]:
        """Those that recipes ask for, that every pack needs or have a share of a budget; no unfavoured painters."""
        plans, budgeted = self.request.plans, self.request.budget is not None
        return [
            stage
            for name, stage in STAGES.items()
            if name in plans or ((not stage.optional or (budgeted and stage.share)) and name not in self.unfavoured)
        ]

    def open(self) -> None:
        """Within a budget: time a step of each stage, leave out those without enough time, and say what the plan is.

        Raises:
            UsageError: if the budget is too short for a stage that no pack can do without, or for any.
        """
        if self.request.budget is None:
            return
        coming = self._coming()
        may_come = [STAGES[name] for name in self.unfavoured if not (name in self.favoured or self._is_past(name))]
        kept, self.materials = self.materials, self._stand_ins([*coming, *may_come])
        try:
            self._leave_out_some(coming)
            for stage in may_come:
                self._favour(stage)
        finally:
            self.materials = kept
        self.favoured |= {stage.name: stage.name not in self.unfavoured for stage in may_come}
        if is_first():
            write_json(self.work / SECOND_FILE, self.favoured)
        coming = self._coming()
        timed = [stage for stage in coming if stage.name in self.paces]
        if timed and len(coming) == len(self.stages) and all(stage.name in self.left_out for stage in coming):
            self._refuse(min(timed, key=lambda stage: self.paces[stage.name].needs), 0.0)  # nothing would be learned
        self.left_out = {name: self.left_out[name] for name in STAGES if name in self.left_out}  # in their order
        self.say(f"budget {spell_seconds(self.request.budget)}, {self._left():.0f} s of it for training:")
        shares = self._shares(coming)
        for stage in coming:
            told = f"about {shares[stage.name]:.0f} s, {self.start.origin(stage)}"
            self.say(f"  {stage.name:<12}{self._instead(stage) if stage.name in self.left_out else told}")
        self.clock.charge()

    def run(self, stage: Stage) -> dict[str, Any] | None:
        """Train a stage, or read its network if it is done; returns its figures, or None if it is left out."""
        try:
            return self._run(stage)
        finally:
            self.materials = replace(self.materials, data=self.whole)

    def _run(self, stage: Stage) -> dict[str, Any] | None:
        folder, request = self.work / stage.name, self.request
        done, begun = is_done(folder), has_begun(folder)
        until = None
        if not begun and stage.name in self.left_out and not self._reconsidered(stage):
            self._go_without(stage)
            return None
        start = None if done else self.begin_from(stage)
        if not done:
            self._precompute(stage, read_plan(folder) if begun else None)
        if begun:
            plan = read_plan(folder)
            plan = replace(plan, loop=plan.loop.with_on_nan(request.on_nan))
            if stage.name in request.plans:  # perhaps on other machines now
                plan = replace(plan, loop=plan.loop.moved_to(request.plans[stage.name].loop))
        elif stage.name in request.plans:
            plan = request.plans[stage.name]
            plan = replace(plan, loop=plan.loop.with_threads(request.threads).with_on_nan(request.on_nan))
        elif (found := self._plan_within_budget(stage, start)) is None:
            self.say(f"{stage.name}: {self._instead(stage)}")
            self._go_without(stage)
            return None
        else:
            plan = found
        if request.budget is not None:
            gone = self.clock.seconds.get(stage.name, 0.0) + self.clock.running()
            until = time.monotonic() + plan.facts.get("budget_seconds", request.budget) - gone
        steps = f"{amount('step', plan.loop.steps)} of {amount('picture', plan.loop.batch_size)}"
        self.say(f"{stage.name}: {steps}, {self.start.origin(stage)}")
        saved = lambda: self.clock.charge(stage.name)  # noqa: E731
        try:
            network = run_stage(plan, self.materials, folder, resume=True, start=start, saved=saved, until=until)
        except LossDiverged as error:
            if stage.name in request.plans:
                raise
            raise TrainingError(
                f"the loss of the {stage.member.label} became infinite or NaN at step {error.at}: delete "
                f"{self.work} and train again with another --seed"
            ) from error
        self.clock.charge("between" if done else stage.name)
        self.materials.models[stage.name] = network
        seconds = None if request.budget is None else FINISH_SHARE * request.budget
        self.materials = stage.finish(network, plan, replace(self.materials, data=self.whole), seconds)
        self.clock.charge()
        figures = run_figures(plan, network, folder, self.clock.seconds.get(stage.name, 0.0))
        seen = figures["steps"] * plan.loop.batch_size
        return {**figures, "pictures": seen, "from": self.start.name if stage.name in self.start.fits else "nothing"}

    def _precompute(self, stage: Stage, plan: StagePlan | None) -> None:
        """Compute what the stage needs of earlier models, within a budget for as many pictures as there is time for:
        those of the `plan` of a stage that has begun."""
        count = len(self.whole)
        if plan is not None:
            count = plan.facts.get(ENCODED, count)
        elif self.request.budget is not None and stage.name not in self.request.plans:
            count = affordable(stage, self.materials, self._seconds(stage))
        if count < len(self.whole):
            self.say(f"{stage.name}: {count:,} of {len(self.whole):,} pictures: to encode all would take too long")
            self.materials = replace(self.materials, data=self.whole.part(evenly(len(self.whole), count)))
        self.materials = stage.precompute(self.materials, self.cache)

    def begin_from(self, stage: Stage) -> PretrainedModel | None:
        """The network that a stage begins from, with its tokenizer among the materials; None for a fresh one."""
        found = self.start.model(stage)
        if found is None:
            return None
        network, tokenizer = found
        if tokenizer is not None:
            self.materials.tokenizers[stage.name] = tokenizer
        return network

    def _reconsidered(self, stage: Stage) -> bool:
        """Whether a stage that was to be left out is trained, because the earlier ones have saved enough time."""
        reason = self.left_out.pop(stage.name)
        if stage.name in self.paces and self.paces[stage.name].lack(self._seconds(stage)) <= 1:
            self.start.kept.discard(stage.name)
            return True
        self.left_out[stage.name] = reason
        return False

    def _instead(self, stage: Stage) -> str:
        """What becomes of a stage that is left out, and why, in words.

        Raises:
            UsageError: if the pack needs the member and there is none.
        """
        reason = self.left_out[stage.name]
        if self.start.keeps(stage):
            return f"{self.start.whose(stage)} is taken as it is: {reason}"
        if stage.member.required:
            raise UsageError(f"the budget is too short for the {stage.member.label}: {reason}")
        return f"left out: {reason}"

    def _go_without(self, stage: Stage) -> None:
        """Go on without training a stage: with the start's member, or with none."""
        if self.start.keeps(stage):
            network = self.begin_from(stage)
            assert network is not None
            self.materials.models[stage.name] = network
        if is_first():
            write_json(self.work / LEFT_OUT_FILE, self.left_out)
        self.clock.charge()

    def _left(self) -> float:
        assert self.request.budget is not None
        return seconds_left(self.request.budget, self.clock.spent())

    def seconds_for_sheets(self) -> float:
        """What is left of the budget, if there is one, for sheets of pictures."""
        budget = self.request.budget
        return math.inf if budget is None else max(0.0, budget - self.clock.spent() - WRITING_SECONDS)

    def _claims(self, stages: Sequence[Stage]) -> list[Claim]:
        return [Claim(stage.share, self.needs.get(stage.name, 0.0), stage.name in self.left_out) for stage in stages]

    def _shares(self, stages: Sequence[Stage]) -> dict[str, float]:
        """The seconds of each stage, of those that are left."""
        seconds = split(self._left(), self._claims(stages))
        return dict(zip((stage.name for stage in stages), seconds, strict=True))

    def _stand_ins(self, coming: Sequence[Stage]) -> Materials:
        """The materials with networks like those that the earlier stages will make, to time the `coming` ones with."""
        materials = replace(self.materials, models=dict(self.materials.models))
        for name in {name: None for stage in coming for name in ENTRIES[stage.name].reads}:
            if name not in materials.models:
                stage = STAGES[name]
                begins = self.begin_from(stage)
                plan = self._plan_of(stage, self._candidates(stage, begins)[0], 1, begins)
                materials.models[name] = begins or stage.make(plan, materials)
        return materials

    def _leave_out_some(self, coming: Sequence[Stage]) -> None:
        """Find out which stages see enough pictures, and note of the others why they are left out, first of those that
        a pack can do without. The time of those that are left out goes to the rest.

        Raises:
            UsageError: if the budget is too short for a stage that cannot be left out.
        """
        for stage in sorted(coming, key=lambda each: not each.served_first):
            if stage.name in self.request.plans or stage.name in self.left_out or has_begun(self.work / stage.name):
                continue
            self._time(stage)
            if self.start.reconstructs(stage) >= KNOWN:
                known = f"it reconstructs these pictures with {self.start.reconstructs(stage):.1f} dB already"
                if self.needs.pop(stage.name) > KNOWN_SHARE * self._left():
                    self.left_out[stage.name] = known
                    del self.paces[stage.name]  # so that it is not reconsidered
            elif stage.served_first and self.paces[stage.name].lack(self._left()) > 1:
                self._refuse(stage, self._left())
        while True:
            shares = self._shares(coming)
            timed = [stage for stage in coming if stage.name in self.paces and stage.name not in self.left_out]
            lacks = {stage: self.paces[stage.name].lack(shares[stage.name]) for stage in timed}
            short = [stage for stage in timed if lacks[stage] > 1]
            if not short:
                return
            served = next((stage for stage in short if stage.served_first), None)
            may_go = [
                stage
                for stage in (short if served is None else timed)
                if not stage.served_first and (stage.name in self.start.fits or not stage.member.required)
            ]
            if not may_go:
                self._refuse(served or short[0], shares[(served or short[0]).name])
            worst = max(may_go, key=lambda stage: (stage.optional, lacks[stage]))
            if worst in short and self._spare_clip_for(worst, coming):
                continue
            if worst in short:
                self._note_short(worst, shares[worst.name], self.paces[worst.name].seen(shares[worst.name]))
            else:
                assert served is not None
                self.left_out[worst.name] = f"its {shares[worst.name]:.0f} s are needed for the {served.member.label}"

    def _spare_clip_for(self, painter: Stage, coming: Sequence[Stage]) -> bool:
        """Leave the start's CLIP as it is, if then a painter of the start, and what is served first, have enough."""
        clip = STAGES["clip"]
        settled = clip not in coming or clip.name in self.left_out or clip.name not in self.paces
        if settled or not self.start.paints_with_its_clip(painter):
            return False
        self.left_out[clip.name] = f"the {painter.member.label} that reads it needs its time"
        shares = self._shares(coming)
        first = [stage for stage in coming if stage is painter or (stage.served_first and stage.name in self.needs)]
        is_enough = all(self.paces[stage.name].lack(shares[stage.name]) <= 1 for stage in first)
        (self.paces if is_enough else self.left_out).pop(clip.name)  # so that it is not reconsidered
        return is_enough

    def _coming(self) -> list[Stage]:
        return [stage for stage in self.stages if not is_done(self.work / stage.name)]

    def _is_past(self, name: str) -> bool:
        """Whether a later stage than this has begun."""
        return any(has_begun(self.work / later) for later in list(STAGES)[list(STAGES).index(name) + 1 :])

    def _favour(self, stage: Stage) -> None:
        """Add a second painter to the plan if there is enough time for it beside all others, and for both painters what
        fresh ones need: half of the time for each makes two poor ones, also where one begins from a trained one."""
        self.unfavoured.remove(stage.name)
        self._time(stage)
        coming = self._coming()
        timed = [(name, seconds) for name, seconds in self._shares(coming).items() if name in self.paces]
        lacks = [self.paces[name].lack(seconds, name in PAINTERS.values()) for name, seconds in timed]
        if stage.name in self.left_out or max(lacks, default=0) > 1:
            self.unfavoured.append(stage.name)
            self.left_out.pop(stage.name, None)
            self.paces.pop(stage.name, None)

    def _time(self, stage: Stage) -> None:
        """Time a step of the smallest size of a stage, unless there is too little time even for its pictures."""
        begins = self.begin_from(stage)
        size = self._candidates(stage, begins)[0]
        if not self.timed:
            self.say("a few steps of each stage are timed on this machine, to plan by")
        image_size, seconds = self._plan_of(stage, size, 1, begins).image_size, self._seconds(stage)
        if image_size not in (0, self.materials.image_size) and self.decoding > seconds / 2:
            self.left_out[stage.name] = f"{seconds:.0f} s are too few to decode the pictures at {image_size} pixels"
            return
        kept, self.materials = self.materials, stage.placeholders(self.materials)
        step = self._step(stage, size, begins, seconds)
        self.materials = kept
        self.paces[stage.name] = Pace(step, size.batch_size, size.least(begins is not None), size.least(False))
        if stage.served_first:
            self.needs[stage.name] = step / size.batch_size * size.examples * (0.3 if begins is not None else 1.0)

    def _refuse(self, stage: Stage, seconds: float) -> NoReturn:
        """Raise UsageError, with a budget that is enough, for a stage that sees too few pictures in its `seconds`."""
        assert self.request.budget is not None
        is_large = not self.request.plans and self.materials.image_size > SMALL_SIDE
        what = f"{stage.member.label}, {self.start.origin(stage)},"
        smaller = f", or smaller pictures with --image-size {SMALL_SIDE}" if is_large else ""
        raise UsageError(too_short(self.request.budget, self._left(), self.paces[stage.name], seconds, what) + smaller)

    def _note_short(self, stage: Stage, seconds: float, seen: int) -> None:
        least = self.paces[stage.name].least
        self.left_out[stage.name] = (
            f"in {seconds:.0f} s it would see {amount('picture', seen)}, and {least} are the least"
        )

    def _seconds(self, stage: Stage) -> float:
        remaining = self.stages[[each.name for each in self.stages].index(stage.name) :]
        return stage_seconds(self._left(), self._claims(remaining))

    def _candidates(self, stage: Stage, start: Any) -> list[ModelSize]:
        """The sizes to choose from: of a stage that begins from a network there is one, that network's."""
        most = max(2, len(self.materials.stored) // 2)
        sizes = stage.sizes(self.materials.image_size)
        if start is not None:  # which needs many small changes more than precise ones
            sizes = [replace(sizes[0], batch_size=max(1, sizes[0].batch_size // 2))]
        return [replace(size, batch_size=min(size.batch_size, most)) for size in sizes]

    def _step(self, stage: Stage, size: ModelSize, start: PretrainedModel | None, seconds: float) -> float:
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
        if steps * size.batch_size < size.least(start is not None):
            self._note_short(stage, seconds, steps * size.batch_size)
            return None
        plan = self._plan_of(stage, size, steps, start, previews=seconds >= PREVIEWED)
        facts = {"size": size.name, "seconds_per_step": per_step, "budget_seconds": seconds}
        return replace(plan, facts={**facts, ENCODED: len(self.materials.stored)})

    def _plan_of(
        self, stage: Stage, size: ModelSize, steps: int, start: PretrainedModel | None, previews: bool = False
    ) -> StagePlan:
        request = self.request
        recipe = stage.adapt(size.recipe, self.materials, start, request.tokenizer == "wordpiece")
        if start is not None:
            rate = SEEN_RATE if self.start.reconstructs(stage) >= SEEN else stage.start_rate
            recipe = replace(recipe, learning_rate=rate * recipe.learning_rate)
        loop = loop_of(request, steps, size.batch_size, stage.held_out(len(self.materials.data)), previews)
        return StagePlan(stage.name, recipe, loop)
