"""The request of `codebrush train SOURCE`: stored with the work, and compared when the training is resumed."""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter

from codebrush.errors import TrainingError, UsageError, first_line
from codebrush.files import write_json
from codebrush.pack.pack import built_in_packs
from codebrush.training.dataset import SourceConfig
from codebrush.training.engine.loop_config import MACHINES
from codebrush.training.flattening import leaves
from codebrush.training.packs.places import REQUEST_FILE, work_folder
from codebrush.training.recipes import plan_from_dict, read_recipes
from codebrush.training.stage import StagePlan

DEFAULT_BUDGET = 3600.0  # seconds, if neither a budget nor recipes are given
DEFAULT_START = Path("emoji")  # the pack that a training within a budget begins from, unless another is named
NO_START = Path("none")
FORMAT = 2  # of the file; in the first one, the pack of `start` decided the size whatever image_size said
# The pictures may have moved, because they are checked by content; name and licence are written at the end.
MAY_CHANGE = ("source.source", "name", "licence", "keep_work", "on_nan")
FLAGS = {"start": "from", "plans": "recipes", "captions": "caption"}  # of fields that are not called like their flag


@dataclass(frozen=True)
class PackRequest:
    """What `codebrush train SOURCE` was asked for; `plans` (from recipes) or `budget` (seconds) decide the sizes.

    `start` is the pack to begin from, None for nothing; `image_size` None is the size of its pictures, or 64 without
    one. With `keep_work` the work folder stays when the pack is written. `on_nan` is that of `LoopConfig`; None is as
    the recipes say, and "skip" within a budget.
    """

    source: SourceConfig
    out: Path
    budget: float | None = None
    plans: Mapping[str, StagePlan] = dataclasses.field(default_factory=dict)
    image_size: int | None = None
    tokenizer: str = "wordpiece"
    seed: int = 0
    threads: int = 0
    resume: bool = False
    start: Path | None = None
    name: str = ""
    licence: str = "unspecified"
    keep_work: bool = False
    on_nan: Literal["stop", "skip"] | None = None


def make_request(source: str, out: Path, given: Mapping[str, Any], resume: bool = False) -> PackRequest:
    """The request of a command line. `given` holds its flags by the names of the fields; the folder `recipes` becomes
    the plans. Without recipes a budget has a default, and so has `start`, for which "none" is nothing. A resumed
    training takes everything else from the request that it began with."""
    values = dict(given)
    recipes = values.pop("recipes", None)
    chosen = {name: values.pop(name) for name in list(values) if name in SourceConfig.__dataclass_fields__}
    first = read_request(out) if resume else None
    base = first or PackRequest(SourceConfig(source), out)
    rows, plans = replace(base.source, source=source, **chosen), base.plans
    if recipes is not None:
        rows, plans = read_recipes(recipes, rows)
        plans = {stage: _guarded_as(plan, base.plans.get(stage)) for stage, plan in plans.items()}
    elif first is None:
        values.setdefault("budget", DEFAULT_BUDGET)
        values.setdefault("start", DEFAULT_START)
    if values.get("start") == NO_START:
        values["start"] = None
    return replace(base, source=rows, out=out, plans=plans, resume=resume, **values)


def _guarded_as(plan: StagePlan, first: StagePlan | None) -> StagePlan:
    """The plan of a recipe, without guards if the training began without, as those of earlier versions did."""
    if first is None or first.loop.guard_every:
        return plan
    return replace(plan, loop=replace(plan.loop, guard_every=0))


def write_request(request: PackRequest) -> None:
    """Store the request in the work folder."""
    write_json(work_folder(request.out) / REQUEST_FILE, {"format": FORMAT, **_values(request)})


def read_request(out: Path) -> PackRequest | None:
    """The request that the training of the pack `out` began with; None if none is stored.

    Raises:
        TrainingError: if it cannot be read.
    """
    path = work_folder(out) / REQUEST_FILE
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        rows = TypeAdapter(SourceConfig).validate_python(values["source"])
        plans = {stage: plan_from_dict(plan, str(path)) for stage, plan in values["plans"].items()}
        start = None if values["start"] is None else Path(values["start"])
        if values.pop("format", 1) == 1 and start is not None:
            values["image_size"] = None
        return PackRequest(**{**values, "source": rows, "plans": plans, "start": start, "out": out})
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise TrainingError(
            f"{path} cannot be read ({first_line(error)}): delete {path.parent} to start again"
        ) from error


def check_same(request: PackRequest, first: PackRequest) -> None:
    """Raises UsageError, with the flag and both values, for another request than the training began with."""
    ours, theirs = leaves(_values(request)), leaves(_values(first))
    for name in sorted(ours.keys() | theirs.keys()):
        now, before = ours.get(name), theirs.get(name)
        if now != before and name not in MAY_CHANGE and name.rpartition(".loop.")[2] not in MACHINES:
            top, _, rest = name.removeprefix("source.").partition(".")
            flag = "--" + FLAGS.get(top, top).replace("_", "-")
            raise UsageError(
                f"{flag} {f'({rest}) ' if rest else ''}is {now} but was {before} when this training began: leave it "
                f"out to go on, or delete {work_folder(request.out)} to start again"
            )


def _values(request: PackRequest) -> dict[str, Any]:
    """The request as JSON stores it, without `resume` and `out`."""
    values = dataclasses.asdict(replace(request, plans={}))
    values["plans"] = {stage: dataclasses.asdict(plan) for stage, plan in request.plans.items()}
    if request.start is not None:  # a folder, or the name of a built-in pack
        is_folder = str(request.start) not in built_in_packs() and request.start.exists()
        values["start"] = str(request.start.resolve() if is_folder else request.start)
    del values["resume"], values["out"]
    return json.loads(json.dumps(values))
