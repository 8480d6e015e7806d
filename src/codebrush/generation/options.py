"""The options of drawing with a painter, checked, from Python, a command line or a manifest."""

import difflib
import math
import operator
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from codebrush.errors import UsageError

MAX_PICTURES = 1024
MAX_CANDIDATES = 4 * MAX_PICTURES
ABOVE_ZERO = math.ulp(0.0)
LONGEST_SIDE = 65_536  # pixels

# kind, least, most, as error lines put it
LIMITS: dict[str, tuple[type, float, float, str]] = {
    "n": (int, 1, MAX_PICTURES, f"a whole number from 1 to {MAX_PICTURES}"),
    "seed": (int, 0, 2**63 - 1, "a whole number from 0 to 2^63 - 1"),
    "cfg": (float, 0, 100, "a number from 0 to 100"),
    "temperature": (float, 0, 100, "a number from 0 to 100"),
    "top_k": (int, 0, 2**31 - 1, "a whole number, 0 for all codes"),
    "top_p": (float, ABOVE_ZERO, 1, "a number above 0 and up to 1"),
    "min_p": (float, 0, 1, "a number from 0 to 1"),
    "steps": (int, 1, 1000, "a whole number from 1 to 1000"),
    "rerank": (int, 1, MAX_CANDIDATES, f"a whole number from n to {MAX_CANDIDATES}"),
    "retouch": (int, 0, 16, "a whole number from 0 to 16"),
}
# Used where neither the caller nor the pack's own "defaults" say otherwise.
DEFAULTS: dict[str, int | float] = {
    "cfg": 3.0,
    "temperature": 1.0,
    "top_k": 0,
    "top_p": 1.0,
    "min_p": 0.0,
    "retouch": 0,
}
MASKED_STEPS = 12  # of a masked code transformer
# Drawn and scored for each picture that is asked for, unless `rerank` says otherwise. A flow's are much alike: the best
# four of sixteen are found by a judge about as often as the best four of eight (docs/log.md), and take twice as long.
CANDIDATES_PER_PICTURE = {"sample": 4, "flow": 2}
CODE_FILTERS = ("temperature", "top_k", "top_p", "min_p", "retouch")  # for codes, of which a flow draws none
FLOW_SAMPLERS = ("euler", "heun", "dpm")
# What other programs call an option -> what it is called here.
ELSEWHERE = {
    "guidance_scale": "cfg",
    "cfg_scale": "cfg",
    "num_images_per_prompt": "n",
    "num_images": "n",
    "num_inference_steps": "steps",
    "iterations": "steps",
    "generator": "seed",
    "width": "size",
    "height": "size",
    "mask_image": "mask",
    "init_image": "init",
    "negative": "negative_prompt",
    "lr": "learning_rate",
    "weight_decay": "wd",
    "cutn": "cutouts",
    "limit": "n",
    "top": "n",
    "top_k": "n",
    "count": "n",
    "num": "n",
    "batch_count": "n",
}
FLOAT32, BF16, FLOAT16, INT8 = "float32", "bf16", "float16", "int8"
FLOW_WEIGHTS = (FLOAT32, BF16)  # in which a flow multiplies
WEIGHTS = (FLOAT32, FLOAT16, INT8)  # how a code transformer's weights are stored while it draws; see `PackedLinear`
SAMPLING = ("cfg", "temperature", "top_k", "top_p", "min_p", "retouch", "rerank")  # by which drawing is tuned


def checked_option(name: str, value: Any) -> Any:
    """`value` as the number that the option `name` takes. Raises UsageError if it is not one, or out of range."""
    return checked_number(name, value, *LIMITS[name])


def checked_number(name: str, value: Any, kind: type, least: float, most: float, wanted: str) -> int | float:
    """`value` as a `kind`, int or float, from `least` to `most`. Raises UsageError with `wanted` if it is not one."""
    try:
        number = operator.index(value) if kind is int else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not least <= number <= most:
        raise UsageError(f"{name} must be {wanted}, not {value}")
    return number


