"""Captions and answers of a pack with random weights: their form, their order, and the errors."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from codebrush import Codebrush
from codebrush.data.synthetic.shapes import scene
from codebrush.errors import PackError, PromptError, UsageError
from codebrush.text.other_things import OTHER_TEXTS
from codebrush.understanding.captioning import UNKNOWN_ANSWER
from packs import micro_captioner, micro_tokenizer, write_micro_pack


@pytest.fixture(scope="module")
def brush(tmp_path_factory: pytest.TempPathFactory) -> Codebrush:
    torch.manual_seed(3)
    folder = tmp_path_factory.mktemp("packs") / "captions"
    return Codebrush.from_pretrained(write_micro_pack(folder, captioner=micro_captioner(), words=micro_tokenizer()))


@pytest.fixture(scope="module")
def pictures() -> list[Image.Image]:
    return [scene(0, index, 32).image for index in range(3)]


def test_captions_are_sorted_by_clip_score(brush: Codebrush, pictures: list[Image.Image]) -> None:
    for found, picture in zip(brush.caption(pictures, n=4), pictures, strict=True):
        assert 1 <= len(found) <= 4
        scores = [each.score for each in found]
        assert scores == sorted(scores, reverse=True)
        assert len({each.text for each in found}) == len(found)
        for each in found:
            assert each.text == each.text.strip()
            assert 0 < each.probability <= 1
            assert each.score == pytest.approx(brush.score(picture, each.text), abs=1e-5)


@pytest.mark.parametrize("method", ["beam", "sample"])
def test_fewer_captions_are_the_best_of_more(brush: Codebrush, pictures: list[Image.Image], method: str) -> None:
    most = [[each.text for each in found] for found in brush.caption(pictures, n=5, method=method)]
    for n in (1, 2):
        assert [[each.text for each in found] for found in brush.caption(pictures, n=n, method=method)] == [
            texts[:n] for texts in most
        ]


def test_a_picture_is_captioned_as_if_alone(brush: Codebrush, pictures: list[Image.Image]) -> None:
    def texts(images: list[Image.Image], **options: Any) -> list[list[str]]:
        return [[each.text for each in found] for found in brush.caption(images, **options)]

    for method in ("beam", "greedy"):
        together = texts(pictures, method=method)
        assert together == [texts([picture], method=method)[0] for picture in pictures]
    sampled = texts(pictures, n=3, method="sample", seed=5)
    assert sampled[0] == texts(pictures[:1], n=3, method="sample", seed=5)[0]
    assert sampled == texts(pictures, n=3, method="sample", seed=5)
    assert sampled != texts(pictures, n=3, method="sample", seed=6)


def test_tiles_are_captioned_each_and_scored_by_the_tile_they_describe(brush: Codebrush) -> None:
    wide = Image.new("RGB", (96, 32))
    parts = [scene(0, index, 32).image for index in range(3)]
    for place, part in enumerate(parts):
        wide.paste(part, (32 * place, 0))
    starts = (0, 16, 32, 48, 64)
    tiles = [wide.crop((start, 0, start + 32, 32)) for start in starts]
    for options in ({"method": "beam"}, {"method": "sample", "seed": 4}):
        scores: dict[str, float] = {}
        for tile in tiles:
            for each in brush.caption([tile], n=3, **options)[0]:  # pyright: ignore
                scores[each.text] = max(each.score, scores.get(each.text, -1))
        expected = sorted(scores, key=lambda text: -scores[text])[:3]
        (first, found) = brush.caption([parts[0], wide], n=3, fit="tiles", **options)  # pyright: ignore
        assert first == brush.caption(parts[:1], n=3, **options)[0]  # pyright: ignore
        if options["method"] == "beam":
            assert [each.text for each in found] == expected
            assert [each.score for each in found] == pytest.approx([scores[text] for text in expected], abs=1e-5)
        alone = brush.caption([wide], n=3, first=1, fit="tiles", **options)  # pyright: ignore
        assert [each.text for each in alone[0]] == [each.text for each in found]  # its own random numbers
    squeezed = brush.caption([wide], n=3, fit="squeeze")[0]
    assert [each.text for each in squeezed] == [each.text for each in brush.caption([wide.resize((32, 32), 3)], n=3)[0]]


def test_a_caption_says_how_many_texts_about_other_things_fit_as_well(
    brush: Codebrush, pictures: list[Image.Image]
) -> None:
    others = brush.embed_text(OTHER_TEXTS)
    for found, picture in zip(brush.caption(pictures, n=2), brush.embed_images(pictures), strict=True):
        for each in found:
            better = float((others @ picture >= each.score).float().mean())
            assert each.level == pytest.approx(1 - better, abs=1 / 256)
            assert (each.doubt is None) == (each.level == 1)
    assert str(replace(found[0], level=0.75).doubt).startswith("the captions are hardly right: 25% of texts")
    assert str(replace(found[0], level=0.98).doubt).startswith("the captions may be wrong: 2% of texts")
    assert replace(found[0], level=1.0).doubt is None


def test_an_answer_below_the_threshold_is_not_known(brush: Codebrush, pictures: list[Image.Image]) -> None:
    sure = brush.ask(pictures[0], "what is it?", threshold=0.0)
    assert sure.text == (sure.guess or UNKNOWN_ANSWER)
    assert 0 < sure.confidence <= 1
    unsure = brush.ask(pictures[0], "what is it?", threshold=1.0)
    assert unsure.text == UNKNOWN_ANSWER
    assert unsure.guess == sure.guess
    assert unsure.confidence == sure.confidence
    assert unsure.reason == "it is not sure enough"


def test_an_answer_of_another_kind_than_the_question_is_never_given(
    brush: Codebrush, pictures: list[Image.Image]
) -> None:
    answer = brush.ask(pictures[0], "how many circles are there?", threshold=0.0)  # random weights write no number
    assert (answer.text, answer.confidence) == (UNKNOWN_ANSWER, 0)
    assert answer.guess == brush.ask(pictures[0], "how many circles are there?", threshold=1.0).guess
    assert answer.reason == "its best guess is no answer to such a question"


def test_errors_are_one_line(brush: Codebrush, pictures: list[Image.Image], micro_pack: Path) -> None:
    with pytest.raises(PromptError, match="the question is empty"):
        brush.ask(pictures[0], "  ")
    with pytest.raises(PromptError, match="more than the 26 that fit: shorten it"):
        brush.ask(pictures[0], "why " * 60)
    with pytest.raises(UsageError, match="threshold must be from 0 to 1"):
        brush.ask(pictures[0], "what?", threshold=2)
    with pytest.raises(UsageError, match="one of beam, greedy, sample, not best"):
        brush.caption(pictures, method="best")
    with pytest.raises(UsageError, match="greedy writes one caption"):
        brush.caption(pictures, n=2, method="greedy")
    with pytest.raises(PackError, match="'micro' has no captioner: train one"):
        Codebrush.from_pretrained(micro_pack).caption(pictures)
