"""Helps a small CLIP to understand words that no caption of its training had, by captions that mean nearly the same.

ConSE (Norouzi et al. 2014, section 3.2) places a picture among the names of unknown things by the known labels that it
looks like. Here it is turned round: the embedding of a text moves towards those of the known labels that are near to it
by the distilled tables of words (`codebrush.text.word_vectors`), which have read more English than any set of captions.
docs/log.md has the figures.
"""

from collections.abc import Sequence
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from codebrush.data.curation.phrases import STOP_WORDS
from codebrush.data.text_embedding import embed_texts
from codebrush.models.clip import CLIP
from codebrush.text.tokenizer import Tokenizer
from codebrush.text.word_table import singulars_of
from codebrush.text.word_vectors import is_read, word_vectors, words_in

TEMPERATURE = 0.03  # of the softmax over cosines with the known labels
SHARE = 2.0  # of the known labels beside the text's own embedding, which counts 1
LEAST_NEAR = 0.35  # cosine of word vectors with the nearest label below which no label says anything about a text
BATCH = 256
SMALL_WORDS = STOP_WORDS | frozenset((
    "drawing", "emoji", "her", "here", "his", "icon", "image", "my", "our", "photo", "photograph", "picture", "some",
    "their", "there", "very", "your",
))  # fmt: skip  # say nothing of what a picture shows


class KnownTexts:
    """The labels that a CLIP was trained with, as help for texts with other words."""

    def __init__(self, clip: CLIP, tokenizer: Tokenizer, labels: Sequence[str]):
        self.clip, self.tokenizer, self.labels = clip, tokenizer, labels
        self._words = {word for label in labels for word in words_in(label)}

    def has_other_words(self, text: str) -> bool:
        """Whether a text has a word that says something, that the tables of words know, and that no label has, not in
        the singular either."""
        others = set(words_in(text)) - self._words - SMALL_WORDS
        return any(is_read(word) and self._words.isdisjoint(singulars_of(word)) for word in others)

    @torch.no_grad()
    def helped(self, texts: Sequence[str], embeddings: Tensor) -> Tensor:
        """The unit embeddings (T, E) of texts, moved towards those of the known labels that mean nearly the same.

        Texts without a known word that the labels lack stay as they are, and so do those that no label is near to.
        Words that are only spelt say nothing of what a text means.
        """
        rows = [row for row, text in enumerate(texts) if self.has_other_words(text)]
        if not rows or not self.labels:
            return embeddings
        read = [" ".join(filter(is_read, words_in(texts[row]))) for row in rows]
        cosines = word_vectors(read) @ self._vectors.T  # (R, N)
        weights = (cosines / TEMPERATURE).softmax(1) * (cosines.amax(1, keepdim=True) >= LEAST_NEAR)
        helped = embeddings.clone()
        helped[rows] += SHARE * weights.to(embeddings) @ self._embeddings.to(embeddings)
        helped[rows] = F.normalize(helped[rows], dim=1)
        return helped

    @cached_property
    def _vectors(self) -> Tensor:
        """The labels' word vectors (N, 128)."""
        return word_vectors(self.labels)

    @cached_property
    def _embeddings(self) -> Tensor:
        """The labels' unit embeddings (N, E) by the CLIP."""
        return embed_texts(self.clip, self.tokenizer, self.labels, BATCH, on_long="truncate")
