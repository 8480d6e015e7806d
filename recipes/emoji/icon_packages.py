"""Reads Iconify's npm packages, for the scripts that draw their icons."""

import argparse
import io
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from codebrush.files import atomic_file


def arguments(about: str | None, packages: Iterable[tuple[str, str]]) -> argparse.Namespace:
    """What a script was given: `packages`, the folder with all of them; `drawings`, a table; `out`. With --list it only
    says the names and versions of the packages."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("packages", type=Path, nargs="?", help="the folder of `npm install --prefix`")
    parser.add_argument("drawings", type=Path, nargs="?", help="the table of emoji")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--list", action="store_true", help="only say the packages")
    given = parser.parse_args()
    if given.list:
        print(*(f"@iconify-json/{name}@{version}" for name, version in packages))
        raise SystemExit
    if None in (given.packages, given.drawings, given.out):
        parser.error("say the folder of the packages, the table of drawings and --out")
    given.packages = given.packages / "node_modules" / "@iconify-json"
    return given


def opened(folder: Path, version: str, file: str = "icons.json") -> dict[str, Any]:
    """A file of a package. Raises SystemExit unless the package is of this version."""
    if not folder.is_dir():
        raise SystemExit(f"{folder}: there is no such package: see --list")
    package = json.loads((folder / "package.json").read_text(encoding="utf-8"))
    if package["version"] != version:
        raise SystemExit(f"{folder}: version {package['version']}, and not {version}: see --list")
    return json.loads((folder / file).read_text(encoding="utf-8"))


def markup(held: dict[str, Any], name: str) -> str:
    """The SVG of an icon of `icons.json`; where it has one colour, that is named `currentColor`."""
    icon = held["icons"][name]
    left, top = (icon.get(side, held.get(side, 0)) for side in ("left", "top"))
    wide, high = (icon.get(side, held.get(side, 16)) for side in ("width", "height"))
    spaces = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    size = f'width="{wide}" height="{high}" viewBox="{left} {top} {wide} {high}"'
    return f"<svg {spaces} {size}>{icon['body']}</svg>"


def rendered(svg: str, width: int | None, height: int | None) -> Image.Image:
    """An SVG over white; a side that is None follows from the other."""
    import resvg_py  # pyright: ignore[reportMissingImports]

    png = resvg_py.svg_to_bytes(svg_string=svg, background="white", width=width, height=height)
    return Image.open(io.BytesIO(bytes(png))).convert("RGB")


def cell(picture: Image.Image) -> dict[str, Any]:
    """A picture as the tables of drawings hold it."""
    stored = io.BytesIO()
    picture.save(stored, format="WEBP", lossless=True)
    return {"bytes": stored.getvalue(), "path": ""}


def write(rows: list[dict[str, Any]], schema: pa.Schema, out: Path) -> None:
    """A table of drawings."""
    with atomic_file(out) as part:
        pq.write_table(pa.Table.from_pylist(rows, schema=schema), part, compression="zstd", row_group_size=1024)
