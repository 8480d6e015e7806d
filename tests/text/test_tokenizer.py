"""Token ids against transformers' tokenizers built from the same files; truncation, saving and training."""

import gzip
import json
import pickle
import warnings
from pathlib import Path

import pytest
import tokenizers
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from codebrush.errors import CodebrushError, DataError, PackError, PromptError, UsageError
from codebrush.text.tokenizer import DEFAULT_CONTEXT, Tokenizer, train_bpe

TEXTS = [
    "a dog",
    "A Red APPLE, sliced: 3.5 cm!",
    "café naïve  Ünïcode\ttab\nline",
    "it's the dog's bowl, they'll say",
    "red heart ❤️ and 🍎 apple",
    "日本の旗 flag: Japan",
    "unbelievably antidisestablishmentarianism",
    "",
    "   ",
    "x" * 150,
]
CAPTIONS = [
    "a red apple, flat style",
    "a green apple, flat style",
    "a dog's face, 3D style",
    "the dog's bowl",
    "flag: Côte d'Ivoire",
    "🍎 red apple",
] * 3


@pytest.fixture(scope="module")
def wordpiece() -> Tokenizer:
    return Tokenizer.wordpiece()


@pytest.fixture(scope="module")
def bpe() -> Tokenizer:
    return train_bpe(CAPTIONS, vocab_size=400)


def write_bpe_files(folder: Path, word_end: str, specials: list[str]) -> list[tuple[str, str]]:
    """A small vocab.json and merges.txt in the layout of the published ones; returns the merges."""
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=700, initial_alphabet=alphabet, end_of_word_suffix=word_end, show_progress=False
    )
    backend = tokenizers.Tokenizer(tokenizers.models.BPE())
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not word_end)
    words = " ".join(CAPTIONS + TEXTS).lower()
    backend.train_from_iterator(words.split() if word_end else [words], trainer)
    merges = [tuple(pair) for pair in json.loads(backend.to_str())["model"]["merges"]]
    letters = sorted(alphabet, key=lambda letter: (ord(letter) > 255, letter))
    tokens = letters + [letter + word_end for letter in letters if word_end]
    tokens += ["".join(pair) for pair in merges] + specials
    vocab = {token: index for index, token in enumerate(dict.fromkeys(tokens))}
    (folder / "vocab.json").write_text(json.dumps(vocab), encoding="utf-8")
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return merges


def unpadded(tokenizer: Tokenizer, text: str) -> list[int]:
    """The row of a text up to and with its first end token."""
    row = tokenizer(text, context_length=256)[0].tolist()
    return row[: row.index(tokenizer.end_id) + 1]


def test_wordpiece_rows_are_start_tokens_end_and_padding(wordpiece: Tokenizer) -> None:
    assert wordpiece.vocab_size == 30522
    assert (wordpiece.pad_id, wordpiece.start_id, wordpiece.end_id) == (0, 101, 102)
    tokens = wordpiece(["a dog", "puppies!"])
    assert tokens.dtype == torch.int64
    assert tokens.shape == (2, DEFAULT_CONTEXT)
    assert tokens[0, :5].tolist() == [101, 1037, 3899, 102, 0]
    assert tokens[1, :5].tolist() == [101, 26781, 13046, 999, 102]
    assert tokens[:, 5:].eq(0).all()


