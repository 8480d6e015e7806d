"""CLIP guides a diffusion model of somebody else: a `callback_on_step_end` for the pipelines of diffusers.

A callback sees the latents before and after a step but not what the network said. From two points of one straight
step follow the clean latents that it headed for, at which CLIP's gradient is taken, as `Lead` takes it for a flow.
"""

import math
from collections.abc import Callable
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from codebrush.errors import UsageError
from codebrush.generation.guided.guide_options import CUTOUTS, GuideOptions, guide_options
from codebrush.generation.guided.losses.cutouts import cut_out, draw_views, join_views
from codebrush.generation.guided.losses.prompt_loss import embed_prompt, prompt_loss
from codebrush.generation.options import checked_number, did_you_mean
from codebrush.generation.sampling.flow import TINY
from codebrush.generation.seeding import Purpose, stream
from codebrush.models.clip import CLIP
from codebrush.text.prompts import parse_prompt
from codebrush.text.reading import read_prompt
from codebrush.text.tokenizer import Tokenizer

WORDS = ("include", "exclude", "extra", "w1", "w2", "alpha", "beta", "distance")
OPTIONS = {option.name for option in fields(GuideOptions) if option.metadata["topic"] == CUTOUTS} | set(WORDS)
RANDOM = ("Ancestral", "DDPM", "LCM", "SDE", "TCD")  # in the names of schedulers that add noise of their own
MOST = 100.0  # scale

Callback = Callable[[Any, int, Any, dict[str, Any]], dict[str, Any]]
Decode = Callable[[Tensor], Tensor]


@torch.no_grad()
def clip_guidance_callback(
    clip: CLIP,
    tokenizer: Tokenizer,
    prompt: str,
    scale: float = 0.5,
    *,
    seed: int = 0,
    decode: Decode | None = None,
    **options: Any,
) -> Callback:
    """CLIP's guidance as `callback_on_step_end` of a pipeline of diffusers:

        brush = Codebrush.from_pretrained("emoji")
        guide = clip_guidance_callback(brush.clip, brush.tokenizer, "a red apple", 0.5, cutouts=16)
        pipe("a red apple", callback_on_step_end=guide)

    After each step but the first and the last the latents are moved along CLIP's gradient on the clean picture that the
    model headed for. `scale` means what it means as `clip_guidance` of a flow: how many standard deviations the latent
    is pulled in all if the pull never turns. Pipelines with any scheduler that adds no noise of its own and asks the
    model once a step will do: exactly with DDIM and Euler, nearly with those that remember earlier steps.

    Args:
        clip: any CLIP of ours, or those of another pack by `codebrush.pack.pack.open_clip`.
        tokenizer: that of the CLIP.
        prompt: in the syntax of `parse_prompt`, with weights.
        scale: 0 changes nothing.
        seed: of the cutouts.
        decode: latents of the pipeline -> pictures (B, 3, H, W) around [0, 1]; None is the pipeline's VAE.
        options: those of the method guide for cutouts and for the words of the prompt; see OPTIONS.

    Raises:
        PromptError: if the prompt cannot be read.
        UsageError: if a value is out of its range; while drawing, if the pipeline is not one of those.
    """
    if unknown := sorted(set(options) - OPTIONS):
        raise UsageError(f"clip_guidance_callback has no option {unknown[0]}{did_you_mean(unknown[0], OPTIONS)}")
    scale = checked_number("scale", scale, float, 0, MOST, f"a number from 0 to {MOST:g}")
    return _Guide(clip, tokenizer, prompt, scale, seed, decode, guide_options(options))


