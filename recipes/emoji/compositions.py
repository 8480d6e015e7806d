"""Makes drawings of things that words change: in another colour, several of a kind, two beside each other, worn.

    pip install inflect
    python recipes/emoji/compositions.py drawings.parquet --out compositions.parquet --count 12000

Each row is made of train drawings of one style: "blue apple" (the hue turned, the colour named from the pixels), "two
hearts", "two blue hearts", "dog and a ball", "two dogs and a ball", "cat with sunglasses". The columns are those of the
first file, `subgroup` says which of the four a row is, and `concept` is the same for rows that say the same.
"""

import argparse
import io
from collections import defaultdict
from pathlib import Path
from typing import Any

import inflect  # pyright: ignore[reportMissingImports]
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from codebrush.files import atomic_file
from codebrush.generation.transparent_ground import with_transparent_ground

SIDE = 128
# hue in degrees, and saturation and value that the colour has at its strongest; None: as the drawing has them
HUES = {"red": 0, "orange": 30, "yellow": 52, "green": 125, "blue": 218, "purple": 278, "pink": 330}
WORDS = {*HUES, "black", "white", "brown", "grey", "gray", "golden", "gold", "silver", "light", "dark", "colour"}
NEAR = 18.0  # degrees of hue by which a pixel may differ from its colour
LEAST, MAIN = 0.06, 0.6  # of the picture that is coloured at least, and of what is coloured that has the main hue
# What may be drawn in another colour, be more than one, and stand beside something else.
THINGS = {
    "animals-nature": (
        *("animal-bug", "animal-bird", "animal-mammal", "animal-reptile", "animal-marine", "animal-amphibian"),
        "plant-flower",
    ),
    "food-drink": ("food-fruit", "food-vegetable", "food-prepared", "food-sweet", "drink"),
    "travel-places": ("transport-ground", "transport-air", "transport-water", "place-building"),
    "objects": (
        *("musical-instrument", "clothing", "household", "phone", "lock"),
        *("book-paper", "tool", "light-video", "mail"),
    ),
    "activities": ("sport", "game", "event"),
    "smileys-emotion": ("heart",),
}
UNCOUNTABLE = (
    "hair",
    "glasses",
    "shorts",
    "scissors",
    "sunglasses",
    "jeans",
    "grapes",
    "wood",
    "salt",
    "rice",
    "bread",
)
NUMBERS = ("two", "three")
COLOURED, SEVERAL = 0.3, 0.25  # of what is counted, in another colour; of what stands beside another, two of a kind
WORN = {  # label: how wide beside the head, and where its middle is below the head's middle, in parts of the head
    "glasses": (0.72, -0.08),
    "sunglasses": (0.72, -0.08),
    "top hat": (0.6, -0.6),
    "crown": (0.55, -0.6),
    "graduation cap": (0.7, -0.5),
    "billed cap": (0.65, -0.5),
    "woman’s hat": (0.75, -0.5),
}
HEADS = ("cat-face", "face-smiling", "face-neutral-skeptical", "monkey-face", "face-concerned", "face-sleepy")
# Animals whose drawings are heads; "dog face" with a hat is "dog with a hat".
ANIMAL_HEADS = (
    *("dog face", "cat face", "wolf", "fox", "raccoon", "lion", "tiger face", "horse face", "moose", "unicorn"),
    *("cow face", "pig face", "mouse face", "hamster", "rabbit face", "bear", "polar bear", "koala", "panda", "frog"),
)
SHARES = {"recoloured": 0.3, "counted": 0.25, "beside": 0.3, "worn": 0.15}
Row = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("drawings", type=Path)
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--count", type=int, default=12_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--styles", nargs="*", help="of these alone; default: all but fluent-high-contrast")
    given = parser.parse_args()
    table = pq.read_table(given.drawings)
    rows = [row for row in table.to_pylist() if row["split"] == "train" and row["skin_tone"] is None]
    styles = set(given.styles or {row["style"] for row in rows} - {"fluent-high-contrast"})
    maker = Maker([row for row in rows if row["style"] in styles], np.random.default_rng(given.seed))
    made: list[Row] = []
    for kind, share in SHARES.items():
        wanted, tries = round(share * given.count), 0
        while wanted and tries < 50 * given.count:
            tries += 1
            if (row := getattr(maker, kind)()) is not None:
                made.append(row | {"id": f"{kind}/{len(made):05d}", "subgroup": kind})
                wanted -= 1
        print(f"{kind}: {round(share * given.count) - wanted} rows in {tries} tries")
    with atomic_file(given.out) as part:
        pq.write_table(pa.Table.from_pylist(made, schema=table.schema), part, compression="zstd", row_group_size=1024)


