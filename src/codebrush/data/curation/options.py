"""The options of a curation, checked."""

from dataclasses import dataclass, field

from codebrush.data.curation.caption_rules import CaptionRules
from codebrush.data.curation.near_duplicates import MAX_DISTANCE
from codebrush.data.curation.phrases import check_shares
from codebrush.data.sources.shard_writer import KINDS
from codebrush.errors import UsageError


@dataclass(frozen=True)
class CurationOptions:
    """What is kept and how it is written. Values out of range raise UsageError.

    Pictures need `min_side` pixels on the shorter side and an aspect ratio (long side over short) of up to
    `max_aspect`; captions must keep `rules`. Pictures whose perceptual hashes differ in at most `near` of 64 bits are
    near duplicates; None keeps those.

    `min_score`, or `keep_top` (the share of rows to keep, 0 to 1), asks for CLIP scores. `cap` thins out the rows of
    each phrase that more than `cap` rows have; `phrases` are counted, or if None every word of the captions.
    `only_phrases` drops rows without any of them.

    `shares` are those of the train, val and test splits. A row's split depends on its cell in the source's group column
    with `by_group`, otherwise (and if the cell is empty) on its caption. Shards are of the `kind` "tar" or "parquet"
    and hold `shard_rows` rows.
    """

    min_side: int = 1
    max_aspect: float | None = None
    rules: CaptionRules = field(default_factory=CaptionRules)
    near: int | None = 4
    min_score: float | None = None
    keep_top: float | None = None
    cap: int | None = None
    phrases: tuple[str, ...] | None = None
    only_phrases: bool = False
    shares: tuple[float, float, float] = (0.9, 0.05, 0.05)
    by_group: bool = False
    kind: str = "tar"
    shard_rows: int = 10_000
    seed: int = 0

    def __post_init__(self) -> None:
        check_shares(self.shares)
        for wrong, what in (
            (self.max_aspect is not None and self.max_aspect < 1, "--max-aspect is long side over short: 1 or more"),
            (self.near not in (None, *range(MAX_DISTANCE + 1)), f"--near is 0 to {MAX_DISTANCE} bits, or -1"),
            (self.min_score is not None and self.keep_top is not None, "give --min-score or --keep-top, not both"),
            (self.keep_top is not None and not 0 < self.keep_top <= 1, "--keep-top is a share above 0 and up to 1"),
            (self.cap is not None and self.cap < 1, "--cap must be 1 or more"),
            (self.phrases and not (self.cap or self.only_phrases), "--phrases needs --cap or --only-phrases"),
            (self.only_phrases and not self.phrases, "--only-phrases needs --phrases"),
            (self.kind not in KINDS, f"--format is one of {', '.join(KINDS)}"),
            (self.shard_rows < 1, "--shard-rows must be 1 or more"),
        ):
            if wrong:
                raise UsageError(what)

    @property
    def needs_scores(self) -> bool:
        """Whether rows are dropped by their CLIP score."""
        return self.min_score is not None or self.keep_top is not None
