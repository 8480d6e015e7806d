"""Embeds texts with a CLIP, some at a time."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from codebrush.models.clip import CLIP
from codebrush.text.other_things import OTHER_TEXTS
from codebrush.text.reading import readable, warn_unread
from codebrush.text.tokenizer import Tokenizer

OTHERS_BATCH = 32


def embed_texts(
    clip: CLIP, tokenizer: Tokenizer, texts: Sequence[str], batch: int, on_long: Literal["warn", "truncate"] = "warn"
) -> Tensor:
    """Unit embeddings (T, E) on the CLIP's device of texts that are taken literally.

    `batch` texts are encoded together, which bounds the memory. Emoji are read by their names (see `readable`). A text
    that is too long is cut; unless `on_long` is "truncate", that and words that cannot be read are warned about.
    """
    texts = [readable(text, tokenizer) for text in texts]
    if on_long == "warn":
        warn_unread(texts, tokenizer)
    device, vectors = clip.log_scale.device, []
    for start in range(0, len(texts), batch):
        tokens = tokenizer(texts[start : start + batch], on_long=on_long)  # (B, L)
        vectors.append(clip.encode_text(tokens.to(device)))  # (B, E)
    return torch.cat(vectors) if vectors else torch.zeros(0, clip.embed_dim)


def embed_other_texts(clip: CLIP, tokenizer: Tokenizer) -> Tensor:
    """Unit embeddings (N, E) on the CLIP's device of the texts about other things (`OTHER_TEXTS`)."""
    return embed_texts(clip, tokenizer, OTHER_TEXTS, OTHERS_BATCH, on_long="truncate")
