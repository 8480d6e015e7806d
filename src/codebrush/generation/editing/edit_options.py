"""Which painter draws an edit or an interpolation, and how: its options, checked."""

from collections.abc import Iterable, Mapping
from typing import Any

from codebrush.errors import UsageError
from codebrush.generation.options import CODE_FILTERS, FLOAT32, FLOW_OPTIONS, DrawOptions, FlowSettings
from codebrush.generation.sampling.painters import usual_painter
from codebrush.generation.sampling.sampler import checked_sampling, draw_options
from codebrush.pack.members import PAINTERS
from codebrush.pack.pack import Pack


def edit_painter(pack: Pack, method: str | None) -> str:
    """Which of PAINTERS draws an edit; None is the pack's usual one.

    Raises:
        UsageError: if it is none of them.
    """
    if method is None:
        return usual_painter(pack)
    if method not in PAINTERS:
        raise UsageError(f"method must be one of {', '.join(PAINTERS)}, not {method}")
    return method


def edit_options(
    pack: Pack,
    painter: str,
    given: Mapping[str, Any],
    n: int,
    seed: int,
    others: Iterable[str] = (),
    weights: str = FLOAT32,
) -> DrawOptions:
    """How one of PAINTERS draws an edit or an interpolation, from what is `given` and not None.

    `others` are the names of other options of the task, one of which may have been meant. A code transformer draws with
    `weights`.

    Raises:
        UsageError: if an option is unknown, of the other painter, or out of its range.
    """
    given = {name: value for name, value in given.items() if value is not None}
    settings = {name: given.pop(name) for name in FLOW_OPTIONS if name in given}
    sampling = checked_sampling(given, others={*others, *FLOW_OPTIONS})
    if painter == "flow":
        refuse_code_filters(pack, sampling)
    elif others_than_steps := settings.keys() - {"steps"}:
        raise UsageError(f"{min(others_than_steps)} is an option of the method flow, not of {painter}")
    how = {"flow": FlowSettings(**settings)} if painter == "flow" else settings
    return draw_options(pack, {**sampling, "n": n, "seed": seed, **how}, weights)


def refuse_code_filters(pack: Pack, sampling: Mapping[str, Any]) -> None:
    """Raises UsageError if one of the options filters codes, of which a flow draws none."""
    if unused := [name for name in sampling if name in CODE_FILTERS]:
        other = ", or use the method sample" if pack.has("transformer") else ""
        raise UsageError(f"{unused[0]} is for drawing codes: leave it out{other}")
