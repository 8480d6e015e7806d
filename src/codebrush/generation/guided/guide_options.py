"""The options of guidance, each with its topic, default, range and help: one table for Python, the command line and the
run folder. Values from anywhere in, checked values or a one-line UsageError out."""

import dataclasses
import math
import operator
import re
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from typing import Any

from codebrush.errors import UsageError
from codebrush.generation.options import ABOVE_ZERO

RUN, PROMPTS, CUTOUTS, LATENT = "run", "prompts", "cutouts", "latent"
OPTIMISER, PENALTIES, MOVES, MEMORY = "optimiser", "penalties", "moves", "memory"
TOPICS = (RUN, PROMPTS, CUTOUTS, LATENT, OPTIMISER, PENALTIES, MOVES, MEMORY)  # in the order of the help

STARTS = ("random", "sine", "fractal", "gradient", "sample")  # what `init` may be beside a file
BEYOND = ("zeros", "border", "reflection", "wrap")
SCHEDULES = ("constant", "linear", "cosine")
SYMMETRIES = ("horizontal", "vertical", "both")
WITHOUT_CLOSURE = (
    "Adadelta", "Adafactor", "Adagrad", "Adam", "AdamW", "Adamax", "ASGD", "NAdam", "RAdam", "RMSprop", "Rprop", "SGD",
)  # fmt: skip


def _number(default: float | None, topic: str, least: float, most: float, words: str) -> Any:
    kind = int if isinstance(default, int) else float
    return field(default=default, metadata={"topic": topic, "kind": kind, "least": least, "most": most, "help": words})


def _choice(default: str | None, topic: str, choices: Sequence[str], words: str) -> Any:
    return field(default=default, metadata={"topic": topic, "kind": str, "choices": tuple(choices), "help": words})


def _text(default: str | None, topic: str, words: str) -> Any:
    return field(default=default, metadata={"topic": topic, "kind": str, "help": words})


def _switch(default: bool, topic: str, words: str) -> Any:
    return field(default=default, metadata={"topic": topic, "kind": bool, "help": words})


def _texts(topic: str, words: str) -> Any:
    return field(default=(), metadata={"topic": topic, "kind": tuple, "help": words})


