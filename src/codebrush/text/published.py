"""Reads tokenizers from the layouts in which others publish them.

A folder (or one file of it) holds `tokenizer.json`, or `vocab.json` + `merges.txt` (byte-pair encoding, CLIP's and
GPT-2's kinds), or `vocab.txt` (WordPiece). `tokenizer_config.json` and `special_tokens_map.json` beside them are read
too. A `.txt.gz` file is the list of merges that OpenAI's CLIP and OpenCLIP ship (`bpe_simple_vocab_16e6.txt.gz`); texts
are then cleaned and rows padded as OpenAI's code does, which no file states.
"""

import gzip
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers

from codebrush.errors import PackError

TOKENIZER_FILE = "tokenizer.json"
SENTENCEPIECE_FILES = ("spiece.model", "sentencepiece.bpe.model", "tokenizer.model")  # of T5 and SigLIP, M-CLIP, Gemma
CONFIG_FILE = "tokenizer_config.json"
SPECIAL_FILE = "special_tokens_map.json"
OWN_KEY = "codebrush"  # our own fields in CONFIG_FILE, which other programs ignore
MERGES_SUFFIX = ".txt.gz"
WORD_END = "</w>"
# If no file names the special tokens, the first of these in the vocabulary is taken.
KNOWN_PADS = ("<|pad|>", "[PAD]", "<pad>")
KNOWN_STARTS = ("<|start|>", "[CLS]", "<|startoftext|>", "<s>", "<bos>")
KNOWN_ENDS = ("<|end|>", "[SEP]", "<|endoftext|>", "</s>", "<eos>")
CLIP_CONTEXT = 77
# CLIP uses a part of OpenAI's list of merges: its 49,408 tokens less 2 x 256 bytes and 2 special tokens.
CLIP_MERGES = 48_894
MAX_LIST_LENGTH = 16_000_000  # characters of a list of merges; CLIP's has 3 million
MAX_CONTEXT = 1 << 20  # more means "no limit", for which transformers writes 1e30
# CLIP's words: English contractions, runs of letters, single digits, runs of anything else but spaces.
CLIP_PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
# OpenAI's code matches the same without regard to case: a long s makes a contraction, and the one mark that is a letter
# in upper case (U+0345) is neither a letter nor anything else.
OPENAI_PATTERN = r"'[sſ]|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}\x{345}]+"
_ONE_SPACE = normalizers.Replace(tokenizers.Regex(r"\s+"), " ")

Cleanup = Literal["openai"]


@dataclass(frozen=True)
class TokenizerFiles:
    """A tokenizer as its files describe it.

    `pad`, `start` and `end` are special tokens; without `pad`, rows are padded with zeros. `context_length` is None if
    the files do not say it.
    """

    backend: tokenizers.Tokenizer
    pad: str | None
    start: str | None
    end: str
    context_length: int | None
    cleanup: Cleanup | None


def read_tokenizer_files(path: str | Path) -> TokenizerFiles:
    """Read the tokenizer in a folder, or that of any one file of it.

    Raises:
        PackError: if a file is missing or damaged, or the vocabulary has no end token.
    """
    path = Path(path)
    folder = path if path.is_dir() else path.parent
    if path.name in SENTENCEPIECE_FILES:
        raise PackError(sentencepiece_remedy(path))
    if not path.exists():
        raise PackError(f"{path} is missing: name a folder with {TOKENIZER_FILE}, vocab.json + merges.txt or vocab.txt")
    config = _read_json(folder / CONFIG_FILE) if (folder / CONFIG_FILE).is_file() else {}
    if (folder / SPECIAL_FILE).is_file():
        config = _read_json(folder / SPECIAL_FILE) | config
    source = path if path.is_file() else _main_file(folder)
    try:
        backend = _read_backend(source, config)
    except PackError:
        raise
    except Exception as error:  # the Rust library raises bare Exception for a damaged file
        raise PackError(f"{source} is damaged ({_one_line(error)}): fetch the tokenizer again") from error
    if _lowercases(config):
        lowercase = [normalizers.Lowercase(), backend.normalizer] if backend.normalizer else [normalizers.Lowercase()]
        backend.normalizer = normalizers.Sequence(lowercase)
    return _with_specials(backend, config, source)


def _lowercases(config: dict[str, Any]) -> bool:
    """Whether these are the files of SigLIP 2, whose texts are in lower case: only the config says so."""
    kind = str(config.get("tokenizer_class", ""))
    return kind == "Siglip2Tokenizer" or (kind.startswith("Gemma") and config.get("do_lower_case") is True)


