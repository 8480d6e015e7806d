"""Draws the emoji of four styles in twice the size, for the upscaler: the tables of drawings end at 128 pixels.

    pip install resvg_py==0.5.0
    npm install --prefix packages @iconify-json/noto@1.2.9 ...     # `--list` says all of them
    python recipes/emoji/large_drawings.py packages emoji.parquet --out large.parquet

Rows and columns are those of the table of drawings, without skin tones and without the style that is no vectors.
"""

from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from icon_packages import arguments, cell, markup, opened, rendered, write
from pyarrow.compute import field

SIDE = 256  # pixels
PACKAGES = {  # style -> its package of Iconify, the version, and the package whose table of characters has its names
    "noto": ("noto", "1.2.9", "noto"),
    "twemoji": ("twemoji", "1.2.5", "twemoji"),
    "fluent-color": ("fluent-emoji", "1.2.7", "fluent-emoji-flat"),
    "fluent-flat": ("fluent-emoji-flat", "1.2.6", "fluent-emoji-flat"),
}


def main() -> None:
    """See the top of the file."""
    given = arguments(__doc__, ((name, version) for name, version, _ in PACKAGES.values()))
    table = pq.read_table(given.drawings).filter(field("skin_tone").is_null() & field("style").isin([*PACKAGES]))
    found = list(with_markup(given.packages, table.drop_columns(["image"]).to_pylist()))
    with ProcessPoolExecutor() as pool:
        rows = list(pool.map(row_of, found, chunksize=64))
    write(rows, table.schema, given.out)
    print(f"{given.out}: {len(rows)} of {len(table)} drawings")


def with_markup(packages: Path, rows: list[dict[str, Any]]) -> Iterator[tuple[dict[str, Any], str]]:
    """Those of the rows whose packages have a drawing, with its markup."""
    versions = {name: version for name, version, _ in PACKAGES.values()}
    icons = {style: opened(packages / name, version) for style, (name, version, _) in PACKAGES.items()}
    names = {style: opened(packages / its, versions[its], "chars.json") for style, (_, _, its) in PACKAGES.items()}
    for row in rows:
        name = names[row["style"]].get(row["hexcode"], "")
        if name in icons[row["style"]]["icons"]:
            yield row, markup(icons[row["style"]], name)


def row_of(found: tuple[dict[str, Any], str]) -> dict[str, Any]:
    """A row of the table: the drawing fills the picture, over white."""
    row, svg = found
    return row | {"width": SIDE, "height": SIDE, "image": cell(rendered(svg, SIDE, SIDE))}


if __name__ == "__main__":
    main()
