"""Guidance as plainly as it can be written: one picture, one graph a step, no micro-batches, nothing stored.

Random choices are those of the package, whose views, initial latents and learning rates have exact tests of their own.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from codebrush import Codebrush
from codebrush.data.decoding.images import decode_image, to_tensor
from codebrush.data.preprocess import pixels_for
from codebrush.generation.guided.camera import move_camera
from codebrush.generation.guided.guide_options import INITS, GuideOptions
from codebrush.generation.guided.guided_batch import stage_sizes
from codebrush.generation.guided.initial_latents import initial_latents
from codebrush.generation.guided.learning_rate import learning_rate
from codebrush.generation.guided.losses.cutouts import cut_out, draw_views
from codebrush.generation.guided.memory.decoder_tiling import DecodePlan, decode
from codebrush.generation.seeding import Purpose, stream
from codebrush.models.clip import CLIP
from codebrush.pack.pack import open_clip
from codebrush.text.tokenizer import Tokenizer


def plain_guidance(brush: Codebrush, prompt: str, o: GuideOptions) -> tuple[Tensor, list[dict[str, float]]]:
    """The picture (3, H, W), not clamped, that guidance with seed 0 ends at, and the losses of each step."""
    width, height = map(int, (o.size or "32x32").split("x"))
    sizes = stage_sizes((height, width), o.grow, 4)
    clips = [(brush.clip, brush.tokenizer, o.own_clip_weight)]
    clips += [(*open_clip(text.partition(":")[0]), float(text.partition(":")[2] or 1)) for text in o.other_clip]
    chapters = [prompt, *o.story]
    value = initial_value(brush, initial(brush, prompt, o, sizes[0]), o)
    anchor, mean, means = value.detach().clone(), torch.zeros_like(value), 0
    optimizer = new_optimizer(value, o)
    losses: list[dict[str, float]] = []
    for step in range(o.steps):
        size = sizes[step * len(sizes) // o.steps]
        if value.shape[-1] != size[1] // 4:
            value, anchor = (F.interpolate(each.detach(), scale_factor=2, mode="bilinear") for each in (value, anchor))
            optimizer, mean, means = new_optimizer(value, o), torch.zeros_like(value), 0
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, o)
        chapter = chapters[min(step // (o.story_every or o.steps), len(chapters) - 1)]
        raw = decode(brush.vqgan, quantised(brush, value, o), DecodePlan(tile=o.tile // 4, seamless=o.seamless))
        if o.mask:
            raw.register_hook(lambda gradient, size=size: gradient * mask_of(o, size))
        images = clamped(raw)
        terms = {"guidance": clip_loss(images, clips, chapter, o, step), **pixel_terms(images, raw, o)}
        if o.init_weight:
            terms["init"] = o.init_weight * (value - anchor).square().mean()
        optimizer.zero_grad()
        torch.stack(list(terms.values())).sum().backward()
        optimizer.step()
        losses.append({name: float(term.detach()) for name, term in terms.items()})
        with torch.no_grad():
            if o.clamp and o.latent == "continuous":
                low, high = (bound.view(1, -1, 1, 1) for bound in torch.aminmax(codebook(brush), dim=0))
                value.copy_(value.clamp(low, high))
            if o.mask:
                free = F.max_pool2d(mask_of(o, size)[None, None], 4) > 0
                value.copy_(torch.where(free, value, anchor))
            mean, means = o.ema * mean + (1 - o.ema) * value, means + 1
            if o.move_every and (step + 1) % o.move_every == 0 and step + 1 < o.steps:
                pan = tuple(map(float, o.pan.split(",")))
                images = brush.vqgan.decode(quantised(brush, value, o)).clamp(0, 1)
                moved = brush.vqgan.encode(move_camera(images, o.zoom, (pan[0], pan[1]), o.roll))
                value = initial_value(brush, moved, o)
                anchor, optimizer, mean, means = (
                    value.detach().clone(),
                    new_optimizer(value, o),
                    torch.zeros_like(value),
                    0,
                )
    with torch.no_grad():
        shown = mean / (1 - o.ema**means) if o.ema and means else value
        return decode(brush.vqgan, quantised(brush, shown, o), DecodePlan(seamless=o.seamless))[0], losses


def codebook(brush: Codebrush) -> Tensor:
    return brush.vqgan.quantizer.vectors.detach()  # (K, d), unit vectors


def initial(brush: Codebrush, prompt: str, o: GuideOptions, size: tuple[int, int]) -> Tensor:
    if o.init == "sample":
        return brush.generate(prompt, n=1, seed=0)[0].latent[None]
    if o.init not in INITS:
        return brush.vqgan.encode(to_tensor(decode_image(o.init))[None])
    return initial_latents(o, brush.vqgan, (0,), size, 0)


def initial_value(brush: Codebrush, latent: Tensor, o: GuideOptions) -> Tensor:
    """What is optimised, for a latent: unit vectors, or logits that fall with the squared distance to each code."""
    unit = F.normalize(latent.detach(), dim=1)
    if o.latent == "categorical":
        squares = torch.cdist(unit.flatten(2).transpose(1, 2), codebook(brush)).square()  # (1, h w, K)
        scale = 2 * codebook(brush).var(0).sum()
        unit = (-4 * squares / scale).transpose(1, 2).unflatten(2, unit.shape[2:])
    return unit.clone().requires_grad_()


def quantised(brush: Codebrush, value: Tensor, o: GuideOptions) -> Tensor:
    """What is decoded, with its straight-through gradient."""
    if o.latent == "categorical":
        shares = (value / o.code_temperature).softmax(1)
        soft, codes = torch.einsum("bkhw,kd->bdhw", shares, codebook(brush)), value.argmax(1)
    elif o.quantise:
        soft = value
        codes = torch.cdist(F.normalize(value, dim=1).movedim(1, -1), codebook(brush)).argmin(-1)
    else:
        return value
    return soft + (codebook(brush)[codes].movedim(-1, 1) - soft).detach()


def new_optimizer(value: Tensor, o: GuideOptions) -> torch.optim.Optimizer:
    value.requires_grad_()
    return getattr(torch.optim, o.optimizer)([value], lr=o.learning_rate, weight_decay=o.wd)


def clamped(raw: Tensor) -> Tensor:
    """Clamped to [0, 1], with a gradient wherever it does not lead further out."""
    out = (raw - raw.clamp(0, 1)).detach()
    images = raw - out
    images.register_hook(lambda gradient: torch.where(gradient * out >= 0, gradient, 0))
    return images


def clip_loss(
    images: Tensor, clips: list[tuple[CLIP, Tokenizer, float]], chapter: str, o: GuideOptions, step: int
) -> Tensor:
    views = draw_views(o, (images.shape[2], images.shape[3]), stream(0, 0, Purpose.VIEWS, step))
    total = images.new_zeros(())
    for clip, tokenizer, weight in clips:
        if not weight:
            continue
        cutouts = cut_out(images, views, clip.image_size, o)
        seen = F.normalize(clip.image_encoder(clip.normalise(cutouts)), dim=1)  # (V, E)
        for embedding, share in prompts(clip, tokenizer, chapter, o):
            cosine = seen @ embedding
            angle = 2 * ((2 - 2 * cosine).sqrt() / 2).arcsin()
            distance = 1 - cosine if o.distance == "cosine" else angle.square() / 2
            total = total + weight * share * distance.mean()
    return total


@torch.no_grad()
def prompts(clip: CLIP, tokenizer: Tokenizer, prompt: str, o: GuideOptions) -> list[tuple[Tensor, float]]:
    """Unit vectors (E,) to approach, or to leave where their weight is negative, with their weights."""

    def text(words: str) -> Tensor:
        return clip.encode_text(tokenizer([words]))[0]

    found = []
    for words in (prompt, *o.include):
        embedding = text(words)
        if o.extra:
            mixture = torch.stack([text(extra) for extra in o.extra]).mean(0)
            embedding = F.normalize(o.w1 * embedding + o.w2 * mixture, dim=0)
        found.append((embedding, o.alpha))
    found += [(text(words), -o.beta / len(o.exclude)) for words in o.exclude]
    for seed, weight in (each.split(":") for each in o.noise_prompt):
        normal = np.random.default_rng(int(seed)).standard_normal(clip.embed_dim)
        found.append((F.normalize(torch.from_numpy(normal).float(), dim=0), float(weight)))
    for file, weight in (each.rsplit(":", 1) for each in o.image_prompt):
        found.append((clip.encode_image(pixels_for(clip, [file]))[0], float(weight)))
    return found


def pixel_terms(images: Tensor, raw: Tensor, o: GuideOptions) -> dict[str, Tensor]:
    """The penalties that are switched on, by name, weighted."""
    terms = {}
    if o.tv:
        terms["tv"] = o.tv * (images.diff(dim=2).square().mean() + images.diff(dim=3).square().mean())
    if o.saturation:
        terms["saturation"] = o.saturation * (images.amax(1) - images.amin(1)).mean()
    if o.overflow:
        terms["overflow"] = o.overflow * (F.relu(raw - 1) + F.relu(-raw)).mean()
    if o.palette:
        colours = [torch.tensor([*bytes.fromhex(text[1:])]).view(3, 1, 1) / 255 for text in o.palette.split(",")]
        squares = torch.stack([(images - colour).square().sum(1) for colour in colours])
        terms["palette"] = o.palette_weight * squares.min(0).values.mean()
    if o.symmetry:
        assert o.symmetry == "horizontal"
        terms["symmetry"] = o.symmetry_weight * (images - images.flip(3)).square().mean()
    for file, weight in (text.rsplit(":", 1) for text in o.target):
        terms["target"] = float(weight) * (images - to_tensor(decode_image(file))).square().mean()
    return terms


def mask_of(o: GuideOptions, size: tuple[int, int]) -> Tensor:
    """(H, W): 1 where guidance may change the picture."""
    white = (to_tensor(decode_image(o.mask or ""))[0] >= 0.5).float()
    assert white.shape == size
    return white if o.mask_side == "inside" else 1 - white
