"""A budget that is large enough trains two painters; a smaller one only that of the pack that is begun from, or a code
transformer, and leaves out the other unsaid."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from micro_plans import BUDGET, LOOP, PLANS, request

from codebrush.models.flow_transformer import FlowTransformerConfig
from codebrush.pack.members import usual_painter_of
from codebrush.pack.pack import open_pack
from codebrush.training.engine.loop import Loop
from codebrush.training.packs import member_training
from codebrush.training.packs.member_training import MemberTraining
from codebrush.training.packs.pack_training import train_pack
from codebrush.training.registry import STAGES
from codebrush.training.stage import ModelSize, StagePlan
from codebrush.training.tasks.code_transformer import TransformerRecipe
from codebrush.training.tasks.flow import FlowRecipe
from codebrush.training.tasks.prior import PriorRecipe


@pytest.fixture
def plan(
    pack, shapes: Path, tmp_path: Path, clock: Callable[[], float], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., dict[str, str]]:
    """Plans a pack within so many seconds: what is said of each stage."""
    monkeypatch.setattr(Loop, "run", lambda *_, **__: pytest.fail("planned"))

    def planned(budget: float, resume: bool = False, start: Path = pack[0]) -> dict[str, str]:
        said: list[str] = []
        given = request(shapes, tmp_path / "made", plans={}, budget=budget, start=start, image_size=None)
        given = dataclasses.replace(given, resume=resume)
        with pytest.raises(pytest.fail.Exception, match="planned"):
            train_pack(given, said.append)
        return {line.split()[0]: line.split(maxsplit=1)[1] for line in said if line.startswith("  ")}

    return planned


def test_a_large_budget_trains_both_painters(
    plan: Callable[[float], dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ModelSize, "least", lambda size, started: 4)
    found = plan(10 * BUDGET)
    assert {stage: line.split()[0] for stage, line in found.items()} == dict.fromkeys(found, "about")
    assert float(found["flow"].split()[1]) == pytest.approx(float(found["transformer"].split()[1]), abs=1)
    assert found["flow"].endswith("from nothing (micro has none)")


@pytest.mark.parametrize("short", [FlowRecipe, PriorRecipe])
def test_a_flow_that_is_short_or_beside_one_that_is_short_is_no_part_of_the_plan(
    short: type, plan: Callable[[float], dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ModelSize, "least", lambda size, started: 10**9 if isinstance(size.recipe, short) else 4)
    found = plan(10 * BUDGET)
    assert "flow" not in found
    assert found["transformer"].startswith("about")
    assert found["prior"].startswith("left out" if short is PriorRecipe else "about")


def test_stages_that_have_ended_are_resumed_without_a_plan_for_a_flow(
    plan: Callable[[float], dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A training stopped while the pack was written: its networks are not read yet when it plans."""
    monkeypatch.setattr(ModelSize, "least", lambda size, started: 4)
    for asked in ("has_begun", "is_done"):
        monkeypatch.setattr(member_training, asked, lambda folder: folder.name != "flow")
    monkeypatch.setattr(MemberTraining, "run", lambda *_: pytest.fail("planned"))
    assert plan(10 * BUDGET) == {}


