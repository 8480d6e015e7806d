"""Draws the pictures of many prompts in common batches, each picture as if it were drawn alone."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain

import torch
from torch import Tensor

from codebrush.generation.options import DrawOptions
from codebrush.generation.result import Result
from codebrush.generation.sampling.decoding import MAX_ROWS, picture_uniforms
from codebrush.generation.sampling.drawing import Drawing
from codebrush.generation.sampling.half_drawn import HalfDrawn, Look, undrawn
from codebrush.generation.sampling.painters import CodePainter
from codebrush.generation.sampling.sampler import BATCH, Sampler
from codebrush.generation.sampling.side_by_side import (
    draws_side_by_side,
    most_rows,
    parts_of,
    run_side_by_side,
    slices_of,
)
from codebrush.generation.sampling.together import Asked, draw_together, in_batches, rows_of
from codebrush.progress import Preview, Progress, first_of, shares, silent
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
    parts = [part for number, each in enumerate(drawings) for part in _parts(painter, number, each)]
    batches = _batches(painter, parts)
    together = {part.number for part in parts}
    alone = [number for number in range(len(drawings)) if number not in together]
    half = None
    if preview is not None:
        codes_of = [undrawn(each.options.n, painter.config.grid, sampler.device) for each in drawings]
        half = HalfDrawn(sampler.vqgan, codes_of, preview)

    def job(batch: Sequence[_Part]) -> Callable[[Progress], list[Tensor]]:
        network = painter.network(drawings[batch[0].number].options.weights)
        looks = [] if half is None else [partial(_from, half.of(part.number), part.first) for part in batch]
        return lambda report: draw_together(network, [part.asked for part in batch], report, looks)

    jobs, count = [job(batch) for batch in batches], len(batches) + len(alone)
    turns = shares(progress, count)
    if draws_side_by_side(painter.transformer):
        drawn = run_side_by_side(jobs, first_of(progress, len(jobs), count))
    else:
        drawn = [run(turn or silent) for run, turn in zip(jobs, turns[: len(jobs)], strict=True)]
    codes: dict[int, list[Tensor]] = defaultdict(list)
    for part, own in zip(chain.from_iterable(batches), chain.from_iterable(drawn), strict=True):
        codes[part.number].append(own)
    found = {number: sampler.finish(drawings[number], torch.cat(own)) for number, own in codes.items()}
    for number, turn in zip(alone, turns[len(jobs) :], strict=True):
        found[number] = sampler.best(drawings[number], turn)
    return [found[number] for number in range(len(drawings))]


def _from(look: Look, first: int, done: int, codes: Tensor) -> None:
    look(done, first, codes)


@dataclass(frozen=True)
class _Part:
    """Candidates of prompt `number`, from candidate `first` on, that are drawn in one batch."""

    number: int
    first: int
    asked: Asked
    rows: int


def _parts(painter: CodePainter, number: int, drawing: Drawing) -> list[_Part]:
    """All candidates of a prompt, cut as `draw_codes` cuts them; none if it is not drawn in one pass of one batch."""
    network, options = painter.transformer, drawing.options
    if network.config.masked or options.size or options.retouch or options.rerank > BATCH:
        return []
    uniforms = picture_uniforms(options.seed, range(options.rerank), network.config.code_count)
    asked = Asked(drawing.conditions, uniforms, options.filters)
    rows = rows_of(network, asked)
    if rows > MAX_ROWS:
        return []
    slices = slices_of(options.rerank, parts_of(rows) if draws_side_by_side(network) else 1)
    parts = [replace(asked, uniforms=uniforms[each]) for each in slices]
    return [_Part(number, each.start, part, rows_of(network, part)) for each, part in zip(slices, parts, strict=True)]


def _batches(painter: CodePainter, parts: Sequence[_Part]) -> list[list[_Part]]:
    """The parts in batches of up to MAX_ROWS rows; side by side of up to `most_rows`, and as many for every thread."""
    rows, most = [part.rows for part in parts], MAX_ROWS
    if draws_side_by_side(painter.transformer):
        most = most_rows()
        count = max(parts_of(sum(rows)), -(-sum(rows) // most))
        sizes = range(-(-sum(rows) // count), most)
        most = next((size for size in sizes if len(in_batches(rows, size)) <= count), most)
    return [[parts[place] for place in batch] for batch in in_batches(rows, most)]