def meant_option(name: str, known: Iterable[str]) -> str:
    """The `known` option that other programs call `name`, or that is spelt most like it; "" if none is."""
    known = sorted(known)
    if ELSEWHERE.get(name) in known:
        return ELSEWHERE[name]
    return next(iter(difflib.get_close_matches(name, known, n=1)), "")


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The end of an error line about an unknown option: which one of the `known` was meant, if any is like it."""
    meant = meant_option(name, known)
    return f": did you mean {meant}?" if meant else ""


@dataclass(frozen=True)
class SamplingFilters:
    """How a code is drawn from the network's logits.

    `cfg` is the scale of classifier-free guidance, 1 for none. `temperature` divides the logits; 0 takes the likeliest
    code. `top_k` (0: all codes), `top_p` and `min_p` are as in `codebrush.models.sampling.probabilities`. A masked
    network takes `steps`.
    """

    cfg: float = 1.0
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    steps: int = MASKED_STEPS


@dataclass(frozen=True)
class FlowSettings:
    """How a flow is followed from noise to a picture.

    `steps` is how many steps are taken, by one of FLOW_SAMPLERS. Outside `cfg_interval`, the least and the greatest
    time from 0 (a picture) to 1 (noise), there is no classifier-free guidance (Kynkäänniemi et al. 2024).

    Raises:
        UsageError: if a value is out of its range.
    """

    steps: int = 16
    sampler: str = "dpm"
    cfg_interval: tuple[float, float] = (0.0, 1.0)

    def __post_init__(self) -> None:
        object.__setattr__(self, "steps", checked_option("steps", self.steps))
        if self.sampler not in FLOW_SAMPLERS:
            raise UsageError(f"sampler must be one of {', '.join(FLOW_SAMPLERS)}, not {self.sampler}")
        low, high = self.cfg_interval
        if not 0 <= low < high <= 1:
            raise UsageError(f"cfg_interval must be two rising times from 0 to 1, not {low},{high}")
        object.__setattr__(self, "cfg_interval", (float(low), float(high)))


FLOW_OPTIONS = tuple(option.name for option in fields(FlowSettings))


@dataclass(frozen=True, kw_only=True)
class DrawOptions:
    """How many pictures a painter draws, and how.

    `rerank` candidates are drawn, from the random streams of (`seed`, 0), (`seed`, 1) ..., and the best `n` by
    `Result.rank` are kept. `size` is WIDTHxHEIGHT in pixels, or one number for a square, "" for the pack's own; the
    rest is as in `SamplingFilters`. `flow` is for the flow transformer, which has no use for the filters beside `cfg`.
    `steps` is for a masked code transformer, None for any other painter. `retouch` is how often the least likely codes
    of a drawn picture are drawn again. `weights` is how the code transformer's are stored, one of WEIGHTS, or of
    FLOW_WEIGHTS that in which the flow multiplies.

    Raises:
        UsageError: if a value is out of its range, or `rerank` is below `n`.
    """

    n: int
    seed: int
    cfg: float
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    retouch: int = 0
    rerank: int
    size: str = ""
    steps: int | None = None
    flow: FlowSettings | None = None
    weights: str = FLOAT32

    def __post_init__(self) -> None:
        for name in LIMITS.keys() - {"steps"}:
            object.__setattr__(self, name, checked_option(name, getattr(self, name)))
        if self.steps is not None:
            object.__setattr__(self, "steps", checked_option("steps", self.steps))
        if isinstance(self.flow, Mapping):  # as a manifest has it
            object.__setattr__(self, "flow", FlowSettings(**self.flow))
        if not isinstance(self.flow, FlowSettings | None):
            raise UsageError(f"flow must be settings of a flow, not {self.flow!r}")
        known = WEIGHTS if self.flow is None else FLOW_WEIGHTS
        if self.weights not in known:
            raise UsageError(f"weights must be one of {', '.join(known)}, not {self.weights}")
        if self.size != "":
            object.__setattr__(self, "size", "{}x{}".format(*parse_size(self.size)))
        if self.rerank < self.n:
            raise UsageError(f"rerank must be {LIMITS['rerank'][3]}, which is {self.n}, not {self.rerank}")

    @property
    def filters(self) -> SamplingFilters:
        """Those of the options that each draw of a code needs."""
        steps = MASKED_STEPS if self.steps is None else self.steps
        return SamplingFilters(self.cfg, self.temperature, self.top_k, self.top_p, self.min_p, steps)

    def to_dict(self) -> dict[str, Any]:
        """As a manifest's "options": all but the seed, which has its own key, and what is not used."""
        without = {"seed", *(() if self.retouch else ("retouch",)), *(() if self.flow is None else CODE_FILTERS)}
        without |= {"weights"} if self.weights == FLOAT32 else set()
        return {name: value for name, value in asdict(self).items() if name not in without and value not in ("", None)}


def parse_size(text: str | int) -> tuple[int, int]:
    """Parse "128x96" as width and height in pixels, each from 1 to `LONGEST_SIDE`; "128" is 128x128.

    Raises:
        UsageError: if it is anything else.
    """
    sides = str(text).lower().split("x")
    if len(sides) > 2 or not all(side.strip().isdecimal() for side in sides):
        raise UsageError(f"size must be WIDTHxHEIGHT in whole pixels, like 128x96, or one number, not {text}")
    if not all(1 <= int(side) <= LONGEST_SIDE for side in sides):
        raise UsageError(f"size must be from 1 to {LONGEST_SIDE} pixels a side, not {text}")
    return int(sides[0]), int(sides[-1])


def parse_pair(text: str, name: str, between: str) -> tuple[float, float]:
    """Parse two finite numbers with `between` between them. Raises UsageError, which names the option `name`."""
    try:
        first, second = (float(part) for part in str(text).lower().split(between))
        if not math.isfinite(first) or not math.isfinite(second):
            raise ValueError(text)
    except ValueError:
        raise UsageError(f"{name} must be two numbers with '{between}' between, not {text}") from None
    return first, second