def test_a_flow_may_be_added_while_later_stages_have_not_begun(
    plan: Callable[[float], dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ModelSize, "least", lambda size, started: 4)
    for asked in ("has_begun", "is_done"):
        monkeypatch.setattr(member_training, asked, lambda folder: folder.name in ("clip", "vqgan", "transformer"))
    monkeypatch.setattr(MemberTraining, "run", lambda *_: pytest.fail("planned"))
    assert "flow" in plan(10 * BUDGET)


@pytest.mark.parametrize("first", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_a_resumed_training_keeps_to_its_plan_for_a_flow(
    first: bool, plan: Callable[..., dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    for planned in (first, not first):
        least = lambda size, started, planned=planned: 4 if planned else 10**9  # noqa: E731
        of_flow = lambda size, started, least=least: least(size, started) if isinstance(size.recipe, FlowRecipe) else 4  # noqa: E731
        monkeypatch.setattr(ModelSize, "least", of_flow)
        found = plan(10 * BUDGET, resume=planned is not first)
        assert ("flow" in found) == first


def test_members_that_the_new_pack_will_not_have_are_named(pack, shapes: Path, tmp_path: Path) -> None:
    flow = StagePlan("flow", FlowRecipe(width=16, layers=1, heads=2, text_length=6), LOOP)
    train_pack(request(shapes, tmp_path / "both", plans={**PLANS, "flow": flow}, start=pack[0]), lambda text: None)
    said: list[str] = []
    train_pack(request(shapes, tmp_path / "made", start=tmp_path / "both"), said.append)
    assert "the new pack will not have both's flow transformer: nothing here trains one" in said
    assert not open_pack(tmp_path / "made").has("flow")


@pytest.fixture
def flowing(pack, shapes: Path, tmp_path: Path) -> Path:
    """A pack that draws by a flow alone."""
    flow = StagePlan("flow", FlowRecipe(width=16, layers=1, heads=2, text_length=6, image_share=0.2), LOOP)
    plans = {**{name: each for name, each in PLANS.items() if name != "transformer"}, "flow": flow}
    train_pack(request(shapes, tmp_path / "flowing", plans=plans, start=pack[0]), lambda text: None)
    return tmp_path / "flowing"


@pytest.mark.parametrize("short", [TransformerRecipe, None])
def test_the_painter_of_the_pack_that_is_begun_from_comes_first(
    flowing: Path, plan: Callable[..., dict[str, str]], short: type | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = open_pack(flowing)
    assert (made.has("flow"), made.has("transformer"), made.has("bank")) == (True, False, True)
    too_many = lambda size, started: 10**9 if short and isinstance(size.recipe, short) else 4  # noqa: E731
    monkeypatch.setattr(ModelSize, "least", too_many)
    found = plan(10 * BUDGET, start=flowing)
    assert found["flow"].startswith("about")
    assert found["flow"].endswith("from flowing")
    assert ("transformer" in found) == (short is None)


def test_a_painter_that_goes_on_shares_its_time_only_where_a_fresh_one_could(
    flowing: Path, plan: Callable[..., dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    of_flow = lambda size, started: 4 if started or not isinstance(size.recipe, FlowRecipe) else 10**9  # noqa: E731
    monkeypatch.setattr(ModelSize, "least", of_flow)
    found = plan(10 * BUDGET, start=flowing)
    assert found["flow"].endswith("from flowing")
    assert "transformer" not in found


def test_a_pack_has_the_usual_painter_of_what_it_began_from(pack, shapes: Path, tmp_path: Path) -> None:
    shutil.copytree(pack[0], tmp_path / "first")
    info = json.loads((tmp_path / "first" / "pack.json").read_text())
    (tmp_path / "first" / "pack.json").write_text(json.dumps({**info, "painter": "flow"}))
    flow = StagePlan("flow", FlowRecipe(width=16, layers=1, heads=2, text_length=6), LOOP)
    given = request(shapes, tmp_path / "made", plans={**PLANS, "flow": flow}, start=tmp_path / "first")
    train_pack(given, lambda text: None)
    assert open_pack(tmp_path / "made").info["painter"] == "flow"
    assert usual_painter_of(["clip", "vqgan", "transformer"], "flow") == "sample"


def test_a_flow_keeps_to_the_conditions_of_the_one_it_begins_from() -> None:
    stage, recipe = STAGES["flow"], FlowRecipe(image_share=0.15, hole_share=0.15)

    class Blind:
        config = FlowTransformerConfig(4, (8, 8), 16, 1, 2, image_embedding=8)

    assert stage.adapt(recipe, None, None, True) == recipe  # pyright: ignore[reportArgumentType]
    found = stage.adapt(recipe, None, Blind(), True)  # pyright: ignore[reportArgumentType]
    assert (found.image_share, found.hole_share) == (0.15, 0.0)
