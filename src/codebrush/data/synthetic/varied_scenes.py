"""Draws scenes of one to six shapes in many shades, sizes and places.

`shapes.scene` draws a fixed palette so that a rule on pixels can read it back. Here a colour is a range of hues and
shades, so that models that learn from these scenes also understand other drawings.
"""

import colorsys
import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from codebrush.data.synthetic.outlines import RING_HOLE, SHAPES, outline
from codebrush.data.synthetic.shapes import LARGE, SMALL, SceneObject, pick
from codebrush.data.synthetic.wording import NUMBERS, article, plural

RGB = tuple[int, int, int]
Alike = Literal["shape", "colour"]
# The ranges of hue (degrees, may pass 360), saturation and value.
PALETTE: dict[str, tuple[tuple[float, float], tuple[float, float], tuple[float, float]]] = {
    "red": ((350, 368), (0.7, 1), (0.65, 1)),
    "orange": ((22, 38), (0.75, 1), (0.88, 1)),
    "yellow": ((48, 61), (0.6, 1), (0.88, 1)),
    "green": ((92, 152), (0.45, 1), (0.35, 1)),
    "blue": ((205, 245), (0.55, 1), (0.45, 1)),
    "purple": ((264, 300), (0.45, 1), (0.35, 0.85)),
    "pink": ((315, 348), (0.25, 0.6), (0.92, 1)),
    "brown": ((16, 32), (0.55, 0.9), (0.32, 0.58)),
    "black": ((0, 360), (0, 0.3), (0, 0.1)),
    "white": ((0, 360), (0, 0.04), (0.97, 1)),
    "grey": ((0, 360), (0, 0.06), (0.4, 0.68)),
}
GROUNDS = ("white", "white", "white", "pale", "pale", "grey", "black", "any")
PALE = {"pale blue": (195, 235), "pale green": (95, 145), "pale pink": (325, 358)}  # hues of the named ones
SEEN = 0.08  # the least saturation at which a pale background does not look white
CONTRAST = 110.0  # least distance of an object from the background, of 441
DIAMETERS = {1: (0.16, 0.85), 2: (0.15, 0.48), 3: (0.14, 0.4), 4: (0.13, 0.36), 5: (0.12, 0.31), 6: (0.12, 0.28)}
# How often a scene has one, two ... shapes. Places are learned from scenes with few of them.
COUNTS = (0.22, 0.32, 0.16, 0.1, 0.1, 0.1)
TRIES = 60  # to place one object, before the sizes shrink
SHRINK = 0.85
EDGE = 0.02  # of the side, kept free along the border and between objects
MAX_ROTATION = 10.0  # degrees


class VariedScene(NamedTuple):
    """A square picture, the objects in it, and the name of its background colour ("" if it has none)."""

    image: Image.Image
    objects: tuple[SceneObject, ...]
    background: str


class _Thing(NamedTuple):
    colour: str
    rgb: RGB
    shape: str
    centre: tuple[float, float]
    diameter: float
    rotation: float  # degrees


def varied_scene(
    rng: np.random.Generator, size: int = 64, count: int | None = None, alike: Alike | None = None
) -> VariedScene:
    """Draw one scene of `size` pixels square, with `count` shapes (1 to 6) or a random number of them.

    With `alike` the objects have that in common and differ in the other. The same state of `rng` gives the same scene.
    """
    name, ground = _ground(rng)
    count = count or 1 + int(rng.choice(len(COUNTS), p=COUNTS))
    circles = _places(count, rng)
    things = [
        _Thing(colour, rgb, shape, centre, diameter, _rotation(rng))
        for (colour, rgb, shape), (centre, diameter) in zip(_kinds(count, ground, rng, alike), circles, strict=True)
    ]
    scale = int(rng.integers(2, 5))  # drawn larger, then averaged down, for edges soft in several ways
    objects = tuple(SceneObject(t.colour, t.shape, _size(t.diameter), _box(t, size)) for t in things)
    return VariedScene(_draw(things, ground, size, scale, rng), objects, name)


def scene_captions(objects: Sequence[SceneObject], rng: np.random.Generator) -> str:
    """A caption that lists the objects in random order: "two red circles and a blue square"."""
    counts: dict[tuple[str, str], int] = {}
    for each in objects:
        counts[each.colour, each.shape] = counts.get((each.colour, each.shape), 0) + 1
    phrases = [
        article(f"{colour} {shape}") if count == 1 else f"{NUMBERS[count]} {colour} {plural(shape)}"
        for (colour, shape), count in counts.items()
    ]
    phrases = [phrases[number] for number in rng.permutation(len(phrases))]
    return phrases[0] if len(phrases) == 1 else f"{', '.join(phrases[:-1])} and {phrases[-1]}"


def _rotation(rng: np.random.Generator) -> float:
    return rng.uniform(-MAX_ROTATION, MAX_ROTATION) if rng.random() < 0.4 else 0.0


