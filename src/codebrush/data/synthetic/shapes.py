"""Draws scenes of coloured shapes with captions that are exactly true.

Scenes need no file, no licence and no download, and their content is known. `recognise_shape` reads drawings of them
back, so that models that draw can be scored.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
from PIL import Image, ImageDraw

from codebrush.data.synthetic.outlines import COLOURS, RING_HOLE, SHAPES, outline
from codebrush.data.synthetic.wording import NUMBERS, article, plural
from codebrush.errors import UsageError

T = TypeVar("T")

BACKGROUNDS: dict[str, tuple[int, int, int]] = {
    "white": (255, 255, 255),
    "grey": (205, 205, 205),
    "pale blue": (214, 232, 255),
    "pale green": (218, 245, 218),
    "pale pink": (255, 224, 232),
}
COUNTS = (1, 1, 1, 2, 2, 2, 3, 4, 5, 6)  # one is drawn for each scene; captions of few objects say more of each
RELATIONS = {"to the left of": "to the right of", "above": "below"}  # and the relation the other way round
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
SMALL = (0.26, 0.31)  # diameters as a share of the picture; none between small and large
LARGE = (0.42, 0.52)
CROWDED = (0.23, 0.27)  # small enough for every cell of a 3 x 3 grid
MARGIN = 0.04
OVERSAMPLING = 4  # drawn this much larger, then averaged down, for smooth edges


@dataclass(frozen=True)
class SceneObject:
    """One shape; `size` is "small", "large" or "". `box` is (left, top, right, bottom) in pixels of the picture."""

    colour: str
    shape: str
    size: str
    box: tuple[float, float, float, float]

    @property
    def centre(self) -> tuple[float, float]:
        """The middle of the box, in pixels from the left and from the top."""
        left, top, right, bottom = self.box
        return (left + right) / 2, (top + bottom) / 2


@dataclass(frozen=True)
class Scene:
    """A picture, the objects in it, all `captions` that were made for it (all are true) and one drawn from them."""

    image: Image.Image
    caption: str
    captions: tuple[str, ...]
    objects: tuple[SceneObject, ...]
    background: str


@dataclass(frozen=True)
class _Placed:
    """A shape before it is drawn; centre and diameter are shares of the picture's side."""

    colour: str
    shape: str
    size: str
    centre: tuple[float, float]
    diameter: float

    def phrase(self, sized: bool = False) -> str:
        words = f"{self.colour} {self.shape}"
        return article(f"{self.size} {words}" if sized else words)


def scene(seed: int, index: int, size: int = 64, objects: int | None = None) -> Scene:
    """Scene `index` of the endless series `seed`, `size` pixels square; the same every time.

    `objects` is the number of shapes, 1 to 6. With 1 the scene is simple, for tests that train a model on it: near the
    middle, on white, and captioned "a large red circle" or "a red circle". Without it, scenes of one to six shapes are
    mixed, and captions speak of places, numbers, relations and backgrounds.

    Raises:
        UsageError: if a number is out of range.
    """
    if size < 8 or seed < 0 or index < 0 or objects not in (None, 1, 2, 3, 4, 5, 6):
        raise UsageError("a scene needs a size of at least 8, a seed and index of at least 0 and 1 to 6 objects")
    rng = np.random.default_rng(np.random.SeedSequence([seed, index]))
    if objects == 1:
        placed, captions, background = _simple(rng)
    else:
        background = pick(rng, tuple(BACKGROUNDS))
        count = objects or pick(rng, COUNTS)
        if count == 1:
            placed, captions = _single(rng)
        elif count == 2 and rng.random() < 0.75:
            placed, captions = _related(rng)
        else:
            placed, captions = _several(rng, count)
        captions = [*captions, f"{captions[0]} on a {background} background"]
    image = _draw(placed, BACKGROUNDS[background], size)
    found = tuple(SceneObject(each.colour, each.shape, each.size, _box(each, size)) for each in placed)
    return Scene(image, pick(rng, captions), tuple(captions), found, background)


def _simple(rng: np.random.Generator) -> tuple[list[_Placed], list[str], str]:
    """One shape near the middle, on white."""
    name, diameter = _size(rng)
    across, down = 0.5 + rng.uniform(-0.06, 0.06, 2)
    thing = _Placed(pick(rng, tuple(COLOURS)), pick(rng, SHAPES), name, (across, down), diameter)
    return [thing], [thing.phrase(sized=True), thing.phrase()], "white"


