"""Where training gets its tokenizer from, and the networks that it may begin from."""

from pathlib import Path

from codebrush.errors import TrainingError
from codebrush.pack.pack import PACK_FILE, Pack, local_pack
from codebrush.text.tokenizer import Tokenizer, train_bpe
from codebrush.training.dataset import Captioned
from codebrush.training.run_folder import MODEL_FOLDER

TOKENIZERS = ("wordpiece", "bpe")


def pack_at(place: str | Path | None) -> Pack | None:
    """The pack in the folder `place`, or the built-in or downloaded one of that name; None if it is no pack."""
    found = None if place is None else local_pack(str(place))
    return Pack(found) if found is not None and (found / PACK_FILE).is_file() else None


def member_folder(place: Path, stage: str) -> Path:
    """The folder of the network of `stage` in a pack, in a stage's run folder, or `place` itself.

    Raises:
        TrainingError: if the pack has no such member.
    """
    pack = pack_at(place)
    if pack is not None:
        if not pack.has(stage):
            raise TrainingError(f"the pack {pack.folder} has no {stage}: name a folder that has one")
        return pack.member(stage)
    place = local_pack(str(place)) or place
    return place / MODEL_FOLDER if (place / MODEL_FOLDER).is_dir() else place


def make_tokenizer(kind: str, data: Captioned) -> Tokenizer:
    """The WordPiece of the distilled token table, or a BPE trained on the captions."""
    check_tokenizer(kind)
    if kind == "wordpiece":
        return Tokenizer.wordpiece()
    return train_bpe(text for row in range(len(data)) for text in data.captions(row))


def check_tokenizer(kind: str) -> None:
    """Raises TrainingError for an unknown kind of tokenizer."""
    if kind not in TOKENIZERS:
        raise TrainingError(f"--tokenizer '{kind}' is unknown: use {' or '.join(TOKENIZERS)}")
