import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

RECIPES = Path(__file__).parents[2] / "recipes"


@pytest.fixture
def imported(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Any]]:
    """Imports scripts of recipes/emoji and recipes/photos by their names; they are forgotten afterwards."""
    before = set(sys.modules)
    for name in ("emoji", "photos"):
        monkeypatch.syspath_prepend(RECIPES / name)
    yield importlib.import_module
    for name in set(sys.modules) - before:
        file = getattr(sys.modules[name], "__file__", None)
        if file is not None and RECIPES in Path(file).parents:
            del sys.modules[name]