def _ground(rng: np.random.Generator) -> tuple[str, RGB]:
    kind = pick(rng, GROUNDS)
    if kind in ("white", "grey", "black"):
        return kind, _shade(kind, rng)
    if kind == "any":
        name = pick(rng, tuple(PALETTE))
        return name, _shade(name, rng)
    hue, saturation = rng.uniform(0, 1), rng.uniform(0.05, 0.2)
    names = [name for name, (low, high) in PALE.items() if low < 360 * hue < high and saturation > SEEN]
    return (names or [""])[0], _rgb(hue, saturation, rng.uniform(0.9, 1))


def _kinds(
    count: int, ground: RGB, rng: np.random.Generator, wanted: Alike | None = None
) -> list[tuple[str, RGB, str]]:
    """The colour, its shade, and the shape of each object: all the same, one colour, one shape, or at random."""
    visible = [name for name in PALETTE if _distance(_typical(name), ground) > CONTRAST * 1.2]
    alike = rng.random()
    colours = [pick(rng, visible) for _ in range(count)]
    shapes = [pick(rng, SHAPES) for _ in range(count)]
    if wanted is not None:
        # On some backgrounds few colours are visible: then two objects share one.
        colours, shapes = ([words[n] for n in _different(len(words), count, rng)] for words in (visible, SHAPES))
    if wanted == "colour" or (wanted is None and alike < 0.45):
        colours = colours[:1] * count
    if wanted == "shape" or (wanted is None and (alike < 0.3 or 0.45 < alike < 0.6)):
        shapes = shapes[:1] * count
    shades = {name: _visible_shade(name, ground, rng) for name in dict.fromkeys(colours)}
    own = rng.random() < 0.4  # objects of the same colour differ in shade
    return [
        (colour, _visible_shade(colour, ground, rng) if own else shades[colour], shape)
        for colour, shape in zip(colours, shapes, strict=True)
    ]


def _different(choices: int, count: int, rng: np.random.Generator) -> list[int]:
    """`count` numbers below `choices`, all different if there are that many."""
    return [int(number) % choices for number in rng.permutation(max(choices, count))[:count]]


def _places(count: int, rng: np.random.Generator) -> list[tuple[tuple[float, float], float]]:
    """Centres and diameters, as shares of the side, of circles that do not touch."""
    least, most = DIAMETERS[count]
    found: list[tuple[tuple[float, float], float]] = []
    factor = 1.0
    while len(found) < count:
        for _ in range(TRIES):
            diameter = max(least, factor * rng.uniform(least, most))
            near = EDGE + diameter / 2
            centre = (rng.uniform(near, 1 - near), rng.uniform(near, 1 - near))
            if all(math.dist(centre, other) > (diameter + wide) * 0.56 + EDGE for other, wide in found):
                found.append((centre, diameter))
                break
        else:
            factor *= SHRINK
            if factor < SHRINK**6:  # too crowded: start again
                found, factor = [], 1.0
    return found


def _draw(things: Sequence[_Thing], ground: RGB, size: int, scale: int, rng: np.random.Generator) -> Image.Image:
    canvas = Image.new("RGB", (size * scale, size * scale), ground)
    draw = ImageDraw.Draw(canvas)
    dark = (20, 20, 20) if rng.random() < 0.1 and sum(ground) > 300 else None  # an inked outline
    for thing in things:
        draw.polygon(_corners(thing, size * scale), fill=thing.rgb, outline=dark)
        if thing.shape == "ring":
            hole = thing._replace(shape="circle", diameter=thing.diameter * RING_HOLE)
            draw.polygon(_corners(hole, size * scale), fill=ground, outline=dark)
    return canvas.resize((size, size), Image.Resampling.BICUBIC)


def _corners(thing: _Thing, side: int) -> list[tuple[float, float]]:
    angle, radius = math.radians(thing.rotation), thing.diameter / 2
    cos, sin = math.cos(angle), math.sin(angle)
    return [
        (
            side * (thing.centre[0] + radius * (across * cos - down * sin)),
            side * (thing.centre[1] + radius * (across * sin + down * cos)),
        )
        for across, down in outline(thing.shape)
    ]


def _box(thing: _Thing, size: int) -> tuple[float, float, float, float]:
    across, down = zip(*_corners(thing, size), strict=True)
    return min(across), min(down), max(across), max(down)


def _size(diameter: float) -> str:
    """ "small", "large", or "" between the two."""
    return "small" if diameter < SMALL[1] else "large" if diameter > LARGE[0] else ""


def _visible_shade(name: str, ground: RGB, rng: np.random.Generator) -> RGB:
    for _ in range(20):
        shade = _shade(name, rng)
        if _distance(shade, ground) > CONTRAST:
            return shade
    return _typical(name)


def _shade(name: str, rng: np.random.Generator) -> RGB:
    hue, saturation, value = (rng.uniform(*ends) for ends in PALETTE[name])
    return _rgb(hue / 360, saturation, value)


def _typical(name: str) -> RGB:
    hue, saturation, value = ((ends[0] + ends[1]) / 2 for ends in PALETTE[name])
    return _rgb(hue / 360, saturation, value)


def _rgb(hue: float, saturation: float, value: float) -> RGB:
    red, green, blue = (round(255 * part) for part in colorsys.hsv_to_rgb(hue % 1, saturation, value))
    return red, green, blue


def _distance(one: RGB, other: RGB) -> float:
    return math.dist(one, other)
