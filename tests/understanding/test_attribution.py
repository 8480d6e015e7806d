"""Explanations of a CLIP score: the words that are read, their directions and gains, and the choice of a method."""

import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image

from codebrush import Codebrush
from codebrush.errors import PromptError, UsageError
from codebrush.models.encoders.modified_resnet import ModifiedResNet, ModifiedResNetConfig
from codebrush.understanding.attribution import (
    choose_method,
    explain,
    explain_and_measure,
    places_of_content,
    readable_words,
    text_directions,
)
from codebrush.understanding.faithfulness import Faithfulness


@pytest.fixture(scope="module")
def brush(micro_pack: Path) -> Codebrush:
    return Codebrush.from_pretrained(micro_pack, device="cpu")


def picture() -> torch.Tensor:
    return torch.rand(3, 32, 32)


def test_directions_are_what_the_text_and_each_word_add(brush: Codebrush) -> None:
    texts, directions = text_directions(brush.clip, brush.tokenizer, ["a", "red", "circle"], (0, 1, 2))
    whole, *without = brush.embed_text(["a red circle", "red circle", "a circle", "a red"])
    nothing = brush.clip.encode_text(brush.tokenizer([""]))[0]
    torch.testing.assert_close(texts, torch.stack([whole, *without]), atol=1e-5, rtol=1e-5)
    expected = torch.stack([whole - nothing, *(whole - part for part in without)])
    torch.testing.assert_close(directions, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("method", ["gradient", "occlusion"])
def test_an_explanation_holds_score_gains_and_maps(brush: Codebrush, method: Any) -> None:
    image = picture()
    found = explain(brush.clip, brush.tokenizer, image, "a red  circle", method)
    seen = brush.clip.encode_image(image[None])[0]
    whole, bare = brush.embed_text(["a red circle", "a circle"])
    assert found.method == method
    assert found.score == pytest.approx(float(seen @ whole), abs=1e-5)
    assert found.text == "a red circle"
    assert [word.word for word in found.words] == ["red", "circle"]
    assert found.words[0].gain == pytest.approx(float(seen @ (whole - bare)), abs=1e-5)
    for heat in (found.heat, *(word.heat for word in found.words)):
        assert heat.shape == (32, 32)
        assert not heat.requires_grad
        assert heat.min() >= 0
    assert not torch.equal(found.words[0].heat, found.words[1].heat)


def test_explaining_leaves_the_weights_and_gradients_unchanged(brush: Codebrush) -> None:
    before = {name: value.clone() for name, value in brush.clip.state_dict().items()}
    explain(brush.clip, brush.tokenizer, picture(), "a red circle")
    assert all(torch.equal(value, before[name]) for name, value in brush.clip.state_dict().items())
    assert all(parameter.grad is None for parameter in brush.clip.parameters())


def test_words_beyond_what_the_encoder_reads_are_left_out_with_a_warning(brush: Codebrush) -> None:
    with pytest.warns(UserWarning, match="tokens: only the first"):
        few = readable_words(brush.tokenizer, " ".join(["circle"] * 60))
    assert 1 <= len(few) < 60
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        brush.tokenizer(" ".join(few))
        with pytest.raises(UserWarning):
            brush.tokenizer(" ".join([*few, "circle"]))
    with pytest.warns(UserWarning, match="tokens: only the first"):
        assert len(readable_words(brush.tokenizer, "x" * 500)) == 1


def test_stop_words_have_no_map_unless_there_are_no_others() -> None:
    assert places_of_content(["The", "cat,", "on", "a", "mat."]) == [1, 4]
    assert places_of_content(["to", "be"]) == [0, 1]


def test_a_gradient_no_better_than_random_gives_way_to_occlusion(
    brush: Codebrush, monkeypatch: pytest.MonkeyPatch
) -> None:
    image, figures = picture(), Faithfulness(0.3, 0.2, 0.2, 0.2)  # deletion is no better

    def measured(method: Any) -> tuple[str, Faithfulness]:
        found, faithful = explain_and_measure(brush.clip, brush.tokenizer, image, "a red circle", method)
        return found.method, faithful

    monkeypatch.setattr("codebrush.understanding.attribution.faithfulness", lambda *_: figures)
    assert measured("auto") == ("occlusion", figures)
    assert measured("gradient") == ("gradient", figures)
    figures = Faithfulness(0.3, 0.1, 0.2, 0.2)
    assert measured("auto") == ("gradient", figures)


@pytest.mark.parametrize("text", ["", "  ", "\n\t"])
def test_a_text_without_words_is_refused(brush: Codebrush, text: str) -> None:
    with pytest.raises(PromptError, match="the text is empty"):
        explain(brush.clip, brush.tokenizer, picture(), text)


def test_each_encoder_has_its_method(brush: Codebrush) -> None:
    other: Any = SimpleNamespace(image_encoder=torch.nn.Identity())
    residual: Any = SimpleNamespace(image_encoder=ModifiedResNet(ModifiedResNetConfig(32, 4, (1, 1, 1, 1), 2, 8)))
    for clip, expected in ((brush.clip, "gradient"), (residual, "occlusion")):
        assert [choose_method(clip, name) for name in ("auto", "gradient", "occlusion")] == [
            expected,
            "gradient",
            "occlusion",
        ]
    assert choose_method(other, "auto") == "occlusion"
    with pytest.raises(UsageError, match="use --method occlusion"):
        choose_method(other, "gradient")
    with pytest.raises(UsageError, match="method must be one of auto, gradient, occlusion, not rays"):
        choose_method(brush.clip, "rays")


def test_further_texts_about_a_picture_cost_little_and_change_nothing(micro_pack: Path) -> None:
    brush, other = (Codebrush.from_pretrained(micro_pack, device="cpu") for _ in range(2))
    first, second = (Image.new("RGB", (32, 32), colour) for colour in ("red", "blue"))
    seen: list[int] = []
    brush.clip.image_encoder.register_forward_hook(lambda _, given, out: seen.append(len(out)))

    def counted(picture: Image.Image, text: str) -> tuple[Any, int]:
        seen.clear()
        return brush.explain(picture, text, "occlusion"), sum(seen)

    all_of_it = counted(first, "a circle")[1]
    again, few = counted(first, "a red square")
    assert few < 100 < 700 < all_of_it
    alone = other.explain(first, "a red square", "occlusion")
    assert again.faithfulness == alone.faithfulness
    assert [torch.equal(a.heat, b.heat) for a, b in zip(again.words, alone.words, strict=True)] == [True, True]
    assert counted(second, "a circle")[1] == all_of_it