@dataclass(frozen=True)
class GuideOptions:
    """How a guided picture is made. A value out of its range is a UsageError that names the option and the range.

    The meanings of `w1`, `w2`, `alpha`, `beta`, `noise` and the crop sizes are those of the classic VQGAN-CLIP
    notebook; `PRESETS["notebook"]` holds its values.
    """

    steps: int = _number(200, RUN, 0, 1_000_000, "Steps of the optimiser.")
    batch_size: int = _number(1, RUN, 1, 1024, "Pictures that are guided side by side.")
    size: str | None = _text(None, RUN, "WIDTHxHEIGHT in pixels, multiples of the VQGAN's factor.  [pack's own]")
    show_every: int = _number(20, RUN, 0, 1_000_000, "Steps between stored pictures and latents; 0: the last alone.")
    patience: int = _number(0, RUN, 0, 1_000_000, "Stop after so many steps without a better loss; 0 never.")
    min_delta: float = _number(1e-3, RUN, 0, 100, "What counts as better, with --patience.")
    grow: int = _number(1, RUN, 1, 8, "Coarse to fine in so many stages, each twice the last.")
    precision: str = _choice("auto", RUN, ("auto", "float32", "bf16"), "Of the products; auto: bf16 where fast.")

    include: tuple[str, ...] = _texts(PROMPTS, "More that should be seen; may be repeated.")
    exclude: tuple[str, ...] = _texts(PROMPTS, "What should not be seen; may be repeated.")
    extra: tuple[str, ...] = _texts(PROMPTS, "Texts mixed into every prompt, such as a style; may be repeated.")
    w1: float = _number(1.0, PROMPTS, -100, 100, "Share of the prompt in that mixture.")
    w2: float = _number(0.1, PROMPTS, -100, 100, "Share of the extra texts in that mixture.")
    alpha: float = _number(1.0, PROMPTS, 0, 100, "Weight of what should be seen.")
    beta: float = _number(0.5, PROMPTS, 0, 100, "Weight of the penalty on what is excluded.")
    image_prompt: tuple[str, ...] = _texts(PROMPTS, "FILE[:weight[:stop]] that CLIP compares with; may be repeated.")
    target: tuple[str, ...] = _texts(PROMPTS, "FILE[:weight] whose pixels attract; may be repeated.")
    noise_prompt: tuple[str, ...] = _texts(PROMPTS, "SEED[:weight[:stop]]: a random embedding; may be repeated.")
    story: tuple[str, ...] = _texts(PROMPTS, "A prompt that follows the last one; may be repeated.")
    story_every: int = _number(0, PROMPTS, 0, 1_000_000, "Steps for each prompt of a story; 0: shared evenly.")
    distance: str = _choice("spherical", PROMPTS, ("spherical", "cosine"), "Between embeddings, as the loss.")
    judge: tuple[str, ...] = _texts(PROMPTS, "PACK[:weight]: another CLIP that guides; may be repeated.")
    judge_weight: float = _number(1.0, PROMPTS, 0, 100, "Weight of the pack's own CLIP.")
    mask: str | None = _text(None, PROMPTS, "Picture that is white where guidance may act.")
    mask_side: str = _choice("inside", PROMPTS, ("inside", "outside"), "Side of the mask that is guided.")

    cutouts: int = _number(32, CUTOUTS, 1, 4096, "Random views that CLIP sees at each step.")
    crop_mean: float = _number(1.0, CUTOUTS, 0.01, 10, "Mean size of a crop, as a share of the short side.")
    crop_std: float = _number(0.2, CUTOUTS, 0, 10, "Its standard deviation.")
    crop_min: float = _number(0.5, CUTOUTS, 0.01, 10, "Its least.")
    crop_max: float = _number(1.4, CUTOUTS, 0.01, 10, "Its most.")
    pad: float = _number(0.25, CUTOUTS, 0, 2, "How far crops reach beyond the picture, as a share of the short side.")
    beyond: str = _choice("border", CUTOUTS, BEYOND, "What is seen there.")
    flip: float = _number(0.5, CUTOUTS, 0, 1, "Chance of a left-right flip.")
    turn: float = _number(10.0, CUTOUTS, 0, 180, "Largest turn in degrees.")
    shift: float = _number(0.1, CUTOUTS, 0, 1, "Largest shift, as a share of the padded picture.")
    perspective: float = _number(0.0, CUTOUTS, 0, 0.9, "Largest perspective distortion.")
    colour: float = _number(0.1, CUTOUTS, 0, 1, "How far contrast, saturation and brightness stray.")
    noise: float = _number(0.1, CUTOUTS, 0, 10, "Factor of the noise added to each view.")
    shared_affine: bool = _switch(False, CUTOUTS, "One flip, turn and shift for all views of a step.")
    antialias: bool = _switch(True, CUTOUTS, "Average pixels first where views shrink the picture.")

    init: str = _text("random", LATENT, f"{', '.join(STARTS)}, or a FILE: picture or .safetensors.")
    init_weight: float = _number(0.0, LATENT, 0, 1000, "Pull towards the latent at the start.")
    latent: str = _choice("continuous", LATENT, ("continuous", "categorical"), "Vectors, or logits of the codes.")
    quantise: bool = _switch(True, LATENT, "Decode the nearest codes; the gradient passes straight through.")
    clamp: bool = _switch(True, LATENT, "Keep the latent within the codebook's range.")
    code_temperature: float = _number(1.0, LATENT, 0.01, 100, "Of the code logits, where the latent is categorical.")
    ema: float = _number(0.0, LATENT, 0, 0.9999, "Decay of the latent's running mean, which is what is shown.")
    seamless: bool = _switch(False, LATENT, "Make the picture fit beside itself.")

    optimizer: str = _choice("AdamW", OPTIMISER, WITHOUT_CLOSURE, "A name in torch.optim.")
    learning_rate: float = _number(0.1, OPTIMISER, ABOVE_ZERO, 1000, "Size of a step.")
    wd: float = _number(0.0, OPTIMISER, 0, 100, "Weight decay.")
    schedule: str = _choice("constant", OPTIMISER, SCHEDULES, "How the learning rate falls.")
    warmup: int = _number(0, OPTIMISER, 0, 1_000_000, "Steps over which it first rises.")

    tv: float = _number(0.0, PENALTIES, 0, 1e6, "Weight against differences of neighbouring pixels.")
    saturation: float = _number(0.0, PENALTIES, -1e6, 1e6, "Weight against colourfulness; negative: for it.")
    overflow: float = _number(0.0, PENALTIES, 0, 1e6, "Weight against pixels darker than black, brighter than white.")
    palette: str | None = _text(None, PENALTIES, 'Colours to keep to, like "#ff0000,#0000ff", or a picture of them.')
    palette_weight: float = _number(1.0, PENALTIES, 0, 1e6, "Weight of the pull to the palette.")
    symmetry: str | None = _choice(None, PENALTIES, SYMMETRIES, "Axis along which the picture should mirror.")
    symmetry_weight: float = _number(1.0, PENALTIES, 0, 1e6, "Weight of that pull.")

    move_every: int = _number(0, MOVES, 0, 1_000_000, "Steps between moves of the camera; 0: it stands still.")
    zoom: float = _number(1.0, MOVES, 0.1, 10, "Factor by which each move brings the camera nearer.")
    pan: str = _text("0,0", MOVES, "RIGHT,DOWN: how far each move takes the camera, in pixels.")
    roll: float = _number(0.0, MOVES, -180, 180, "How far each move turns the camera, in degrees clockwise.")

    max_memory: str | None = _text(None, MEMORY, "Peak of the process, like 2GiB.")
    micro_batch: int = _number(0, MEMORY, 0, 65536, "Views that CLIP reads at once; 0: as many as fit.")
    tile: int = _number(0, MEMORY, 0, 65536, "Side in pixels of the tiles that large pictures are decoded in; 0: auto.")

    def __post_init__(self) -> None:
        for option in fields(self):
            object.__setattr__(self, option.name, checked_value(option, getattr(self, option.name)))
        if self.crop_min > self.crop_max:
            raise UsageError(f"crop_min must be at most crop_max, which is {self.crop_max}, not {self.crop_min}")
        parse_pair(self.pan, "pan", ",")
        if self.size is not None:
            parse_size(self.size)
        if self.max_memory is not None:
            parse_bytes(self.max_memory)


