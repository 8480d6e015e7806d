"""Emoji are drawn in another size from npm packages of the versions that are asked for."""

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

RED = '<path fill="#f00" d="M0 0h32v32H0z"/>'


@pytest.fixture
def drawings(imported: Callable[[str], Any]) -> Any:
    return imported("large_drawings")


@pytest.fixture
def packages(drawings: Any, tmp_path: Path) -> Path:
    for name, version, _ in drawings.PACKAGES.values():
        (tmp_path / name).mkdir()
        icons = {"icons": {"red-square": {"body": RED}}, "width": 32, "height": 32}
        for file, held in (("package", {"version": version}), ("icons", icons), ("chars", {"1f7e5": "red-square"})):
            (tmp_path / name / f"{file}.json").write_text(json.dumps(held), encoding="utf-8")
    return tmp_path


def test_rows_whose_package_has_a_drawing_get_its_markup(drawings: Any, packages: Path) -> None:
    rows = [{"hexcode": code, "style": style} for style in drawings.PACKAGES for code in ("1f7e5", "1f7e6")]
    found = list(drawings.with_markup(packages, rows))
    assert [row for row, _ in found] == [row for row in rows if row["hexcode"] == "1f7e5"]
    assert all(RED in svg and 'viewBox="0 0 32 32"' in svg for _, svg in found)


@pytest.mark.skipif(importlib.util.find_spec("resvg_py") is None, reason="needs resvg_py")
def test_a_drawing_fills_its_row(drawings: Any, packages: Path, tmp_path: Path) -> None:
    found = next(drawings.with_markup(packages, [{"hexcode": "1f7e5", "style": "noto", "width": 128}]))
    row = drawings.row_of(found)
    assert (row["width"], row["height"]) == (drawings.SIDE, drawings.SIDE)
    (tmp_path / "a.webp").write_bytes(row["image"]["bytes"])
    with Image.open(tmp_path / "a.webp") as picture:
        assert picture.getcolors() == [(drawings.SIDE**2, (255, 0, 0))]


def test_other_versions_and_missing_packages_are_named(drawings: Any, packages: Path) -> None:
    (packages / "noto" / "package.json").write_text('{"version": "9.9.9"}')
    with pytest.raises(SystemExit, match=r"noto: version 9\.9\.9, and not"):
        list(drawings.with_markup(packages, []))
    (packages / "noto" / "package.json").unlink()
    with pytest.raises(SystemExit, match="there is no such package"):
        drawings.opened(packages / "none", "1.0.0")
