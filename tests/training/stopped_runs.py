"""A run that stops before its end and goes on later."""

import shutil
from dataclasses import replace
from pathlib import Path

from codebrush.models.pretrained import PretrainedModel
from codebrush.training.run_stage import run_stage
from codebrush.training.stage import Materials, StagePlan


def run_part(
    plan: StagePlan, materials: Materials, folder: Path, stop_after: int, start: PretrainedModel | None = None
) -> None:
    """The first steps of a plan, left as a run is that was killed then."""
    run_stage(replace(plan, loop=replace(plan.loop, stop_after=stop_after)), materials, folder, start=start)
    shutil.rmtree(folder / "model")
    stored = (folder / "stage.json").read_text().replace(f'"stop_after": {stop_after}', '"stop_after": 0')
    (folder / "stage.json").write_text(stored)


def run_in_two(plan: StagePlan, materials: Materials, folder: Path, stop_after: int) -> PretrainedModel:
    """The network of a plan that was stopped once."""
    run_part(plan, materials, folder, stop_after)
    return run_stage(plan, materials, folder, resume=True)