def parse_size(text: str) -> tuple[int, int]:
    """ "128x96" -> (128, 96), width and height in pixels."""
    width, height = parse_pair(text, "size", "x")
    if not (width.is_integer() and height.is_integer() and 1 <= width <= 65536 and 1 <= height <= 65536):
        raise UsageError(f"size must be WIDTHxHEIGHT in whole pixels, like 128x96, not {text}")
    return int(width), int(height)


def parse_pair(text: str, name: str, between: str) -> tuple[float, float]:
    """Two numbers with `between` between them."""
    try:
        first, second = (float(part) for part in str(text).lower().split(between))
        if not math.isfinite(first) or not math.isfinite(second):
            raise ValueError(text)
    except ValueError:
        raise UsageError(f"{name} must be two numbers with '{between}' between, not {text}") from None
    return first, second


_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "KI": 2**10, "MI": 2**20, "GI": 2**30, "TI": 2**40}


def parse_bytes(text: str) -> int:
    """ "2GiB", "1500M" or a plain number of bytes -> bytes."""
    match = re.fullmatch(r"\s*(\d+\.?\d*|\.\d+)\s*([KMGT]?I?)B?\s*", str(text).upper(), re.ASCII)
    if match is None or match[2] not in _UNITS:
        raise UsageError(f"max_memory must be a size like 2GiB or 1500M, not {text}")
    size = float(match[1]) * _UNITS[match[2]]
    if not 1 <= size < math.inf:
        raise UsageError(f"max_memory must be a size like 2GiB or 1500M, not {text}")
    return int(size)


