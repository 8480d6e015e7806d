"""The options of guidance with their defaults, ranges and help texts, for Python, the command line and runs alike."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from codebrush.errors import UsageError
from codebrush.generation.guided.option_values import checked_value, parse_bytes
from codebrush.generation.guided.presets import PRESETS
from codebrush.generation.options import ABOVE_ZERO, parse_pair, parse_size
from codebrush.text.pasted import plain_text
from codebrush.warned import warn, warn_of_former_name

RUN, PROMPTS, CUTOUTS, LATENT = "run", "prompts", "cutouts", "latent"
OPTIMISER, PENALTIES, CAMERA, MEMORY = "optimiser", "penalties", "camera", "memory"

INITS = ("random", "sine", "fractal", "gradient", "sample")  # values of `init` that are not a file
PADDINGS = ("zeros", "border", "reflection", "wrap")
SCHEDULES = ("constant", "linear", "cosine")
SYMMETRIES = ("horizontal", "vertical", "both")
FORMER_NAMES = {"judge": "other_clip", "judge_weight": "own_clip_weight"}  # in version 0.2; read everywhere
WORDS = ("include", "exclude", "extra")  # options that are texts without weights
OPTIMIZERS = (  # of torch.optim, those that need no closure
    "Adadelta", "Adafactor", "Adagrad", "Adam", "AdamW", "Adamax", "ASGD", "NAdam", "RAdam", "RMSprop", "Rprop", "SGD",
)  # fmt: skip


def _number(default: float | None, topic: str, least: float, most: float, help: str) -> Any:
    """An int or a float, as the default is, from `least` to `most`."""
    kind = int if isinstance(default, int) else float
    return field(default=default, metadata={"topic": topic, "kind": kind, "least": least, "most": most, "help": help})


def _choice(default: str | None, topic: str, choices: Sequence[str], help: str) -> Any:
    return field(default=default, metadata={"topic": topic, "kind": str, "choices": tuple(choices), "help": help})


def _text(default: str | None, topic: str, help: str) -> Any:
    return field(default=default, metadata={"topic": topic, "kind": str, "help": help})


def _switch(default: bool, topic: str, help: str) -> Any:
    return field(default=default, metadata={"topic": topic, "kind": bool, "help": help})


def _texts(topic: str, help: str) -> Any:
    """Any number of texts, kept as a tuple; one text alone may be given as it is."""
    return field(default=(), metadata={"topic": topic, "kind": tuple, "help": help})


@dataclass(frozen=True)
class GuideOptions:
    """How a guided picture is made; the help of each option says what it means.

    `w1`, `w2`, `alpha`, `beta`, `noise` and the crop sizes mean what they mean in the classic VQGAN-CLIP notebook,
    whose values are `PRESETS["notebook"]`.

    Raises:
        UsageError: if a value has the wrong type or is out of range; it names the option and the range.
    """

    steps: int = _number(200, RUN, 0, 1_000_000, "Steps of guidance, of a flow, or of a masked code transformer.")
    batch_size: int = _number(1, RUN, 1, 1024, "Pictures that are guided at the same time.")
    size: str | None = _text(
        None, RUN, "WIDTHxHEIGHT in pixels, or one number for a square; more takes longer.  [pack's own]"
    )
    show_every: int = _number(20, RUN, 0, 1_000_000, "Save picture and latent every so many steps; 0: only at the end.")
    patience: int = _number(0, RUN, 0, 1_000_000, "Stop after so many steps without improvement; 0: never.")
    min_delta: float = _number(1e-3, RUN, 0, 100, "Least drop of the loss that --patience counts as improvement.")
    keep: str = _choice("last", RUN, ("last", "best"), "Keep the last step, or the best one by the pack's scorer.")
    score_every: int = _number(5, RUN, 1, 1_000_000, "With --keep best: steps from one look of the scorer to the next.")
    score_patience: int = _number(
        10, RUN, 0, 1_000_000, "With --keep best: stop after so many steps without a better score; 0: never."
    )
    grow: int = _number(1, RUN, 1, 8, "Coarse to fine: number of stages, each twice as large as the one before.")
    precision: str = _choice("auto", RUN, ("auto", "float32", "bf16"), "Arithmetic of the models; auto: bf16 if fast.")

    include: tuple[str, ...] = _texts(PROMPTS, "Another text that the picture should match; may be repeated.")
    exclude: tuple[str, ...] = _texts(PROMPTS, "A text that the picture should not match; may be repeated.")
    extra: tuple[str, ...] = _texts(PROMPTS, "Text to blend into every prompt, such as a style; may be repeated.")
    w1: float = _number(1.0, PROMPTS, -100, 100, "Weight of the prompt in its blend with --extra.")
    w2: float = _number(0.1, PROMPTS, -100, 100, "Weight of --extra in that blend.")
    alpha: float = _number(1.0, PROMPTS, 0, 100, "Weight in the loss of the prompt and --include.")
    beta: float = _number(0.5, PROMPTS, 0, 100, "Weight in the loss of --exclude.")
    image_prompt: tuple[str, ...] = _texts(PROMPTS, "FILE[:weight[:stop]]: a picture as a prompt; may be repeated.")
    target: tuple[str, ...] = _texts(PROMPTS, "FILE[:weight]: a picture whose pixels to approach; may be repeated.")
    noise_prompt: tuple[str, ...] = _texts(
        PROMPTS, "SEED[:weight[:stop]]: a random embedding as a prompt; may be repeated."
    )
    story: tuple[str, ...] = _texts(PROMPTS, "A prompt that replaces the one before during the run; may be repeated.")
    story_every: int = _number(0, PROMPTS, 0, 1_000_000, "Steps for each prompt of a story; 0: divide them evenly.")
    distance: str = _choice(
        "spherical", PROMPTS, ("spherical", "cosine"), "Loss on embeddings: half the squared angle, or 1 - cosine."
    )
    other_clip: tuple[str, ...] = _texts(PROMPTS, "PACK[:weight]: another CLIP that guides too; may be repeated.")
    own_clip_weight: float = _number(1.0, PROMPTS, 0, 100, "Weight of the pack's own CLIP; 0: only others guide.")
    mask: str | None = _text(
        None, PROMPTS, "A picture that is white where guidance may change something; cropped like the one of --init."
    )
    mask_side: str = _choice("inside", PROMPTS, ("inside", "outside"), "Guide the white part of --mask, or the rest.")

    cutouts: int = _number(32, CUTOUTS, 1, 4096, "Random views of the picture that CLIP sees in each step.")
    crop_mean: float = _number(1.0, CUTOUTS, 0.01, 10, "Mean side of the square crops, as a share of the short side.")
    crop_std: float = _number(0.2, CUTOUTS, 0, 10, "Standard deviation of the crop size.")
    crop_min: float = _number(0.5, CUTOUTS, 0.01, 10, "Smallest crop size.")
    crop_max: float = _number(1.4, CUTOUTS, 0.01, 10, "Largest crop size.")
    pad: float = _number(0.25, CUTOUTS, 0, 2, "Padding that crops may reach into, as a share of the short side.")
    beyond: str = _choice("border", CUTOUTS, PADDINGS, "What fills the padding.")
    flip: float = _number(0.5, CUTOUTS, 0, 1, "Probability of a left-right flip.")
    turn: float = _number(10.0, CUTOUTS, 0, 180, "Largest random rotation in degrees.")
    shift: float = _number(0.1, CUTOUTS, 0, 1, "Largest random shift, as a share of the padded picture.")
    perspective: float = _number(0.0, CUTOUTS, 0, 0.9, "Strength of the random perspective distortion.")
    colour: float = _number(0.1, CUTOUTS, 0, 1, "Strength of the colour jitter: brightness, contrast and saturation.")
    noise: float = _number(0.1, CUTOUTS, 0, 10, "Largest standard deviation of the noise added to each view.")
    shared_affine: bool = _switch(False, CUTOUTS, "All views of a step share one flip, rotation and shift.")
    antialias: bool = _switch(True, CUTOUTS, "Average pixels before views shrink the picture, so that none is skipped.")

    init: str = _text("random", LATENT, f"Where to begin: {', '.join(INITS)}, or a FILE: picture or .safetensors.")
    init_weight: float = _number(0.0, LATENT, 0, 1000, "Weight in the loss of the distance to the initial latent.")
    latent: str = _choice(
        "continuous", LATENT, ("continuous", "categorical"), "Optimise latent vectors, or logits of the codes."
    )
    quantise: bool = _switch(True, LATENT, "Decode the nearest codes, with a straight-through gradient.")
    clamp: bool = _switch(True, LATENT, "Clamp the latent to the range of the codebook.")
    code_temperature: float = _number(1.0, LATENT, 0.01, 100, "Softmax temperature of a categorical latent.")
    ema: float = _number(0.0, LATENT, 0, 0.9999, "Show a moving average of the latent with this decay; 0: none.")
    seamless: bool = _switch(False, LATENT, "Make a texture whose opposite edges fit together.")

    optimizer: str = _choice("AdamW", OPTIMISER, OPTIMIZERS, "Optimizer of torch.optim.")
    learning_rate: float = _number(0.1, OPTIMISER, ABOVE_ZERO, 1000, "Learning rate.")
    wd: float = _number(0.0, OPTIMISER, 0, 100, "Weight decay.")
    schedule: str = _choice("constant", OPTIMISER, SCHEDULES, "How the learning rate falls after the warmup.")
    warmup: int = _number(0, OPTIMISER, 0, 1_000_000, "Steps over which the learning rate first rises linearly.")

    tv: float = _number(0.0, PENALTIES, 0, 1e6, "Weight of the total variation, which smooths the picture.")
    saturation: float = _number(0.0, PENALTIES, -1e6, 1e6, "Weight of a penalty on strong colours; < 0: a reward.")
    overflow: float = _number(0.0, PENALTIES, 0, 1e6, "Weight of a penalty on pixel values outside 0 to 1.")
    palette: str | None = _text(None, PENALTIES, 'Colours to stay near, like "#ff0000,#0000ff", or a picture file.')
    palette_weight: float = _number(1.0, PENALTIES, 0, 1e6, "Weight of the distance to the palette.")
    symmetry: str | None = _choice(None, PENALTIES, SYMMETRIES, "Mirror symmetry to pull to; horizontal: left-right.")
    symmetry_weight: float = _number(1.0, PENALTIES, 0, 1e6, "Weight of the difference to the mirror image.")

    move_every: int = _number(0, CAMERA, 0, 1_000_000, "Move the camera every so many steps; 0: never.")
    zoom: float = _number(1.0, CAMERA, 0.1, 10, "Zoom factor of each move; above 1: nearer.")
    pan: str = _text("0,0", CAMERA, "RIGHT,DOWN: pixels by which each move shifts the camera.")
    roll: float = _number(0.0, CAMERA, -180, 180, "Degrees that each move turns the camera clockwise.")

    max_memory: str | None = _text(None, MEMORY, "Limit on the memory of the process, like 2GiB.")
    micro_batch: int = _number(0, MEMORY, 0, 65536, "Views that CLIP reads at once; 0: as many as fit.")
    tile: int = _number(0, MEMORY, 0, 65536, "Tile side in pixels with which large pictures are decoded; 0: automatic.")

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


def under_present_names(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options whose names may be former ones, by their present names."""
    return {FORMER_NAMES.get(name, name): value for name, value in options.items()}


