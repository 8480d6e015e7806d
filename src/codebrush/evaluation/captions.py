"""Captions and what people wrote of the same pictures in; how far they agree, out."""

import math
import re
from collections import Counter
from collections.abc import Sequence

import numpy as np

LONGEST = 4  # words of an n-gram
SPREAD = 6.0  # words by which two captions may differ in length, as a standard deviation
FACTOR = 10.0

Grams = list[Counter[tuple[str, ...]]]  # one of each length from 1 to LONGEST


def cider(captions: Sequence[str], references: Sequence[Sequence[str]]) -> np.ndarray:
    """CIDEr-D of each caption against the references of its picture, 0 to 10 (Vedantam et al. 2015, sections 4 and 6).

    n-grams count by their share of a text and by how few pictures' references hold them; words are lower-cased and
    punctuation is left out, and nothing is stemmed. A single picture has no rare n-grams and scores 0. A picture
    without a reference is a ValueError.
    """
    if len(captions) != len(references) or not all(references):
        raise ValueError("every caption needs references")
    said = [_grams(caption) for caption in captions]
    known = [[_grams(text) for text in texts] for texts in references]
    held: Counter[tuple[str, ...]] = Counter()
    for texts in known:
        held.update({gram for grams in texts for counts in grams for gram in counts})
    log_count = math.log(max(1, len(references)))
    scores = [
        float(np.mean([_likeness(grams, other, held, log_count) for other in texts]))
        for grams, texts in zip(said, known, strict=True)
    ]
    return FACTOR * np.array(scores)


def _grams(text: str) -> Grams:
    words = re.findall(r"\w+", text.lower())
    return [Counter(zip(*(words[start:] for start in range(n)), strict=False)) for n in range(1, LONGEST + 1)]


def _likeness(said: Grams, known: Grams, held: Counter[tuple[str, ...]], log_count: float) -> float:
    """The mean over n of the cosine of two texts' weighted n-grams, clipped to the reference's counts, times a
    Gaussian of the difference of their lengths."""
    found = []
    for one, other in zip(said, known, strict=True):
        weight = {gram: log_count - math.log(max(1, held[gram])) for gram in {*one, *other}}
        norms = [math.sqrt(sum((count * weight[gram]) ** 2 for gram, count in part.items())) for part in (one, other)]
        shared = sum(min(count, other[gram]) * other[gram] * weight[gram] ** 2 for gram, count in one.items())
        found.append(shared / (norms[0] * norms[1]) if norms[0] * norms[1] else 0.0)
    apart = said[0].total() - known[0].total()
    return sum(found) / LONGEST * math.exp(-(apart**2) / (2 * SPREAD**2))
