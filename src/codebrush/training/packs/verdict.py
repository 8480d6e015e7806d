"""Judges a trained pack in plain words, by what was measured: how well it reconstructs, and what its painter saw."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from codebrush.training.packs.budget import spell_seconds

LOOKS = (  # what a reconstruction of at most so many dB looks like
    (17.0, "expect fog: little more than the main colours"),
    (22.5, "expect blur: large shapes and colours, nothing small"),
    (25.0, "expect soft pictures: shapes are clear, detail is lost"),
    (28.0, "expect good pictures without fine detail"),
    (math.inf, "expect pictures close to the originals"),
)
# dB that twice the time gains a VQGAN that began from a trained one, and a fresh one, as docs/training.md measured it,
# and the most that the built-in pack's own training reached, in hours: from itself, and in its first part
GAINS = {True: (0.8, 28.0), False: (1.8, 23.0)}
HOUR = 3600.0
BUILT_IN_SAW = 241_600  # pictures in the training of the built-in pack's transformer, steps times batch size


@dataclass(frozen=True)
class Measured:
    """What is known of a pack: the PSNR of its reconstructions in dB, whether it has a painter, the budget in seconds
    and the figures of its stages."""

    psnr: float
    draws: bool
    budget: float | None
    figures: Mapping[str, Any]


def verdict(measured: Measured) -> list[str]:
    """What to expect of a pack, one sentence a line."""
    looks = next(words for most, words in LOOKS if measured.psnr <= most)
    lines = [f"reconstruction {measured.psnr:.1f} dB: {looks}"]
    if better := _with_more_time(measured):
        lines[0] += f"; {better}"
    if not measured.draws:
        return [*lines, "it has no code transformer: it draws by --method guide only"]
    seen = measured.figures.get("transformer", {}).get("pictures")
    if seen is not None and seen < BUILT_IN_SAW:
        begun = measured.figures["transformer"]["from"]
        lines.append(
            f"drawings: its transformer{'' if begun == 'nothing' else f', begun from that of {begun},'} saw {seen:,} "
            f"pictures; that of emoji saw {BUILT_IN_SAW:,} and draws simple things: expect colours and rough shapes"
        )
    return lines


def _with_more_time(measured: Measured) -> str:
    """What more time would give, by the gains that were measured; "" where it would give little."""
    vqgan, budget = measured.figures.get("vqgan"), measured.budget
    if vqgan is None or budget is None:
        return ""
    per_double, most = GAINS[vqgan["from"] != "nothing"]
    longer = HOUR if budget < HOUR / 1.5 else 8 * budget
    reached = min(measured.psnr + per_double * math.log2(longer / budget), most)
    if reached < measured.psnr + 0.5:
        return ""
    named = "an hour" if longer == HOUR else spell_seconds(longer)
    return f"{named} gives about {reached:.0f} dB"
