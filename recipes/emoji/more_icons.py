"""Draws icons of many sets of one colour, for CLIP: thousands of things that no emoji shows, and many drawings of each.

    pip install resvg_py==0.5.0
    npm install --prefix packages @iconify-json/game-icons@1.2.4 ...     # `--list` says all of them
    python recipes/emoji/more_icons.py packages drawings.parquet --out more-icons.parquet

The columns are those of `drawings.parquet`. Half of the icons are black, the rest in a colour that their label names.
Left out: what only interfaces use, names with words that have no vector, icons whose name holds all words of a label of
the val or test split, so that these stay unseen, and words of `synonyms.csv`. A thing's split is by its name's hash.
"""

import colorsys
import csv
import hashlib
import re
import sys
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from compositions import HUES
from icon_packages import arguments, cell, markup, opened, rendered, write
from PIL import Image

from codebrush.text.word_table import singulars_of
from codebrush.text.word_vectors import is_read

SIDE, DRAWN = 128, 108  # pixels of a picture, and of the icon in its middle
MOST_WORDS, SAME_FIRST = 3, 8  # words of a name; names of a set that begin with the same word


@dataclass(frozen=True)
class IconSet:
    """A package of Iconify: its version, and what a name must end with (each taken off) to be taken."""

    version: str
    endings: tuple[str, ...] = ("",)


SETS = {  # each says its licence in info.json
    "game-icons": IconSet("1.2.4"),
    "mdi": IconSet("1.2.3"),
    "ph": IconSet("1.2.2", ("-fill", "-duotone", "-bold")),
    "tabler": IconSet("1.2.41"),
    "lucide": IconSet("1.2.137"),
    "healthicons": IconSet("1.2.13"),
    "maki": IconSet("1.2.5"),
    "temaki": IconSet("1.2.6"),
    "fa7-solid": IconSet("1.2.5"),
    "fontisto": IconSet("1.2.1"),
    "hugeicons": IconSet("1.2.35"),
    "mingcute": IconSet("1.2.8", ("-fill", "-line")),
    "solar": IconSet("1.2.13", ("-bold-duotone", "-linear")),
    "iconoir": IconSet("1.2.11"),
    "icon-park-solid": IconSet("1.2.4"),
    "material-symbols": IconSet("1.2.98", ("-rounded",)),
    "streamline-freehand": IconSet("1.2.1"),
    "streamline-plump": IconSet("1.2.0", ("-solid", "-remix")),
    "streamline-ultimate": IconSet("1.2.2", ("-bold", "")),
    "pepicons-print": IconSet("1.2.2"),
    "carbon": IconSet("1.2.29"),
}
# Parts of a name that say how it is drawn, or where, and not what.
LOOKS = """
    outline outlined fill filled solid bold thin light line linear duotone rounded sharp round negative 24px alt
    variant square circle box free icons remix px small large big broken
"""
# Words of names that show nothing but an interface, a sign of writing, or a firm.
INTERFACES = """
    arrow arrows align alignment chevron chevrons caret angle angles alpha text border format page layout sort
    filter letter number numeric logo file files data database network cursor git api code html css window windows
    sidebar panel grid table column columns row rows view list menu dots dot badge indicator check plus minus off
    slash add remove edit delete cancel alert settings search sync refresh upload download share link question
    info exclamation up down left right top bottom center vertical horizontal in out input output account user
    users tag tags type mode setting select selected selection abstract shape shapes vector path size scale
    position crop play pause stop next previous skip forward rewind repeat shuffle record volume wifi bluetooth
    signal cellular usb server app apps application web browser software google microsoft apple facebook twitter
    amazon adobe brand linux android ios chrome folder folders ai content item items object objects group ungroup
    merge split copy paste undo redo reset restore save import export login logout sign status progress loading
    loader spinner more less max min maximize minimize fullscreen zoom focus move drag drop resize swap switch
    toggle transfer transform rotate rotation flip mirror function variable math equal equals greater than not and
    or to from of with by first last start end begin on at for the all none full empty half quarter new update
    version build deploy cloud iot vpn dns http url ip id sim nfc rss qr currency bitcoin crypto bank payment
    paypal visa invoice report chart graph analytics meeple interface design subscript superscript heading
    paragraph font underline italic overflow collapse expand close open enter exit return back go launch connect
    connection
"""
SAME_THING = {  # words of icons that name what an emoji's label says otherwise
    "cog": "gear", "spanner": "wrench", "mic": "microphone", "dice": "game die", "bandage": "adhesive bandage",
    "wheelchair": "wheelchair symbol", "mail": "envelope", "credit card": "bank card",
}  # fmt: skip
SILENT = "face sign symbol button with of and on the a in"  # words of a label that name nothing
COLOURS = (*HUES, "brown", "grey")


@dataclass(frozen=True)
class Icon:
    """One icon to draw: its set, its name in the set, what it shows, the markup, and its colour (None: black)."""

    style: str
    name: str
    thing: str
    svg: str
    colour: str | None


def main() -> None:
    """See the top of the file."""
    given = arguments(__doc__, ((name, its.version) for name, its in SETS.items()))
    table = pq.read_table(given.drawings)
    choose = Chooser(table.select(["label", "group", "split"]).to_pylist())
    icons = [icon for name in SETS for icon in choose(name, given.packages / name)]
    with ProcessPoolExecutor() as pool:
        rows = [row for row in pool.map(row_of, icons, chunksize=64) if row is not None]
    rows.sort(key=lambda row: hashlib.sha256(row["id"].encode()).digest())
    write(rows, table.schema, given.out)
    print(f"{given.out}: {len(rows)} icons of {len({row['concept'] for row in rows})} things and colours")
    for reason, count in choose.left_out.most_common():
        print(f"left out, {reason}: {count}", file=sys.stderr)


