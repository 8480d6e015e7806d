"""Random numbers in; a drawn scene of one to six shapes of any palette, size and place out, with what is in it.

`shapes.scene` draws a fixed palette so that a rule on pixels can read it back. Here a colour is a range of hues and
shades, so that who learns from these scenes also reads other people's drawings.
"""

import colorsys
import math
from collections.abc import Sequence
from typing import Literal, NamedTuple, TypeVar

import numpy as np
from PIL import Image, ImageDraw

from codebrush.data.synthetic.outlines import RING_HOLE, SHAPES, outline
from codebrush.data.synthetic.questions import article, plural
from codebrush.data.synthetic.shapes import LARGE, NUMBERS, SMALL, SceneObject

T = TypeVar("T")
RGB = tuple[int, int, int]
Alike = Literal["shape", "colour"]
# Hue in degrees, saturation and value, each from and to; hues may pass 360.
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
PALE = {"pale blue": (195, 235), "pale green": (95, 145), "pale pink": (325, 358)}  # backgrounds' hues that have a name
SEEN = 0.08  # the saturation from which pale is told from white
CONTRAST = 110.0  # least distance of an object from the background, of 441
DIAMETERS = {1: (0.16, 0.85), 2: (0.15, 0.48), 3: (0.14, 0.4), 4: (0.13, 0.36), 5: (0.12, 0.31), 6: (0.12, 0.28)}
# How often a scene has one, two ... shapes: to say where something is, is learned from those that hold little else.
COUNTS = (0.22, 0.32, 0.16, 0.1, 0.1, 0.1)
TRIES = 60  # at a place for one object, before the sizes shrink
SHRINK = 0.85
EDGE = 0.02  # kept free along the border
LEAN = 10.0  # degrees that a shape may be turned by


class VariedScene(NamedTuple):
    """A picture of `size` pixels square, what is in it, and the name of its background ("" if it has none)."""

    image: Image.Image
    objects: tuple[SceneObject, ...]
    background: str


class _Thing(NamedTuple):
    colour: str
    rgb: RGB
    shape: str
    centre: tuple[float, float]
    diameter: float
    turn: float


def varied_scene(
    rng: np.random.Generator, size: int = 64, count: int | None = None, alike: Alike | None = None
) -> VariedScene:
    """One scene, of `count` shapes where it is given; the same random numbers draw the same.

    `alike` in "shape" or in "colour" alone, objects can only be told apart by both words of their names.
    """
    name, ground = _ground(rng)
    count = count or 1 + int(rng.choice(len(COUNTS), p=COUNTS))
    circles = _places(count, rng)
    things = [
        _Thing(colour, rgb, shape, centre, diameter, rng.uniform(-LEAN, LEAN) if rng.random() < 0.4 else 0.0)
        for (colour, rgb, shape), (centre, diameter) in zip(_kinds(count, ground, rng, alike), circles, strict=True)
    ]
    scale = int(rng.integers(2, 5))  # drawn larger, then averaged down, for edges soft in several ways
    objects = tuple(SceneObject(t.colour, t.shape, _size(t.diameter), _box(t, size)) for t in things)
    return VariedScene(_draw(things, ground, size, scale, rng), objects, name)


def scene_captions(objects: Sequence[SceneObject], rng: np.random.Generator) -> str:
    """What is in the scene, in one phrase: "two red circles and a blue square", in any order."""
    counts: dict[tuple[str, str], int] = {}
    for each in objects:
        counts[each.colour, each.shape] = counts.get((each.colour, each.shape), 0) + 1
    said = [
        article(f"{colour} {shape}") if count == 1 else f"{NUMBERS[count]} {colour} {plural(shape)}"
        for (colour, shape), count in counts.items()
    ]
    said = [said[number] for number in rng.permutation(len(said))]
    return said[0] if len(said) == 1 else f"{', '.join(said[:-1])} and {said[-1]}"


def _ground(rng: np.random.Generator) -> tuple[str, RGB]:
    kind = _pick(rng, GROUNDS)
    if kind in ("white", "grey", "black"):
        return kind, _shade(kind, rng)
    if kind == "any":
        name = _pick(rng, tuple(PALETTE))
        return name, _shade(name, rng)
    hue, saturation = rng.uniform(0, 1), rng.uniform(0.05, 0.2)
    names = [name for name, (low, high) in PALE.items() if low < 360 * hue < high and saturation > SEEN]
    return (names or [""])[0], _rgb(hue, saturation, rng.uniform(0.9, 1))


def _kinds(
    count: int, ground: RGB, rng: np.random.Generator, wanted: Alike | None = None
) -> list[tuple[str, RGB, str]]:
    """Colour, its shade and shape of each object: all alike, of one colour, of one shape, or as it comes."""
    visible = [name for name in PALETTE if _distance(_typical(name), ground) > CONTRAST * 1.2]
    alike = rng.random()
    colours = [_pick(rng, visible) for _ in range(count)]
    shapes = [_pick(rng, SHAPES) for _ in range(count)]
    if wanted is not None:
        # On some backgrounds few colours can be seen: then two things are of one.
        colours, shapes = ([words[n] for n in _different(len(words), count, rng)] for words in (visible, SHAPES))
    if wanted == "colour" or (wanted is None and alike < 0.45):
        colours = colours[:1] * count
    if wanted == "shape" or (wanted is None and (alike < 0.3 or 0.45 < alike < 0.6)):
        shapes = shapes[:1] * count
    shades = {name: _visible_shade(name, ground, rng) for name in dict.fromkeys(colours)}
    own = rng.random() < 0.4  # objects of one name differ in shade
    return [
        (colour, _visible_shade(colour, ground, rng) if own else shades[colour], shape)
        for colour, shape in zip(colours, shapes, strict=True)
    ]


def _different(choices: int, count: int, rng: np.random.Generator) -> list[int]:
    """`count` numbers below `choices`, all of them different where there are so many."""
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
            if factor < SHRINK**6:  # a crowd that leaves no room: begin again
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
    cos, sin, radius = math.cos(math.radians(thing.turn)), math.sin(math.radians(thing.turn)), thing.diameter / 2
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
    """ "small", "large", or nothing between the two."""
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


def _pick(rng: np.random.Generator, choices: Sequence[T]) -> T:
    return choices[int(rng.integers(len(choices)))]
