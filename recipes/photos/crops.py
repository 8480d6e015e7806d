"""Cuts captioned crops of many scales out of the photographs of photos.csv, to train on.

    python recipes/photos/crops.py UNPACKED --out photo-crops --count 600
    python recipes/photos/crops.py UNPACKED --out photos-and-emoji --count 8000 --emoji emoji.parquet

UNPACKED is a folder with the unpacked Debian packages that photos.csv names (see README.md here). The crops of the
three photographs marked val have split "val": no crop of them is trained on. With --emoji the emoji of that table are
added, without skin tones, in their own splits.
"""

import argparse
import csv
import json
import math
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from PIL import Image

LIST = Path(__file__).with_name("photos.csv")
LEAST_SIDE = 256  # pixels of the photograph that a crop shows; fewer would be blurred by the camera
SAVED_SIDE = 256


def main() -> None:
    """Write OUT/metadata.jsonl and OUT/NUMBER.jpg."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("unpacked", type=Path)
    arguments.add_argument("--out", type=Path, required=True)
    arguments.add_argument("--count", type=int, default=600, help="crops for training")
    arguments.add_argument("--val", type=int, default=60, help="crops of the photographs that are kept back")
    arguments.add_argument(
        "--emoji", type=Path, help="table of emoji to add, as data emoji or the shared set writes it"
    )
    arguments.add_argument("--seed", type=int, default=0)
    given = arguments.parse_args()
    with LIST.open(encoding="utf-8", newline="") as file:
        photos = list(csv.DictReader(file))
    given.out.mkdir(parents=True, exist_ok=True)
    lines: list[str] = []
    for split, count in (("train", given.count), ("val", given.val)):
        chosen = [photo for photo in photos if photo["split"] == split]
        for number, photo in enumerate(chosen):
            rng = np.random.default_rng([given.seed, split == "val", number])
            image = Image.open(find(given.unpacked, photo)).convert("RGB")
            for _ in range(number, count, len(chosen)):
                name = f"{len(lines):05d}.jpg"
                crop(image, rng).save(given.out / name, quality=95)
                row = {"file_name": name, "caption": photo["caption"], "photo": photo["file"], "split": split}
                lines.append(json.dumps(row) + "\n")
    print(f"{len(lines)} crops of {len(photos)} photographs in {given.out}")
    if given.emoji is not None:
        before = len(lines)
        lines += emoji(given.emoji, given.out)
        print(f"{len(lines) - before} emoji beside them")
    (given.out / "metadata.jsonl").write_text("".join(lines), encoding="utf-8")


def emoji(table: Path, out: Path) -> list[str]:
    """Write the pictures of a table of emoji into OUT, and return their lines of metadata.jsonl."""
    (out / "emoji").mkdir(exist_ok=True)
    lines: list[str] = []
    for row in pq.read_table(table, columns=["image", "label", "split", "skin_tone"]).to_pylist():
        if row["skin_tone"] is None:
            name = f"emoji/{len(lines):05d}.webp"
            (out / name).write_bytes(row["image"]["bytes"])
            lines.append(json.dumps({"file_name": name, "caption": row["label"], "split": row["split"]}) + "\n")
    return lines


def find(unpacked: Path, photo: dict[str, str]) -> Path:
    """The file of a photograph below the folder of its package."""
    found = sorted((unpacked / photo["package"]).rglob(photo["file"]))
    if not found:
        raise SystemExit(f"{photo['file']} is not in {unpacked / photo['package']}: unpack the package there")
    return found[0]


def crop(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """A random square of the picture, as likely to show all of it as a small part, SAVED_SIDE pixels wide."""
    most = min(image.size)
    side = min(most, round(math.exp(rng.uniform(math.log(min(LEAST_SIDE, most)), math.log(most)))))
    left, top = (int(rng.integers(length - side + 1)) for length in image.size)
    return image.resize((SAVED_SIDE, SAVED_SIDE), Image.Resampling.LANCZOS, (left, top, left + side, top + side))


if __name__ == "__main__":
    main()