class Chooser:
    """Says which icons of a set show a thing in words that may be learned."""

    def __init__(self, labels: list[dict[str, Any]]):
        self.left_out: Counter[str] = Counter()
        self.interfaces = {*INTERFACES.split()}
        kept_back = {row["label"] for row in labels if row["split"] != "train" and row["group"] != "icons"}
        self.kept_back = [words for label in kept_back if (words := singular(label) - {*SILENT.split()})]
        with (Path(__file__).parent / "synonyms.csv").open(encoding="utf-8") as file:
            self.asked = {word for row in csv.DictReader(file) for word in singular(row["word"])}

    def __call__(self, name: str, folder: Path) -> Iterator[Icon]:
        """The icons of a set, each thing at most once for each ending."""
        its = SETS[name]
        held = opened(folder, its.version)
        left = {icon for icon, drawn in held["icons"].items() if not drawn.get("hidden")}
        for ending in its.endings:
            seen: set[str] = set()
            begun: Counter[str] = Counter()
            these = {icon for icon in left if icon.endswith(ending)}
            left -= these
            for icon in sorted(these, key=lambda one: (len(one), one)):
                thing = thing_of(icon.removesuffix(ending))
                reason = "drawn already" if thing in seen else self.why_not(thing)
                if not reason and begun[thing.split()[0]] >= SAME_FIRST:
                    reason = "names like it are many"
                if reason:
                    self.left_out[reason] += 1
                    continue
                seen.add(thing)
                begun[thing.split()[0]] += 1
                yield Icon(name, icon, thing, markup(held, icon), colour_of(f"{name}/{icon}", thing))

    def why_not(self, thing: str) -> str:
        """Why a name is not used; "" if it is."""
        words = thing.split()
        if not words or len(words) > MOST_WORDS or not all(word.isalpha() and len(word) > 2 for word in words):
            return "no name in one to three words"
        if self.interfaces & {*words}:
            return "interfaces"
        if not all(is_read(word) for word in words):
            return "words without a vector"
        said = singular(thing) | {word for one in SAME_THING if one in thing for word in SAME_THING[one].split()}
        if any(label <= said for label in self.kept_back):
            return "kept back for val and test"
        return "kept back for words without captions" if self.asked & said else ""


def thing_of(name: str) -> str:
    """What an icon's name says that it shows: without versions, sizes and looks."""
    return " ".join(word for word in re.sub(r"-?\d+", "", name).split("-") if word and word not in LOOKS.split())


def singular(text: str) -> set[str]:
    """The words of a text, with what each may be the plural of."""
    words = re.findall(r"[^\W\d_]+", text.lower())
    return {form for word in words for form in (word, *singulars_of(word))}


def hashed(text: str) -> int:
    """A number below 2**32 that is always the same for a text."""
    return int(hashlib.sha256(text.encode()).hexdigest()[:8], 16)


def colour_of(key: str, thing: str) -> str | None:
    """The colour of every second icon, by a hash; None for those whose name says one."""
    number = hashed(key)
    named = {*COLOURS, "black", "white", "gold", "golden", "silver"} & {*thing.split()}
    return None if number % 2 or named else COLOURS[number // 2 % len(COLOURS)]


def row_of(icon: Icon) -> dict[str, Any] | None:
    """The row of an icon; None for one that shows nothing."""
    key = f"{icon.style}/{icon.name}"
    svg = icon.svg.replace("currentColor", ink(icon.colour, key))
    wide, high = (float(number) for number in re.findall(r'(?:width|height)="([\d.]+)"', svg)[:2])
    shape = rendered(svg, *((DRAWN, None) if wide >= high else (None, DRAWN)))
    picture = Image.new("RGB", (SIDE, SIDE), "white")
    picture.paste(shape, ((SIDE - shape.width) // 2, (SIDE - shape.height) // 2))
    if np.asarray(picture.convert("L")).min() > 200:
        return None
    label = icon.thing if icon.colour is None else f"{icon.colour} {icon.thing}"
    share = hashed(icon.thing) / 2**32
    split = "train" if share < 0.9 else "val" if share < 0.95 else "test"
    return {"id": key, "hexcode": None, "concept": label, "style": icon.style, "label": label, "tags": [],
            "group": "icons", "subgroup": None, "skin_tone": None, "width": SIDE, "height": SIDE,
            "image": cell(picture), "split": split}  # fmt: skip


def ink(colour: str | None, key: str) -> str:
    """A colour as SVG says it: nearly black, or a shade of the named one, by a hash."""
    first, second, third = hashlib.sha256(f"ink {key}".encode()).digest()[:3]
    if colour is None or colour == "grey":
        level = (90 if colour else 0) + first % 60
        return f"#{level:02x}{level:02x}{level:02x}"
    hue = (22 if colour == "brown" else HUES[colour]) + first % 13 - 6
    strong, bright = 0.65 + second / 255 * 0.35, 0.75 + third / 255 * 0.25
    if colour == "brown":
        bright = 0.35 + third / 255 * 0.25
    if colour == "pink":
        strong = 0.35 + second / 255 * 0.25
    red, green, blue = (round(255 * part) for part in colorsys.hsv_to_rgb(hue % 360 / 360, strong, bright))
    return f"#{red:02x}{green:02x}{blue:02x}"


if __name__ == "__main__":
    main()
