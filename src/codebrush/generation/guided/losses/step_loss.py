"""The loss of one step and its gradient: CLIP's distances to the prompts, and the penalties on the pixels."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from codebrush.generation.guided.guidance_state import State
from codebrush.generation.guided.guided_batch import GuidedBatch
from codebrush.generation.guided.latents import CategoricalLatent, ContinuousLatent
from codebrush.generation.guided.losses.cutouts import Views, cut_out, draw_views, join_views
from codebrush.generation.guided.losses.penalties import Penalties, target_distance
from codebrush.generation.guided.losses.prompt_loss import prompt_loss, similarity
from codebrush.generation.guided.memory.decoder_tiling import decode
from codebrush.generation.guided.memory.plan import MemoryPlan
from codebrush.generation.seeding import Purpose, stream
from codebrush.models.precision import autocast


class _ClampInward(torch.autograd.Function):
    """Clamps to [0, 1]; a gradient that would lead further out is dropped, one that leads back passes."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.clamp(0, 1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        inward = gradients[0] * (x - x.clamp(0, 1)) >= 0
        return gradients[0] * inward


class StepLoss:
    """The loss of a batch at a step, which depends on its latent and on random views of its pictures."""

    def __init__(self, batch: GuidedBatch, latent: ContinuousLatent | CategoricalLatent):
        self.batch, self.latent, self.options = batch, latent, batch.options
        self.penalties = Penalties(batch.options)
        self.device = batch.initial.device

    def backward(self, state: State, plan: MemoryPlan) -> dict[str, float]:
        """Leave the gradient of the loss in `state.value.grad`; return the loss and its terms by name.

        The pictures are decoded once. CLIP's views of them are taken in micro-batches, whose gradients add up at the
        pictures; then the decoder is differentiated once. Each picture's loss is its own, so none depends on the batch.
        """
        o, value, size = self.options, state.value, self.batch.sizes[state.stage]
        value.grad = None
        decoded, _ = self.latent.decoder_input(value)
        with autocast(o.precision, self.device):
            raw = decode(self.batch.vqgan, decoded, plan.decode)
        pixels = raw.detach().to(value.dtype).requires_grad_()  # (B, 3, H, W), not clamped
        images = _ClampInward.apply(pixels)
        assert isinstance(images, Tensor)
        leaf = images.detach().requires_grad_()
        losses = self._clip_backward(leaf, state.step, size, plan.micro_batch)
        terms = self.penalties(images, pixels)
        if self.batch.targets:
            targets = [(F.interpolate(image, size, mode="area"), weight) for image, weight in self.batch.targets]
            terms["target"] = target_distance(images, targets)
        from_clip = torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
        each = float(len(images))  # the terms are means over the batch, and the gradient is each picture's own
        torch.autograd.backward(
            [images, *terms.values()], [from_clip, *(torch.full_like(term, each) for term in terms.values())]
        )
        assert pixels.grad is not None
        raw.backward(self._masked(pixels.grad, size).to(raw.dtype))
        if o.init_weight:
            away = self.latent.vectors(value) - self.latent.vectors(state.anchor).detach()
            terms["init"] = o.init_weight * away.square().mean()
            (terms["init"] * each).backward()
        losses |= {name: float(term.detach()) for name, term in terms.items()}
        total = losses["guidance"] + sum(float(term.detach()) for term in terms.values())
        return {"loss": total, **losses}

    def _clip_backward(self, images: Tensor, step: int, size: tuple[int, int], micro_batch: int) -> dict[str, float]:
        """Add the gradient of every CLIP's loss to `images.grad`; return their sum and the first CLIP's similarity."""
        chapter, pictures = self.batch.chapter(step), len(images)
        views = self._views(step, size)
        per_picture = len(views) // pictures
        loss = close = 0.0
        for number, guide in enumerate(self.batch.clips):
            prompts = guide.chapters[min(chapter, len(guide.chapters) - 1)]
            for first in range(0, len(views), micro_batch):
                part = views.rows(slice(first, first + micro_batch))
                cutouts = cut_out(images, part, guide.clip.image_size, self.options)  # (V, 3, S, S)
                with autocast(self.options.precision, self.device):
                    embeddings = guide.clip.image_encoder(guide.clip.normalise(cutouts))
                embeddings = F.normalize(embeddings.to(images.dtype), dim=-1)  # (V, E)
                share = guide.weight * prompt_loss(embeddings, prompts, self.options.distance).sum() / per_picture
                share.backward()
                loss += float(share.detach()) / pictures
                if not number:
                    close += float(similarity(embeddings, prompts)) * len(part) / len(views)
        return {"guidance": loss, "similarity": close}

    def _views(self, step: int, size: tuple[int, int]) -> Views:
        drawn = [
            draw_views(self.options, size, stream(self.batch.seed, picture, Purpose.VIEWS, step), row)
            for row, picture in enumerate(self.batch.pictures)
        ]
        return join_views(drawn)

    def _masked(self, gradient: Tensor, size: tuple[int, int]) -> Tensor:
        if self.batch.mask is None:
            return gradient
        return gradient * F.interpolate(self.batch.mask, size, mode="area").to(gradient.dtype)
