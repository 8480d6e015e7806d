"""Questions about pictures of many kinds, with their answers: what `answer_confidence.py` learns from and measures."""

import io
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq
from PIL import Image, ImageDraw

from codebrush.data.sources.filters import parse_clause
from codebrush.data.synthetic.outlines import COLOURS
from codebrush.data.synthetic.questions import scene_questions
from codebrush.data.synthetic.shapes import scene
from codebrush.data.synthetic.varied_scenes import PALETTE, varied_scene
from codebrush.training.recipes import read_recipe
from codebrush.training.tasks.captioner import CaptionerRecipe

RECIPE = Path(__file__).parent / "captioner" / "captioner-9.yaml"
SEEDS = {"learn": 7_000_001, "measure": 1_000_003}  # of scenes; training used seeds below a million
SPLITS = {"learn": "val", "measure": "test"}  # of emoji and icons
PICTURES = {"scenes": 220, "emoji": 180, "photographs": 160, "icons": 90, "drawings": 70}
SIDE = 64
ANIMALS = ("bird", "cat", "deer", "dog", "frog", "horse")
CLASSES = (*ANIMALS, "airplane", "automobile", "truck", "ship")
NAMES = {"airplane": "airplane, small airplane", "automobile": "automobile, racing car, sport utility vehicle"}
NAMES |= {"truck": "delivery truck, articulated lorry, pickup truck", "ship": "ship, motor boat, ferry, speedboat"}
FOREIGN = {
    "learn": """
        what color is the roof; what shapes; who is this; what time is it; why is it sad; what is the weather like;
        how many windows are there; what is the man holding; is it raining; what color is her hair; how old is he; what
        does the sign say; how many people are there; where was this taken; which animal is on the left; what colour are
        the eyes; is the door open; what is it made of; how many legs does it have; is it bigger than a house; what is
        the cat doing; what are the shapes; colors; describe the picture; what sport is this; is the woman smiling; can
        it fly; which country is this; what brand is it; how much does it cost""",
    "measure": """
        what color is the sky; which shapes are in the picture; who painted this; what season is it; why are they
        running; how many trees do you see; what is the dog eating; is it night; what color is the car; when was this
        made; what is written here; how many wheels; where is the dog; what is in the background; what colour is the
        shirt; is the window broken; what is the biggest thing; how tall is it; is it old; what's the mood; list the
        objects; what material is the table; is the man happy; does it have wings; what city is this; name the colours;
        how many fingers are raised; which is larger; is there a person behind the tree; what is on the table""",
}
FORMS = {"learn": ("{}?", "{}"), "measure": ("{}?",)}


class Asked(NamedTuple):
    """A question about a picture of some `source`; its `kind` is "own", "names" (what an emoji is), "is it" (a thing
    that it names), "scene" (of a scene) or "foreign". `answer` is the right one, None if none is: the captioner should
    not know."""

    source: str
    kind: str
    question: str
    answer: str | None


@cache
def rules() -> list[Any]:
    """The rules by which the captioner was asked about emoji."""
    recipe = read_recipe(RECIPE, "emoji.parquet", "captioner").plan.recipe
    assert isinstance(recipe, CaptionerRecipe)
    return list(recipe.questions)


def emoji_questions(row: dict[str, Any], labels: Sequence[str], rng: np.random.Generator) -> list[tuple[str, str]]:
    """The questions of every rule about an emoji, with their answers."""
    found = []
    for rule in rules():
        ask = rule.ask[int(rng.integers(len(rule.ask)))]
        if rule.answer:
            found.append((ask, row[rule.answer.strip("{}")]))
        elif rule.yes_if:
            meets = all(clause.keeps(row[clause.column]) for clause in map(parse_clause, rule.yes_if))
            found.append((ask, "yes" if meets else "no"))
        elif rule.contrast == "label":
            name = row["label"] if rng.random() < 0.5 else labels[int(rng.integers(len(labels)))]
            found.append((ask.format(label=name), "yes" if name == row["label"] else "no"))
    return found


