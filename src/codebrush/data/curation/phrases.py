"""Counts phrases to balance them, so that none outweighs the others, and assigns rows to splits.

Balancing follows MetaCLIP (Xu et al. 2023, "Demystifying CLIP Data", section 3): each row that mentions a phrase which
`count` rows mention is kept with probability min(1, cap / count). MetaCLIP draws once for each phrase of a row; here
the rarest phrase of a row decides alone, so that a row is not kept for having many common phrases. Common phrases come
down towards the cap, and rare ones stay whole.
"""

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from heapq import nsmallest

from codebrush.data.curation.caption_rules import ngrams, words_of
from codebrush.errors import UsageError

SPLITS = ("train", "val", "test")
OWN_LEAST = 2  # rows that must have a word: one in a single caption, like a file's number, keeps no row
OWN_MOST = 1_000_000  # words counted at once; beyond it those counted once so far are forgotten
_SMALL_WORDS = "a an the of in on at by to for with from and or as is are was were be it its this that these those"
STOP_WORDS = frozenset(re.findall(r"\w+", _SMALL_WORDS))  # say nothing about a picture


@dataclass
class Phrases:
    """Counts how many rows have each phrase: the `given` phrases of any length, or if None every single word.

    Pairs of words would not do for that: nearly every sentence has a pair that no other has, and would be kept for it.
    A row counts once for a phrase, however often its captions have it.
    """

    given: Sequence[str] | None = None
    counts: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self._known = None if self.given is None else frozenset(self.given)
        lengths = [len(phrase.split()) for phrase in self.given or ()]
        self._longest = max(lengths, default=1)

    def matched(self, captions: Iterable[str]) -> set[str]:
        """The phrases that the captions of a row have."""
        found = {phrase for text in captions for phrase in ngrams(words_of(text), self._longest)}
        if self._known is not None:
            return found & self._known
        return {word for word in found - STOP_WORDS if not word.isdigit()}

    def count(self, captions: Iterable[str]) -> None:
        """Count one row."""
        self.counts.update(self.matched(captions))
        if self._known is None and len(self.counts) > OWN_MOST:
            self.counts = Counter({phrase: number for phrase, number in self.counts.items() if number > 1})

    def rarest(self, captions: Iterable[str]) -> tuple[str, int] | None:
        """The phrase of a row that the fewest rows have, with their number; None if it has none."""
        least = 1 if self._known is not None else OWN_LEAST
        counts = ((self.counts[phrase], phrase) for phrase in self.matched(captions))
        number, phrase = min((pair for pair in counts if pair[0] >= least), default=(0, ""))
        return (phrase, number) if number else None

    def commonest(self, count: int) -> list[tuple[str, int]]:
        """The `count` phrases that the most rows have, with their numbers; equal ones in alphabetical order."""
        return nsmallest(count, self.counts.items(), key=lambda pair: (-pair[1], pair[0]))


def uniform(text: str) -> float:
    """A number in [0, 1) that depends on `text` alone: the first 8 hex digits of its sha256, divided by 2^32."""
    return int(hashlib.sha256(text.encode()).hexdigest()[:8], 16) / 2**32


def split_of(concept: str, shares: Sequence[float]) -> str:
    """The split of a concept: train, val or test by where `uniform` falls among the cumulated shares."""
    place, upto = uniform(concept), 0.0
    for name, share in zip(SPLITS, shares, strict=True):
        upto += share
        if place < upto:
            return name
    return max(zip(shares, SPLITS, strict=True))[1]  # the shares add up to a hair under 1


def check_shares(shares: Sequence[float]) -> None:
    """Raises UsageError unless `shares` are three numbers from 0 to 1 that add up to 1."""
    if len(shares) != len(SPLITS) or any(not 0 <= share <= 1 for share in shares) or abs(sum(shares) - 1) > 1e-6:
        raise UsageError("the shares of train, val and test must be three numbers that add up to 1, like 0.9,0.05,0.05")
