"""What the tests of whole packs share: a trained pack of micro members, and time that the optimizers' steps decide."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from micro_plans import STEP_SECONDS, request
from torch.optim.optimizer import register_optimizer_step_post_hook

from clocks import set_monotonic
from codebrush.previews import draw_preview
from codebrush.training.packs.pack_training import train_pack


@pytest.fixture(scope="module")
def pack(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], list[str]]:
    """A pack of micro members, what its training reported, and what it said."""
    said: list[str] = []
    out = tmp_path_factory.mktemp("trained") / "micro"
    return out, train_pack(request(shapes, out, licence="CC0-1.0"), said.append, draw_preview), said


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], float]]:
    """Time that stands still but for the optimizers' steps, each of which takes STEP_SECONDS."""
    now = 1000.0

    def tick(*_: object) -> None:
        nonlocal now
        now += STEP_SECONDS

    def read() -> float:
        nonlocal now
        now += 1e-3
        return now

    set_monotonic(monkeypatch, read)
    hook = register_optimizer_step_post_hook(tick)
    yield lambda: now
    hook.remove()