def test_wordpiece_gives_the_ids_of_bert(wordpiece: Tokenizer, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    vocab = wordpiece.backend.get_vocab()
    (tmp_path / "vocab.txt").write_text("\n".join(sorted(vocab, key=vocab.__getitem__)) + "\n", encoding="utf-8")
    reference = transformers.BertTokenizerFast.from_pretrained(tmp_path)
    ours = Tokenizer.from_files(tmp_path / "vocab.txt")
    for text in TEXTS:
        expected = reference(text).input_ids
        assert unpadded(wordpiece, text) == expected
        assert unpadded(ours, text) == expected


def test_clip_files_give_the_ids_of_clip(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    write_bpe_files(tmp_path, "</w>", ["<|startoftext|>", "<|endoftext|>"])
    reference = transformers.CLIPTokenizerFast.from_pretrained(tmp_path)
    tokenizer = Tokenizer.from_files(tmp_path)
    assert tokenizer.context_length == 77
    for text in TEXTS:
        assert unpadded(tokenizer, text) == reference(text).input_ids, text
    assert unpadded(tokenizer, "a red apple") != unpadded(tokenizer, "are dap ple")


def test_openai_merges_give_the_same_ids_as_vocab_and_merges(tmp_path: Path) -> None:
    merges = write_bpe_files(tmp_path, "</w>", ["<|startoftext|>", "<|endoftext|>"])
    path = tmp_path / "bpe_simple.txt.gz"
    path.write_bytes(gzip.compress("\n".join(["version", *(" ".join(pair) for pair in merges)]).encode()))
    tokenizer, reference = Tokenizer.from_files(path), Tokenizer.from_files(tmp_path)
    assert tokenizer.vocab_size == reference.vocab_size
    for text in TEXTS:
        assert unpadded(tokenizer, text) == unpadded(reference, text)
    assert (tokenizer.pad_id, reference.pad_id) == (0, reference.end_id)
    assert tokenizer.decode(tokenizer("A red apple!")[0]) == "a red apple !"


def test_roberta_files_give_the_ids_of_roberta(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    write_bpe_files(tmp_path, "", ["<s>", "</s>", "<pad>", "<unk>", "<mask>"])
    reference = transformers.RobertaTokenizerFast.from_pretrained(tmp_path)
    tokenizer = Tokenizer.from_files(tmp_path)
    assert tokenizer.pad_id != tokenizer.end_id
    for text in TEXTS:
        assert unpadded(tokenizer, text) == reference(text).input_ids, text


@pytest.mark.parametrize("name", ["spiece.model", "sentencepiece.bpe.model", "tokenizer.model"])
def test_a_sentencepiece_model_alone_is_named_with_the_remedy(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"\n\x0e\n\x05<unk>")
    remedy = f"AutoTokenizer.from_pretrained('{tmp_path}').save_pretrained('{tmp_path}')"
    for place in (tmp_path, tmp_path / name):
        with pytest.raises(PackError) as caught:
            Tokenizer.from_files(place)
        assert str(caught.value) == (
            f"{tmp_path / name} is a SentencePiece tokenizer, which is read from tokenizer.json only: "
            f"fetch that, or write it with transformers: {remedy}"
        )
    write_bpe_files(tmp_path, "</w>", ["<|startoftext|>", "<|endoftext|>"])
    assert Tokenizer.from_files(tmp_path).context_length == 77


def test_config_files_name_specials_length_and_no_start(tmp_path: Path) -> None:
    write_bpe_files(tmp_path, "", ["<go>", "<stop>", "<fill>"])
    with pytest.raises(PackError, match="no end token"):
        Tokenizer.from_files(tmp_path)
    (tmp_path / "special_tokens_map.json").write_text('{"eos_token": {"content": "<stop>"}, "bos_token": "<go>"}')
    (tmp_path / "tokenizer_config.json").write_text('{"model_max_length": 64, "pad_token": "<fill>"}')
    tokenizer = Tokenizer.from_files(tmp_path)
    row = tokenizer("a")[0]
    assert row.shape == (64,)
    assert row[[0, 2, 3]].tolist() == [tokenizer.backend.token_to_id(t) for t in ("<go>", "<stop>", "<fill>")]
    (tmp_path / "tokenizer_config.json").write_text('{"add_bos_token": false, "model_max_length": 1e30}')
    tokenizer = Tokenizer.from_files(tmp_path)
    tokenizer.save(tmp_path / "saved")
    for loaded in (tokenizer, Tokenizer.from_pretrained(tmp_path / "saved")):
        assert loaded.start_id is None
        assert loaded("a").shape == (1, DEFAULT_CONTEXT)
        assert loaded("a")[0, 1] == loaded.end_id == loaded.pad_id


def test_saved_tokenizer_loads_equal_and_serves_other_programs(bpe: Tokenizer, tmp_path: Path) -> None:
    short = Tokenizer(bpe.backend, pad="<|pad|>", start="<|start|>", end="<|end|>", context_length=12)
    short.save(tmp_path)
    loaded = Tokenizer.from_pretrained(tmp_path)
    assert loaded.context_length == 12
    assert torch.equal(loaded(CAPTIONS, on_long="truncate"), short(CAPTIONS, on_long="truncate"))
    elsewhere = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert elsewhere.encode("a red apple").ids == unpadded(short, "a red apple")
    assert not list(tmp_path.glob("*.part"))


def test_special_tokens_typed_in_a_text_stay_text(bpe: Tokenizer, wordpiece: Tokenizer) -> None:
    for tokenizer, text in ((bpe, "a <|end|> dog <|pad|>"), (wordpiece, "a [SEP] dog [PAD]")):
        for copy in (tokenizer, pickle.loads(pickle.dumps(tokenizer))):
            inside = copy(text)[0].tolist()[1:]
            assert inside.index(copy.end_id) >= 8
            assert copy.pad_id not in inside[: inside.index(copy.end_id)]


def test_long_text_keeps_its_end_token(wordpiece: Tokenizer) -> None:
    text = "dog " * 50
    with pytest.warns(UserWarning, match="dog dog.*50 tokens: only the first 30") as caught:
        row = wordpiece([text, text, "cat"])[0]
    assert len(caught) == 1
    assert row.tolist() == [101, *[3899] * 30, 102]
    with pytest.raises(PromptError, match="50 tokens, over the 30") as error:
        wordpiece(text, on_long="error")
    assert "\n" not in str(error.value)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert wordpiece(text, context_length=3, on_long="truncate").tolist() == [[101, 3899, 102]]
        assert wordpiece("dog " * 30, on_long="error")[0, -1] == 102


def test_unfit_arguments_are_named(wordpiece: Tokenizer) -> None:
    with pytest.raises(UsageError, match="context_length is 2"):
        wordpiece("a", context_length=2)
    with pytest.raises(UsageError, match="on_long is 'sometimes'"):
        wordpiece("a", on_long="sometimes")  # pyright: ignore[reportArgumentType]
    with pytest.raises(PromptError, match="not NoneType"):
        wordpiece(["a", None])  # pyright: ignore[reportArgumentType]
    assert wordpiece([]).shape == (0, DEFAULT_CONTEXT)
    assert wordpiece("half \ud83d of a pair").shape == (1, DEFAULT_CONTEXT)


def test_decode_gives_the_text_between_start_and_end(bpe: Tokenizer, wordpiece: Tokenizer) -> None:
    assert wordpiece.decode(wordpiece("A snowboarder, at 12:30")[0]) == "a snowboarder, at 12 : 30"
    ids = [*bpe("red apple")[0].tolist(), *bpe("more")[0].tolist()]
    assert bpe.decode(ids) == "red apple"
    without_end = bpe("red apple")[0]
    assert bpe.decode(without_end[without_end != bpe.end_id]) == "red apple"


@settings(max_examples=150, deadline=None)
@given(text=st.text(max_size=60))
def test_trained_bpe_round_trips_any_text(bpe: Tokenizer, text: str) -> None:
    once = bpe.decode(bpe(text, context_length=1000)[0])
    assert bpe.decode(bpe(once, context_length=1000)[0]) == once
    if text.isascii() and text.isprintable():
        assert once == " ".join(text.lower().split())


def test_trained_bpe_learns_words_and_keeps_emoji(bpe: Tokenizer) -> None:
    assert bpe.vocab_size <= 400
    assert len(unpadded(bpe, "red apple")) == 4  # start, two whole words, end
    assert len({bpe.pad_id, bpe.start_id, bpe.end_id}) == 3
    for text in ("🍎 and 👩‍🚀", "côte d'ivoire", "日本", ""):
        assert bpe.decode(bpe(text, context_length=100)[0]) == text


def test_training_is_deterministic_and_bounded(bpe: Tokenizer) -> None:
    assert train_bpe(iter(CAPTIONS), vocab_size=400).backend.to_str() == bpe.backend.to_str()
    assert train_bpe(CAPTIONS, vocab_size=280).vocab_size == 280
    with pytest.raises(UsageError, match="at least 259"):
        train_bpe(CAPTIONS, vocab_size=100)
    with pytest.raises(DataError, match="no captions"):
        train_bpe(["", "  "])


def write(folder: Path, files: dict[str, str | bytes]) -> Path:
    for name, content in files.items():
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "holds no tokenizer"),
        ({"tokenizer.json": "{"}, "is damaged"),
        ({"tokenizer.json": b"\xff\xfe\x00"}, "is damaged"),
        ({"tokenizer.json": '{"version": "1.0"}'}, "is damaged"),
        ({"vocab.json": "{}"}, "merges.txt is missing"),
        ({"vocab.json": "[]", "merges.txt": ""}, "not a JSON object"),
        ({"vocab.json": '{"a": "b"}', "merges.txt": ""}, "not a token-to-number list"),
        ({"vocab.json": '{"a": 0, "<|endoftext|>": 1}', "merges.txt": "a b c\n"}, "is damaged"),
        ({"vocab.json": '{"a": 0, "<|endoftext|>": 1}', "merges.txt": "a b\n"}, "is damaged"),
        ({"vocab.txt": "just\nsome\nwords\n"}, "no \\[UNK\\]"),
        ({"vocab.txt": "[UNK]\na\n"}, "no end token"),
        ({"vocab.txt": "[UNK]\n[SEP]\na\n", "tokenizer_config.json": "nonsense"}, "is damaged"),
    ],
)
def test_missing_and_damaged_files_are_one_line(tmp_path: Path, files: dict[str, str | bytes], message: str) -> None:
    with pytest.raises(PackError, match=message) as error:
        Tokenizer.from_files(write(tmp_path, files))
    assert "\n" not in str(error.value)


