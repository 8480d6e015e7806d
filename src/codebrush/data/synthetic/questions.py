"""Questions about a drawn scene, with answers that are exactly right."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from codebrush.data.synthetic.outlines import SHAPES
from codebrush.data.synthetic.shapes import PLACES, SceneObject, pick
from codebrush.data.synthetic.wording import article, plural

KINDS = ("colour", "shape", "count", "position", "relation", "yes/no", "background")
DIRECTIONS = {"to the left of": (-1, 0), "to the right of": (1, 0), "above": (0, -1), "below": (0, 1)}
SIDES = (("left or right of", "left", "right"), ("above or below", "above", "below"))  # for each pair of DIRECTIONS
CLEAR = 0.05  # of the picture's side; nothing is asked nearer than this to where the answer changes


class Question(NamedTuple):
    """A question, its kind (one of `KINDS`) and its answer."""

    kind: str
    ask: str
    answer: str


def scene_questions(
    objects: Sequence[SceneObject], background: str, size: int, colours: Sequence[str], rng: np.random.Generator
) -> list[Question]:
    """Draw questions about `objects` in a picture of `size` pixels.

    One or two of each of `KINDS` that the scene answers without doubt. `background` is its colour, "" if that has no
    name. Things that are not in the scene are asked about in one of `colours`.
    """
    found = [*_counts(objects, colours, rng), *_exists(objects, colours, rng)]
    if background:
        asks = ("what colour is the background?", "which colour does the background have?")
        found.append(Question("background", pick(rng, asks), background))
    for each in objects:
        names = _names(each, objects)
        if names:
            found += _attributes(each, objects, names, size, rng)
    if len(objects) > 1:
        found += _relations(objects, size, rng)
    return [_vary_spelling(question, rng) for question in found]


def _attributes(
    each: SceneObject, objects: Sequence[SceneObject], names: Sequence[str], size: int, rng: np.random.Generator
) -> list[Question]:
    """Questions about one object, which each of `names` tells from all others."""
    found = []
    if sum(other.shape == each.shape for other in objects) == 1:
        asks = (f"what colour is the {each.shape}?", f"which colour is the {each.shape}?")
        asks += (f"what is the colour of the {each.shape}?",)
        found.append(Question("colour", pick(rng, asks), each.colour))
    if sum(other.colour == each.colour for other in objects) == 1:
        asks = (f"what shape is {each.colour}?", f"which shape is {each.colour}?", f"what is {each.colour}?")
        asks += (f"what shape is the {each.colour} thing?", f"what is the shape of the {each.colour} object?")
        found.append(Question("shape", pick(rng, asks), each.shape))
    if len(objects) == 1:
        found.append(Question("colour", pick(rng, ("what colour is it?", "what colour is the shape?")), each.colour))
        found.append(Question("shape", pick(rng, ("what shape is it?", "which shape is this?")), each.shape))
    place = place_of(each, size)
    if place:
        name = pick(rng, names)
        asks = (f"where is the {name}?", f"where do you see the {name}?")
        found.append(Question("position", pick(rng, asks), place))
        if len(objects) == 1:
            found.append(Question("position", pick(rng, ("where is it?", "where is the shape?")), place))
    return found


def _counts(objects: Sequence[SceneObject], colours: Sequence[str], rng: np.random.Generator) -> list[Question]:
    there = pick(rng, objects)
    colour = there.colour if rng.random() < 0.75 else pick(rng, colours)
    shape = there.shape if rng.random() < 0.75 else pick(rng, SHAPES)
    both = sum(each.colour == colour and each.shape == shape for each in objects)
    asked = {
        plural(shape): sum(each.shape == shape for each in objects),
        f"{colour} shapes": sum(each.colour == colour for each in objects),
        f"{colour} {plural(shape)}": both,
        "shapes": len(objects),
    }
    names = list(asked)
    chosen = [names[number] for number in rng.permutation(len(names))[:2]]
    forms = ("how many {} are there?", "how many {}?", "how many {} do you see?", "count the {}")
    return [Question("count", pick(rng, forms).format(name), str(asked[name])) for name in chosen]


def _exists(objects: Sequence[SceneObject], colours: Sequence[str], rng: np.random.Generator) -> list[Question]:
    """A question with the answer yes, and one with the answer no."""
    there, absent = pick(rng, objects), None
    known = {(each.colour, each.shape) for each in objects}
    for _ in range(20):
        colour = pick(rng, colours) if rng.random() < 0.5 else there.colour
        shape = pick(rng, SHAPES) if rng.random() < 0.5 else there.shape
        if (colour, shape) not in known:
            absent = f"{colour} {shape}"
            break
    forms = ("is there {}?", "do you see {}?", "is {} in the picture?")
    found = [Question("yes/no", pick(rng, forms).format(article(f"{there.colour} {there.shape}")), "yes")]
    if absent is not None:
        found.append(Question("yes/no", pick(rng, forms).format(article(absent)), "no"))
    return found


def _relations(objects: Sequence[SceneObject], size: int, rng: np.random.Generator) -> list[Question]:
    """Questions about two objects, each with a name that fits no other."""
    named = [(each, names) for each in objects if (names := _names(each, objects))]
    if len(named) < 2:
        return []
    (one, one_names), (other, other_names) = (named[number] for number in rng.permutation(len(named))[:2])
    first, second = pick(rng, one_names), pick(rng, other_names)
    found = []
    for number in rng.permutation(len(SIDES)):
        (between, near, far), relation = SIDES[number], list(DIRECTIONS)[2 * number]
        along = _along(one, other, relation) / size
        if abs(along) > CLEAR:
            # Easier to learn than yes or no, which teach nothing until both places *and* the word are understood.
            ask = pick(rng, ("is the {} {} the {}?", "is the {} to be seen {} the {}?"))
            found.append(Question("relation", ask.format(first, between, second), near if along > 0 else far))
            break
    for relation in [list(DIRECTIONS)[number] for number in rng.permutation(len(DIRECTIONS))]:
        along = _along(one, other, relation) / size
        if abs(along) > CLEAR:
            ask = pick(rng, ("is the {} {} the {}?", "is there a {} {} the {}?"))
            found.append(Question("relation", ask.format(first, relation, second), "yes" if along > 0 else "no"))
            break
    beyond = [
        (relation, other)
        for relation in DIRECTIONS
        if len(objects) == 2 and _along(one, other, relation) / size > 4 * CLEAR
    ]
    if beyond:
        relation, _ = pick(rng, beyond)
        answer = article(f"{one.colour} {one.shape}")
        found.append(Question("relation", f"what is {relation} the {second}?", answer))
    return found


def _along(one: SceneObject, other: SceneObject, relation: str) -> float:
    """How many pixels `one` is beyond `other` in the direction of `relation`; negative on the other side."""
    across, down = DIRECTIONS[relation]
    (x, y), (u, v) = one.centre, other.centre
    return across * (x - u) + down * (y - v)


def place_of(each: SceneObject, size: int) -> str:
    """The cell of a 3 x 3 grid where an object is, in words; "" if it is near a border between two cells."""
    shares = [value / size for value in each.centre]
    if any(abs(share - border) < CLEAR for share in shares for border in (1 / 3, 2 / 3)):
        return ""
    column, row = (min(2, int(3 * share)) for share in shares)
    return PLACES[column, row]


def _names(each: SceneObject, objects: Sequence[SceneObject]) -> list[str]:
    """The names that fit this object and no other; none if another looks the same."""
    full = f"{each.colour} {each.shape}"
    if sum((other.colour, other.shape) == (each.colour, each.shape) for other in objects) > 1:
        return []
    return [full] + ([each.shape] if sum(other.shape == each.shape for other in objects) == 1 else [])


def _vary_spelling(question: Question, rng: np.random.Generator) -> Question:
    """The question as people may type it: "colour" or "color", with or without the question mark."""
    ask = question.ask.replace("colour", "color") if rng.random() < 0.5 else question.ask
    return question._replace(ask=ask.rstrip("?") if rng.random() < 0.2 else ask)
