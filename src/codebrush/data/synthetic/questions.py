"""What is in a scene in; questions about it with their exact answers out."""

from collections.abc import Sequence
from typing import NamedTuple, TypeVar

import numpy as np

from codebrush.data.synthetic.outlines import SHAPES
from codebrush.data.synthetic.shapes import PLACES, SceneObject

T = TypeVar("T")
KINDS = ("colour", "shape", "count", "position", "relation", "yes/no", "background")
BEYOND = {"to the left of": (-1, 0), "to the right of": (1, 0), "above": (0, -1), "below": (0, 1)}
SIDES = (("left or right of", "left", "right"), ("above or below", "above", "below"))  # of the first two of BEYOND, ...
CLEAR = 0.05  # of the picture's side: nearer to a border between two answers, or to level, nothing is asked


class Question(NamedTuple):
    """What is asked, of which kind, and the answer that is right."""

    kind: str
    ask: str
    answer: str


def scene_questions(
    objects: Sequence[SceneObject], background: str, size: int, colours: Sequence[str], rng: np.random.Generator
) -> list[Question]:
    """Questions about `objects` in a picture of `size` pixels; `colours` are those that others are made up of.

    They are drawn anew at each call: one or two of each kind of `KINDS` that the scene can answer without doubt.
    """
    found = [*_counts(objects, colours, rng), *_exists(objects, colours, rng)]
    if background:
        asks = ("what colour is the background?", "which colour does the background have?")
        found.append(Question("background", _pick(rng, asks), background))
    for each in objects:
        alone = _names(each, objects)
        if alone:
            found += _attributes(each, objects, alone, size, rng)
    if len(objects) > 1:
        found += _relations(objects, size, rng)
    return [_spelt(question, rng) for question in found]


def _attributes(
    each: SceneObject, objects: Sequence[SceneObject], alone: Sequence[str], size: int, rng: np.random.Generator
) -> list[Question]:
    """About one object that can be told from the others by the names `alone`."""
    found = []
    if sum(other.shape == each.shape for other in objects) == 1:
        asks = (f"what colour is the {each.shape}?", f"which colour is the {each.shape}?")
        asks += (f"what is the colour of the {each.shape}?",)
        found.append(Question("colour", _pick(rng, asks), each.colour))
    if sum(other.colour == each.colour for other in objects) == 1:
        asks = (f"what shape is {each.colour}?", f"which shape is {each.colour}?", f"what is {each.colour}?")
        asks += (f"what shape is the {each.colour} thing?", f"what is the shape of the {each.colour} object?")
        found.append(Question("shape", _pick(rng, asks), each.shape))
    if len(objects) == 1:
        found.append(Question("colour", _pick(rng, ("what colour is it?", "what colour is the shape?")), each.colour))
        found.append(Question("shape", _pick(rng, ("what shape is it?", "which shape is this?")), each.shape))
    place = place_of(each, size)
    if place:
        name = _pick(rng, alone)
        asks = (f"where is the {name}?", f"where do you see the {name}?")
        found.append(Question("position", _pick(rng, asks), place))
        if len(objects) == 1:
            found.append(Question("position", _pick(rng, ("where is it?", "where is the shape?")), place))
    return found


def _counts(objects: Sequence[SceneObject], colours: Sequence[str], rng: np.random.Generator) -> list[Question]:
    there = _pick(rng, objects)
    colour = there.colour if rng.random() < 0.75 else _pick(rng, colours)
    shape = there.shape if rng.random() < 0.75 else _pick(rng, SHAPES)
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
    return [Question("count", _pick(rng, forms).format(name), str(asked[name])) for name in chosen]


def _exists(objects: Sequence[SceneObject], colours: Sequence[str], rng: np.random.Generator) -> list[Question]:
    """One with the answer yes and one with the answer no."""
    there, absent = _pick(rng, objects), None
    known = {(each.colour, each.shape) for each in objects}
    for _ in range(20):
        colour = _pick(rng, colours) if rng.random() < 0.5 else there.colour
        shape = _pick(rng, SHAPES) if rng.random() < 0.5 else there.shape
        if (colour, shape) not in known:
            absent = f"{colour} {shape}"
            break
    forms = ("is there {}?", "do you see {}?", "is {} in the picture?")
    found = [Question("yes/no", _pick(rng, forms).format(article(f"{there.colour} {there.shape}")), "yes")]
    if absent is not None:
        found.append(Question("yes/no", _pick(rng, forms).format(article(absent)), "no"))
    return found


