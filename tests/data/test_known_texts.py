"""Known labels help with words that a CLIP was not trained with, and change nothing else."""

from pathlib import Path

import pytest
import torch

from codebrush.data.known_texts import KnownTexts
from codebrush.pipeline import Codebrush

OTHER_WORDS = {  # in no label of the built-in pack, and what each is a kind of
    "pooch": "dog face",
    "jetliner": "airplane",
    "tadpole": "frog",
    "gravestone": "headstone",
    "crustacean": "lobster",
}


@pytest.fixture(scope="module")
def brush() -> Codebrush:
    return Codebrush.from_pretrained("emoji", device="cpu")


@pytest.fixture(scope="module")
def known(brush: Codebrush) -> KnownTexts:
    known = brush.known_texts
    assert known is not None
    return known


def test_other_words_move_towards_the_labels_that_mean_the_same(brush: Codebrush, known: KnownTexts) -> None:
    words, meant = list(OTHER_WORDS), list(OTHER_WORDS.values())
    plain, labels = brush.embed_text(words), brush.embed_text(meant)
    helped = known.helped(words, plain)
    torch.testing.assert_close(helped.norm(dim=1), torch.ones(len(words)))
    assert ((helped * labels).sum(1) > (plain * labels).sum(1)).all()
    among = brush.embed_text(known.labels)
    found = {
        word: known.labels[place] for word, place in zip(words, (helped @ among.T).argmax(1).tolist(), strict=True)
    }
    assert found["pooch"] in ("dog", "dog face", "poodle")
    assert sum(found[word] == label for word, label in OTHER_WORDS.items()) >= 3


def test_texts_of_known_words_keep_every_bit(brush: Codebrush, known: KnownTexts) -> None:
    texts = ["red apple", "dog face", "an apple", "a photo of a dog", "my two dogs", "this is an image of cherries"]
    plain = brush.embed_text([*texts, "pooch"])
    helped = known.helped([*texts, "pooch"], plain)
    assert torch.equal(helped[:-1], plain[:-1])
    assert not torch.equal(helped[-1], plain[-1])
    assert torch.equal(known.helped(texts, plain[:-1]), plain[:-1])


def test_what_no_label_is_near_to_stays(brush: Codebrush, known: KnownTexts) -> None:
    texts = ["qwzzk vrrgh", "123 456"]
    plain = brush.embed_text(texts)
    assert torch.equal(known.helped(texts, plain), plain)


def test_a_batch_is_helped_as_each_text_alone(brush: Codebrush, known: KnownTexts) -> None:
    texts = ["pooch", "red apple", "camembert"]
    plain = brush.embed_text(texts)
    alone = torch.cat([known.helped([text], row[None]) for text, row in zip(texts, plain, strict=True)])
    torch.testing.assert_close(known.helped(texts, plain), alone, rtol=0, atol=1e-6)


def test_only_packs_that_say_so_are_helped(brush: Codebrush, micro_pack: Path) -> None:
    assert brush.pack.info["known_texts"] is True
    assert Codebrush.from_pretrained(micro_pack, device="cpu").known_texts is None