class _Guide:
    """The callback. It remembers the latents that each step began with."""

    def __init__(
        self,
        clip: CLIP,
        tokenizer: Tokenizer,
        prompt: str,
        scale: float,
        seed: int,
        decode: Decode | None,
        options: GuideOptions,
    ) -> None:
        self.clip, self.scale, self.seed, self.decode, self.options = clip, scale, seed, decode, options
        device, parts = clip.log_scale.device, parse_prompt(read_prompt(prompt, tokenizer)).parts
        self.prompts = embed_prompt(parts, options, lambda texts: clip.encode_text(tokenizer(list(texts)).to(device)))
        self.before: Tensor | None = None

    def __call__(self, pipe: Any, number: int, timestep: Any, given: dict[str, Any]) -> dict[str, Any]:
        latents, scheduler = given["latents"], pipe.scheduler
        _check_scheduler(scheduler)
        before, place = None if number == 0 else self.before, _place(scheduler, timestep)
        if self.scale and before is not None and place + 1 < len(scheduler.timesteps):
            (a, s), (b, r) = levels = [noise_level(scheduler, place + ahead) for ahead in (0, 1)]
            share = s / (a + s) - r / (b + r)  # of the way from noise to the picture
            if share > 0:
                clean = clean_latents(before.float(), latents.float(), levels)
                pull = self.scale * share * (b + r) * self._direction(pipe, clean, number)
                latents = latents - pull.to(latents)
        self.before = latents
        return {"latents": latents}

    def _direction(self, pipe: Any, clean: Tensor, number: int) -> Tensor:
        """CLIP's gradient at clean latents, of the same shape, with a mean square of 1 for each picture."""
        with torch.enable_grad():
            x = clean.detach().requires_grad_()
            images = (self.decode or _decoder(pipe))(x)
            size = (images.shape[-2], images.shape[-1])
            views = join_views(
                [
                    draw_views(self.options, size, stream(self.seed, row, Purpose.VIEWS, number), row)
                    for row in range(len(images))
                ]
            )
            cutouts = cut_out(images.to(self.clip.log_scale.device), views, self.clip.image_size, self.options)
            loss = prompt_loss(self.clip.encode_image(cutouts), self.prompts, self.options.distance).sum()
            (gradient,) = torch.autograd.grad(loss, x)
        size_each = gradient.flatten(1).square().mean(1).sqrt().clamp(min=TINY)
        return gradient / size_each.view(-1, *[1] * (gradient.ndim - 1))


def clean_latents(before: Tensor, after: Tensor, levels: list[tuple[float, float]]) -> Tensor:
    """The clean latents x that a straight step headed for; all have one shape.

    Both its ends are a x + s e, with the same noise e and the (a, s) of `levels`.
    """
    (a, s), (b, r) = levels
    return (after * s - before * r) / (b * s - a * r)


def noise_level(scheduler: Any, place: int) -> tuple[float, float]:
    """How much of the picture and of the noise is in the latents at a timestep of a scheduler of diffusers."""
    sigmas = getattr(scheduler, "sigmas", None)
    if sigmas is None:  # DDIM, PNDM
        share = float(scheduler.alphas_cumprod[int(scheduler.timesteps[place])])
        return math.sqrt(share), math.sqrt(1 - share)
    sigma = float(sigmas[place])
    if hasattr(scheduler, "_sigma_to_alpha_sigma_t"):  # DPM-Solver, UniPC
        share, noise = scheduler._sigma_to_alpha_sigma_t(sigmas[place])
        return float(share), float(noise)
    return (1 - sigma, sigma) if hasattr(scheduler, "scale_noise") else (1.0, sigma)  # flows; Euler


def _check_scheduler(scheduler: Any) -> None:
    name = type(scheduler).__name__
    if getattr(scheduler, "order", 1) > 1 or any(kind in name for kind in RANDOM):
        raise UsageError(
            f"CLIP cannot guide the steps of a {name}, which adds noise or asks the model twice: give the pipeline "
            "a DDIM or Euler scheduler"
        )


def _place(scheduler: Any, timestep: Any) -> int:
    """The number of a timestep among the scheduler's."""
    return int((scheduler.timesteps == timestep).nonzero()[0])


def _decoder(pipe: Any) -> Decode:
    """What makes pictures of a pipeline's latents."""
    vae = getattr(pipe, "vae", None)
    if vae is None:
        raise UsageError(f"a {type(pipe).__name__} has no VAE: give decode, which makes pictures of its latents")
    scale, shift = (getattr(vae.config, name, None) for name in ("scaling_factor", "shift_factor"))

    def decode(latents: Tensor) -> Tensor:
        if latents.ndim != 4:
            raise UsageError(
                f"the latents of a {type(pipe).__name__} are no grid: give decode, which makes pictures of them"
            )
        return (vae.decode((latents / (scale or 1) + (shift or 0)).to(vae.dtype)).sample.float() + 1) / 2

    return decode
