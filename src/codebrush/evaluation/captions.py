"""The CIDEr-D metric: how well captions agree with what people wrote about the same pictures."""

import math
import re
from collections import Counter
from collections.abc import Sequence

import numpy as np

LONGEST = 4  # words in the longest n-grams
SPREAD = 6.0  # standard deviation in words of the penalty on a difference in length
FACTOR = 10.0

Grams = list[Counter[tuple[str, ...]]]  # the n-grams of a text, for n from 1 to LONGEST


def cider(captions: Sequence[str], references: Sequence[Sequence[str]]) -> np.ndarray:
    """CIDEr-D of each caption against the references of its picture, (N,) from 0 to 10.

    See Vedantam et al. 2015, sections 4 and 6. n-grams are weighted by tf-idf over the references. Words are
    lower-cased and not stemmed, and punctuation is left out. A single picture scores 0, since none of its n-grams is
    rare.

    Raises:
        ValueError: if a picture has no references.
    """
    if len(captions) != len(references) or not all(references):
        raise ValueError("every caption needs references")
    candidates = [_grams(caption) for caption in captions]
    known = [[_grams(text) for text in texts] for texts in references]
    pictures_with: Counter[tuple[str, ...]] = Counter()
    for texts in known:
        pictures_with.update({gram for grams in texts for counts in grams for gram in counts})
    log_count = math.log(max(1, len(references)))
    scores = [
        float(np.mean([_similarity(grams, other, pictures_with, log_count) for other in texts]))
        for grams, texts in zip(candidates, known, strict=True)
    ]
    return FACTOR * np.array(scores)


def _grams(text: str) -> Grams:
    words = re.findall(r"\w+", text.lower())
    return [Counter(zip(*(words[start:] for start in range(n)), strict=False)) for n in range(1, LONGEST + 1)]


def _similarity(candidate: Grams, reference: Grams, pictures_with: Counter[tuple[str, ...]], log_count: float) -> float:
    """The mean over n of the cosine of two texts' weighted n-grams, clipped to the reference's counts, times a Gaussian
    of the difference of their lengths."""
    found = []
    for one, other in zip(candidate, reference, strict=True):
        weight = {gram: log_count - math.log(max(1, pictures_with[gram])) for gram in {*one, *other}}
        norms = [math.sqrt(sum((count * weight[gram]) ** 2 for gram, count in part.items())) for part in (one, other)]
        shared = sum(min(count, other[gram]) * other[gram] * weight[gram] ** 2 for gram, count in one.items())
        found.append(shared / (norms[0] * norms[1]) if norms[0] * norms[1] else 0.0)
    apart = candidate[0].total() - reference[0].total()
    return sum(found) / LONGEST * math.exp(-(apart**2) / (2 * SPREAD**2))
