"""A YAML recipe (or the stored plan of a stage) -> checked settings. One line names every field that is wrong."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from codebrush.errors import TrainingError
from codebrush.pack.pack import OPTIONAL
from codebrush.training.dataset import SourceConfig
from codebrush.training.engine.forgetting import GateConfig
from codebrush.training.engine.loop import LoopConfig
from codebrush.training.fine_tuning import replayed_rows
from codebrush.training.stages import StagePlan
from codebrush.training.tasks.captioner import CaptionerRecipe
from codebrush.training.tasks.clip import CLIPRecipe
from codebrush.training.tasks.code_transformer import TransformerRecipe
from codebrush.training.tasks.prior import PriorRecipe
from codebrush.training.tasks.translator import TranslatorRecipe
from codebrush.training.tasks.upscaler import UpscalerRecipe
from codebrush.training.tasks.vqgan import VQGANRecipe


class _Checked(BaseModel):
    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True)
    loop: LoopConfig
    facts: dict[str, Any] = Field(default_factory=dict)
    source: SourceConfig | None = None


class _CLIP(_Checked):
    stage: Literal["clip"]
    recipe: CLIPRecipe = CLIPRecipe()
    replay: SourceConfig | None = None
    gate: GateConfig | None = None


class _Other(_Checked):
    replay: None = None
    gate: None = None


class _VQGAN(_Other):
    stage: Literal["vqgan"]
    recipe: VQGANRecipe = VQGANRecipe()


class _Transformer(_Other):
    stage: Literal["transformer"]
    recipe: TransformerRecipe = TransformerRecipe()


class _Captioner(_Other):
    stage: Literal["captioner"]
    recipe: CaptionerRecipe = CaptionerRecipe()


class _Upscaler(_Other):
    stage: Literal["upscaler"]
    recipe: UpscalerRecipe = UpscalerRecipe()


class _Prior(_Other):
    stage: Literal["prior"]
    recipe: PriorRecipe = PriorRecipe()


class _Translator(_Other):
    stage: Literal["translator"]
    recipe: TranslatorRecipe = TranslatorRecipe()


KINDS: dict[str, type[_Checked]] = {
    "clip": _CLIP,
    "vqgan": _VQGAN,
    "transformer": _Transformer,
    "captioner": _Captioner,
    "upscaler": _Upscaler,
    "prior": _Prior,
    "translator": _Translator,
}


@dataclass(frozen=True)
class StageRecipe:
    """One recipe file: the rows to train on, and the plan."""

    source: SourceConfig
    plan: StagePlan


def _check(values: Any, name: str) -> Any:
    stage = values.get("stage") if isinstance(values, dict) else None
    if not isinstance(stage, str) or stage not in KINDS:
        raise TrainingError(f"{name}: needs a field 'stage', one of {', '.join(KINDS)}")
    try:
        return KINDS[stage].model_validate(values)
    except ValidationError as error:
        faults = [f"{'.'.join(map(str, found['loc']))}: {found['msg']}" for found in error.errors()]
        raise TrainingError(f"{name}: {'; '.join(faults)}") from error


def plan_from_dict(values: Any, name: str) -> StagePlan:
    """The inverse of `dataclasses.asdict` on a StagePlan; `name` stands in the error."""
    return _plan(_check(values, name), name)


def read_recipe(path: str | Path, source: str | None = None, stage: str | None = None) -> StageRecipe:
    """The recipe at `path`; `source` replaces the file's own place of the pictures, `stage` is what it must be for."""
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
    checked = _check(values, str(path))
    if stage is not None and checked.stage != stage:
        raise TrainingError(f"{path} is a recipe for the stage {checked.stage}, not {stage}")
    if checked.source is None or not checked.source.source:
        raise TrainingError(f"{path} names no pictures: add --source FOLDER_OR_FILE")
    return StageRecipe(checked.source, _plan(checked, str(path)))


def read_recipes(folder: Path, rows: SourceConfig) -> tuple[SourceConfig, dict[str, StagePlan]]:
    """The plans of a folder of recipes, and the rows: gaps in `rows` are filled by the first recipe that names them.
    Without prior.yaml there is no prior, and so with the captioner, the upscaler and the translator."""
    plans: dict[str, StagePlan] = {}
    for stage in KINDS:
        if stage in OPTIONAL and not (folder / f"{stage}.yaml").is_file():
            continue
        recipe = read_recipe(folder / f"{stage}.yaml", rows.source, stage)
        plans[stage] = recipe.plan
        filled = {name: value or getattr(recipe.source, name) for name, value in vars(rows).items()}
        rows = SourceConfig(**filled)
    return rows, plans


def _plan(checked: Any, name: str) -> StagePlan:
    """The plan of checked fields. Raises TrainingError for fields that do not go together."""
    loop, recipe, replay = checked.loop, checked.recipe, checked.replay
    if loop.batch_size % (loop.devices * loop.nodes):
        raise TrainingError(f"{name}: loop.batch_size must divide by the number of processes")
    share = getattr(recipe, "replay_share", 0.0)
    if replay is None and share:
        raise TrainingError(f"{name}: recipe.replay_share is {share} but there is no replay: name its source")
    if replay is not None:
        try:
            replayed_rows(share, loop.batch_size)
        except TrainingError as error:
            raise TrainingError(f"{name}: {error}") from error
    return StagePlan(checked.stage, recipe, loop, checked.facts, replay, checked.gate)
