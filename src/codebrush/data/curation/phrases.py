"""Captions of many rows in; which rows to keep so that no phrase outweighs the others, and a row's split, out.

Balancing follows MetaCLIP (Xu et al. 2023, "Demystifying CLIP Data", section 3): a phrase that `count` rows mention
keeps each of them with probability min(1, cap / count). There a row has a draw for each of its phrases; here one draw
and its rarest phrase decide, so that many common phrases do not keep a row. Common phrases thus come down towards the
cap, and what is rare stays whole.
"""

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from codebrush.data.curation.caption_rules import ngrams, words_of
from codebrush.errors import UsageError

SPLITS = ("train", "val", "test")
OWN_LEAST = 2  # rows that must mention it: what stands in one caption alone, like a file's number, keeps nothing
OWN_MOST = 1_000_000  # words counted at once; beyond it those met once so far are forgotten
_SMALL_WORDS = "a an the of in on at by to for with from and or as is are was were be it its this that these those"
STOP_WORDS = frozenset(re.findall(r"\w+", _SMALL_WORDS))  # say nothing about what is seen


@dataclass
class Phrases:
    """Counts in how many rows each phrase stands: `given` ones of any number of words, or the captions' own words.

    Own pairs of words would not do: nearly every sentence has a pair that no other has, and would stay for it. A row
    counts a phrase once however often its captions have it.
    """

    given: Sequence[str] | None = None
    counts: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self._known = None if self.given is None else frozenset(self.given)
        lengths = [len(phrase.split()) for phrase in self.given or ()]
        self._longest = max(lengths, default=1)

    def matched(self, captions: Iterable[str]) -> set[str]:
        """The phrases that a row's captions mention."""
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
        """The phrase of a row that the fewest rows have, with their number; None where it mentions none."""
        least = 1 if self._known is not None else OWN_LEAST
        counts = ((self.counts[phrase], phrase) for phrase in self.matched(captions))
        number, phrase = min((pair for pair in counts if pair[0] >= least), default=(0, ""))
        return (phrase, number) if number else None


def uniform(text: str) -> float:
    """A number in [0, 1) that depends on `text` alone: the first 8 hex digits of its sha256, over 2^32."""
    return int(hashlib.sha256(text.encode()).hexdigest()[:8], 16) / 2**32


def split_of(concept: str, shares: Sequence[float]) -> str:
    """The split of a concept: where `uniform` falls among the shares of train, val and test, which are added up."""
    place, upto = uniform(concept), 0.0
    for name, share in zip(SPLITS, shares, strict=True):
        upto += share
        if place < upto:
            return name
    return max(zip(shares, SPLITS, strict=True))[1]  # the shares add up to a hair under 1


def check_shares(shares: Sequence[float]) -> None:
    """UsageError where `shares` are not three numbers from 0 to 1 that add up to 1."""
    if len(shares) != len(SPLITS) or any(not 0 <= share <= 1 for share in shares) or abs(sum(shares) - 1) > 1e-6:
        raise UsageError("the shares of train, val and test must be three numbers that add up to 1, like 0.9,0.05,0.05")
