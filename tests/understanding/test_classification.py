"""Zero-shot classification: embeddings of labels, their probabilities, and the errors."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from codebrush import Codebrush
from codebrush.data.synthetic.shapes import scene
from codebrush.data.text_embedding import embed_texts
from codebrush.errors import PackError, UsageError
from codebrush.text.other_things import OTHER_TEXTS
from codebrush.understanding.classification import (
    NONE,
    ZeroShotClassifier,
    label_embeddings,
    pack_temperature,
    read_label_file,
    read_labels,
)

LABELS = ["a red circle", "a blue square", "{}"]
TEMPLATES = ("{}", "a drawing of {}")


@pytest.fixture(scope="module")
def brush(micro_pack: Path) -> Codebrush:
    return Codebrush.from_pretrained(micro_pack, device="cpu")


def test_a_label_stands_for_the_unit_mean_of_its_sentences(brush: Codebrush) -> None:
    found = label_embeddings(brush.clip, brush.tokenizer, LABELS, TEMPLATES)
    for label, vector in zip(LABELS, found, strict=True):
        mean = brush.embed_text([label, f"a drawing of {label}"]).mean(0)
        torch.testing.assert_close(vector, mean / mean.norm())


def test_many_labels_are_embedded_as_a_few(brush: Codebrush) -> None:
    labels = [f"label {number}" for number in range(70)]
    many = label_embeddings(brush.clip, brush.tokenizer, labels, TEMPLATES)
    torch.testing.assert_close(many[65:], label_embeddings(brush.clip, brush.tokenizer, labels[65:], TEMPLATES))


def test_probabilities_are_the_softmax_of_scaled_cosines_over_the_temperature(brush: Codebrush) -> None:
    picture = scene(0, 1, 32).image
    classifier = ZeroShotClassifier(brush.clip, brush.tokenizer, LABELS, TEMPLATES, temperature=2.0)
    (answer,) = classifier.classify([picture])
    cosines = brush.embed_images([picture]) @ label_embeddings(brush.clip, brush.tokenizer, LABELS, TEMPLATES).T
    wanted = F.softmax(brush.clip.log_scale.exp() * cosines / 2, dim=-1)[0]
    assert [share for _, share in answer] == pytest.approx(sorted(wanted.tolist(), reverse=True), abs=1e-6)
    assert answer[0][0] == LABELS[int(wanted.argmax())]


def test_a_higher_temperature_is_less_sure_of_the_same_label(brush: Codebrush) -> None:
    answers = [
        ZeroShotClassifier(brush.clip, brush.tokenizer, LABELS, TEMPLATES, heat).classify([scene(0, 2, 32).image])[0]
        for heat in (0.5, 1.0, 4.0)
    ]
    assert len({answer[0][0] for answer in answers}) == 1
    sureness = [answer[0][1] for answer in answers]
    assert sureness[0] > sureness[1] > sureness[2] > 1 / 3


@pytest.mark.parametrize(
    ("labels", "complaint"),
    [
        ([], "at least two"),
        (["cat"], '"cat" is the only label'),
        (["cat", " "], "one of the labels is empty"),
        (["cat", "dog", " CAT"], 'the labels "cat" and " CAT" are the same'),
    ],
)
def test_labels_that_leave_no_choice_are_refused(brush: Codebrush, labels: list[str], complaint: str) -> None:
    with pytest.raises(UsageError, match=complaint) as caught:
        ZeroShotClassifier(brush.clip, brush.tokenizer, labels)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("template", ["a photo", "{} and {}"])
def test_a_template_holds_the_label_once(brush: Codebrush, template: str) -> None:
    with pytest.raises(UsageError, match="once"):
        ZeroShotClassifier(brush.clip, brush.tokenizer, LABELS, [template])


@pytest.mark.parametrize("heat", [0.0, -1.0, float("nan"), float("inf")])
def test_the_temperature_is_positive(brush: Codebrush, heat: float) -> None:
    with pytest.raises(UsageError, match="positive"):
        ZeroShotClassifier(brush.clip, brush.tokenizer, LABELS, temperature=heat)


def test_labels_are_read_as_csv() -> None:
    assert read_labels('cat, "dog, asleep","say ""hi""",car') == ["cat", "dog, asleep", 'say "hi"', "car"]
    assert read_labels("cat,,dog") == ["cat", "", "dog"]
    assert read_labels("") == []
    with pytest.raises(UsageError, match="cannot be read"):
        read_labels('cat,"dog')


def test_a_label_file_has_one_a_line(tmp_path: Path) -> None:
    path = tmp_path / "labels.txt"
    path.write_text("\ufeffcat\r\n\n dog, asleep \n", encoding="utf-8")
    assert read_label_file(path) == ["cat", "dog, asleep"]
    with pytest.raises(UsageError, match="no such file"):
        read_label_file(tmp_path / "none.txt")
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match="not UTF-8"):
        read_label_file(path)


def test_a_pack_may_say_its_temperature() -> None:
    assert pack_temperature({"name": "a"}) == 1.0
    assert pack_temperature({"name": "a", "classification": {"temperature": 2}}) == 2.0
    for wrong in (2.0, {"temperature": 0}, {"temperature": "hot"}, {"temperature": True}, []):
        with pytest.raises(PackError, match="'a'"):
            pack_temperature({"name": "a", "classification": wrong})


def test_none_of_these_has_the_share_of_the_texts_about_other_things(brush: Codebrush) -> None:
    picture = scene(0, 1, 32).image
    found = dict(brush.classify([picture], LABELS, none=True)[0])
    labels = ZeroShotClassifier(brush.clip, brush.tokenizer, LABELS).classes
    others = embed_texts(brush.clip, brush.tokenizer, OTHER_TEXTS, 8, on_long="truncate")
    texts = torch.cat([labels, others])  # as if all were labels
    shares = (brush.clip.log_scale.exp() * brush.embed_images([picture]) @ texts.T).softmax(-1)[0]
    expected = [*shares[: len(LABELS)].tolist(), float(shares[len(LABELS) :].sum())]
    assert [found[label] for label in (*LABELS, NONE)] == pytest.approx(expected, abs=1e-5)
    assert 0 < found[NONE] < 1
    assert {label for label, _ in brush.classify([picture], ["cat"], none=True)[0]} == {"cat", NONE}
    with pytest.raises(UsageError, match='the labels "none of these" and "None of these" are the same'):
        brush.classify([picture], ["cat", "None of these"], none=True)


def test_the_texts_about_other_things_are_many_and_different() -> None:
    assert len(OTHER_TEXTS) == len(set(OTHER_TEXTS)) == 256
    assert all(text == " ".join(text.split()) and 2 < len(text) < 60 for text in OTHER_TEXTS)
