"""Draws the frames between prompts, pictures or latents.

Through latents, each cell turns from one picture's vector to the next one's, and VQGAN decodes every step. Through
embeddings, CLIP's embedding turns, and the painter draws every step with the same random numbers: frames jump more, but
each is a picture. Through noise, the noise turns that a flow leads to the one picture until it is the other's, and the
prompts change places as it goes.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from codebrush.data.decoding.images import Picture, to_pil
from codebrush.data.decoding.picture_formats import EXTENSIONS
from codebrush.errors import ImageError, UsageError
from codebrush.generation.editing.canvas import whole_canvas
from codebrush.generation.latent_files import LATENTS, file_latents
from codebrush.generation.latent_interpolation import interpolate_latents
from codebrush.generation.manifest import drawn_index
from codebrush.generation.options import DrawOptions, FlowSettings
from codebrush.generation.sampling.drawing import Drawing
from codebrush.generation.sampling.flow import noise_of, picture_noise
from codebrush.generation.sampling.painters import FlowPainter
from codebrush.generation.sampling.sampler import Sampler
from codebrush.generation.transparent_ground import with_transparent_ground
from codebrush.models.condition import Condition
from codebrush.progress import Progress

THROUGH = ("latents", "embeddings", "noise")
MOST_FRAMES = 10_000
FILES = (*EXTENSIONS, LATENTS)
Keyframe = Picture | Tensor  # a prompt, a picture or its file, or a latent (d, h, w)
Frames = Iterator[Image.Image]


def frames_between(
    sampler: Sampler,
    keys: Sequence[Keyframe],
    options: DrawOptions,
    frames: int = 24,
    through: str = "latents",
    progress: Progress | None = None,
) -> Frames:
    """`frames` pictures from the first of `keys` through each to the last; the keys themselves are among them.

    A text that names no file is a prompt, drawn as `options` say; the best candidate is taken. If all keys are pictures
    with a transparent ground, the frames have one too (see `with_transparent_ground`). `progress` counts frames.

    Raises:
        UsageError: if there are fewer than two keys or fewer frames than keys, or `through` is not one of THROUGH.
            or it is "noise" and no flow draws.
        PackError: if the pack cannot go `through` embeddings.
        ImageError: if a file is missing or cannot be read.
    """
    if len(keys) < 2:
        raise UsageError("give at least two prompts, pictures or latents to go between")
    if not len(keys) <= frames <= MOST_FRAMES:
        raise UsageError(f"frames must be from {len(keys)}, one for each given picture, to {MOST_FRAMES}, not {frames}")
    if through not in THROUGH:
        raise UsageError(f"through must be one of {', '.join(THROUGH)}, not {through}")
    grounds = [None if is_prompt(key) else _ground(key, sampler.pack.image_size) for key in keys]
    if through == "latents":
        made = _through_latents(sampler, keys, options, frames, progress)
    elif through == "noise":
        if not isinstance(sampler.painter, FlowPainter):
            raise UsageError("only a flow goes through noise: leave out the method, or go through latents")
        made = _through_noise(sampler, sampler.painter, keys, options, frames, progress)
    else:
        sampler.require_image_embedding("go through latents")
        made = _through_embeddings(sampler, keys, options, frames, progress)
    known = [ground for ground in grounds if ground is not None]
    if len(known) < len(keys):
        return made
    # Through embeddings things are drawn in other places than in the pictures.
    return map(with_transparent_ground, made) if through == "embeddings" else with_grounds(made, known, frames)


def _ground(key: Keyframe, size: int) -> Image.Image | None:
    """What `with_transparent_ground` reads of a keyframe; None unless it is a picture with transparency."""
    if isinstance(key, Tensor) or str(key).lower().endswith(LATENTS):
        return None
    return whole_canvas(key).before(size)


def with_grounds(made: Frames, grounds: Sequence[Image.Image], frames: int) -> Frames:
    """The frames with a transparent ground, which in between is what joins all that is transparent in both keys."""
    places = _places(len(grounds), frames).tolist()
    for number, frame in enumerate(made):
        place = min(sum(each <= number for each in places), len(places) - 1) - 1
        share = (number - places[place]) / (places[place + 1] - places[place])
        yield with_transparent_ground(frame, Image.blend(grounds[place], grounds[place + 1], share))


def is_prompt(key: Keyframe) -> bool:
    """Whether a key is a prompt, a text that names no file. Raises ImageError if it looks like a missing file."""
    if isinstance(key, Image.Image | Tensor):
        return False
    try:
        there = Path(key).is_file()
    except (OSError, ValueError):  # a long prompt is not a valid file name
        return True
    if not there and (isinstance(key, Path) or Path(key).suffix.lower() in FILES):
        raise ImageError(f"{key}: no such file")
    return not there


@torch.no_grad()
def _through_latents(
    sampler: Sampler, keys: Sequence[Keyframe], options: DrawOptions, frames: int, progress: Progress | None
) -> Frames:
    latents = torch.stack([_latent(sampler, key, options) for key in keys])  # (F, d, h, w)
    for number, latent in enumerate(spread(latents, frames)):
        yield to_pil(sampler.vqgan.decode(latent[None])[0])
        if progress is not None:
            progress(number + 1, frames)


def spread(keys: Tensor, frames: int) -> Tensor:
    """Latents (F, d, h, w) -> (frames, d, h, w): all of them, and about as many steps between any two neighbours."""
    steps = _places(len(keys), frames).diff().tolist()
    parts = [interpolate_latents(keys[place : place + 2], step - 1)[:-1] for place, step in enumerate(steps)]
    return torch.cat([*parts, keys[-1:]])


def _places(keys: int, frames: int) -> Tensor:
    """Which of the frames each key is, (keys,) int64."""
    return torch.linspace(0, frames - 1, keys).round().long()


@torch.no_grad()
def _through_embeddings(
    sampler: Sampler, keys: Sequence[Keyframe], options: DrawOptions, frames: int, progress: Progress | None
) -> Frames:
    pictures = [_picture(sampler, key, options) for key in keys]
    embeddings = sampler.embed(pictures)  # (F, E)
    path = spread(embeddings[:, :, None, None], frames)[:, :, 0, 0]
    one = replace(options, n=1, rerank=1)
    for number, embedding in enumerate(path):
        drawing = Drawing("", one, [(Condition(image_embedding=embedding[None]), 1.0)], embedding[None], [1.0])
        yield sampler.draw(drawing, range(1), None)[0].image
        if progress is not None:
            progress(number + 1, frames)


@dataclass(frozen=True)
class _End:
    """A keyframe of a flow: its noise (d, h, w) and conditions, and its quantised latent (d, h, w)."""

    noise: Tensor
    drawing: Drawing
    latent: Tensor


@torch.no_grad()
def _through_noise(
    sampler: Sampler,
    painter: FlowPainter,
    keys: Sequence[Keyframe],
    options: DrawOptions,
    frames: int,
    progress: Progress | None,
) -> Frames:
    ends = [_end(sampler, painter, key, options) for key in keys]
    noises = torch.stack([end.noise for end in ends])  # (F, d, h, w)
    path = spread(noises.flatten(1)[:, :, None, None], frames).view(frames, *noises.shape[1:])
    places = _places(len(keys), frames)
    for number, noise in enumerate(path):
        place = int((places <= number).sum()) - 1
        first = ends[place]
        if number == places[place]:
            yield to_pil(sampler.vqgan.decode(first.latent[None])[0])
        else:
            share = float(number - places[place]) / float(places[place + 1] - places[place])
            drawing = _between(first.drawing, ends[place + 1].drawing, share)
            yield sampler.draw(replace(drawing, noise=noise[None]), range(1), None)[0].image
        if progress is not None:
            progress(number + 1, frames)


def _end(sampler: Sampler, painter: FlowPainter, key: Keyframe, options: DrawOptions) -> _End:
    """A prompt has the noise of its best candidate; a picture the noise that the flow leads to it."""
    one = replace(options, n=1, rerank=1)
    if is_prompt(key):
        best = sampler.sample(str(key), replace(options, n=1))[0]
        shape = (painter.flow.config.latent_channels, *sampler.grid(options))
        noise = picture_noise(options.seed, [drawn_index(best.manifest)], shape)[0]
        return _End(noise.to(sampler.device), sampler.prepare(str(key), one), best.latent)
    latent, settings = _latent(sampler, key, options), options.flow or FlowSettings()
    noise = noise_of(painter.flow, latent[None], settings.steps)[0]
    embedding = sampler.embed([to_pil(sampler.vqgan.decode(latent[None])[0])])
    return _End(noise, Drawing("", one, [], embedding, [1.0]), latent)


def _between(one: Drawing, other: Drawing, share: float) -> Drawing:
    """A drawing of both, whose conditions and texts have (1 - share) and `share` of their weights."""
    parts = ((one, 1 - share), (other, share))
    conditions = [(condition, weight * part) for drawing, part in parts for condition, weight in drawing.conditions]
    weights = [weight * part for drawing, part in parts for weight in drawing.weights]
    texts = torch.cat([one.texts, other.texts])
    return replace(one, conditions=conditions, texts=texts, weights=weights, judged_by=None)


def _latent(sampler: Sampler, key: Keyframe, options: DrawOptions) -> Tensor:
    """The quantised latent (d, h, w) of a keyframe."""
    grid = sampler.vqgan.code_grid(sampler.pack.image_size)
    if isinstance(key, Tensor):
        if key.shape[1:] != grid or key.ndim != 3:
            raise UsageError(f"a latent of shape {tuple(key.shape)} does not fit this pack, whose grid is {grid}")
        return key.to(sampler.device)
    if is_prompt(key):
        return sampler.sample(str(key), replace(options, n=1))[0].latent
    size = sampler.pack.image_size
    if not isinstance(key, Image.Image) and Path(key).suffix.lower() == LATENTS:
        return file_latents(str(key), sampler.vqgan, (size, size))[0]
    return sampler.encode(whole_canvas(key).view(size)[0])[0][0]


def _picture(sampler: Sampler, key: Keyframe, options: DrawOptions) -> Image.Image:
    if isinstance(key, Tensor) or str(key).lower().endswith(LATENTS):
        return to_pil(sampler.vqgan.decode(_latent(sampler, key, options)[None])[0])
    if is_prompt(key):
        return sampler.sample(str(key), replace(options, n=1))[0].image
    return whole_canvas(key).image
