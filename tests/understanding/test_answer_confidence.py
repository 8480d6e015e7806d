"""How sure an answer is: its network, the words that are known, and the file."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from codebrush import Codebrush
from codebrush.data.preprocess import pixels_for
from codebrush.data.synthetic.shapes import scene
from codebrush.errors import PackError
from codebrush.understanding.answer_confidence import FILE, KINDS, AnswerConfidence, Naming, answer_features
from codebrush.understanding.captioning import UNKNOWN_ANSWER
from codebrush.understanding.text_decoding import DecodedText, greedy_decode
from packs import micro_captioner, micro_tokenizer, write_micro_pack

WORDS = frozenset(["what", "is", "it", "colour", "the", "circle"])
THINGS = frozenset(("owl", "barn"))


NAMES = frozenset(("barn owl", "owl", "old man"))
QUESTIONS = frozenset(["is it an animal"])


def by_clip(*weights: float) -> Naming:
    return Naming(torch.tensor(weights), NAMES, QUESTIONS)


def judge(width: int, output_bias: float = 0.0, naming: Naming | None = None) -> AnswerConfidence:
    draw = torch.Generator().manual_seed(0)
    shapes = {"mean": (width,), "scale": (width,), "hidden": (4, width), "hidden_bias": (4,), "output": (4,)}
    tensors = {name: torch.rand(shape, generator=draw) + 0.5 for name, shape in shapes.items()}
    return AnswerConfidence(WORDS, THINGS, tensors | {"output_bias": torch.tensor(output_bias)}, naming)


@pytest.fixture
def picture() -> Image.Image:
    return scene(0, 1, 32).image


@pytest.fixture
def pack(tmp_path: Path) -> Path:
    torch.manual_seed(3)
    return write_micro_pack(tmp_path / "pack", captioner=micro_captioner(), words=micro_tokenizer())


def test_the_confidence_is_that_of_a_network_with_one_hidden_layer() -> None:
    made, features = judge(5), torch.rand(3, 5)
    part = made.tensors
    scaled = (features - part["mean"]) / part["scale"]
    expected = [
        torch.sigmoid(part["output"] @ torch.clamp(part["hidden"] @ row + part["hidden_bias"], min=0)) for row in scaled
    ]
    torch.testing.assert_close(made.confidence(features), torch.stack(expected))


def test_the_features_are_the_answer_s_probability_and_length_and_the_state() -> None:
    found = answer_features(torch.tensor([7.0, 8.0]), DecodedText((4, 5), -0.25, True))
    odds = torch.logit(torch.tensor(-0.25).exp())
    torch.testing.assert_close(found, torch.tensor([-0.25, odds, 2.0, 7.0, 8.0]))
    certain = answer_features(torch.zeros(1), DecodedText((), 0.0, True))
    assert certain[1] == 8.0


def test_words_of_trained_questions_and_names_are_known() -> None:
    made = judge(5)
    assert made.unknown_words("What colour is the circle?") == []
    assert made.unknown_words("what colour is the ROOF, the roof?") == ["roof"]
    assert made.unknown_words("is it barn owl?") == []
    assert made.unknown_words("what is the owl?") == ["owl"]  # names are known only where something is named
    assert made.unknown_words("is it the owl?") == ["owl"]


def test_a_pack_with_a_judge_answers_by_it(pack: Path, picture: Image.Image) -> None:
    plain = Codebrush.from_pretrained(pack, "cpu")
    before = plain.ask(picture, "what is it?", threshold=0)
    reader = plain.reader
    assert reader.answer_confidence is None
    width = reader.captioner.config.width
    for bias in (-50.0, 50.0):
        judge(3 + width, bias).save(pack / "captioner")
        brush = Codebrush.from_pretrained(pack, "cpu")
        answer = brush.ask(picture, "what is it?")
        assert answer.guess == before.guess
        features = reader._features(pixels_for(plain.clip, [picture]))
        prompt = reader._prompt("what is it?")[None]
        state = reader.captioner.state(features, prompt)[0]
        expected = judge(3 + width, bias).confidence(
            answer_features(state, greedy_decode(reader.captioner, features, prompt)[0])
        )
        assert answer.confidence == pytest.approx(float(expected), abs=1e-6)
        assert answer.text == (before.guess if bias > 0 else UNKNOWN_ANSWER)
        assert answer.reason == ("" if bias > 0 else "it is not sure enough")
        foreign = brush.ask(picture, "what is the roof?")
        assert (foreign.text, foreign.confidence) == (UNKNOWN_ANSWER, 0)
        assert foreign.reason == 'it was trained on no questions with "roof"'


def test_the_state_before_the_answer_gives_the_logits_of_its_first_token(pack: Path, picture: Image.Image) -> None:
    reader = Codebrush.from_pretrained(pack, "cpu").reader
    features, prompt = reader._features(pixels_for(reader.clip, [picture])), reader._prompt("what is it?")[None]
    with torch.no_grad():
        logits, _ = reader.captioner.prefill(features, prompt)
        state = reader.captioner.state(features, prompt)
    torch.testing.assert_close(state @ reader.captioner.token_embedding.weight.T, logits[:, -1], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("question", "thing"),
    [
        ("is it barn owl?", "barn owl"),  # as it was trained
        ("Is this  a Zeppelin ?", "zeppelin"),  # a word that no question had: the article makes it a name
        ("is it a zeppelin?!", "zeppelin"),
        ("does it show an owl.", "owl"),
        ("is it a circle?", None),  # of words of other questions
        ("is it an animal?", None),  # a question of its own
        ("is it the owl?", None),
        ("is it an owl or a barn?", None),
        ("is this an owl, or a barn?", None),
        ("is it an owl/barn?", None),
        ("is it raining?", None),
        ("is it old?", None),  # no name, though a name has the word
        ("is it not an owl?", None),
        ("is it a bit dark?", None),
        ("is it a good idea to eat this?", None),
        ("is it a zzzqqqx?", None),  # nobody knows the word
        ("is it a \u72d7?", None),
        ("is it a very large zeppelin over the sea?", None),
        ("is it a?", None),
        ("what is it?", None),
    ],
)
def test_what_a_question_names(question: str, thing: str | None) -> None:
    made = judge(5, naming=by_clip(0, 0, 0))
    assert made.named_thing(question) == thing
    assert judge(5).named_thing(question) is None
    if thing is not None:
        assert made.unknown_words(question) == []


def test_clip_answers_whether_a_picture_shows_what_is_named(pack: Path, picture: Image.Image) -> None:
    plain = Codebrush.from_pretrained(pack, "cpu")
    width = plain.reader.captioner.config.width
    cosine, level = plain.reader.presence_of(pixels_for(plain.clip, [picture])[0], "owl")
    embedded = plain.embed_images([picture])[0] @ plain.embed_text(["owl"])[0]
    assert cosine == pytest.approx(float(embedded), abs=1e-5)
    for bias, guess in ((5.0, "yes"), (-5.0, "no")):
        made = judge(4 + width, naming=by_clip(2, -1, bias))
        made.save(pack / "captioner")
        brush = Codebrush.from_pretrained(pack, "cpu")
        answer = brush.ask(picture, "is it an owl?", threshold=0)
        assert (answer.text, answer.guess) == (guess, guess)
        features, prompt = (
            brush.reader._features(pixels_for(brush.clip, [picture])),
            brush.reader._prompt("is it an owl?"),
        )
        state = brush.reader.captioner.state(features, prompt[None])[0]
        (decoded,) = greedy_decode(brush.reader.captioner, features, prompt[None])
        odds = torch.tensor([abs(2 * cosine - level + bias)])
        expected = made.confidence(torch.cat([answer_features(state, decoded), odds]))
        assert answer.confidence == pytest.approx(float(expected), abs=1e-5)
        other = brush.ask(picture, "what is it?", threshold=0)  # the captioner's own
        assert other.guess == plain.ask(picture, "what is it?", threshold=0).guess


def test_a_file_of_another_captioner_is_one_line(pack: Path) -> None:
    judge(5).save(pack / "captioner")
    with pytest.raises(PackError, match="was made for another captioner: remove it, or install the pack again"):
        _ = Codebrush.from_pretrained(pack, "cpu").reader


def test_words_that_no_caption_had_are_helped_where_clip_answers(picture: Image.Image) -> None:
    brush = Codebrush.from_pretrained("emoji", "cpu")
    assert brush.known_texts is not None
    (pixels,) = pixels_for(brush.clip, [picture])
    text = brush.known_texts.helped(["zeppelin"], brush.embed_text(["zeppelin"]))[0]
    cosine, _ = brush.reader.presence_of(pixels, "zeppelin")
    assert cosine == pytest.approx(float(text @ brush.embed_images([picture])[0]), abs=1e-5)
    assert cosine != pytest.approx(
        float(brush.embed_text(["zeppelin"])[0] @ brush.embed_images([picture])[0]), abs=1e-3
    )


def test_a_damaged_file_is_one_line(tmp_path: Path) -> None:
    assert AnswerConfidence.load(tmp_path) is None
    judge(5).save(tmp_path)
    read = AnswerConfidence.load(tmp_path)
    assert read is not None
    assert (read.words, read.things, read.naming) == (WORDS, THINGS, None)
    judge(5, naming=by_clip(1, 2, 3)).save(tmp_path)
    read = AnswerConfidence.load(tmp_path)
    assert read is not None
    assert read.naming is not None
    assert read.naming.weights.tolist() == [1, 2, 3]
    assert (read.naming.names, read.naming.questions) == (NAMES, QUESTIONS)
    judge(5, naming=by_clip(1, 2)).save(tmp_path)
    with pytest.raises(PackError, match="is damaged: remove it, or install the pack again"):
        AnswerConfidence.load(tmp_path)
    about = {"confidence": json.dumps({"kind": KINDS[0], "things": []})}  # without its words
    save_file(dict(judge(5).tensors), tmp_path / FILE, metadata=about)
    with pytest.raises(PackError, match="is damaged: remove it, or install the pack again"):
        AnswerConfidence.load(tmp_path)
    made = judge(5)
    replace(made, tensors={**made.tensors, "mean": torch.zeros(6)}).save(tmp_path)
    with pytest.raises(PackError, match="is damaged: remove it, or install the pack again"):
        AnswerConfidence.load(tmp_path)
    (tmp_path / FILE).write_bytes((tmp_path / FILE).read_bytes()[:-20])
    with pytest.raises(PackError, match="is damaged: remove it, or install the pack again"):
        AnswerConfidence.load(tmp_path)
