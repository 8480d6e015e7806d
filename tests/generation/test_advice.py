"""What a pack says of a prompt: words it hardly knows, other languages, and near things when a drawing fails."""

import warnings
from pathlib import Path

import pytest
import torch
from PIL import Image

from codebrush import Codebrush
from codebrush.cli.main import run
from codebrush.generation.advice import hardly_known, known_labels, nearest_labels, warn_of_failure, warn_of_words
from codebrush.generation.result import Result
from codebrush.models.bank import Bank, BankConfig
from codebrush.pack.pack import Pack, open_pack
from packs import micro_clip, micro_transformer, write_micro_pack


@pytest.fixture(scope="module")
def emoji() -> Pack:
    return open_pack("emoji")


def result(verdict: str | None) -> Result:
    picture = Image.new("RGB", (8, 8))
    return Result(picture, 0.1, torch.zeros(1), torch.zeros(1), {"index": 0}, None if verdict is None else 0.1, verdict)


def test_labels_are_known_without_their_style(emoji: Pack) -> None:
    labels = known_labels(emoji)
    assert len(labels) == len(set(labels))
    assert {"red apple", "motorcycle", "cat face"} <= set(labels)
    assert not any(label.endswith("style") for label in labels)


def test_labels_of_a_pack_without_styles_are_whole(micro_pack: Path, tmp_path: Path) -> None:
    assert known_labels(open_pack(micro_pack)) == []
    names = ("a cat, noto style", "a dog", "a dog")
    pack = open_pack(write_micro_pack(tmp_path / "pack", bank=Bank(BankConfig(24, names))))
    assert known_labels(pack) == ["a cat, noto style", "a dog"]
    assert hardly_known(pack, "an apfel") == []  # its vocabulary is its own


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ("a red apple", []),
        ("a puppy and two hedgehogs skateboarding", []),  # hedge + hog + s, skate + boarding
        ("roter apfel:1.2 | gewitter:-1", ["apfel"]),
        ("a quokka", ["quokka"]),
        ("an avocado", []),  # spelled in three pieces, and a label
        ("zxqv, zxqv", ["zxqv"]),
        ("a red apple, noto style", []),  # --style noto; the word is one of the pack's
        ("a noto lantern, twemoji style:2 | zxqv, noto style", ["noto", "zxqv"]),
    ],
)
def test_words_that_fall_to_pieces_are_hardly_known(emoji: Pack, prompt: str, words: list[str]) -> None:
    assert hardly_known(emoji, prompt) == words


def said(call: object, *arguments: object) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call(*arguments)  # type: ignore[operator]
    return [str(each.message) for each in caught]


def test_another_language_is_named_once(emoji: Pack, micro_pack: Path) -> None:
    (line,) = said(warn_of_words, emoji, "ein roter apfel")
    assert line == '"ein" looks like a word of another language: the pack was trained on English captions'
    (line,) = said(warn_of_words, emoji, "roter apfel")
    assert line == 'the pack hardly knows "apfel", only its spelling: try other words'
    assert said(warn_of_words, emoji, "a red apple") == []
    assert said(warn_of_words, emoji, "Las Vegas, Los Angeles and MIT") == []
    assert said(warn_of_words, open_pack(micro_pack), "ein roter apfel") == []


def test_near_labels_mean_the_same(emoji: Pack) -> None:
    assert nearest_labels(emoji, "a motorcycle:2 | cat:-1")[0] == "motorcycle"
    assert {"automobile", "racing car", "oncoming automobile"} & set(nearest_labels(emoji, "car", 5))
    assert all("baby" in label or "pregnant" in label for label in nearest_labels(emoji, "infant"))
    plain = nearest_labels(emoji, "a motorcycle")
    assert nearest_labels(emoji, "a motorcycle, twemoji style") == plain
    assert nearest_labels(emoji, "cat face:-1 | blurry:0.2 | a motorcycle") == plain  # not what must not show


@pytest.mark.parametrize(
    "prompt", ["zxqv", "a glorfax", "a blimfrost:2 | a motorcycle", "Schmetterling", "ein roter Vogel", "huis", "a jar"]
)
def test_nothing_is_near_words_that_say_nothing(emoji: Pack, prompt: str) -> None:
    assert nearest_labels(emoji, prompt) == []
    (line,) = said(warn_of_failure, emoji, prompt, [result("unlikely")])
    assert line == (
        "the picture is unlikely to show the prompt; nothing near it is among what this pack was trained on"
    )


def test_what_is_only_spelt_is_left_out_of_what_is_near(emoji: Pack) -> None:
    assert nearest_labels(emoji, "a glorfax motorcycle") == nearest_labels(emoji, "a motorcycle")
    assert {"coconut", "strawberry"} & set(nearest_labels(emoji, "a mango"))


def test_a_failure_names_what_is_near(emoji: Pack, micro_pack: Path) -> None:
    (line,) = said(warn_of_failure, emoji, "an infant", [result("unlikely"), result("unlikely")])
    assert line.startswith("all pictures are unlikely to show the prompt; the nearest that this pack was trained on: ")
    assert "baby" in line
    assert said(warn_of_failure, emoji, "an infant", [result("unlikely"), result("unsure")]) == []
    assert said(warn_of_failure, emoji, "an infant", [result(None)]) == []
    (line,) = said(warn_of_failure, open_pack(micro_pack), "an infant", [result("unlikely")])
    assert line == "the picture is unlikely to show the prompt"


def test_a_failure_of_what_was_trained_names_nothing_else(emoji: Pack) -> None:
    (line,) = said(warn_of_failure, emoji, "a pizza", [result("unlikely")])
    assert line == (
        "the picture is unlikely to show the prompt, though the pack was trained on 'pizza': try another seed, more "
        "pictures, or no style"
    )


def test_drawing_and_editing_say_both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    members = {"scorer": micro_clip(), "transformer": micro_transformer(source_codes=True)}
    pack = write_micro_pack(tmp_path / "pack", **members, extras={"scores": {"likely": 9, "unlikely": 8}})
    brush = Codebrush.from_pretrained(pack, "cpu")
    failed = "all pictures are unlikely to show the prompt"
    assert failed in said(lambda: brush.generate("a dog", n=2))
    monkeypatch.setattr("codebrush.generation.advice.hardly_known", lambda pack, prompt: [prompt])
    lost = 'the pack hardly knows "a quokka", only its spelling: try other words'
    picture = Image.new("RGB", (32, 32), "red")
    assert said(lambda: brush.edit(picture, "a quokka", n=1, box=(0, 0, 16, 16))) == [lost]
    assert said(lambda: brush.edit(picture, n=1, box=(0, 0, 16, 16))) == []


def test_an_edit_by_guidance_says_both(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    extras = {"scores": {"likely": 9, "unlikely": 8}, "guidance": {"steps": 1, "cutouts": 2}}
    pack = write_micro_pack(tmp_path / "pack", scorer=micro_clip(), extras=extras)
    Image.new("RGB", (32, 32), "red").save(tmp_path / "red.png")
    given = ["edit", str(tmp_path / "red.png"), "a dog", "--method", "guide", "--n", "2", "--pack", str(pack)]
    assert run([*given, "--out", str(tmp_path)]) == 0
    assert "warning: all pictures are unlikely to show the prompt" in capsys.readouterr().err
