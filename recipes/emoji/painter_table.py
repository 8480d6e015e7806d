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
WEIGHTS = {"main": 2.0, "other": 0.5, "composed": 0.5}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("drawings", type=Path)
    parser.add_argument("compositions", type=Path)
    parser.add_argument("--out", required=True, type=Path)
    given = parser.parse_args()
    drawings, compositions = pq.read_table(given.drawings), pq.read_table(given.compositions)
    drawings = drawings.filter(field("skin_tone").is_null())
    parts = [
        rows(drawings, MAIN, "main"),
        rows(drawings, OTHERS, "other"),
        rows(compositions, MAIN, "composed"),
    ]
    with atomic_file(given.out) as part:
        pq.write_table(pa.concat_tables(parts), part, compression="zstd", row_group_size=1024)
    print(f"{given.out}: " + ", ".join(f"{len(each)} rows of weight {each['weight'][0]}" for each in parts))


def rows(table: pa.Table, styles: tuple[str, ...], kind: str) -> pa.Table:
    """The training rows of some styles, with the three new columns."""
    table = table.filter(field("style").isin(styles) & (field("split") == "train"))
    label = table["label"].combine_chunks()
    tags = table["tags"].combine_chunks()
    plain, plain_tags = [pa.nulls(len(table), each.type) if kind == "other" else each for each in (label, tags)]
    weight = pa.array([WEIGHTS[kind]] * len(table))
    table = table.append_column("plain", plain).append_column("plain_tags", plain_tags)
    return table.append_column("weight", weight)


if __name__ == "__main__":
    main()
