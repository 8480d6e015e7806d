"""Warnings point at the line of the user's program, however deep in the package their reason is."""

import inspect
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from codebrush import Codebrush
from packs import micro_transformer, write_micro_pack

SRC = Path(__file__).resolve().parents[1] / "src"
LONG = "a red circle " * 40


@pytest.fixture(scope="module")
def brush(tmp_path_factory: pytest.TempPathFactory) -> Codebrush:
    folder = tmp_path_factory.mktemp("packs") / "micro"
    return Codebrush.from_pretrained(write_micro_pack(folder, transformer=micro_transformer(source_codes=True)), "cpu")


def steps(brush: Codebrush) -> None:
    for _ in brush.guide(LONG, steps=1, cutouts=1):  # a generator, which embeds the prompt at its first step
        pass


def drawn(brush: Codebrush) -> None:
    brush.generate("a red circle", n=1, rerank=1, size="36x32")


def edited(brush: Codebrush) -> None:
    brush.edit(Image.new("RGB", (40, 60)), "a red circle", n=1, rerank=1, method="sample", box=(30, 30, 20, 20))


def between(brush: Codebrush) -> None:
    list(brush.interpolate([LONG, "a blue square"], 2))  # a generator within torch.no_grad


@pytest.mark.parametrize("call", [steps, drawn, edited, between])
def test_a_warning_is_of_the_line_that_called(brush: Codebrush, call: Callable[[Codebrush], Any]) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call(brush)
    lines, first = inspect.getsourcelines(call)
    assert caught
    for each in caught:
        assert Path(each.filename) == Path(__file__)
        assert each.category is UserWarning
        assert "brush." in lines[each.lineno - first], each.message


def test_all_warnings_are_given_in_one_way() -> None:
    direct = re.compile(r"warnings\.warn\b|from warnings import")
    assert [file.name for file in SRC.rglob("*.py") if direct.search(file.read_text())] == []
