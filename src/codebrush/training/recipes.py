"""Reads recipes: YAML files, or the stored plan of a stage, to checked settings. An error names every wrong field."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model

from codebrush.errors import TrainingError
from codebrush.training.dataset import SourceConfig
from codebrush.training.engine.loop_config import LoopConfig
from codebrush.training.fine_tuning import replayed_rows
from codebrush.training.forgetting import GateConfig
from codebrush.training.registry import STAGES
from codebrush.training.stage import Stage, StagePlan


class _Checked(BaseModel):
    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True)
    loop: LoopConfig
    facts: dict[str, Any] = Field(default_factory=dict)
    source: SourceConfig | None = None
    mix: tuple[SourceConfig, ...] = ()


@cache
def _fields(stage: Stage) -> type[_Checked]:
    """What a recipe of a stage may hold."""
    fields: dict[str, Any] = {
        "stage": (Literal[stage.name], ...),
        "recipe": (stage.recipe, stage.recipe()),
        "replay": (SourceConfig | None if stage.replays else None, None),
        "gate": (GateConfig | None if stage.replays else None, None),
        "decoys": (SourceConfig | None if stage.replays else None, None),
    }
    return create_model(f"{stage.name} recipe", __base__=_Checked, **fields)


@dataclass(frozen=True)
class StageRecipe:
    """One recipe file: the rows to train on, of one source or of a mix of several, and the plan."""

    sources: tuple[SourceConfig, ...]
    plan: StagePlan


def _check(values: Any, name: str) -> Any:
    stage = values.get("stage") if isinstance(values, dict) else None
    if not isinstance(stage, str) or stage not in STAGES:
        raise TrainingError(f"{name}: needs a field 'stage', one of {', '.join(STAGES)}")
    try:
        return _fields(STAGES[stage]).model_validate(_in_present_names(values, STAGES[stage]))
    except ValidationError as error:
        faults = [f"{'.'.join(map(str, found['loc']))}: {found['msg']}" for found in error.errors()]
        raise TrainingError(f"{name}: {'; '.join(faults)}") from error


def _in_present_names(values: dict[str, Any], stage: Stage) -> dict[str, Any]:
    """The values with the fields of the recipe that an earlier version called otherwise under their present names."""
    recipe = values.get("recipe")
    if not isinstance(recipe, dict):
        return values
    present = dict(stage.renamed)
    return {**values, "recipe": {present.get(name, name): value for name, value in recipe.items()}}


def plan_from_dict(values: Any, name: str) -> StagePlan:
    """The inverse of `dataclasses.asdict` on a StagePlan. One that a version without guards stored goes on without.

    Raises:
        TrainingError: if a field is wrong; it begins with `name`.
    """
    if isinstance(values, dict) and isinstance(values.get("loop"), dict):
        values = {**values, "loop": {"guard_every": 0, **values["loop"]}}
    return _plan(_check(values, name), name)


def read_recipe(path: str | Path, source: str | None = None, stage: str | None = None) -> StageRecipe:
    """The recipe at `path`; `source` replaces the pictures that the file names.

    Raises:
        TrainingError: if there is no such file, a field is wrong, it names no pictures, or it is not for `stage`.
    """
    path = Path(path)
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise TrainingError(f"{path}: there is no such recipe file") from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise TrainingError(f"{path} cannot be read as YAML: {' '.join(str(error).split())}") from error
    rows = (values.get("source") or {}) if isinstance(values, dict) else {}
    if not isinstance(rows, dict):
        raise TrainingError(f"{path}: source: should hold fields, as in 'source: {{source: {rows}}}'")
    if isinstance(values, dict) and source is not None:
        values["source"] = {**rows, "source": source}
        values.pop("mix", None)
    checked = _check(values, str(path))
    if stage is not None and checked.stage != stage:
        raise TrainingError(f"{path} is a recipe for the stage {checked.stage}, not {stage}")
    if checked.mix and checked.source is not None:
        raise TrainingError(
            f"{path}: has both a source and a mix: move the source into the mix, or take one of them out"
        )
    sources = checked.mix or (() if checked.source is None else (checked.source,))
    if not sources or not all(each.source for each in sources):
        raise TrainingError(f"{path} names no pictures: add --source FOLDER_OR_FILE")
    return StageRecipe(sources, _plan(checked, str(path)))


def read_recipes(folder: Path, rows: SourceConfig) -> tuple[SourceConfig, dict[str, StagePlan]]:
    """The plans of a folder of recipes by stage, and the rows: what `rows` leaves open is filled in by the first recipe
    that names it. A stage that is optional is left out if the folder has no recipe for it."""
    plans: dict[str, StagePlan] = {}
    for name, stage in STAGES.items():
        if stage.optional and not (folder / f"{name}.yaml").is_file():
            continue
        recipe = read_recipe(folder / f"{name}.yaml", rows.source, name)
        plans[name] = recipe.plan
        (source, *others), single = recipe.sources, f"{folder / f'{name}.yaml'}: {{}} is for training a single stage"
        for given, what in ((others, "mix"), (source.weight, "source.weight"), (source.stream, "source.stream")):
            if given:
                raise TrainingError(f"{single.format(what)}: take it out")
        filled = {name: value or getattr(source, name) for name, value in vars(rows).items()}
        rows = SourceConfig(**filled)
    return rows, plans


def _plan(checked: Any, name: str) -> StagePlan:
    """The plan of checked fields. Raises TrainingError for fields that contradict each other."""
    loop, recipe, replay = checked.loop, checked.recipe, checked.replay
    if loop.batch_size % loop.parts:
        raise TrainingError(f"{name}: loop.batch_size must divide by the number of processes times loop.accumulate")
    share = getattr(recipe, "replay_share", 0.0)
    if replay is None and share:
        raise TrainingError(f"{name}: recipe.replay_share is {share} but there is no replay: name its source")
    decoys = getattr(recipe, "decoys_per_batch", 0)
    if bool(decoys) != (checked.decoys is not None):
        lacking = f"is {decoys} but there are no decoys" if decoys else "is 0 but there are decoys"
        raise TrainingError(f"{name}: recipe.decoys_per_batch {lacking}: give both, or neither")
    if replay is not None:
        try:
            replayed_rows(share, loop.batch_size)
        except TrainingError as error:
            raise TrainingError(f"{name}: {error}") from error
    return StagePlan(checked.stage, recipe, loop, checked.facts, replay, checked.gate, checked.decoys)