class Maker:
    """Draws rows at random from the drawings in `rows`."""

    def __init__(self, rows: list[Row], rng: np.random.Generator):
        self.rng, self.words = rng, inflect.engine()
        kinds = {(group, subgroup) for group, subgroups in THINGS.items() for subgroup in subgroups}
        self.things = [row for row in rows if (row["group"], row["subgroup"]) in kinds and is_plain(row["label"])]
        self.heads = [row for row in rows if row["subgroup"] in HEADS or row["label"] in ANIMAL_HEADS]
        self.by_style: dict[str, list[Row]] = defaultdict(list)
        for row in self.things:
            self.by_style[row["style"]].append(row)
        self.worn_by_style: dict[str, list[Row]] = defaultdict(list)
        for row in rows:
            if row["label"] in WORN:
                self.worn_by_style[row["style"]].append(row)

    def one_of(self, rows: list[Row]) -> Row:
        return rows[self.rng.integers(len(rows))]

    def recoloured(self) -> Row | None:
        """A thing with its main hue turned to another, or as it is, with the word for its colour."""
        row = self.one_of(self.things)
        coloured = self.in_colour(row)
        return None if coloured is None else self.row(row, *coloured)

    def in_colour(self, row: Row) -> tuple[str, Image.Image] | None:
        """The label with a colour and the picture in it; None where no hue is the main one or turning it fails."""
        picture = opened(row)
        found = main_hue(picture)
        if found is None:
            return None
        names = list(HUES)
        target = self.rng.choice([name for name in names if name != found[0]]) if self.rng.random() < 0.8 else found[0]
        if target != found[0]:
            picture = turned(picture, found[1], HUES[str(target)] - found[1])
            after = main_hue(picture)
            if after is None or after[0] != target:
                return None
        return f"{target} {without_colours(row['label'])}", picture

    def several(self, label: str) -> str | None:
        """The plural of a thing's label; None if there is none, or it is one."""
        first, last = label.split()[0], label.split()[-1]
        if last in UNCOUNTABLE or first in NUMBERS or self.words.singular_noun(last):  # pyright: ignore[reportArgumentType]
            return None
        return str(self.words.plural(label))  # pyright: ignore[reportArgumentType]

    def counted(self) -> Row | None:
        """Two or three of a thing side by side, some in another colour."""
        row, number = self.one_of(self.things), int(self.rng.integers(2, 4))
        shown = self.in_colour(row) if self.rng.random() < COLOURED else (row["label"], opened(row))
        if shown is None or (many := self.several(shown[0])) is None:
            return None
        return self.row(row, f"{NUMBERS[number - 2]} {many}", placed_in_row([shown[1]] * number, self.rng))

    def beside(self) -> Row | None:
        """Two different things of a style beside each other, sometimes two of the first."""
        style = self.one_of(self.things)["style"]
        one, other = (self.one_of(self.by_style[style]) for _ in range(2))
        if one["concept"] == other["concept"] or self.words.singular_noun(other["label"].split()[-1]):
            return None
        name, number = one["label"], 1
        if self.rng.random() < SEVERAL:
            many, number = self.several(name), 2
            if many is None:
                return None
            name = f"two {many}"
        placed = placed_in_row([opened(one)] * number + [opened(other)], self.rng)
        return self.row(one, f"{name} and {self.words.a(other['label'])}", placed, other["concept"])

    def worn(self) -> Row | None:
        """A head that wears a hat or glasses of the same style."""
        head = self.one_of(self.heads)
        things = self.worn_by_style[head["style"]]
        if not things:
            return None
        thing = self.one_of(things)
        width, below = WORN[thing["label"]]
        ground = opened(head).copy()
        hat = below < -0.3
        if hat:  # the head moves down to make room
            room = Image.new("RGB", (SIDE, SIDE), "white")
            smaller = ground.resize((104, 104), Image.Resampling.LANCZOS)
            room.paste(smaller, (12, 24))
            ground = room
        left, top, right, bottom = box_of(ground)
        worn = with_transparent_ground(opened(thing))
        worn = worn.crop(box_of(opened(thing)))
        size = max(8, round(width * (right - left)))
        worn = worn.resize((size, max(4, round(size * worn.height / worn.width))), Image.Resampling.LANCZOS)
        middle = (left + right) // 2, round((top + bottom) / 2 + below * (bottom - top))
        corner = middle[0] - worn.width // 2, max(0, middle[1] - worn.height // 2)
        ground.paste(worn, corner, worn)
        name = thing["label"] if thing["label"].endswith("glasses") else self.words.a(thing["label"])
        animal = head["label"].removesuffix(" face") if head["label"] in ANIMAL_HEADS else head["label"]
        return self.row(head, f"{animal} with {name}", ground, thing["concept"])

    def row(self, base: Row, label: str, picture: Image.Image, *more: str) -> Row:
        stored = io.BytesIO()
        picture.save(stored, format="WEBP", lossless=True)
        image = {"bytes": stored.getvalue(), "path": ""}
        concept = "+".join([base["concept"], *more, label.split()[0] if not more else "with"])
        return {**base, "label": label, "tags": [], "group": "composed", "concept": concept, "image": image,
                "width": SIDE, "height": SIDE}  # fmt: skip


