"""Manifests whose values are of another kind are replayed, or refused in one line."""

import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from codebrush import Codebrush
from codebrush.errors import CodebrushError
from packs import micro_flow, write_micro_pack

ODD = [None, -1, 0, 1.5, "x", [1], {"a": 1}, True]
PLACES = {
    "sample": ["options", "options.flow", "options.n", "seed", "index", "threads", "versions", "pack", "size"],
    "flow": ["options.flow", "options.flow.steps", "options.n", "index"],
    "guide": [
        "options",
        "options.init",
        "sampling",
        "files",
        "plan",
        "plan.micro_batch",
        "plan.decode.tile",
        "n",
        "seed",
        "steps",
        "index",
        "pack",
        "prompt",
    ],
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Codebrush, dict[str, dict[str, Any]]]:
    """A pack, and the manifest of a picture that it made by each method."""
    folder = write_micro_pack(tmp_path_factory.mktemp("packs") / "micro", flow=micro_flow())
    brush = Codebrush.from_pretrained(folder, device="cpu")
    drawn: dict[str, Any] = {"n": 1, "rerank": 1}
    return brush, {
        "sample": brush.generate("a red circle", **drawn)[0].manifest,
        "flow": brush.generate("a red circle", method="flow", steps=1, **drawn)[0].manifest,
        "guide": brush.generate("a red circle", n=1, method="guide", steps=1, cutouts=1)[0].manifest,
    }


def changed(manifest: Mapping[str, Any], place: str, value: Any) -> dict[str, Any]:
    """A copy with another value in a place."""
    whole = holder = json.loads(json.dumps(manifest))
    *first, last = place.split(".")
    for name in first:
        holder = holder[name]
    holder[last] = value
    return whole


@pytest.mark.parametrize(("method", "place"), [(method, place) for method in PLACES for place in PLACES[method]])
def test_values_of_another_kind_are_one_line(made: Any, method: str, place: str) -> None:
    brush, manifests = made
    for value in ODD:
        with suppress(CodebrushError):
            brush.replay(changed(manifests[method], place, value), named_files=False)


@pytest.mark.parametrize("place", PLACES["guide"])
def test_a_run_with_values_of_another_kind_is_damaged(made: Any, tmp_path: Path, place: str) -> None:
    brush, _ = made
    whole = brush.guide("a red circle", steps=1, cutouts=1, folder=tmp_path / "run")
    next(iter(whole))
    file = tmp_path / "run" / "run.json"
    stored = json.loads(file.read_text())
    if place.partition(".")[0] in stored:
        for value in ODD:
            file.write_text(json.dumps(changed(stored, place, value)))
            with suppress(CodebrushError):
                brush.resume(tmp_path / "run")


def test_the_manifests_themselves_replay(made: Any) -> None:
    brush, manifests = made
    for manifest in manifests.values():
        assert brush.replay(manifest, named_files=False).manifest["seed"] == manifest["seed"]
