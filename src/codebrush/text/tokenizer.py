"""Tokenizers turn texts into token ids and back: the built-in WordPiece, published ones, or one trained on captions.

The `tokenizers` library does the work. This file adds what the encoders rely on: every row is `start ... end` and then
padding, the end token survives truncation, special tokens typed in a text count as text, and a folder is enough to load
from. Byte-pair encoding is that of Sennrich et al. 2016, WordPiece that of BERT (Devlin et al. 2018).
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Self

import tokenizers
import torch
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers
from torch import Tensor

from codebrush.errors import DataError, PackError, PromptError, UsageError
from codebrush.files import atomic_file
from codebrush.text.cleanup import clean_openai, split_specials
from codebrush.text.published import CONFIG_FILE, OWN_KEY, TOKENIZER_FILE, Cleanup, read_tokenizer_files
from codebrush.text.scripts import script_counts
from codebrush.text.token_table import WORDPIECE_FOLDER
from codebrush.warned import warn

DEFAULT_CONTEXT = 32
MIN_CONTEXT = 3  # start, one token, end
PAD, START, END = "<|pad|>", "<|start|>", "<|end|>"
UNKNOWN = ("[UNK]", "<unk>", "<|unk|>")
MIN_BPE_VOCABULARY = 256 + 3  # every byte, and the special tokens


class Tokenizer:
    """A vocabulary, its special tokens and the length of a row.

    `pad_id`, `start_id` and `end_id` are token ids. `start_id` is None if a published model uses no start token
    (SigLIP), and `pad_id` equals `end_id` if it pads with its end token (CLIP as transformers ships it): the end of a
    text is then the first `end_id` of its row.

    Args:
        backend: the vocabulary and how texts are split.
        pad: the padding token; None fills rows with zeros as OpenAI's code does, though 0 is a token of its vocabulary
            too.
        start: the start token, if there is one.
        end: the end token.
        context_length: T, the number of tokens of a row.
        cleanup: "openai" reads texts as OpenAI's own tokenizer does: cleaned (`codebrush.text.cleanup`), and with
            special tokens typed in a text counting as such. None leaves these as text and applies the vocabulary's own
            normalisation alone.

    Raises:
        PackError: if a special token is not in the vocabulary.
        UsageError: if `context_length` is below 3.
    """

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        *,
        pad: str | None,
        start: str | None,
        end: str,
        context_length: int = DEFAULT_CONTEXT,
        cleanup: Cleanup | None = None,
    ) -> None:
        self.backend = backend
        self.pad, self.start, self.end = pad, start, end
        self.cleanup: Cleanup | None = cleanup
        self.pad_id = 0 if pad is None else self._special_id(pad)
        self.start_id = None if start is None else self._special_id(start)
        self.end_id = self._special_id(end)
        self.context_length = _checked_length(context_length)
        # so that tokenizer.json alone gives other programs the same rows
        specials = [token for token in dict.fromkeys((pad, start, end)) if token is not None]
        backend.add_special_tokens(specials)
        backend.post_processor = processors.TemplateProcessing(
            single=[*([start] if start else []), "$A", end],
            special_tokens=[(token, self._special_id(token)) for token in specials],
        )
        backend.no_padding()
        backend.no_truncation()
        backend.encode_special_tokens = True  # "[SEP]" in a text stays text

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.backend.encode_special_tokens = True  # the library's pickle leaves it out

    @classmethod
    def wordpiece(cls) -> Self:
        """The built-in tokenizer: BERT's lower-casing WordPiece with 30,522 tokens, in rows of 32."""
        return cls.from_files(WORDPIECE_FOLDER)

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> Self:
        """The tokenizer that `save` wrote into `folder`.

        Raises:
            PackError: if a file is missing or damaged.
        """
        return cls.from_files(Path(folder) / TOKENIZER_FILE)

    @classmethod
    def from_files(cls, path: str | Path, context_length: int | None = None) -> Self:
        """A published tokenizer, from a folder or one file of it in a layout that `codebrush.text.published` reads.

        `context_length` None takes the length that the files name, or 32.

        Raises:
            PackError: if a file is missing or damaged.
        """
        files = read_tokenizer_files(path)
        if context_length is None:
            context_length = files.context_length or DEFAULT_CONTEXT
        return cls(
            files.backend,
            pad=files.pad,
            start=files.start,
            end=files.end,
            context_length=context_length,
            cleanup=files.cleanup,
        )

    @cached_property
    def vocab_size(self) -> int:
        """How many rows an embedding of these tokens needs: the highest id plus one."""
        return max(self.backend.get_vocab(with_added_tokens=True).values()) + 1

    @cached_property
    def unknown_id(self) -> int | None:
        """The token for what is not in the vocabulary; None if it can spell everything (in bytes)."""
        return next((index for name in UNKNOWN if (index := self.backend.token_to_id(name)) is not None), None)

    @cached_property
    def script_counts(self) -> Mapping[str, int]:
        """How many tokens the vocabulary has of each script; see `codebrush.text.scripts`."""
        tokens = self.backend.get_vocab(with_added_tokens=False)
        return script_counts(tokens, byte_level="Ġ" in tokens or "Ġ</w>" in tokens)

    def __call__(
        self,
        texts: str | Sequence[str],
        context_length: int | None = None,
        on_long: Literal["warn", "error", "truncate"] = "warn",
    ) -> Tensor:
        """One text or several -> (B, T) int64, each row `start tokens end` padded to T = `context_length`.

        A text with more tokens than fit is cut and keeps its end token, with one UserWarning a text. `on_long`
        "truncate" cuts it without a warning, and "error" raises.

        Raises:
            PromptError: if something is not a text, or with `on_long` "error" a text is too long.
            UsageError: if `on_long` is unknown or `context_length` below 3.
        """
        if on_long not in ("warn", "error", "truncate"):
            raise UsageError(f"on_long is '{on_long}': it is one of warn, error, truncate")
        length = self.context_length if context_length is None else _checked_length(context_length)
        texts = [texts] if isinstance(texts, str) else list(texts)
        head = [] if self.start_id is None else [self.start_id]
        room = length - len(head) - 1
        tokens = torch.full((len(texts), length), self.pad_id, dtype=torch.int64)  # (B, T)
        reported: set[str] = set()
        for row, (text, ids) in enumerate(zip(texts, self.ids(texts), strict=True)):
            if len(ids) > room and on_long != "truncate" and text not in reported:
                _report_long(text, len(ids), room, on_long)
                reported.add(text)
            ids = [*head, *ids[:room], self.end_id]
            tokens[row, : len(ids)] = torch.tensor(ids)
        return tokens

    def decode(self, ids: Tensor | Sequence[int]) -> str:
        """One row of token ids -> its text, from the start token to the first end token, both left out."""
        row = [int(index) for index in ids]
        if row and row[0] == self.start_id:
            row = row[1:]
        if self.end_id in row:
            row = row[: row.index(self.end_id)]
        while row and row[-1] == self.pad_id:
            row.pop()
        return self.backend.decode(row, skip_special_tokens=False).strip()

    def save(self, folder: str | Path) -> None:
        """Write tokenizer.json and tokenizer_config.json (transformers' names) into `folder`."""
        folder = Path(folder)
        config: dict[str, Any] = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": self.context_length,
            "pad_token": self.pad or self.end,  # transformers has no padding with zeros
            "bos_token": self.start,
            "add_bos_token": self.start is not None,
            "eos_token": self.end,
        }
        own = {"zero_padding": self.pad is None, "cleanup": self.cleanup}
        if any(own.values()):
            config[OWN_KEY] = own
        _write(folder / TOKENIZER_FILE, self.backend.to_str(pretty=False))
        _write(folder / CONFIG_FILE, json.dumps(config, indent=2) + "\n")

    def ids(self, texts: Sequence[str]) -> list[list[int]]:
        """The token ids of each text alone: no start, no end, no padding, and of any length.

        Raises:
            PromptError: if something is not a text.
        """
        texts = list(texts)
        for text in texts:
            if not isinstance(text, str):
                raise PromptError(f"a text is expected, not {type(text).__name__}: {text!r:.60}")
        if self.cleanup == "openai":
            return self._encode_openai(texts)
        return self._encode(texts)

    def _encode(self, texts: list[str]) -> list[list[int]]:
        encodings = self.backend.encode_batch([_utf8(text) for text in texts], add_special_tokens=False)
        return [encoding.ids for encoding in encodings]

    def _encode_openai(self, texts: list[str]) -> list[list[int]]:
        specials = {token: self._special_id(token) for token in (self.start, self.end) if token is not None}
        parts = [split_specials(clean_openai(text), tuple(specials)) for text in texts]
        ids = iter(self._encode([part for row in parts for part in row if part not in specials]))
        return [[i for part in row for i in ([specials[part]] if part in specials else next(ids))] for row in parts]

    def _special_id(self, token: str) -> int:
        index = self.backend.token_to_id(token)
        if index is None:
            raise PackError(f"the vocabulary has no token '{token}': name the special tokens in {CONFIG_FILE}")
        return index


