"""Makes the tokenizer of captions for a training that begins without one."""

from codebrush.errors import TrainingError
from codebrush.text.tokenizer import Tokenizer, train_bpe
from codebrush.training.dataset import Captioned
from codebrush.training.streamed import Streamed

TOKENIZERS = ("wordpiece", "bpe")


def make_tokenizer(kind: str, data: Captioned | Streamed) -> Tokenizer:
    """The WordPiece of the distilled token table, or a BPE trained on the captions."""
    check_tokenizer(kind)
    if kind == "wordpiece":
        return Tokenizer.wordpiece()
    if isinstance(data, Streamed):
        raise TrainingError(f"a bpe tokenizer learns from all captions: use wordpiece, or {data.unstreamed}")
    return train_bpe(text for row in range(len(data)) for text in data.captions(row))


def check_tokenizer(kind: str) -> None:
    """Raises TrainingError for an unknown kind of tokenizer."""
    if kind not in TOKENIZERS:
        raise TrainingError(f"--tokenizer '{kind}' is unknown: use {' or '.join(TOKENIZERS)}")