def photo_questions(label: str, rng: np.random.Generator) -> list[tuple[str, str | None]]:
    """The same about a photograph of CIFAR-10, as far as its label says."""
    found: list[tuple[str, str | None]] = []
    for rule in rules():
        ask = rule.ask[int(rng.integers(len(rule.ask)))]
        if rule.answer == "{label}":
            found.append((ask, NAMES.get(label, f"{label}, {label} face")))
        elif rule.answer == "{group}":
            found.append((ask, "animals-nature" if label in ANIMALS else "travel-places"))
        elif rule.answer:
            found.append((ask, None))
        elif rule.yes_if:
            found.append((ask, "yes" if "animal" in ask and label in ANIMALS else "no"))
        elif rule.contrast == "label":
            name = label if rng.random() < 0.5 else CLASSES[int(rng.integers(len(CLASSES)))]
            found.append((ask.format(label=name), "yes" if name == label else "no"))
    return found


def contrast_questions(label: str, labels: Sequence[str], rng: np.random.Generator) -> list[tuple[str, str | None]]:
    """Whether it is what its label says, or what another's does, as people ask: with an article."""
    name = label if rng.random() < 0.5 else labels[int(rng.integers(len(labels)))]
    article = "an" if name[:1] in "aeiou" else "a"
    return [(f"is it {article} {name}?", "yes" if name == label else "no")]


def naming_questions(rng: np.random.Generator) -> list[tuple[str, str | None]]:
    """What a picture shows, its group and style: of pictures that have no such name."""
    return [(rule.ask[int(rng.integers(len(rule.ask)))], None) for rule in rules() if rule.answer]


def questions_of_scene(rng: np.random.Generator) -> list[tuple[str, str | None]]:
    """Questions about a scene that is not in the picture."""
    drawn = varied_scene(rng, SIDE)
    asked = scene_questions(drawn.objects, drawn.background, SIDE, tuple(PALETTE), rng)
    return [(each.ask, None) for each in asked]


def foreign_questions(part: str, rng: np.random.Generator) -> list[tuple[str, str | None]]:
    """Questions of kinds that no training asked."""
    forms = FORMS[part]
    texts = [" ".join(text.split()) for text in FOREIGN[part].split(";")]
    return [(forms[int(rng.integers(len(forms)))].format(text), None) for text in texts]


def pick(pairs: Sequence[tuple[str, str | None]], count: int, rng: np.random.Generator) -> list[tuple[str, str | None]]:
    """`count` of the pairs, at random."""
    return [pairs[number] for number in rng.permutation(len(pairs))[:count]]