def _single(rng: np.random.Generator) -> tuple[list[_Placed], list[str]]:
    """One shape somewhere on a 3 x 3 grid."""
    name, diameter = _size(rng)
    cell = (int(rng.integers(3)), int(rng.integers(3)))
    near = MARGIN + diameter / 2
    stops = (near, 0.5, 1 - near)
    across, down = (stops[place] + rng.uniform(-0.015, 0.015) for place in cell)
    thing = _Placed(pick(rng, tuple(COLOURS)), pick(rng, SHAPES), name, (across, down), diameter)
    place = PLACES[cell]
    return [thing], [
        thing.phrase(sized=True),
        thing.phrase(),
        f"{thing.phrase(sized=True)} {place}",
        f"{thing.phrase()} {place}",
        f"there is {thing.phrase(sized=True)} {place}",
        f"a picture of {thing.phrase()}",
    ]


def _related(rng: np.random.Generator) -> tuple[list[_Placed], list[str]]:
    """Two different shapes, side by side or one above the other."""
    relation = pick(rng, tuple(RELATIONS))
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
        f"{first.phrase()} {relation} {second.phrase()}",
        f"{second.phrase()} {reverse} {first.phrase()}",
        f"{first.phrase(sized=True)} {relation} {second.phrase(sized=True)}",
        f"{second.phrase(sized=True)} {reverse} {first.phrase(sized=True)}",
        f"there is {first.phrase()} {relation} {second.phrase()}",
        f"{first.phrase()} and {second.phrase()}",
    ]


def _several(rng: np.random.Generator, count: int) -> tuple[list[_Placed], list[str]]:
    """Two to six small shapes scattered over a 3 x 3 grid: all the same, or all different."""
    cells = rng.permutation(9)[:count]
    places = 0.18 + 0.32 * np.stack([cells % 3, cells // 3], axis=1) + rng.uniform(-0.02, 0.02, (count, 2))
    centres = [(float(across), float(down)) for across, down in places]
    diameter = rng.uniform(*CROWDED)
    same = rng.random() < 0.5
    kinds = [(pick(rng, tuple(COLOURS)), pick(rng, SHAPES))] * count if same else _different(rng, count)
    things = [
        _Placed(colour, shape, "small", centre, diameter)
        for (colour, shape), centre in zip(kinds, centres, strict=True)
    ]
    if not same:
        listed = [each.phrase() for each in things]
        return things, [
            _enumerated(listed),
            _enumerated(listed[::-1]),
            f"there are {NUMBERS[count]} shapes: {_enumerated(listed)}",
        ]
    colour, shape = kinds[0]
    several = f"{colour} {plural(shape)}"
    return things, [
        f"{NUMBERS[count]} {several}",
        f"{NUMBERS[count]} small {several}",
        f"{count} {several}",
        f"there are {NUMBERS[count]} {several}",
    ]


def _different(rng: np.random.Generator, count: int) -> list[tuple[str, str]]:
    """Pairs of colour and shape, no two the same."""
    pairs = [(colour, shape) for colour in COLOURS for shape in SHAPES]
    return [pairs[number] for number in rng.permutation(len(pairs))[:count]]


def _size(rng: np.random.Generator, large: tuple[float, float] = LARGE) -> tuple[str, float]:
    return ("small", rng.uniform(*SMALL)) if rng.random() < 0.5 else ("large", rng.uniform(*large))


def pick(rng: np.random.Generator, choices: Sequence[T]) -> T:
    """One of `choices`, all equally likely."""
    return choices[int(rng.integers(len(choices)))]


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
    """The outline on the oversampled canvas, where a whole number is the middle of a pixel, not its edge."""
    return [(across * OVERSAMPLING - 0.5, down * OVERSAMPLING - 0.5) for across, down in _corners(placed, size)]


def _corners(placed: _Placed, size: int) -> list[tuple[float, float]]:
    """The outline in pixels of the picture, where a whole number is the edge of a pixel."""
    radius = placed.diameter / 2
    return [
        (size * (placed.centre[0] + radius * across), size * (placed.centre[1] + radius * down))
        for across, down in outline(placed.shape)
    ]


def _box(placed: _Placed, size: int) -> tuple[float, float, float, float]:
    across, down = zip(*_corners(placed, size), strict=True)
    return round(min(across), 2), round(min(down), 2), round(max(across), 2), round(max(down), 2)
