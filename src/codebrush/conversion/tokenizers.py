"""Finds the tokenizer of a CLIP beside its weights, and checks that the two belong together."""

from pathlib import Path

from codebrush.errors import PackError
from codebrush.models.clip import CLIP
from codebrush.text.published import TOKENIZER_FILE, read_tokenizer_files, sentencepiece_file, sentencepiece_remedy
from codebrush.text.tokenizer import Tokenizer

VOCABULARY = "bpe_simple_vocab_16e6.txt.gz"  # as OpenAI's CLIP ships it
TOKENIZER_FILES = (TOKENIZER_FILE, "vocab.json", "vocab.txt", VOCABULARY)


def tokenizer_file(place: Path) -> Path | None:
    """The tokenizer's file in a folder of weights, or beside a checkpoint file; None if there is none."""
    folder = place if place.is_dir() else place.parent
    return next((folder / name for name in TOKENIZER_FILES if (folder / name).is_file()), None)


def sentencepiece_alone(place: Path) -> str | None:
    """What to do about a SentencePiece tokenizer beside weights at `place`, which is not read; None without one."""
    file = sentencepiece_file(place if place.is_dir() else place.parent)
    return None if file is None else sentencepiece_remedy(file)


def tokenizer_of(clip: CLIP, place: Path) -> Tokenizer:
    """The tokenizer beside the weights of `clip`, which are at `place`.

    Raises:
        PackError: if there is none, or it has more tokens than the CLIP.
    """
    file = tokenizer_file(place)
    if file is None:
        raise PackError(
            sentencepiece_alone(place)
            or f"{place} has no tokenizer: put {TOKENIZER_FILE}, or OpenAI's {VOCABULARY}, beside the CLIP"
        )
    return fitting_tokenizer(clip, file)


def fitting_tokenizer(clip: CLIP, file: Path) -> Tokenizer:
    """The tokenizer in `file`, with texts cut to the context length of the CLIP's text encoder.

    Raises:
        PackError: if it has more tokens than the CLIP.
    """
    longest, given = clip.config.text.context_length, read_tokenizer_files(file).context_length
    tokenizer = Tokenizer.from_files(file, context_length=min(given or longest, longest))
    known = getattr(clip.config.text, "vocab_size", tokenizer.vocab_size)  # another library's encoder may not say
    if tokenizer.vocab_size > known:
        raise PackError(
            f"the tokenizer {file} has {tokenizer.vocab_size} tokens, but its CLIP knows {known}; name the right one"
        )
    return tokenizer
