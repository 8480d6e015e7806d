"""Joins the drawings and compositions that the painter learns, each with a caption for its style and a weight.

    python recipes/emoji/painter_table.py drawings.parquet compositions.parquet --out painter.parquet

A prompt that names no style is drawn in the main one: only its drawings have the columns `plain` and `plain_tags`,
captions without a style, so that each such caption says one thing and a drawing is all of a piece. `fluent-3d` is the
same design rendered softly, hard to tell from it, and counts as the main style too. `weight` says how often an epoch
shows a row.
"""

import argparse
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow.compute import field

from codebrush.files import atomic_file

MAIN = ("fluent-color", "fluent-3d")
OTHERS = ("fluent-flat", "noto", "twemoji", "fluent-high-contrast")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("drawings", type=Path)
    parser.add_argument("compositions", type=Path)
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--others", type=float, default=0.5, help="weight of a drawing in another style")
    parser.add_argument("--composed", type=float, default=0.5, help="weight of a composition; a main drawing has 2")
    given = parser.parse_args()
    drawings, compositions = pq.read_table(given.drawings), pq.read_table(given.compositions)
    drawings = drawings.filter(field("skin_tone").is_null())
    parts = [
        rows(drawings, MAIN, 2.0),
        rows(drawings, OTHERS, given.others, plain=False),
        rows(compositions, MAIN, given.composed),
    ]
    with atomic_file(given.out) as part:
        pq.write_table(pa.concat_tables(parts), part, compression="zstd", row_group_size=1024)
    print(f"{given.out}: " + ", ".join(f"{len(each)} rows of weight {each['weight'][0]}" for each in parts))


def rows(table: pa.Table, styles: tuple[str, ...], weight: float, plain: bool = True) -> pa.Table:
    """The training rows of some styles, with the three new columns; without `plain` two of them are null."""
    table = table.filter(field("style").isin(styles) & (field("split") == "train"))
    label = table["label"].combine_chunks()
    tags = table["tags"].combine_chunks()
    captions = [each if plain else pa.nulls(len(table), each.type) for each in (label, tags)]
    table = table.append_column("plain", captions[0]).append_column("plain_tags", captions[1])
    return table.append_column("weight", pa.array([weight] * len(table)))


if __name__ == "__main__":
    main()