def _main_file(folder: Path) -> Path:
    for name in (TOKENIZER_FILE, "vocab.json", "vocab.txt"):
        if (folder / name).is_file():
            return folder / name
    if (file := sentencepiece_file(folder)) is not None:
        raise PackError(sentencepiece_remedy(file))
    raise PackError(f"{folder} holds no tokenizer: {TOKENIZER_FILE}, vocab.json + merges.txt or vocab.txt is needed")


def sentencepiece_file(folder: Path) -> Path | None:
    """The tokenizer of the SentencePiece library in a folder, which is not read; None if there is none."""
    return next((folder / name for name in SENTENCEPIECE_FILES if (folder / name).is_file()), None)


def sentencepiece_remedy(file: Path) -> str:
    """The line that says what to do about a SentencePiece tokenizer without a tokenizer.json."""
    return (
        f"{file} is a SentencePiece tokenizer, which is read from {TOKENIZER_FILE} only: fetch that, or write it with "
        f"transformers: AutoTokenizer.from_pretrained('{file.parent}').save_pretrained('{file.parent}')"
    )


def _read_backend(source: Path, config: dict[str, Any]) -> tokenizers.Tokenizer:
    if source.name == "vocab.txt":
        return wordpiece_backend(source, lowercase=config.get("do_lower_case"))
    if source.name in ("vocab.json", "merges.txt"):
        vocab, merges = source.with_name("vocab.json"), source.with_name("merges.txt")
        for file in (vocab, merges):
            if not file.is_file():
                raise PackError(f"{file} is missing: vocab.json and merges.txt go together")
        return bpe_backend(vocab, merges, prefix_space=bool(config.get("add_prefix_space", False)))
    if source.name.endswith(MERGES_SUFFIX):
        return openai_clip_backend(source)
    return tokenizers.Tokenizer.from_str(source.read_text(encoding="utf-8"))


def wordpiece_backend(vocab_file: Path, lowercase: bool | None = None) -> tokenizers.Tokenizer:
    """BERT's WordPiece (Devlin et al. 2018) from a vocab.txt, one token a line.

    `lowercase` None means to lower-case unless the vocabulary has capitals.

    Raises:
        PackError: if the vocabulary has no [UNK] token.
    """
    tokens = vocab_file.read_text(encoding="utf-8").split("\n")
    vocab = {token: index for index, token in enumerate(tokens) if token}
    if "[UNK]" not in vocab:
        raise PackError(f"{vocab_file} is not a WordPiece vocabulary: it has no [UNK] token")
    if lowercase is None:
        lowercase = not any(token != token.lower() for token in vocab if not token.startswith("["))
    words = models.WordPiece(vocab, unk_token="[UNK]", max_input_chars_per_word=100)  # noqa: S106 - a word, no password
    backend = tokenizers.Tokenizer(words)
    backend.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece(prefix="##")
    return backend


def bpe_backend(vocab_file: Path, merges_file: Path, prefix_space: bool = False) -> tokenizers.Tokenizer:
    """Byte-pair encoding (Sennrich et al. 2016) from vocab.json + merges.txt.

    It is CLIP's kind if tokens end in </w>, and GPT-2's otherwise. `prefix_space` is GPT-2's option to treat the first
    word like any other.

    Raises:
        PackError: if the vocabulary is damaged.
    """
    vocab = _read_json(vocab_file)
    if not all(isinstance(index, int) for index in vocab.values()):
        raise PackError(f"{vocab_file} is damaged (not a token-to-number list): fetch the tokenizer again")
    lines = merges_file.read_text(encoding="utf-8").split("\n")
    pairs = _pairs(line for line in lines if line and not line.startswith("#version"))
    if any(token.endswith(WORD_END) for token in vocab):
        return _clip_backend(vocab, pairs)
    backend = tokenizers.Tokenizer(models.BPE(vocab, pairs))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix_space)
    backend.decoder = decoders.ByteLevel()
    return backend


