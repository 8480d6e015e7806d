"""Recognises the colour and shape of the largest object in a drawing by a rule on its pixels, without a model.

It scores what models draw after training on `shapes.scene`, so it allows for soft edges and slightly wrong colours.
"""

from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from codebrush.data.synthetic.outlines import COLOURS, RING_HOLE, SHAPES, outline

LARGEST_SIDE = 64  # pixels; enough to tell the shapes apart
GRID = 20  # silhouettes are compared on GRID x GRID samples
REACH = 2.1  # half the width of those samples, in root-mean-square radii of the shape
SOFTNESS = ((64, 0.0), (24, 0.0), (16, 0.0), (16, 0.7), (16, 1.1), (14, 1.4))  # (side, blur) of known silhouettes
VISIBLE = 60.0  # least distance (of 441) from the background of anything visible


def recognise_shape(image: Image.Image) -> tuple[str, str] | None:
    """The (colour, shape) of the largest object in a picture of few colours; None if nothing stands out.

    The border shows the background. The colour is the one of the palette that is nearest to the object's core.
    The shape is the one whose silhouette, moved and scaled to the same centre and spread, correlates best with how
    much of each pixel the object covers.
    """
    image = image.convert("RGB")
    if max(image.size) > LARGEST_SIDE:
        image = image.copy()
        image.thumbnail((LARGEST_SIDE, LARGEST_SIDE), Image.Resampling.BOX)
    pixels = np.asarray(image, dtype=np.float32)  # (H, W, 3)
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    background = np.median(border, axis=0)
    distance = np.linalg.norm(pixels - background, axis=-1)  # (H, W)
    if distance.max() < VISIBLE:
        return None
    blob = _largest_blob(distance > max(VISIBLE / 2, 0.35 * float(distance.max())))
    core = pixels[blob & (distance >= 0.85 * distance[blob].max())]
    tint = np.median(core, axis=0)
    colour = _nearest_colour(tint, background)
    ink = tint - background
    coverage = np.clip((pixels - background) @ ink / float(ink @ ink), 0, 1) * _grown(blob, 2)
    return colour, _nearest_shape(coverage)


def _nearest_colour(tint: np.ndarray, background: np.ndarray) -> str:
    """The colour of the palette that `tint` is nearest to, pure or mixed with up to half of the background."""

    def distance(name: str) -> float:
        pure = np.array(COLOURS[name], dtype=np.float32)
        share = np.linspace(0.5, 1, 11)[:, None]
        return float(np.linalg.norm(share * pure + (1 - share) * background - tint, axis=1).min())

    return min(COLOURS, key=distance)


def _largest_blob(mask: np.ndarray) -> np.ndarray:
    """The largest group of True pixels that touch along an edge."""
    labels = np.where(mask, np.arange(1, mask.size + 1).reshape(mask.shape), 0)
    while True:
        wide = np.pad(labels, 1)
        sides = (wide[:-2, 1:-1], wide[2:, 1:-1], wide[1:-1, :-2], wide[1:-1, 2:])
        grown = np.maximum.reduce((labels, *sides)) * mask
        # A label is the number of a pixel; taking over that pixel's own label halves the remaining distance.
        grown = np.concatenate([[0], grown.ravel()])[grown]
        if np.array_equal(grown, labels):
            break
        labels = grown
    sizes = np.bincount(labels[mask])
    return labels == sizes.argmax()


def _grown(mask: np.ndarray, steps: int) -> np.ndarray:
    for _ in range(steps):
        wide = np.pad(mask, 1)
        mask = wide[1:-1, 1:-1] | wide[:-2, 1:-1] | wide[2:, 1:-1] | wide[1:-1, :-2] | wide[1:-1, 2:]
    return mask


def _nearest_shape(coverage: np.ndarray) -> str:
    seen = _normalised(coverage)
    scores = {shape: max(float(seen @ known) for known in _silhouettes(shape)) for shape in SHAPES}
    return max(scores, key=lambda shape: scores[shape])


def _normalised(coverage: np.ndarray) -> np.ndarray:
    """The silhouette at a common centre and spread: a unit vector of GRID * GRID samples with mean 0."""
    height, width = coverage.shape
    down, across = np.mgrid[0:height, 0:width].astype(np.float32)
    total = coverage.sum()
    y, x = (coverage * down).sum() / total, (coverage * across).sum() / total
    radius = np.sqrt((coverage * ((down - y) ** 2 + (across - x) ** 2)).sum() / total)
    steps = np.linspace(-REACH, REACH, GRID) * radius
    rows, columns = np.clip(y + steps, 0, height - 1.001), np.clip(x + steps, 0, width - 1.001)
    top, left = rows.astype(int), columns.astype(int)
    v, u = (rows - top)[:, None], (columns - left)[None, :]
    lines = coverage[:, left] * (1 - u) + coverage[:, left + 1] * u  # (H, GRID)
    samples = lines[top] * (1 - v) + lines[top + 1] * v  # (GRID, GRID)
    samples = (samples - samples.mean()).ravel()
    return samples / max(float(np.linalg.norm(samples)), 1e-6)


@lru_cache
def _silhouettes(shape: str) -> tuple[np.ndarray, ...]:
    """The shape drawn sharp, small, and small and blurred."""
    return tuple(_normalised(_silhouette(shape, side, blur)) for side, blur in SOFTNESS)


def _silhouette(shape: str, side: int, blur: float) -> np.ndarray:
    scale = side * 8  # drawn this much larger, then averaged down
    canvas = Image.new("L", (scale, scale))
    draw = ImageDraw.Draw(canvas)

    def corners(radius: float) -> list[tuple[float, float]]:
        return [(scale * (0.5 + radius * x), scale * (0.5 + radius * y)) for x, y in outline(shape)]

    draw.polygon(corners(0.28), fill=255)
    if shape == "ring":
        draw.polygon(corners(0.28 * RING_HOLE), fill=0)
    small = canvas.reduce(8).filter(ImageFilter.GaussianBlur(blur))
    return np.asarray(small, dtype=np.float32) / 255
