"""What `codebrush train SOURCE` was asked for -> request.json beside the work, and back when the training goes on."""

import dataclasses
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from codebrush.errors import TrainingError, UsageError
from codebrush.training.dataset import SourceConfig
from codebrush.training.recipes import plan_from_dict, read_recipes
from codebrush.training.stages import StagePlan

REQUEST_FILE = "request.json"
DEFAULT_BUDGET = 3600.0  # seconds, where neither a budget nor recipes are given
# The pictures may have moved, as they are known by their content; what a pack is called is written at the end.
MAY_CHANGE = ("source.source", "name", "licence")
FLAGS = {"start": "from", "plans": "recipes", "captions": "caption"}  # fields that are called otherwise on the way in


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


def work_folder(out: Path) -> Path:
    """Where a pack is made: beside it, so that the pack itself appears when it is finished."""
    out = Path(os.path.abspath(out))
    return out.with_name(out.name + ".work")


def make_request(source: str, out: Path, given: Mapping[str, Any], resume: bool = False) -> PackRequest:
    """The request of a command line: `given` holds the flags that stand on it, by the names of the fields (`recipes`,
    a folder, makes the plans). A training that is resumed takes all others from the request that it began with."""
    values = dict(given)
    recipes = values.pop("recipes", None)
    chosen = {name: values.pop(name) for name in list(values) if name in SourceConfig.__dataclass_fields__}
    first = read_request(out) if resume else None
    base = first or PackRequest(SourceConfig(source), out)
    rows, plans = replace(base.source, source=source, **chosen), base.plans
    if recipes is not None:
        rows, plans = read_recipes(recipes, rows)
    elif first is None:
        values.setdefault("budget", DEFAULT_BUDGET)
    return replace(base, source=rows, out=out, plans=plans, resume=resume, **values)


def write_request(request: PackRequest) -> None:
    """Store the request in the work folder, whole or not at all."""
    path = work_folder(request.out) / REQUEST_FILE
    part = Path(f"{path}.part")
    part.write_text(json.dumps(_values(request), indent=2) + "\n", encoding="utf-8")
    os.replace(part, path)


def read_request(out: Path) -> PackRequest | None:
    """The request that the training of the pack `out` began with; None where none is stored."""
    path = work_folder(out) / REQUEST_FILE
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        rows = TypeAdapter(SourceConfig).validate_python(values["source"])
        plans = {stage: plan_from_dict(plan, str(path)) for stage, plan in values["plans"].items()}
        start = None if values["start"] is None else Path(values["start"])
        return PackRequest(**{**values, "source": rows, "plans": plans, "start": start, "out": out})
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise TrainingError(f"{path} cannot be read ({reason}): delete {path.parent} to start anew") from error


def check_same(request: PackRequest, first: PackRequest) -> None:
    """Refuse to go on with another request than the training began with. Raises UsageError that names the flag and
    both values."""
    ours, theirs = _leaves(_values(request)), _leaves(_values(first))
    for name in sorted(ours.keys() | theirs.keys()):
        now, before = ours.get(name), theirs.get(name)
        if name not in MAY_CHANGE and now != before:
            top, _, rest = name.removeprefix("source.").partition(".")
            flag = "--" + FLAGS.get(top, top).replace("_", "-")
            raise UsageError(
                f"{flag} {f'({rest}) ' if rest else ''}is {now} but was {before} when this training began: leave it "
                f"out to go on, or delete {work_folder(request.out)} to start anew"
            )


def _values(request: PackRequest) -> dict[str, Any]:
    """The request as JSON holds it, without what may change from call to call."""
    values = dataclasses.asdict(replace(request, plans={}))
    values["plans"] = {stage: dataclasses.asdict(plan) for stage, plan in request.plans.items()}
    if request.start is not None:  # a folder, or the name of a built-in pack
        values["start"] = str(request.start.resolve() if request.start.exists() else request.start)
    del values["resume"], values["out"]
    return json.loads(json.dumps(values))


def _leaves(values: Mapping[str, Any], place: str = "") -> dict[str, Any]:
    """Nested values by their dotted names."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        found |= _leaves(value, f"{place}{name}.") if isinstance(value, dict) else {f"{place}{name}": value}
    return found
