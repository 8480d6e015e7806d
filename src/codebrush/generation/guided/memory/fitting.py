"""Finds how to take the steps of guidance within a limit on memory: views at once, recomputed activations, tiles.

On a CPU nothing reports the memory of a step except the process itself, so the plan is found by trying: first with one
view at once, then with as many more as should fit into what the measured peak leaves, until no more do or all fit. On a
GPU PyTorch holds the process to the limit, and the number of views is halved when it is reached.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

from codebrush.errors import UsageError
from codebrush.generation.guided.guidance import Guidance
from codebrush.generation.guided.guided_batch import GuidedBatch
from codebrush.generation.guided.losses.cutouts import cut_out, draw_views
from codebrush.generation.guided.memory.decoder_tiling import DecodePlan, decode, tile_cells
from codebrush.generation.guided.memory.plan import MemoryPlan
from codebrush.generation.guided.option_values import parse_bytes
from codebrush.generation.seeding import stream
from codebrush.models.clip import CLIP
from codebrush.models.precision import autocast
from codebrush.process_memory import MIB, peak_memory, resident_memory, return_freed_memory

SMALLEST_TILE = 8  # cells a side
VIEW_OVERHEAD = 1.5  # memory of a view over what autograd keeps of it: gradients and temporary values come on top
RECOMPUTED = 0.7  # memory of a decoder that recomputes block by block, as a share of what it would keep
KEPT_FREE = 0.08  # of the limit: what allocators and libraries take beside what was measured


def plan_memory(batch: GuidedBatch) -> MemoryPlan:
    """How to take the steps of `batch`.

    Raises:
        UsageError: if `max_memory` does not suffice for one view.
    """
    o, views = batch.options, batch.options.cutouts * len(batch.pictures)
    tile = tile_cells(o.tile, batch.size, batch.vqgan.factor)
    plan = MemoryPlan(min(o.micro_batch or views, views), DecodePlan(tile=tile, seamless=o.seamless))
    if o.max_memory is None:
        return plan
    limit = parse_bytes(o.max_memory)
    if batch.initial.is_cuda:
        total = torch.cuda.get_device_properties(batch.initial.device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, limit / total), batch.initial.device)
        return replace(plan, decode=replace(plan.decode, checkpoint=True))
    return _Fitting(batch, limit).plan(plan)


class _Fitting:
    """The search for a plan on a CPU. `limit` is in bytes."""

    def __init__(self, batch: GuidedBatch, limit: int):
        grid = batch.vqgan.code_grid(batch.size)
        options = replace(batch.options, grow=1, steps=1, move_every=0)
        initial = torch.nn.functional.interpolate(batch.initial, grid)  # the last stage of growth is the largest
        self.batch, self.limit = replace(batch, options=options, initial=initial), limit
        self.usable = int(limit * (1 - KEPT_FREE))
        return_freed_memory()

    def plan(self, plan: MemoryPlan) -> MemoryPlan:
        """The largest micro-batch, and the least checkpointing and tiling, that fit."""
        before = resident_memory()
        if max(before, peak_memory()) >= self.usable:
            self._refuse(max(before, peak_memory()))
        plan = replace(plan, decode=self._decoding(plan.decode, self.usable - before))
        views, peak = 1, self._try(plan, 1)
        if peak > self.limit:
            self._refuse(peak)
        each = VIEW_OVERHEAD * self._saved_by_view()
        while views < plan.micro_batch and (room := int((self.usable - peak) / each)) > 0:  # views more that should fit
            more = min(views + room, plan.micro_batch)
            peak = self._try(plan, more)
            if peak > self.limit:
                break
            views = more
        return replace(plan, micro_batch=views)

    def _decoding(self, plan: DecodePlan, room: int) -> DecodePlan:
        """The fastest decoding that fits: keep all activations, recompute them, or recompute them in tiles."""
        if plan.tile:
            return plan
        cells = math.prod(self.batch.vqgan.code_grid(self.batch.size))
        few, many = (self._saved_by_decoder(rows) for rows in (SMALLEST_TILE // 2, SMALLEST_TILE))
        each = max(1.0, 2 * (many - few) / SMALLEST_TILE**2)  # bytes that autograd keeps of a cell
        fixed = max(0.0, many - each * SMALLEST_TILE**2)  # and of weights in another number format
        if 1.3 * (each * cells + fixed) <= room / 2:  # the rest is for the views
            return plan
        if RECOMPUTED * each * cells + fixed <= room:
            return replace(plan, checkpoint=True)
        side = int(math.sqrt(max(0.0, (room / 1.3 - fixed) / each)))
        return replace(plan, tile=max(SMALLEST_TILE, side))

    def _saved_by_decoder(self, rows: int) -> int:
        """Bytes that autograd keeps when `rows` rows of SMALLEST_TILE cells are decoded."""
        shape = (*self.batch.initial.shape[:2], rows, SMALLEST_TILE)
        part = self.batch.initial.new_zeros(shape).requires_grad_()
        with autocast(self.batch.options.precision, part.device):
            return _saved_by(lambda: decode(self.batch.vqgan, part, DecodePlan()), self.batch.vqgan)

    def _saved_by_view(self) -> int:
        """Bytes that autograd keeps of each further view, for the CLIP that keeps the most."""
        o, image = self.batch.options, self.batch.initial.new_zeros(1, 3, *self.batch.size).requires_grad_()
        views = draw_views(replace(o, cutouts=2), self.batch.size, stream(0))

        def embed(clip: CLIP, count: int) -> Tensor:
            cutouts = cut_out(image, views.rows(slice(count)), clip.image_size, o)
            with autocast(o.precision, image.device):
                return clip.image_encoder(clip.normalise(cutouts))

        clips = [guide.clip for guide in self.batch.clips]
        saved = [[_saved_by(partial(embed, clip, count), clip) for count in (1, 2)] for clip in clips]
        return max(max(1, two - one) for one, two in saved)

    def _try(self, plan: MemoryPlan, views: int) -> int:
        """The process's peak memory after one step with `views` views at once and decoding the picture to show."""
        cutouts = -(-views // len(self.batch.pictures))
        batch = replace(self.batch, options=replace(self.batch.options, cutouts=cutouts))
        guidance = Guidance(batch, replace(plan, micro_batch=views))
        guidance.gradient()
        guidance.decode(guidance.shown()[0])
        return peak_memory()

    def _refuse(self, needed: int) -> None:
        least = math.ceil(1.1 * max(needed, self.limit) / (1 - KEPT_FREE) / MIB)
        raise UsageError(
            f"max_memory of {self.limit // MIB} MiB does not suffice, a step took {needed // MIB} MiB at least:"
            f" give at least {least}MiB, or choose a smaller --size"
        )


def _saved_by(run: Callable[[], Tensor], model: nn.Module) -> int:
    """Bytes that autograd keeps of `run`, without the weights of `model`."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor.detach()  # itself would be a cycle with the graph, which would then not be freed

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        held = run()
    del held
    return sum(kept.values())