def drawing(rng: np.random.Generator, part: str) -> Image.Image:
    """A house with a roof, the sun and a person; or, to measure, a face, a tree and writing."""
    picture = Image.new("RGB", (160, 160), "white")
    draw = ImageDraw.Draw(picture)
    first, second, third = ([int(value) for value in rng.integers(0, 220, 3)] for _ in range(3))
    ink, paint, other = tuple(first), tuple(second), tuple(third)
    x, y, size = (int(value) for value in rng.integers((10, 50, 36), (50, 80, 60)))
    if part == "learn":
        draw.rectangle((x, y, x + size, y + size), outline=ink, fill=paint if rng.random() < 0.5 else None, width=3)
        draw.polygon([(x - 6, y), (x + size // 2, y - 32), (x + size + 6, y)], outline=ink, fill=other)
        draw.ellipse((122, 8, 150, 36), fill=(250, 210, 30))
        draw.ellipse((120, 78, 136, 94), outline=ink, width=2)
        draw.line([(128, 94), (128, 120), (120, 140), (128, 120), (136, 140)], fill=ink, width=2)
        draw.line([(116, 104), (140, 104)], fill=ink, width=2)
    else:
        draw.ellipse((x, y, x + size, y + size), outline=ink, width=3)
        for eye in (x + size // 3, x + 2 * size // 3):
            draw.ellipse((eye - 3, y + size // 3, eye + 3, y + size // 3 + 6), fill=ink)
        draw.arc((x + 10, y + 12, x + size - 10, y + size - 8), 20, 160, fill=ink, width=3)
        draw.rectangle((122, 90, 132, 140), fill=(120, 80, 40))
        draw.ellipse((106, 50, 150, 96), fill=paint)
        draw.text((12, 140), "my garden", fill=ink)
    return picture


def rows_of(file: Path, split: str, count: int) -> list[dict[str, Any]]:
    """The first rows of a split without skin tones."""
    rows = pq.read_table(file, filters=[("split", "=", split)]).to_pylist()
    return [row for row in rows if row.get("skin_tone") is None][:count]


def opened(row: dict[str, Any]) -> Image.Image:
    """The picture of a row."""
    return Image.open(io.BytesIO(row["image"]["bytes"])).convert("RGB")


def pictures(part: str, data: Path) -> Iterator[tuple[Image.Image, list[Asked]]]:
    """Pictures of every source, each with questions of several kinds."""
    rng = np.random.default_rng(SEEDS[part])

    def asked(source: str, kind: str, pairs: Sequence[tuple[str, str | None]], count: int) -> list[Asked]:
        return [Asked(source, kind, *pair) for pair in pick(pairs, count, rng)]

    for index in range(PICTURES["scenes"]):
        drawn = varied_scene(rng, SIDE) if index % 2 else scene(SEEDS[part], index, SIDE)
        colours = tuple(PALETTE if index % 2 else COLOURS)
        own = [(q.ask, q.answer) for q in scene_questions(drawn.objects, drawn.background, SIDE, colours, rng)]
        found = asked("scenes", "own", own, 6) + asked("scenes", "foreign", foreign_questions(part, rng), 2)
        yield drawn.image, found + asked("scenes", "names", naming_questions(rng), 1)
    rows = rows_of(data / "emoji.parquet", SPLITS[part], PICTURES["emoji"])
    labels = [row["label"] for row in rows]
    for row in rows:
        found = asked("emoji", "own", emoji_questions(row, labels, rng), 5)
        found += asked("emoji", "foreign", foreign_questions(part, rng), 2)
        several = [pair for _ in range(3) for pair in contrast_questions(row["label"], labels, rng)]
        found += asked("emoji", "is it", several, len(several))
        yield opened(row), found + asked("emoji", "scene", questions_of_scene(rng), 3)
    photos = rows_of(data / "cifar10-mini.parquet", "train" if part == "learn" else "test", PICTURES["photographs"])
    for row in photos:
        found = asked("photographs", "names", photo_questions(row["label"], rng), 3)
        several = [pair for _ in range(3) for pair in contrast_questions(row["label"], CLASSES, rng)]
        found += asked("photographs", "is it", several, len(several))
        found += asked("photographs", "foreign", foreign_questions(part, rng), 2)
        yield opened(row), found + asked("photographs", "scene", questions_of_scene(rng), 3)
    icons = rows_of(data / "icons.parquet", SPLITS[part], PICTURES["icons"])
    for row in icons:
        pairs = contrast_questions(row["label"], [each["label"] for each in icons], rng)
        yield opened(row), asked("icons", "is it", pairs, 1)
    for source, others in (
        ("icons", [opened(row) for row in icons]),
        ("drawings", [drawing(rng, part) for _ in range(PICTURES["drawings"])]),
        ("large photographs", list(crops(rng)) if part == "measure" else []),
    ):
        for picture in others:
            found = asked(source, "foreign", foreign_questions(part, rng), 2)
            found += asked(source, "names", naming_questions(rng), 0 if source == "icons" else 2)
            yield picture, found + asked(source, "scene", questions_of_scene(rng), 3)


def crops(rng: np.random.Generator) -> Iterator[Image.Image]:
    """Square crops of scikit-learn's two photographs."""
    from sklearn.datasets import load_sample_images

    for number in range(60):
        picture = Image.fromarray(load_sample_images().images[number % 2])
        side = int(rng.integers(120, 400))
        left, top = (int(rng.integers(0, length - side)) for length in picture.size)
        yield picture.crop((left, top, left + side, top + side))
