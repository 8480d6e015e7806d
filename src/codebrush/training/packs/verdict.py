"""Judges a trained pack in plain words, by what was measured: how well it reconstructs, and what its painters saw."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from codebrush.pack.members import MEMBERS
from codebrush.training.packs.budget import spell_seconds

KNOWN = 22.5  # dB of pictures through a VQGAN from which on shapes are clear
LOOKS = (  # what a reconstruction of at most so many dB looks like
    (17.0, "expect fog: little more than the main colours"),
    (KNOWN, "expect blur: large shapes and colours, nothing small"),
    (25.0, "expect soft pictures: shapes are clear, detail is lost"),
    (28.0, "expect good pictures without fine detail"),
    (math.inf, "expect pictures close to the originals"),
)
# dB that twice the time gains a VQGAN that began from a trained one, up to KNOWN dB and above, and a fresh one, as
# docs/training.md measured it; and the most that the built-in pack's own training reached, in hours: from itself, and
# in its first part
GAINS = {True: (0.8, 0.25, 28.0), False: (1.8, 1.8, 23.0)}
HOUR = 3600.0
BUILT_IN_SAW = 241_600  # pictures in the training of the built-in pack's transformer, steps times batch size
FEW = BUILT_IN_SAW // 10


@dataclass(frozen=True)
class Measured:
    """What is known of a pack: the PSNR of its reconstructions in dB, the names of its painters, the budget in seconds,
    the figures of its stages, and the pack of which members were taken over as they are, by member."""

    psnr: float
    painters: Sequence[str]
    budget: float | None
    figures: Mapping[str, Any]
    kept: Mapping[str, str] = field(default_factory=dict)


def verdict(measured: Measured) -> list[str]:
    """What to expect of a pack, one sentence a line."""
    looks = next(words for most, words in LOOKS if measured.psnr <= most)
    lines = [f"reconstruction {measured.psnr:.1f} dB: {looks}"]
    if better := _with_more_time(measured):
        lines[0] += f"; {better}"
    if not measured.painters:
        return [*lines, "it has no painter, a code transformer or a flow: it draws by --method guide only"]
    return lines + [line for name in measured.painters if (line := _drawings(name, measured))]


def _drawings(name: str, measured: Measured) -> str:
    """What to expect of the drawings by one of the painters; "" if it saw as much as the built-in one, or it is not
    known how much."""
    label = MEMBERS[name].label
    if name in measured.kept:
        return f"drawings: its {label} is that of {measured.kept[name]} as it was: expect what that draws"
    seen = measured.figures.get(name, {}).get("pictures")
    if seen is None or seen >= BUILT_IN_SAW:
        return ""
    begun = measured.figures[name]["from"]
    said = (
        f"drawings: its {label}{'' if begun == 'nothing' else f', begun from that of {begun},'} saw {seen:,} pictures"
    )
    if name == "transformer":
        said += f"; that of emoji saw {BUILT_IN_SAW:,} and draws simple things"
    if seen >= FEW:
        return f"{said}: expect colours and rough shapes"
    if begun == "nothing":
        return f"{said}: expect patches of colour, and hardly a shape"
    return f"{said}: expect the colours and strokes of your pictures, and not yet their things"


def _with_more_time(measured: Measured) -> str:
    """What more time would give, by the gains that were measured; "" where it would give little."""
    vqgan, budget = measured.figures.get("vqgan"), measured.budget
    if vqgan is None or budget is None:
        return ""
    below, above, most = GAINS[vqgan["from"] != "nothing"]
    per_double = below if measured.psnr < KNOWN else above
    longer = HOUR if budget < HOUR / 1.5 else 8 * budget
    reached = min(measured.psnr + per_double * math.log2(longer / budget), most)
    if reached < measured.psnr + 0.5:
        return ""
    named = "an hour" if longer == HOUR else spell_seconds(longer)
    return f"{named} gives about {reached:.0f} dB"