def test_missing_paths_and_a_damaged_gzip(tmp_path: Path) -> None:
    with pytest.raises(CodebrushError, match="is missing"):
        Tokenizer.from_pretrained(tmp_path / "nowhere")
    with pytest.raises(CodebrushError, match="is damaged"):
        Tokenizer.from_files(write(tmp_path, {"merges.txt.gz": b"not gzip"}) / "merges.txt.gz")


def test_capitals_in_a_vocabulary_keep_the_case(tmp_path: Path) -> None:
    write(tmp_path, {"vocab.txt": "[PAD]\n[UNK]\n[CLS]\n[SEP]\nDog\ndog\n"})
    assert unpadded(Tokenizer.from_files(tmp_path), "Dog dog") == [2, 4, 5, 3]
    write(tmp_path, {"tokenizer_config.json": '{"do_lower_case": true}'})
    assert unpadded(Tokenizer.from_files(tmp_path), "Dog dog") == [2, 5, 5, 3]


@pytest.mark.parametrize("named", [5, ["[SEP]"], "\ud800", {"content": None}, "no such token"], ids=repr)
def test_a_special_token_that_is_none_gives_way_to_a_known_one(named: object, tmp_path: Path) -> None:
    plain = Tokenizer.wordpiece()
    plain.save(tmp_path)
    config = tmp_path / "tokenizer_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"eos_token": named, "pad_token": named}))
    loaded = Tokenizer.from_pretrained(tmp_path)
    assert (loaded.end, loaded.pad, loaded.start) == (plain.end, plain.pad, plain.start)