# The options that CLIP's guidance of a flow has too.
FLOW_GUIDING = frozenset(
    option.name
    for option in fields(GuideOptions)
    if option.metadata["topic"] in (PROMPTS, CUTOUTS, PENALTIES, MEMORY) or option.name in ("batch_size", "precision")
)


def guide_options(
    given: Mapping[str, Any], preset: str | None = None, pack: Mapping[str, Any] | None = None
) -> GuideOptions:
    """Options from what is `given` and not None, then the preset, then the pack's defaults, then the defaults here.

    The texts of WORDS are read as prompts are (see `plain_text`), with a warning for each thing in them that has no
    meaning there.

    Raises:
        UsageError: if the preset or an option does not exist, or a value is not allowed.
    """
    if preset is not None and preset not in PRESETS:
        raise UsageError(f"preset must be one of {', '.join(PRESETS)}, not {preset}")
    known = {option.name for option in fields(GuideOptions)}
    for name in FORMER_NAMES.keys() & given:
        warn_of_former_name(name, FORMER_NAMES[name])
    given, pack = under_present_names(given), under_present_names(pack or {})
    unknown = sorted(set(given) - known)
    if unknown:
        raise UsageError(f"guidance has no option {', '.join(unknown)}")
    values = {name: value for name, value in pack.items() if name in known}
    values |= PRESETS[preset] if preset is not None else {}
    given = {name: _read(value) if name in WORDS else value for name, value in given.items() if value is not None}
    return GuideOptions(**values | given)


def _read(texts: Any) -> Any:
    """Texts without what only other programs understand; what is no text is left to the check of its option."""
    if not isinstance(texts, str | list | tuple):
        return texts
    read = []
    for text in (texts,) if isinstance(texts, str) else texts:
        words, said = plain_text(text) if isinstance(text, str) else (text, [])
        for line in said:
            warn(line)
        read += [words] if words or not said else []
    return read


def usual_preset(init: str | None, *, draws: bool) -> dict[str, Any]:
    """What a run without a preset takes: that of "sample" for a start that shows something, else that of "random".

    `init` is the start if it is given; `draws` says whether the pack has a painter to draw one.
    """
    shows = draws if init is None else init not in INITS or init == "sample"
    usual = PRESETS["sample" if shows else "random"]
    return usual if init is None else {**usual, "init": init}