def train_bpe(captions: Iterable[str], vocab_size: int = 4096, context_length: int = DEFAULT_CONTEXT) -> Tokenizer:
    """A lower-casing byte-level BPE learned from captions; any text round-trips but for case and spacing.

    The same captions give the same tokens. There are fewer than `vocab_size` if no more pairs occur twice.

    Raises:
        DataError: if all captions are empty.
        UsageError: if `vocab_size` is below 259, the bytes and three special tokens.
    """
    if vocab_size < MIN_BPE_VOCABULARY:
        raise UsageError(f"vocab_size is {vocab_size}: a byte-level vocabulary needs at least {MIN_BPE_VOCABULARY}")
    captions = [_utf8(caption) for caption in captions]
    if not any(caption.strip() for caption in captions):
        raise DataError("no captions to learn a vocabulary from: every one is empty")
    backend = tokenizers.Tokenizer(models.BPE())
    spaces = normalizers.Replace(tokenizers.Regex(r"\s+"), " ")
    backend.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase(), spaces, normalizers.Strip()])
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - 1,
        min_frequency=2,
        special_tokens=[PAD, START],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(captions, trainer)
    backend.add_special_tokens([END])  # the largest id, by which OpenAI's text encoder finds it
    return Tokenizer(backend, pad=PAD, start=START, end=END, context_length=context_length)


def _utf8(text: str) -> str:
    # Half of a surrogate pair, as broken JSON may contain, cannot be written as UTF-8: it becomes a question mark.
    return text.encode("utf-8", "replace").decode("utf-8")


def _report_long(text: str, count: int, room: int, on_long: str) -> None:
    beginning = " ".join(text[:60].split()) + ("..." if len(text) > 60 else "")
    if on_long == "error":
        raise PromptError(f'"{beginning}" has {count} tokens, over the {room} that the text encoder reads: shorten it')
    warn(f'"{beginning}" has {count} tokens: only the first {room} are read')


def _checked_length(length: int) -> int:
    if length < MIN_CONTEXT:
        raise UsageError(f"context_length is {length}: it must be at least {MIN_CONTEXT}")
    return length


def _write(path: Path, text: str) -> None:
    with atomic_file(path) as part:
        part.write_text(text, encoding="utf-8")
