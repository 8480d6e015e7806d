"""The folder of a stage's run: stage.json with its plan, the checkpoint, metrics.jsonl, previews, and finally model/.

The plan is written when the stage begins, and a resumed run keeps to it. A run with a model/ is done.
"""

import dataclasses
import json
from pathlib import Path
from typing import Literal

from codebrush.errors import TrainingError
from codebrush.files import new_folder, write_json
from codebrush.models.pretrained import PretrainedModel
from codebrush.text.tokenizer import Tokenizer
from codebrush.training.engine.reporting import METRICS
from codebrush.training.recipes import plan_from_dict
from codebrush.training.stage import StagePlan

STAGE_FILE = "stage.json"
MODEL_FOLDER = "model"


def is_done(folder: Path) -> bool:
    """Whether a stage has saved its model in `folder`."""
    return (folder / MODEL_FOLDER).is_dir()


def has_begun(folder: Path) -> bool:
    """Whether a stage has written its plan in `folder`."""
    return (folder / STAGE_FILE).is_file()


def write_plan(plan: StagePlan, folder: Path) -> None:
    """Store the plan as stage.json."""
    write_json(folder / STAGE_FILE, dataclasses.asdict(plan))


def read_plan(folder: Path) -> StagePlan:
    """The plan that the stage in `folder` began with. Raises TrainingError if it cannot be read."""
    path = folder / STAGE_FILE
    try:
        return plan_from_dict(json.loads(path.read_text(encoding="utf-8")), str(path))
    except (OSError, json.JSONDecodeError) as error:
        raise TrainingError(f"{path} cannot be read ({error}): start the stage again in another folder") from error


def change_on_nan(folder: Path, on_nan: Literal["stop", "skip"]) -> None:
    """Let the run that has begun in `folder` treat an infinite or NaN loss like this from now on."""
    if (plan := read_plan(folder)).loop.on_nan != on_nan:
        write_plan(dataclasses.replace(plan, loop=plan.loop.with_on_nan(on_nan)), folder)


def save_model(network: PretrainedModel, tokenizer: Tokenizer | None, folder: Path) -> None:
    """Save the trained network, and the tokenizer it reads, as model/ in `folder`."""
    with new_folder(folder / MODEL_FOLDER) as part:
        network.save_pretrained(part)
        if tokenizer is not None:
            tokenizer.save(part)


def last_metrics(folder: Path) -> dict[str, float]:
    """The last line of a stage's metrics; empty if there are none."""
    path = folder / METRICS
    return json.loads(path.read_text(encoding="utf-8").splitlines()[-1]) if path.is_file() else {}
