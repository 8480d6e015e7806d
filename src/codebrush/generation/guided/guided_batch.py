"""A batch of pictures to guide: the models, the embedded prompts and the initial latents, made from a request."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from codebrush.data.decoding.images import decode_image, to_tensor
from codebrush.data.masks import LEAST_WHITE, mask_layer
from codebrush.data.preprocess import pixels_for
from codebrush.errors import CodebrushError, UsageError
from codebrush.generation.guided.guide_options import GuideOptions
from codebrush.generation.guided.guided_request import GuidedRequest
from codebrush.generation.guided.initial_latents import initial_latents
from codebrush.generation.guided.losses.prompt_loss import (
    NO_STOP,
    PromptEmbeddings,
    embed_prompt,
    join_prompts,
    noise_prompts,
)
from codebrush.generation.guided.option_values import split_weights
from codebrush.generation.latent_files import cover
from codebrush.generation.options import parse_size
from codebrush.generation.scoring import Scorer
from codebrush.models.clip import CLIP
from codebrush.models.vqgan import VQGAN
from codebrush.pack.pack import open_clip
from codebrush.text.prompts import WeightedText, parse_prompt
from codebrush.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class GuidanceModels:
    """What guidance uses of a pack. `sample` draws latents (B, d, h, w) of a request's pictures at the pack's size;
    `scorer` scores what is finished."""

    vqgan: VQGAN
    clip: CLIP
    tokenizer: Tokenizer
    image_size: int
    sample: Callable[[GuidedRequest, Sequence[int]], Tensor]
    scorer: Scorer | None = None
    about: dict[str, Any] = field(default_factory=dict)  # the pack, versions, device and threads, for manifests

    @property
    def device(self) -> torch.device:
        """The device of the models."""
        return self.vqgan.last_layer.device


@dataclass(frozen=True)
class GuidingCLIP:
    """A CLIP that guides, its weight in the loss, and the embedded prompts of each chapter of the story."""

    clip: CLIP
    weight: float
    chapters: tuple[PromptEmbeddings, ...]


@dataclass(frozen=True)
class GuidedBatch:
    """Pictures that are guided together. `initial` (B, d, h, w) are the latents of the first stage of growth."""

    vqgan: VQGAN
    clips: Sequence[GuidingCLIP]
    options: GuideOptions
    seed: int
    pictures: range  # their numbers in the run, which choose their random streams
    size: tuple[int, int]  # height and width at the end
    initial: Tensor
    targets: Sequence[tuple[Tensor, float]] = ()  # pictures (1, 3, H, W) in [0, 1] to approach, with their weights
    mask: Tensor | None = None  # (1, 1, H, W): 1 where guidance may change the picture

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """Heights and widths of the stages of growth."""
        return stage_sizes(self.size, self.options.grow, self.vqgan.factor)

    @property
    def chapters(self) -> int:
        """Number of prompts that follow one another in the story."""
        return max(len(guide.chapters) for guide in self.clips)

    def chapter(self, step: int) -> int:
        """Number of the story's prompt that guides `step`, of which 0 is the first."""
        each = self.options.story_every or -(-self.options.steps // self.chapters)
        return min(step // max(each, 1), self.chapters - 1)


def stage_sizes(size: tuple[int, int], stages: int, factor: int) -> list[tuple[int, int]]:
    """Heights and widths of the stages of growth up to `size`, each about half the next, in multiples of `factor`."""
    halvings = reversed(range(stages))
    height, width = size
    return [(_multiple(height / 2**half, factor), _multiple(width / 2**half, factor)) for half in halvings]


def _multiple(side: float, factor: int) -> int:
    return max(1, round(side / factor)) * factor


def picture_size(request: GuidedRequest, models: GuidanceModels) -> tuple[int, int]:
    """Height and width of the request's pictures. Raises UsageError if they are not multiples of the VQGAN's factor."""
    asked = request.options.size
    width, height = (models.image_size, models.image_size) if asked is None else parse_size(asked)
    models.vqgan.code_grid((height, width))
    return height, width


def prompt_parts(request: GuidedRequest) -> Sequence[WeightedText]:
    """The parts of the prompt that the finished picture is scored by: those of the story's last prompt."""
    return parse_prompt((request.prompt, *request.options.story)[-1]).parts


@torch.no_grad()
def make_batch(request: GuidedRequest, models: GuidanceModels, pictures: range) -> GuidedBatch:
    """The batch of `pictures` of the request, with every text and picture prompt embedded once.

    Raises:
        UsageError: if an option does not fit the models or the other options.
        PackError: if another CLIP cannot be opened.
        ImageError: if a picture cannot be read.
        CodebrushError: if the mask leaves nothing to guide.
    """
    o, size = request.options, picture_size(request, models)
    first = stage_sizes(size, o.grow, models.vqgan.factor)[0]
    return GuidedBatch(
        models.vqgan,
        _guiding_clips(request, models),
        o,
        request.seed,
        pictures,
        size,
        _initial(request, models, pictures, first),
        [(_picture(name, size, models), weight) for name, weight in _weighted("target", o.target)],
        None if o.mask is None else _mask(request, size).to(models.device),
    )


def _initial(request: GuidedRequest, models: GuidanceModels, pictures: range, size: tuple[int, int]) -> Tensor:
    def images(indices: Sequence[int]) -> Tensor:
        return models.vqgan.decode(models.sample(request, indices)).clamp(0, 1)

    if request.options.init == "sample" and size == (models.image_size, models.image_size):
        return models.sample(request, pictures)  # as they are: decoding and encoding them again would blur
    return initial_latents(request.options, models.vqgan, pictures, size, request.seed, images)


def _guiding_clips(request: GuidedRequest, models: GuidanceModels) -> list[GuidingCLIP]:
    o = request.options
    found = [(models.clip, models.tokenizer, o.own_clip_weight)] if o.own_clip_weight else []
    for name, weight in _weighted("other_clip", o.other_clip):
        if weight:
            clip, tokenizer = open_clip(name)
            found.append((clip.to(models.device).requires_grad_(False), tokenizer, weight))
    if not found:
        raise UsageError("no CLIP is left to guide: give own_clip_weight or an other_clip a weight above 0")
    return [GuidingCLIP(clip, weight, _chapters(request, clip, tokenizer)) for clip, tokenizer, weight in found]


def _weighted(option: str, texts: Sequence[str]) -> list[tuple[str, float]]:
    """Names with their weights, for an option without stops. Raises UsageError if a stop is given."""
    found = [split_weights(text) for text in texts]
    for name, weight, stop in found:
        if stop is not None:
            raise UsageError(f"{option} takes no stop: write {name}:{weight:g}, not {name}:{weight:g}:{stop:g}")
    return [(name, weight) for name, weight, _ in found]


def _chapters(request: GuidedRequest, clip: CLIP, tokenizer: Tokenizer) -> tuple[PromptEmbeddings, ...]:
    """Each prompt of the story, embedded by one CLIP; picture and noise prompts belong to all of them."""
    o, device = request.options, clip.log_scale.device

    def embed(texts: Sequence[str]) -> Tensor:
        return clip.encode_text(tokenizer(list(texts)).to(device))

    always = [noise_prompts(o.noise_prompt, clip.embed_dim).to(device)] if o.noise_prompt else []
    if o.image_prompt:
        files, weights, stops = zip(*map(split_weights, o.image_prompt), strict=True)
        embeddings = clip.encode_image(pixels_for(clip, files).to(device))
        limits = [NO_STOP if stop is None else stop for stop in stops]
        always.append(
            PromptEmbeddings(embeddings, torch.tensor(weights, device=device), torch.tensor(limits, device=device))
        )
    prompts = [parse_prompt(text).parts for text in (request.prompt, *o.story)]
    return tuple(join_prompts([embed_prompt(parts, o, embed).to(device), *always]) for parts in prompts)


def _picture(file: str, size: tuple[int, int], models: GuidanceModels) -> Tensor:
    return cover(decode_image(file), size)[None].to(models.device)  # (1, 3, H, W)


def _mask(request: GuidedRequest, size: tuple[int, int]) -> Tensor:
    """1 where guidance may change the picture, (1, 1, H, W)."""
    file, side = str(request.options.mask), request.options.mask_side
    if request.mask_fit == "squeeze":
        grey = to_tensor(decode_image(file).convert("L").resize((size[1], size[0])))
    else:
        grey = cover(mask_layer(file), size)
    white = (grey[:1] >= LEAST_WHITE / 255).float()[None]  # (1, 1, H, W)
    mask = white if side == "inside" else 1 - white
    if not mask.any():
        colour = "white" if side == "inside" else "black"
        raise CodebrushError(f"the mask {file} leaves nothing to guide: make the part that is to change {colour}")
    return mask