def opened(row: Row) -> Image.Image:
    image = Image.open(io.BytesIO(row["image"]["bytes"])).convert("RGB")
    return image if image.size == (SIDE, SIDE) else image.resize((SIDE, SIDE), Image.Resampling.LANCZOS)


def is_plain(label: str) -> bool:
    """Whether a label names one thing in at most three words."""
    words = label.split()
    return len(words) <= 3 and not any(mark in label for mark in ":,()") and not {"and", "of", "with", "on"} & {*words}


def without_colours(label: str) -> str:
    """`label` without its words for colours, unless nothing else is left: an "orange" stays one."""
    left = [word for word in label.split() if word.lower() not in WORDS]
    return " ".join(left) or label


def hues(picture: Image.Image) -> tuple[np.ndarray, np.ndarray]:
    """The hue of each pixel in degrees (H, W), and which are coloured (H, W)."""
    hue, saturation, value = np.moveaxis(np.asarray(picture.convert("HSV")).astype(float), -1, 0)
    return hue * 360 / 255, (saturation > 70) & (value > 60)


def main_hue(picture: Image.Image) -> tuple[str, float] | None:
    """The name and the hue in degrees of the colour that most of a drawing has; None if there is none."""
    hue, coloured = hues(picture)
    if coloured.mean() < LEAST:
        return None
    for name, middle in HUES.items():
        away = (hue - middle + 180) % 360 - 180
        near = coloured & (np.abs(away) <= NEAR)
        if near.sum() >= MAIN * coloured.sum():
            # Dark orange is brown, and pale red is pink, to anybody who looks.
            pixels = np.asarray(picture.convert("HSV"))[near].astype(float)
            if name == "orange" and np.median(pixels[:, 2]) < 170:
                return None
            if name == "red" and (np.median(pixels[:, 1]) < 130 or np.median(pixels[:, 2]) < 110):
                return None
            return name, float(middle + np.median(away[near]))
    return None


def turned(picture: Image.Image, hue: float, by: float) -> Image.Image:
    """A drawing with all hues near `hue` turned by `by` degrees, and those further away less and less."""
    pixels = np.asarray(picture.convert("HSV")).astype(float)
    away = np.abs((pixels[..., 0] * 360 / 255 - hue + 180) % 360 - 180)
    share = np.clip((3 * NEAR - away) / NEAR, 0, 1)  # turned wholly within two NEAR, and not at all beyond three
    pixels[..., 0] = (pixels[..., 0] + share * by * 255 / 360) % 255
    return Image.fromarray(pixels.round().astype(np.uint8), "HSV").convert("RGB")


def box_of(picture: Image.Image) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of what is not white."""
    shown = np.asarray(picture).min(-1) < 240
    rows, columns = np.flatnonzero(shown.any(1)), np.flatnonzero(shown.any(0))
    if not len(rows):
        return 0, 0, picture.width, picture.height
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def placed_in_row(pictures: list[Image.Image], rng: np.random.Generator) -> Image.Image:
    """Drawings side by side on white, each as large as there is room, on one ground line or a little off it."""
    gap, room = 4, Image.new("RGB", (SIDE, SIDE), "white")
    cut = [picture.crop(box_of(picture)) for picture in pictures]
    most = (SIDE - gap * (len(cut) + 1)) / len(cut)
    scales = [min(most / each.width, 0.62 * SIDE / each.height) for each in cut]
    sized = [
        each.resize((max(4, int(each.width * scale)), max(4, int(each.height * scale))), Image.Resampling.LANCZOS)
        for each, scale in zip(cut, scales, strict=True)
    ]
    left = (SIDE - sum(each.width for each in sized) - gap * (len(sized) - 1)) // 2
    ground = SIDE // 2 + max(each.height for each in sized) // 2
    for each in sized:
        room.paste(each, (left, ground - each.height - int(rng.integers(0, 9))))
        left += each.width + gap
    return room


if __name__ == "__main__":
    main()