def openai_clip_backend(merges_file: Path) -> tokenizers.Tokenizer:
    """CLIP's byte-pair encoding from its gzipped list of merges alone, from which the vocabulary follows.

    Raises:
        PackError: if the list is too long.
    """
    with gzip.open(merges_file, "rt", encoding="utf-8") as file:
        text = file.read(MAX_LIST_LENGTH + 1)
    if len(text) > MAX_LIST_LENGTH:
        raise PackError(f"{merges_file} is damaged (too long for a list of merges): fetch the tokenizer again")
    lines = text.split("\n")[1 : 1 + CLIP_MERGES]  # the first line is a version
    pairs = _pairs(line for line in lines if line)
    letters = sorted(pre_tokenizers.ByteLevel.alphabet(), key=_unprintable_last)
    tokens = [*letters, *(letter + WORD_END for letter in letters), *("".join(pair) for pair in pairs)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    backend = _clip_backend({token: index for index, token in enumerate(tokens)}, pairs, OPENAI_PATTERN)
    # Unlike transformers, OpenAI's code does not normalise to NFC after it has resolved the entities.
    backend.normalizer = normalizers.Sequence([_ONE_SPACE, normalizers.Lowercase()])
    return backend


def _unprintable_last(letter: str) -> tuple[bool, int]:
    # Bytes that cannot be printed are written as characters from 256 on; the vocabulary lists them last.
    return ord(letter) >= 256, ord(letter)


def _pairs(lines: Iterable[str]) -> list[tuple[str, str]]:
    return [(first, second) for first, second in (line.split(" ") for line in lines)]


def _clip_backend(
    vocab: dict[str, int], pairs: list[tuple[str, str]], pattern: str = CLIP_PATTERN
) -> tokenizers.Tokenizer:
    backend = tokenizers.Tokenizer(models.BPE(vocab, pairs, end_of_word_suffix=WORD_END))
    backend.normalizer = normalizers.Sequence([normalizers.NFC(), _ONE_SPACE, normalizers.Lowercase()])
    split = pre_tokenizers.Split(tokenizers.Regex(pattern), behavior="removed", invert=True)
    backend.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(False, use_regex=False)])
    backend.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Replace(WORD_END, " ")])
    return backend


def _with_specials(backend: tokenizers.Tokenizer, config: dict[str, Any], source: Path) -> TokenizerFiles:
    end = _special(config, ("eos_token", "sep_token"), KNOWN_ENDS, backend)
    if end is None:
        raise PackError(f"{source} has no end token (one of {', '.join(KNOWN_ENDS)}): name it in {CONFIG_FILE}")
    start = _special(config, ("bos_token", "cls_token"), KNOWN_STARTS, backend)
    if start == end or not _adds_start(backend, config, start, end):
        start = None
    own = _own_fields(config, source)
    pad = None if own.get("zero_padding") else _special(config, ("pad_token",), KNOWN_PADS, backend) or end
    length = config.get("model_max_length")
    if not isinstance(length, int | float) or not 0 < length < MAX_CONTEXT:
        length = None if backend.token_to_id("<|startoftext|>") is None else CLIP_CONTEXT
    return TokenizerFiles(backend, pad, start, end, None if length is None else int(length), own.get("cleanup"))


def _adds_start(backend: tokenizers.Tokenizer, config: dict[str, Any], start: str | None, end: str) -> bool:
    """Whether a text begins with the start token: by the config, or else by what the tokenizer itself adds."""
    if config.get("add_bos_token") is not None:
        return bool(config["add_bos_token"])
    tokens = backend.encode("").tokens
    return start in tokens or end not in tokens


def _own_fields(config: dict[str, Any], source: Path) -> dict[str, Any]:
    if source.name.endswith(MERGES_SUFFIX):
        return {"zero_padding": True, "cleanup": "openai"}
    own = config.get(OWN_KEY, {})
    if not isinstance(own, dict) or own.get("cleanup") not in (None, *get_args(Cleanup)):
        raise PackError(f"{source.with_name(CONFIG_FILE)} asks for an unknown text clean-up: update codebrush")
    return own


def _special(
    config: dict[str, Any], keys: tuple[str, ...], known: tuple[str, ...], backend: tokenizers.Tokenizer
) -> str | None:
    named = [config[key] for key in keys if config.get(key)]
    # transformers writes a special token as its text or as {"content": text, ...}
    named = [token.get("content", "") if isinstance(token, dict) else token for token in named]
    return next((token for token in [*named, *known] if _is_token(token, backend)), None)


def _is_token(token: Any, backend: tokenizers.Tokenizer) -> bool:
    """Whether a vocabulary has this token; what a damaged file names may be no text."""
    try:
        return backend.token_to_id(token) is not None
    except (TypeError, UnicodeEncodeError):
        return False


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, RecursionError, ValueError) as error:
        raise PackError(f"{path} is damaged ({_one_line(error)}): fetch the tokenizer again") from error
    if not isinstance(values, dict):
        raise PackError(f"{path} is damaged (not a JSON object): fetch the tokenizer again")
    return values


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