def _relations(objects: Sequence[SceneObject], size: int, rng: np.random.Generator) -> list[Question]:
    """About two objects of which each can be told from all others."""
    named = [(each, names) for each in objects if (names := _names(each, objects))]
    if len(named) < 2:
        return []
    (one, one_names), (other, other_names) = (named[number] for number in rng.permutation(len(named))[:2])
    first, second = _pick(rng, one_names), _pick(rng, other_names)
    found = []
    for number in rng.permutation(len(SIDES)):
        (between, near, far), relation = SIDES[number], list(BEYOND)[2 * number]
        along = _along(one, other, relation) / size
        if abs(along) > CLEAR:
            # Also easier to learn than yes or no, which say nothing before both places *and* the word are understood.
            ask = _pick(rng, ("is the {} {} the {}?", "is the {} to be seen {} the {}?"))
            found.append(Question("relation", ask.format(first, between, second), near if along > 0 else far))
            break
    for relation in [list(BEYOND)[number] for number in rng.permutation(len(BEYOND))]:
        along = _along(one, other, relation) / size
        if abs(along) > CLEAR:
            ask = _pick(rng, ("is the {} {} the {}?", "is there a {} {} the {}?"))
            found.append(Question("relation", ask.format(first, relation, second), "yes" if along > 0 else "no"))
            break
    beyond = [
        (relation, other)
        for relation in BEYOND
        if len(objects) == 2 and _along(one, other, relation) / size > 4 * CLEAR
    ]
    if beyond:
        relation, _ = _pick(rng, beyond)
        answer = article(f"{one.colour} {one.shape}")
        found.append(Question("relation", f"what is {relation} the {second}?", answer))
    return found


def _along(one: SceneObject, other: SceneObject, relation: str) -> float:
    """How far `one` lies beyond `other` in the direction of `relation`, in pixels; negative if it does not."""
    across, down = BEYOND[relation]
    (x, y), (u, v) = centre(one), centre(other)
    return across * (x - u) + down * (y - v)


def centre(each: SceneObject) -> tuple[float, float]:
    """The middle of an object's box, in pixels from the left and from the top."""
    left, top, right, bottom = each.box
    return (left + right) / 2, (top + bottom) / 2


def place_of(each: SceneObject, size: int) -> str:
    """Where an object is on a 3 x 3 grid, in words; empty if it is near a border between two of them."""
    shares = [value / size for value in centre(each)]
    if any(abs(share - border) < CLEAR for share in shares for border in (1 / 3, 2 / 3)):
        return ""
    column, row = (min(2, int(3 * share)) for share in shares)
    return PLACES[column, row]


def _names(each: SceneObject, objects: Sequence[SceneObject]) -> list[str]:
    """Names that fit this object and no other."""
    full = f"{each.colour} {each.shape}"
    if sum((other.colour, other.shape) == (each.colour, each.shape) for other in objects) > 1:
        return []
    return [full] + ([each.shape] if sum(other.shape == each.shape for other in objects) == 1 else [])


def _spelt(question: Question, rng: np.random.Generator) -> Question:
    """As people type it: either spelling of colour, with or without its mark."""
    ask = question.ask.replace("colour", "color") if rng.random() < 0.5 else question.ask
    return question._replace(ask=ask.rstrip("?") if rng.random() < 0.2 else ask)


def plural(shape: str) -> str:
    """More than one of a shape."""
    return f"{shape}{'es' if shape.endswith('s') else 's'}"


def article(words: str) -> str:
    """`words` with a or an."""
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def _pick(rng: np.random.Generator, choices: Sequence[T]) -> T:
    return choices[int(rng.integers(len(choices)))]
