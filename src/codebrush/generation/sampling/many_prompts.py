"""Draws the pictures of many prompts, as many at once as fit into a batch; each as if it were drawn alone."""

from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor

from codebrush.data.decoding.images import to_pil
from codebrush.generation.options import DrawOptions
from codebrush.generation.result import Result
from codebrush.generation.sampling.decoding import MAX_ROWS, picture_uniforms
from codebrush.generation.sampling.drawing import Drawing
from codebrush.generation.sampling.painters import CodePainter
from codebrush.generation.sampling.sampler import BATCH, Sampler
from codebrush.generation.sampling.together import UNDRAWN, Asked, Look, draw_together, in_batches, rows_of
from codebrush.models.vqgan import VQGAN
from codebrush.progress import Preview, Progress, shares
from codebrush.warned import numbered


def sample_many(
    sampler: Sampler,
    painter: CodePainter,
    prompts: Sequence[str],
    options: Sequence[DrawOptions],
    progress: Progress | None = None,
    preview: Preview | None = None,
) -> list[list[Result]]:
    """For each prompt what `Sampler.sample` gives with its options, bit for bit.

    A prompt of another size than the pack's, of more candidates than one batch holds, or whose codes are not drawn once
    and one after the other, is drawn alone, without `preview`.
    """
    pairs = zip(prompts, options, strict=True)
    drawings = [sampler.prepare(prompt, each) for prompt, each in numbered(pairs)]
    by_turns = {number: each.options for number, each in enumerate(drawings) if not painter.transformer.config.masked}
    asked = {number: _asked(painter, drawings[number]) for number, o in by_turns.items() if not (o.size or o.retouch)}
    rows = {number: rows_of(painter.transformer, each) for number, each in asked.items()}
    small = [number for number, count in rows.items() if count <= MAX_ROWS and drawings[number].options.rerank <= BATCH]
    batches = [[small[place] for place in batch] for batch in in_batches([rows[number] for number in small])]
    batches += [[number] for number in range(len(drawings)) if number not in small]
    found: dict[int, list[Result]] = {}
    for batch, share in zip(batches, shares(progress, len(batches)), strict=True):
        if batch[0] not in small:
            found[batch[0]] = sampler.best(drawings[batch[0]], share)
            continue
        look = None if preview is None else _look(sampler.vqgan, batch, drawings, preview)
        network = painter.network(drawings[batch[0]].options.weights)
        codes = draw_together(network, [asked[number] for number in batch], share, look)
        found |= {number: sampler.finish(drawings[number], own) for number, own in zip(batch, codes, strict=True)}
    return [found[number] for number in range(len(drawings))]


def _asked(painter: CodePainter, drawing: Drawing) -> Asked:
    options = drawing.options
    uniforms = picture_uniforms(options.seed, range(options.rerank), painter.transformer.config.code_count)
    return Asked(drawing.conditions, uniforms, options.filters)


def _look(vqgan: VQGAN, batch: Sequence[int], drawings: Sequence[Drawing], preview: Preview) -> Look:
    def look(done: int, which: int, codes: Tensor) -> None:
        if preview.due(done, codes[0].numel()):
            number = batch[which]
            preview.show(number, half_drawn(vqgan, codes[: drawings[number].options.n]))

    return look


def half_drawn(vqgan: VQGAN, codes: Tensor) -> list[Image.Image]:
    """Pictures of codes (B, h, w) of which some are UNDRAWN: there they have the mean of what is drawn."""
    drawn = (codes != UNDRAWN).unsqueeze(1)  # (B, 1, h, w)
    latent = vqgan.quantizer.look_up(codes.clamp(min=0))  # (B, d, h, w)
    mean = (latent * drawn).sum((2, 3), keepdim=True) / drawn.sum((2, 3), keepdim=True)
    return [to_pil(image) for image in vqgan.decode(torch.where(drawn, latent, mean))]
