"""A CLIP and the place of its weights in; the tokenizer that lies beside them, checked to fit, out."""

from pathlib import Path

from codebrush.errors import PackError
from codebrush.models.clip import CLIP
from codebrush.text.published import TOKENIZER_FILE, read_tokenizer_files
from codebrush.text.tokenizer import Tokenizer

VOCABULARY = "bpe_simple_vocab_16e6.txt.gz"  # as OpenAI's CLIP ships it
TOKENIZER_FILES = (TOKENIZER_FILE, "vocab.json", "vocab.txt", VOCABULARY)


def tokenizer_file(place: Path) -> Path | None:
    """The tokenizer's file in a folder of weights, or beside a checkpoint; None where there is none."""
    folder = place if place.is_dir() else place.parent
    return next((folder / name for name in TOKENIZER_FILES if (folder / name).is_file()), None)


def tokenizer_of(clip: CLIP, place: Path) -> Tokenizer:
    """The tokenizer beside the weights of `clip`; a PackError where there is none, or it does not fit."""
    file = tokenizer_file(place)
    if file is None:
        raise PackError(f"{place} has no tokenizer: put {TOKENIZER_FILE}, or OpenAI's {VOCABULARY}, beside the CLIP")
    return fitting_tokenizer(clip, file)


def fitting_tokenizer(clip: CLIP, file: Path) -> Tokenizer:
    """The tokenizer in `file`, its rows no longer than the text tower reads; a PackError where it has more tokens."""
    room, said = clip.config.text.context_length, read_tokenizer_files(file).context_length
    tokenizer = Tokenizer.from_files(file, context_length=min(said or room, room))
    rows = getattr(clip.config.text, "vocab_size", tokenizer.vocab_size)  # another library's encoder may not say
    if tokenizer.vocab_size > rows:
        raise PackError(f"the tokenizer {file} has {tokenizer.vocab_size} tokens, but its CLIP reads {rows}")
    return tokenizer
