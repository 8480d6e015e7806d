"""A seed and a number in; a drawn scene of coloured shapes with captions that are exactly true out.

Scenes need no file, no licence and no download, and what is in them is known. `recognise_shape` reads drawings of
them back, so that a model that draws can be judged.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
from PIL import Image, ImageDraw

from codebrush.data.synthetic.outlines import COLOURS, RING_HOLE, SHAPES, outline
from codebrush.errors import UsageError

T = TypeVar("T")

BACKGROUNDS: dict[str, tuple[int, int, int]] = {
    "white": (255, 255, 255),
    "grey": (205, 205, 205),
    "pale blue": (214, 232, 255),
    "pale green": (218, 245, 218),
    "pale pink": (255, 224, 232),
}
NUMBERS = {2: "two", 3: "three", 4: "four", 5: "five", 6: "six"}
COUNTS = (1, 1, 1, 2, 2, 2, 3, 4, 5, 6)  # as often as they come: one and two can say more about each shape
RELATIONS = {"to the left of": "to the right of", "above": "below"}  # first to second: second to first
PLACES: dict[tuple[int, int], str] = {  # column and row of a 3 x 3 grid, from the top left
    (0, 0): "in the top left corner",
    (1, 0): "at the top",
    (2, 0): "in the top right corner",
    (0, 1): "on the left",
    (1, 1): "in the middle",
    (2, 1): "on the right",
    (0, 2): "in the bottom left corner",
    (1, 2): "at the bottom",
    (2, 2): "in the bottom right corner",
}
SMALL = (0.26, 0.31)  # diameters as a share of the canvas; nothing is drawn between small and large
LARGE = (0.42, 0.52)
CROWDED = (0.23, 0.27)  # small enough for every cell of a 3 x 3 grid
MARGIN = 0.04
OVERSAMPLING = 4  # drawn this much larger, then averaged down, for smooth edges


@dataclass(frozen=True)
class SceneObject:
    """One shape, "small" or "large". `box` is (left, top, right, bottom) in pixels of the picture."""

    colour: str
    shape: str
    size: str
    box: tuple[float, float, float, float]


@dataclass(frozen=True)
class Scene:
    """A picture, one caption drawn from `captions` (all of them true of it), and what is in it."""

    image: Image.Image
    caption: str
    captions: tuple[str, ...]
    objects: tuple[SceneObject, ...]
    background: str


@dataclass(frozen=True)
class _Placed:
    """A shape before it is drawn: centre and diameter as shares of the canvas."""

    colour: str
    shape: str
    size: str
    centre: tuple[float, float]
    diameter: float

    def said(self, sized: bool = False) -> str:
        words = f"{self.colour} {self.shape}"
        return _with_article(f"{self.size} {words}" if sized else words)


def scene(seed: int, index: int, size: int = 64, objects: int | None = None) -> Scene:
    """Scene `index` of the endless series `seed`, `size` pixels square; the same every time.

    `objects` fixes how many shapes there are, 1 to 6. With 1 the scene is kept simple, for learning tests:
    near the middle, on white, and captioned "a large red circle" or "a red circle". Without it, scenes of one
    to six shapes come mixed, with places, numbers, relations and backgrounds.
    """
    if size < 8 or seed < 0 or index < 0 or objects not in (None, 1, 2, 3, 4, 5, 6):
        raise UsageError("a scene needs a size of at least 8, a seed and index of at least 0 and 1 to 6 objects")
    rng = np.random.default_rng(np.random.SeedSequence([seed, index]))
    if objects == 1:
        placed, captions, background = _simple(rng)
    else:
        background = _pick(rng, tuple(BACKGROUNDS))
        count = objects or _pick(rng, COUNTS)
        if count == 1:
            placed, captions = _single(rng)
        elif count == 2 and rng.random() < 0.75:
            placed, captions = _related(rng)
        else:
            placed, captions = _several(rng, count)
        captions = [*captions, f"{captions[0]} on a {background} background"]
    image = _draw(placed, BACKGROUNDS[background], size)
    found = tuple(SceneObject(each.colour, each.shape, each.size, _box(each, size)) for each in placed)
    return Scene(image, _pick(rng, captions), tuple(captions), found, background)


def _simple(rng: np.random.Generator) -> tuple[list[_Placed], list[str], str]:
    """One shape near the middle, on white."""
    name, diameter = _size(rng)
    across, down = 0.5 + rng.uniform(-0.06, 0.06, 2)
    thing = _Placed(_pick(rng, tuple(COLOURS)), _pick(rng, SHAPES), name, (across, down), diameter)
    return [thing], [thing.said(sized=True), thing.said()], "white"


def _single(rng: np.random.Generator) -> tuple[list[_Placed], list[str]]:
    """One shape somewhere on a 3 x 3 grid."""
    name, diameter = _size(rng)
    cell = (int(rng.integers(3)), int(rng.integers(3)))
    near = MARGIN + diameter / 2
    stops = (near, 0.5, 1 - near)
    across, down = (stops[place] + rng.uniform(-0.015, 0.015) for place in cell)
    thing = _Placed(_pick(rng, tuple(COLOURS)), _pick(rng, SHAPES), name, (across, down), diameter)
    place = PLACES[cell]
    return [thing], [
        thing.said(sized=True),
        thing.said(),
        f"{thing.said(sized=True)} {place}",
        f"{thing.said()} {place}",
        f"there is {thing.said(sized=True)} {place}",
        f"a picture of {thing.said()}",
    ]


def _related(rng: np.random.Generator) -> tuple[list[_Placed], list[str]]:
    """Two different shapes, side by side or one above the other."""
    relation = _pick(rng, tuple(RELATIONS))
    near, far = 0.27, 0.73
    things = []
    for (colour, shape), along in zip(_different(rng, 2), (near, far), strict=True):
        name, diameter = _size(rng, (LARGE[0], 0.44))
        along, across = along + rng.uniform(-0.01, 0.01), 0.5 + rng.uniform(-0.06, 0.06)
        centre = (across, along) if relation == "above" else (along, across)
        things.append(_Placed(colour, shape, name, centre, diameter))
    first, second = things
    reverse = RELATIONS[relation]
    return things, [
        f"{first.said()} {relation} {second.said()}",
        f"{second.said()} {reverse} {first.said()}",
        f"{first.said(sized=True)} {relation} {second.said(sized=True)}",
        f"{second.said(sized=True)} {reverse} {first.said(sized=True)}",
        f"there is {first.said()} {relation} {second.said()}",
        f"{first.said()} and {second.said()}",
    ]


def _several(rng: np.random.Generator, count: int) -> tuple[list[_Placed], list[str]]:
    """Two to six small shapes scattered over a 3 x 3 grid: all alike, or all different."""
    cells = rng.permutation(9)[:count]
    places = 0.18 + 0.32 * np.stack([cells % 3, cells // 3], axis=1) + rng.uniform(-0.02, 0.02, (count, 2))
    centres = [(float(across), float(down)) for across, down in places]
    diameter = rng.uniform(*CROWDED)
    alike = rng.random() < 0.5
    kinds = [(_pick(rng, tuple(COLOURS)), _pick(rng, SHAPES))] * count if alike else _different(rng, count)
    things = [
        _Placed(colour, shape, "small", centre, diameter)
        for (colour, shape), centre in zip(kinds, centres, strict=True)
    ]
    if not alike:
        listed = [each.said() for each in things]
        return things, [
            _enumerated(listed),
            _enumerated(listed[::-1]),
            f"there are {NUMBERS[count]} shapes: {_enumerated(listed)}",
        ]
    colour, shape = kinds[0]
    plural = f"{colour} {shape}{'es' if shape.endswith('s') else 's'}"
    return things, [
        f"{NUMBERS[count]} {plural}",
        f"{NUMBERS[count]} small {plural}",
        f"{count} {plural}",
        f"there are {NUMBERS[count]} {plural}",
    ]


def _different(rng: np.random.Generator, count: int) -> list[tuple[str, str]]:
    """Pairs of colour and shape, no two the same."""
    pairs = [(colour, shape) for colour in COLOURS for shape in SHAPES]
    return [pairs[number] for number in rng.permutation(len(pairs))[:count]]


def _size(rng: np.random.Generator, large: tuple[float, float] = LARGE) -> tuple[str, float]:
    return ("small", rng.uniform(*SMALL)) if rng.random() < 0.5 else ("large", rng.uniform(*large))


def _pick(rng: np.random.Generator, choices: Sequence[T]) -> T:
    return choices[int(rng.integers(len(choices)))]


def _with_article(words: str) -> str:
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def _enumerated(items: Sequence[str]) -> str:
    return f"{', '.join(items[:-1])} and {items[-1]}"


def _draw(placed: Sequence[_Placed], background: tuple[int, int, int], size: int) -> Image.Image:
    canvas = Image.new("RGB", (size * OVERSAMPLING, size * OVERSAMPLING), background)
    draw = ImageDraw.Draw(canvas)
    for each in placed:
        draw.polygon(_enlarged(each, size), fill=COLOURS[each.colour])
        if each.shape == "ring":
            hole = replace(each, shape="circle", diameter=each.diameter * RING_HOLE)
            draw.polygon(_enlarged(hole, size), fill=background)
    return canvas.reduce(OVERSAMPLING)


def _enlarged(placed: _Placed, size: int) -> list[tuple[float, float]]:
    """The outline on the large canvas, where a whole number is the middle of a pixel, not its edge."""
    return [(across * OVERSAMPLING - 0.5, down * OVERSAMPLING - 0.5) for across, down in _corners(placed, size)]


def _corners(placed: _Placed, size: int) -> list[tuple[float, float]]:
    """The outline in pixels of the picture."""
    radius = placed.diameter / 2
    return [
        (size * (placed.centre[0] + radius * across), size * (placed.centre[1] + radius * down))
        for across, down in outline(placed.shape)
    ]


def _box(placed: _Placed, size: int) -> tuple[float, float, float, float]:
    across, down = zip(*_corners(placed, size), strict=True)
    return round(min(across), 2), round(min(down), 2), round(max(across), 2), round(max(down), 2)
