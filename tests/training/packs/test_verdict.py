"""What a trained pack is said to be good for, by its painters and by what they began from."""

from typing import Any

import pytest

from codebrush.training.packs.verdict import BUILT_IN_SAW, FEW, KNOWN, LOOKS, Measured, verdict

SAID = "drawings: its code transformer"


def said(painters: tuple[str, ...], figures: dict[str, Any], kept: dict[str, str] | None = None) -> list[str]:
    return verdict(Measured(24.0, painters, None, figures, kept or {}))[1:]


def saw(pictures: int, begun: str = "nothing") -> dict[str, Any]:
    return {"pictures": pictures, "from": begun}


@pytest.mark.parametrize(
    ("pictures", "begun", "ends"),
    [
        (FEW - 1, "nothing", "expect patches of colour, and hardly a shape"),
        (FEW - 1, "emoji", "expect the colours and strokes of your pictures, and not yet their things"),
        (FEW, "emoji", "expect colours and rough shapes"),
        (FEW, "nothing", "expect colours and rough shapes"),
    ],
)
def test_it_depends_on_what_the_painter_began_from(pictures: int, begun: str, ends: str) -> None:
    (line,) = said(("transformer",), {"transformer": saw(pictures, begun)})
    from_pack = f"{SAID}, begun from that of {begun}, saw" if begun != "nothing" else f"{SAID} saw"
    assert line.startswith(f"{from_pack} {pictures:,} pictures; that of emoji saw {BUILT_IN_SAW:,}")
    assert line.endswith(ends)


def test_nothing_is_said_of_a_painter_that_saw_as_much_as_the_built_in_one() -> None:
    assert said(("transformer",), {"transformer": saw(BUILT_IN_SAW)}) == []


def test_a_painter_that_was_taken_over_draws_as_it_did() -> None:
    (line,) = said(("transformer",), {}, {"transformer": "emoji", "clip": "emoji"})
    assert line == f"{SAID} is that of emoji as it was: expect what that draws"


def test_a_flow_is_a_painter() -> None:
    (line,) = said(("flow",), {"flow": saw(500)})
    assert line == "drawings: its flow transformer saw 500 pictures: expect patches of colour, and hardly a shape"
    assert len(said(("transformer", "flow"), {"transformer": saw(9), "flow": saw(9)})) == 2
    assert said((), {}) == ["it has no painter, a code transformer or a flow: it draws by --method guide only"]


def test_a_vqgan_that_is_left_as_it_is_shows_clear_shapes() -> None:
    looks = dict(LOOKS)
    assert looks[KNOWN].startswith("expect blur")
    assert verdict(Measured(KNOWN, (), None, {}))[0] == f"reconstruction {KNOWN} dB: {looks[KNOWN]}"
    assert verdict(Measured(KNOWN + 0.1, (), None, {}))[0].endswith("shapes are clear, detail is lost")


@pytest.mark.parametrize(
    ("psnr", "budget", "begun", "more"),
    [
        (20.0, 450.0, "emoji", "an hour gives about 22 dB"),  # three doublings of 0.8 dB
        (23.0, 450.0, "emoji", "an hour gives about 24 dB"),  # of 0.25 dB
        (23.0, 3600.0, "emoji", "8h gives about 24 dB"),
        (18.0, 900.0, "nothing", "an hour gives about 22 dB"),  # two of 1.8 dB
        (23.0, 1800.0, "emoji", ""),  # one of 0.25 dB
        (27.8, 3600.0, "emoji", ""),  # hardly more than the built-in pack reached
    ],
)
def test_what_more_time_gives_is_an_estimate_by_doublings(psnr: float, budget: float, begun: str, more: str) -> None:
    line = verdict(Measured(psnr, (), budget, {"vqgan": {"from": begun}}))[0]
    assert line.partition("; ")[2] == more