def checked_value(option: "dataclasses.Field[Any]", value: Any) -> Any:
    """`value` in the kind and range of `option`; a UsageError where it has none."""
    kind, about = option.metadata["kind"], option.metadata
    if value is None:
        if option.default is not None:
            raise UsageError(f"{option.name} must be something, not None")
        return None
    if kind is bool:
        if not isinstance(value, bool):
            raise UsageError(f"{option.name} must be true or false, not {value}")
        return value
    if kind is tuple:
        values = (value,) if isinstance(value, str) else value
        if not isinstance(values, Sequence) or not all(isinstance(each, str) for each in values):
            raise UsageError(f"{option.name} must be texts, not {value}")
        return tuple(values)
    if kind is str:
        if not isinstance(value, str) or ("choices" in about and value not in about["choices"]):
            wanted = f"one of {', '.join(about['choices'])}" if "choices" in about else "a text"
            raise UsageError(f"{option.name} must be {wanted}, not {value}")
        return value
    try:
        number = operator.index(value) if kind is int else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not about["least"] <= number <= about["most"]:
        called = "a whole number" if kind is int else "a number"
        least = "above 0" if about["least"] == ABOVE_ZERO else f"from {about['least']:g}"
        raise UsageError(f"{option.name} must be {called} {least} to {about['most']:g}, not {value}")
    return number


PRESETS: dict[str, dict[str, Any]] = {
    "notebook": {
        "steps": 400, "batch_size": 1, "show_every": 10, "learning_rate": 0.5, "wd": 0.15, "optimizer": "AdamW",
        "noise": 0.22, "w1": 1.0, "w2": 0.1, "alpha": 1.0, "beta": 0.5, "distance": "cosine",
        "cutouts": 32, "crop_mean": 1.2, "crop_std": 0.3, "crop_min": 0.43, "crop_max": 1.9,
        "pad": 0.5, "beyond": "zeros", "flip": 0.5, "turn": 30.0, "shift": 0.2, "perspective": 0.0, "colour": 0.0,
        "shared_affine": True, "antialias": False, "init": "sine", "quantise": False, "clamp": False,
    },
    # Close to the sample, and views so disturbed that CLIP is hard to please by texture alone: see docs/log.md.
    "refine": {
        "steps": 40, "init": "sample", "init_weight": 10.0, "learning_rate": 0.05, "ema": 0.9,
        "turn": 20.0, "perspective": 0.3, "colour": 0.3, "noise": 0.3,
    },
}  # fmt: skip


def guide_options(
    given: Mapping[str, Any], preset: str | None = None, pack: Mapping[str, Any] | None = None
) -> GuideOptions:
    """The options of a run: what is `given` and not None, else the preset's, else the pack's, else the defaults."""
    if preset is not None and preset not in PRESETS:
        raise UsageError(f"preset must be one of {', '.join(PRESETS)}, not {preset}")
    known = {option.name for option in fields(GuideOptions)}
    unknown = sorted(set(given) - known)
    if unknown:
        raise UsageError(f"guidance has no option {', '.join(unknown)}")
    values = {name: value for name, value in (pack or {}).items() if name in known}
    values |= PRESETS[preset] if preset is not None else {}
    return GuideOptions(**values | {name: value for name, value in given.items() if value is not None})


def default_of(option: "dataclasses.Field[Any]") -> Any:
    """The default of an option as the help shows it."""
    return None if option.default is MISSING else option.default
