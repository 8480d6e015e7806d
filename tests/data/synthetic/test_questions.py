"""Questions about drawn scenes; the answers are checked by plain loops over the objects."""

import re
from collections import Counter

import numpy as np
import pytest

from codebrush.data.synthetic.outlines import COLOURS, SHAPES
from codebrush.data.synthetic.questions import KINDS, Question, place_of, scene_questions
from codebrush.data.synthetic.shapes import PLACES, SceneObject, scene
from codebrush.data.synthetic.varied_scenes import CONTRAST, PALETTE, scene_captions, varied_scene

SIZE = 64


def asked(count: int) -> list[tuple[tuple[SceneObject, ...], Question]]:
    rng = np.random.default_rng(3)
    found = []
    for _ in range(count):
        drawn = varied_scene(rng, SIZE)
        for each in scene_questions(drawn.objects, drawn.background, SIZE, tuple(PALETTE), rng):
            found.append((drawn.objects, each))
    return found


QUESTIONS = asked(150)


def named(objects: tuple[SceneObject, ...], words: str) -> list[SceneObject]:
    """The objects that words like "red circles", "circle" or "red shapes" fit."""
    shapes = {shape for shape in SHAPES if re.search(rf"\b{shape}(s|es)?\b", words)}
    colours = {colour for colour in PALETTE if re.search(rf"\b{colour}\b", words)}
    return [
        each for each in objects if (not shapes or each.shape in shapes) and (not colours or each.colour in colours)
    ]


def test_every_kind_is_asked_and_both_spellings_are_used() -> None:
    kinds = Counter(question.kind for _, question in QUESTIONS)
    assert set(kinds) == set(KINDS)
    assert min(kinds.values()) > 40
    colour = [question.ask for _, question in QUESTIONS if "colo" in question.ask]
    assert {"colour" in ask for ask in colour} == {True, False}
    marks = Counter(ask.endswith("?") for _, (_, ask, _) in QUESTIONS)
    assert 0.7 < marks[True] / len(QUESTIONS) < 0.95


def test_counts_are_right() -> None:
    for objects, question in QUESTIONS:
        if question.kind == "count":
            assert question.answer == str(len(named(objects, question.ask))), question
    answers = Counter(question.answer for _, question in QUESTIONS if question.kind == "count")
    assert {"0", "1", "2", "3", "4", "5", "6"} <= set(answers)


def test_colours_and_shapes_are_right() -> None:
    for objects, question in QUESTIONS:
        found = named(objects, question.ask)
        if question.kind == "colour":
            assert {each.colour for each in found} == {question.answer}, question
        if question.kind == "shape":
            assert {each.shape for each in found} == {question.answer}, question


def test_yes_and_no_are_right_and_as_frequent() -> None:
    answers = Counter()
    for objects, question in QUESTIONS:
        if question.kind == "yes/no":
            assert (question.answer == "yes") == bool(named(objects, question.ask)), question
            answers[question.answer] += 1
    assert 0.4 < answers["yes"] / answers.total() < 0.6


def test_relations_are_right() -> None:
    signs = {"left": (0, -1), "right": (0, 1), "above": (1, -1), "below": (1, 1)}
    checked = Counter()
    for objects, question in QUESTIONS:
        if question.kind != "relation":
            continue
        word = next(word for word in signs if word in question.ask)
        if " or " in question.ask:  # the answer is the word
            between = next(each for each in ("left or right of", "above or below") if each in question.ask)
            before, _, after = question.ask.partition(between)
            (first,), (second,), right = named(objects, before), named(objects, after), "yes"
            word = question.answer
            assert word in between.split()
            checked[word] += 1
        elif question.ask.startswith("what"):
            (second,) = named(objects, question.ask)
            (first,) = named(objects, question.answer)
            right = "yes"
        else:
            before, _, after = question.ask.partition(word)
            (first,), (second,), right = named(objects, before), named(objects, after), question.answer
        axis, sign = signs[word]
        assert (sign * (first.centre[axis] - second.centre[axis]) > 0) == (right == "yes"), question
        checked[right] += 1
    assert min(checked[each] for each in ("yes", "no", *signs)) > 10


def test_places_are_right_and_only_asked_where_they_are_clear() -> None:
    for objects, question in QUESTIONS:
        if question.kind == "position":
            (there,) = named(objects, question.ask)
            assert place_of(there, SIZE) == question.answer
    corner = SceneObject("red", "circle", "small", (0, 0, 10, 10))
    assert place_of(corner, SIZE) == PLACES[0, 0]
    assert place_of(SceneObject("red", "circle", "small", (16, 0, 26, 10)), SIZE) == ""  # a third from the left


def test_questions_fit_the_scenes_of_the_fixed_palette_too() -> None:
    rng = np.random.default_rng(0)
    for index in range(30):
        drawn = scene(0, index)
        for question in scene_questions(drawn.objects, drawn.background, 64, tuple(COLOURS), rng):
            if question.kind == "count":
                assert question.answer == str(len(named(drawn.objects, question.ask)))


class TestVariedScenes:
    def test_the_same_numbers_draw_the_same_scene(self) -> None:
        one, other = (varied_scene(np.random.default_rng(5), 48) for _ in range(2))
        assert one.image.tobytes() == other.image.tobytes()
        assert one.objects == other.objects
        assert one.image.size == (48, 48)

    def test_counts_sizes_and_palette_vary(self) -> None:
        rng = np.random.default_rng(0)
        scenes = [varied_scene(rng) for _ in range(300)]
        assert {len(each.objects) for each in scenes} == {1, 2, 3, 4, 5, 6}
        objects = [each for drawn in scenes for each in drawn.objects]
        assert {each.colour for each in objects} == set(PALETTE)
        assert {each.shape for each in objects} == set(SHAPES)
        assert {each.size for each in objects} == {"small", "large", ""}

    def test_objects_lie_inside_do_not_overlap_and_stand_out(self) -> None:
        rng = np.random.default_rng(1)
        for _ in range(60):
            drawn = varied_scene(rng)
            pixels = np.asarray(drawn.image).astype(float)
            for number, each in enumerate(drawn.objects):
                left, top, right, bottom = each.box
                assert min(left, top) >= 0
                assert max(right, bottom) <= 64
                for other in drawn.objects[number + 1 :]:
                    apart = np.hypot(*np.subtract(each.centre, other.centre))
                    assert apart > 0.5 * max(right - left, other.box[2] - other.box[0])
                part = pixels[int(top) : int(np.ceil(bottom)), int(left) : int(np.ceil(right))].reshape(-1, 3)
                assert np.linalg.norm(part - pixels[0, 0], axis=1).max() > 0.8 * CONTRAST

    def test_captions_name_all_that_is_there(self) -> None:
        rng = np.random.default_rng(2)
        for _ in range(40):
            drawn = varied_scene(rng)
            said = scene_captions(drawn.objects, rng)
            assert all(each.colour in said and each.shape in said for each in drawn.objects)
        pair = (SceneObject("red", "cross", "", (0, 0, 1, 1)),) * 2
        assert scene_captions(pair, rng) == "two red crosses"


@pytest.mark.parametrize("size", [32, 64, 128])
def test_boxes_are_in_pixels_of_the_picture(size: int) -> None:
    drawn = varied_scene(np.random.default_rng(7), size)
    assert max(side for each in drawn.objects for side in each.box) > size / 4
