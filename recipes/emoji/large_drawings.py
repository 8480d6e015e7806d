"""Draws the emoji of four styles in twice the size, for the upscaler: the tables of drawings end at 128 pixels.

    pip install resvg_py==0.5.0
    npm install --prefix packages @iconify-json/noto@1.2.9 ...     # `--list` says all of them
    python recipes/emoji/large_drawings.py packages emoji.parquet --out large.parquet

Rows and columns are those of the table of drawings, without skin tones and without the style that is no vectors.
"""

import argparse
import io
import json
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import resvg_py  # pyright: ignore[reportMissingImports]
from more_icons import markup
from PIL import Image
from pyarrow.compute import field

from codebrush.files import atomic_file

SIDE = 256  # pixels
PACKAGES = {  # style -> its package of Iconify, the version, and the package whose table of characters has its names
    "noto": ("noto", "1.2.9", "noto"),
    "twemoji": ("twemoji", "1.2.5", "twemoji"),
    "fluent-color": ("fluent-emoji", "1.2.7", "fluent-emoji-flat"),
    "fluent-flat": ("fluent-emoji-flat", "1.2.6", "fluent-emoji-flat"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("packages", type=Path, nargs="?", help="the folder of `npm install --prefix`")
    parser.add_argument("drawings", type=Path, nargs="?", help="the emoji, whose rows are drawn again")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--list", action="store_true", help="only say the packages")
    given = parser.parse_args()
    if given.list:
        print(*(f"@iconify-json/{name}@{version}" for name, version, _ in PACKAGES.values()))
        return
    if None in (given.packages, given.drawings, given.out):
        parser.error("say the folder of the packages, the table of drawings and --out")
    table = pq.read_table(given.drawings).filter(field("skin_tone").is_null() & field("style").isin([*PACKAGES]))
    found = list(drawn(given.packages / "node_modules" / "@iconify-json", table.drop_columns(["image"]).to_pylist()))
    with ProcessPoolExecutor() as pool:
        rows = list(pool.map(row_of, found, chunksize=64))
    with atomic_file(given.out) as part:
        pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), part, compression="zstd", row_group_size=1024)
    print(f"{given.out}: {len(rows)} of {len(table)} drawings")


def drawn(packages: Path, rows: list[dict[str, Any]]) -> Iterator[tuple[dict[str, Any], str]]:
    """Those of the rows whose packages have a drawing, with its markup."""
    held = {style: opened(packages, *package) for style, package in PACKAGES.items()}
    for row in rows:
        icons, names = held[row["style"]]
        name = names.get(row["hexcode"], "")
        if name in icons["icons"]:
            yield row, markup(icons, name)


def opened(packages: Path, name: str, version: str, named_by: str) -> tuple[dict[str, Any], dict[str, str]]:
    """The icons of a package, and their names by the hexcode of what they show."""
    about = json.loads((packages / name / "package.json").read_text(encoding="utf-8"))
    if about["version"] != version:
        raise SystemExit(f"{packages / name}: version {about['version']}, and not {version}: see --list")
    icons, names = (
        json.loads((packages / folder / file).read_text(encoding="utf-8"))
        for folder, file in ((name, "icons.json"), (named_by, "chars.json"))
    )
    return icons, names


def row_of(found: tuple[dict[str, Any], str]) -> dict[str, Any]:
    """A row of the table: the drawing fills the picture, over white."""
    row, svg = found
    png = resvg_py.svg_to_bytes(svg_string=svg, background="white", width=SIDE, height=SIDE)
    picture = Image.open(io.BytesIO(bytes(png))).convert("RGB")
    stored = io.BytesIO()
    picture.save(stored, format="WEBP", lossless=True)
    return row | {"width": SIDE, "height": SIDE, "image": {"bytes": stored.getvalue(), "path": ""}}


if __name__ == "__main__":
    main()
