"""A request (a prompt and its options) and a pack's models in; the task that guidance works on out."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from codebrush.data.images import decode_image, to_tensor
from codebrush.data.preprocess import pixels_for
from codebrush.errors import CodebrushError, ImageError, UsageError
from codebrush.generation.guided.guidance import Judge, Task, stage_sizes
from codebrush.generation.guided.guide_options import STARTS, GuideOptions, parse_size
from codebrush.generation.guided.initial_latents import cover, start_latent
from codebrush.generation.guided.objectives import (
    NONE,
    Targets,
    join_targets,
    noise_targets,
    split_weights,
    text_targets,
)
from codebrush.models.clip import CLIP
from codebrush.models.pretrained import WEIGHTS_FILE
from codebrush.models.vqgan import VQGAN
from codebrush.pack.pack import clip_folder, open_clip
from codebrush.text.prompts import WeightedText, parse_prompt
from codebrush.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class Request:
    """All that chooses a guided run's pixels. `files` holds the sha256 of every file that its options name."""

    prompt: str
    n: int
    seed: int
    options: GuideOptions
    sampling: dict[str, Any] = field(default_factory=dict)  # of the code transformer, where it draws the start
    files: dict[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """As plain values; options that are as by default are left out."""
        defaults = GuideOptions()
        options = {name: value for name, value in asdict(self.options).items() if value != getattr(defaults, name)}
        return {
            "prompt": self.prompt, "n": self.n, "seed": self.seed,
            "options": options, "sampling": self.sampling, "files": self.files,
        }  # fmt: skip

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Request":
        """The request that `to_json` wrote. Raises UsageError where an option is out of its range."""
        known = {option.name for option in fields(GuideOptions)}
        unknown = set(values["options"]) - known
        if unknown:
            raise UsageError(f"guidance has no option {', '.join(sorted(unknown))}: upgrade codebrush to read it")
        options: dict[str, Any] = {
            name: tuple(v) if isinstance(v, list) else v for name, v in values["options"].items()
        }
        kept = {name: values[name] for name in ("prompt", "n", "seed", "sampling", "files")}
        return cls(options=GuideOptions(**options), **kept)


@dataclass(frozen=True)
class Models:
    """What a pack lends to guidance. `sample` draws latents (B, d, h, w) of a request's pictures at the pack's size."""

    vqgan: VQGAN
    clip: CLIP
    tokenizer: Tokenizer
    image_size: int
    sample: Callable[[Request, Sequence[int]], Tensor]
    about: dict[str, Any] = field(default_factory=dict)  # the pack, versions, device and threads, for manifests

    @property
    def device(self) -> torch.device:
        """Where the models are."""
        return self.vqgan.last_layer.device


def named_files(options: GuideOptions) -> list[str]:
    """The files that the options name, each once; of a judge, its weights."""
    files = [str(clip_folder(split_weights(text)[0]) / WEIGHTS_FILE) for text in options.judge]
    files += [split_weights(text)[0] for text in (*options.image_prompt, *options.target)]
    files += [options.mask] if options.mask else []
    files += [options.init] if options.init not in STARTS else []
    files += [options.palette] if options.palette and Path(options.palette).is_absolute() else []
    return list(dict.fromkeys(files))


def with_files(request: Request) -> Request:
    """The request with absolute paths and the hashes of its files. Raises ImageError where one cannot be read."""
    o = request.options

    def place(text: str) -> str:
        name = split_weights(text)[0]
        return str(Path(name).absolute()) + text[len(name) :]

    changes: dict[str, Any] = {"image_prompt": tuple(map(place, o.image_prompt)), "target": tuple(map(place, o.target))}
    changes["judge"] = tuple(place(text) if Path(split_weights(text)[0]).is_dir() else text for text in o.judge)
    if o.mask:
        changes["mask"] = str(Path(o.mask).absolute())
    if o.init not in STARTS:
        changes["init"] = str(_start_file(o.init))
    if o.palette and Path(o.palette).is_file():
        changes["palette"] = str(Path(o.palette).absolute())
    options = replace(o, **changes)
    return replace(request, options=options, files={name: _digest(name) for name in named_files(options)})


def check_files(request: Request) -> None:
    """Raises ImageError where a file of the request is not what it was."""
    for name, digest in request.files.items():
        if _digest(name) != digest:
            raise ImageError(f"{name} has changed since the run began: put the old one back, or begin a new run")


def _start_file(name: str) -> Path:
    if not Path(name).is_file():
        raise UsageError(f"init must be one of {', '.join(STARTS)} or a file, and there is no file {name}")
    return Path(name).absolute()


def _digest(name: str) -> str:
    try:
        return hashlib.sha256(Path(name).read_bytes()).hexdigest()
    except OSError as error:
        raise ImageError(f"{name}: cannot be read: {error.strerror or error}") from error


def picture_size(request: Request, models: Models) -> tuple[int, int]:
    """Height and width of the request's pictures. Raises UsageError where they hold no whole codes."""
    asked = request.options.size
    width, height = (models.image_size, models.image_size) if asked is None else parse_size(asked)
    models.vqgan.code_grid((height, width))
    return height, width


def prompt_parts(request: Request) -> Sequence[WeightedText]:
    """The parts of the prompt that the finished picture is scored by: those of the story's last chapter."""
    return parse_prompt((request.prompt, *request.options.story)[-1]).parts


@torch.no_grad()
def make_task(request: Request, models: Models, pictures: range) -> Task:
    """The task of guiding `pictures` of the request, with every text and picture prompt embedded once."""
    o, size = request.options, picture_size(request, models)
    first = stage_sizes(size, o.grow, models.vqgan.factor)[0]
    return Task(
        models.vqgan,
        _judges(request, models),
        o,
        request.seed,
        pictures,
        size,
        _start(request, models, pictures, first),
        [(_picture(name, size, models), weight) for name, weight in _weighted("target", o.target)],
        None if o.mask is None else _mask(o.mask, o.mask_side, size, models),
    )


def _start(request: Request, models: Models, pictures: range, size: tuple[int, int]) -> Tensor:
    def images(indices: Sequence[int]) -> Tensor:
        return models.vqgan.decode(models.sample(request, indices)).clamp(0, 1)

    if request.options.init == "sample" and size == (models.image_size, models.image_size):
        return models.sample(request, pictures)  # as they are: to decode and encode them again would blur
    return start_latent(request.options, models.vqgan, pictures, size, request.seed, images)


def _judges(request: Request, models: Models) -> list[Judge]:
    o = request.options
    found = [(models.clip, models.tokenizer, o.judge_weight)] if o.judge_weight else []
    for name, weight in _weighted("judge", o.judge):
        if weight:
            clip, tokenizer = open_clip(name)
            found.append((clip.to(models.device).requires_grad_(False), tokenizer, weight))
    if not found:
        raise UsageError("no CLIP is left to guide: give judge_weight or a judge a weight above 0")
    return [Judge(clip, weight, _chapters(request, clip, tokenizer)) for clip, tokenizer, weight in found]


def _weighted(option: str, texts: Sequence[str]) -> list[tuple[str, float]]:
    """Names with their weights, of an option that knows no stops. Raises UsageError where one is given."""
    found = [split_weights(text) for text in texts]
    for name, weight, stop in found:
        if stop is not None:
            raise UsageError(f"{option} takes no stop: write {name}:{weight:g}, not {name}:{weight:g}:{stop:g}")
    return [(name, weight) for name, weight, _ in found]


def _chapters(request: Request, clip: CLIP, tokenizer: Tokenizer) -> tuple[Targets, ...]:
    """The targets of each prompt of the story in one CLIP's space; picture and noise prompts are in all of them."""
    o, device = request.options, clip.log_scale.device

    def embed(texts: Sequence[str]) -> Tensor:
        return clip.encode_text(tokenizer(list(texts)).to(device))

    always = [noise_targets(o.noise_prompt, clip.embed_dim).to(device)] if o.noise_prompt else []
    if o.image_prompt:
        files, weights, stops = zip(*map(split_weights, o.image_prompt), strict=True)
        seen = clip.encode_image(pixels_for(clip, files).to(device))
        limits = [NONE if stop is None else stop for stop in stops]
        always.append(Targets(seen, torch.tensor(weights, device=device), torch.tensor(limits, device=device)))
    prompts = [parse_prompt(text).parts for text in (request.prompt, *o.story)]
    return tuple(join_targets([text_targets(parts, o, embed).to(device), *always]) for parts in prompts)


def _picture(file: str, size: tuple[int, int], models: Models) -> Tensor:
    return cover(decode_image(file), size)[None].to(models.device)  # (1, 3, H, W)


def _mask(file: str, side: str, size: tuple[int, int], models: Models) -> Tensor:
    image = decode_image(file).convert("L").resize((size[1], size[0]))
    white = (to_tensor(image)[:1] >= 0.5).float()[None].to(models.device)  # (1, 1, H, W)
    mask = white if side == "inside" else 1 - white
    if not mask.any():
        colour = "white" if side == "inside" else "black"
        raise CodebrushError(f"the mask {file} leaves nothing to guide: make the part that is to change {colour}")
    return mask
