"""Joins several Parquet files of captioned drawings into one.

    python recipes/emoji/join.py emoji.parquet emoji-more.parquet icons.parquet --out drawings.parquet

The columns are those of the first file. Rows keep their order, one file after the other.
"""

import argparse
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from codebrush.files import atomic_file


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--out", required=True, type=Path)
    args = parser.parse_args()
    first, *rest = [pq.read_table(path) for path in args.files]
    joined = pa.concat_tables([first, *(table.select(first.column_names).cast(first.schema) for table in rest)])
    with atomic_file(args.out) as part:
        pq.write_table(joined, part, compression="zstd", row_group_size=1024)
    print(f"{args.out}: {joined.num_rows} rows")


if __name__ == "__main__":
    main()
