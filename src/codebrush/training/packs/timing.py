"""Times on this machine what a budget is planned by: a step of a stage, and what it needs of every picture."""

import tempfile
import time
from dataclasses import replace
from pathlib import Path

from codebrush.models.pretrained import PretrainedModel
from codebrush.training.dataset import evenly
from codebrush.training.engine.loop import Loop
from codebrush.training.packs.plan import TIMED_STEPS, WARM_STEPS
from codebrush.training.registry import STAGES
from codebrush.training.run_stage import make_network, make_task
from codebrush.training.stage import Materials, Stage, StagePlan

PROBED = 16  # pictures that are encoded to see how long one takes
ENCODING_SHARE = 0.2  # of the seconds of a stage, for encoding its pictures


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


def affordable(stage: Stage, materials: Materials, seconds: float) -> int:
    """How many of the pictures a stage of so many seconds can encode before it is trained, at least PROBED."""
    total = len(materials.stored)
    if type(stage).precompute is Stage.precompute or total <= PROBED:
        return total
    few = replace(materials, data=materials.stored.part(evenly(total, PROBED)))
    with tempfile.TemporaryDirectory() as folder:
        began = time.monotonic()
        stage.precompute(few, Path(folder))
        each = (time.monotonic() - began) / PROBED
    return min(total, max(PROBED, int(ENCODING_SHARE * seconds / each)))
