"""A task and a limit on the process's memory in, a plan of micro-batches, checkpoints and tiles that keeps to it out.

On a CPU nothing counts the memory of a step but the process itself, so the plan is found by trying: the cheapest way
first, then twice as many views at once for as long as the measured peak says that they fit. On a GPU PyTorch itself
holds the process to the limit, and views are halved when it is met.
"""

import ctypes
import math
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from codebrush.errors import UsageError
from codebrush.generation.guided.cutouts import draw_views, see
from codebrush.generation.guided.decoder_tiling import DecodePlan, decode
from codebrush.generation.guided.guidance import Guidance, MemoryPlan, Task
from codebrush.generation.guided.guide_options import parse_bytes
from codebrush.generation.seeding import stream
from codebrush.models.clip import CLIP
from codebrush.models.precision import autocast

LARGE_PICTURE = 1024 * 1024  # pixels from which the decoder works in tiles, if nothing else is said
TILE_PIXELS = 512  # their side
SMALLEST_TILE = 8  # cells a side
GROWTH = 1.5  # a view's whole cost in bytes that autograd keeps of it: its gradients and passing values come on top
AGAIN = 0.7  # what a decoder holds that computes again, block by block, as a share of what it would keep
KEPT_FREE = 0.08  # of the limit: what allocators and libraries take beside what was measured
MMAP_THRESHOLD, TRIM_THRESHOLD = -3, -1  # glibc's names for what `mallopt` sets
MIB = 2**20


def plan_memory(task: Task) -> MemoryPlan:
    """How to take the steps of `task`. Raises UsageError where `max_memory` does not suffice for one view."""
    o, views = task.options, task.options.cutouts * len(task.pictures)
    wanted = min(o.micro_batch or views, views)
    factor = task.vqgan.factor
    tile = -(-o.tile // factor)
    if not tile and task.size[0] * task.size[1] > LARGE_PICTURE:
        tile = -(-TILE_PIXELS // factor)
    plan = MemoryPlan(wanted, DecodePlan(tile=tile, seamless=o.seamless))
    if o.max_memory is None:
        return plan
    limit = parse_bytes(o.max_memory)
    if task.start.is_cuda:
        total = torch.cuda.get_device_properties(task.start.device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, limit / total), task.start.device)
        return replace(plan, decode=replace(plan.decode, checkpoint=True))
    return _Fitting(task, limit).plan(plan)


class _Fitting:
    """The search for a plan on a CPU."""

    def __init__(self, task: Task, limit: int):
        grid = task.vqgan.code_grid(task.size)
        options = replace(task.options, grow=1, steps=1, move_every=0)
        start = torch.nn.functional.interpolate(task.start, grid)  # the last stage of growth is the largest
        self.task, self.limit = replace(task, options=options, start=start), limit
        self.usable = int(limit * (1 - KEPT_FREE))
        _return_memory_at_once()

    def plan(self, plan: MemoryPlan) -> MemoryPlan:
        """The largest micro-batch, and the least checkpointing and tiling, that fit."""
        before = _resident()
        if max(before, peak_memory()) >= self.usable:
            self._refuse(max(before, peak_memory()))
        plan = replace(plan, decode=self._decoding(plan.decode, self.usable - before))
        views, peak = 1, self._try(plan, 1)
        if peak > self.limit:
            self._refuse(peak)
        each = GROWTH * self._saved_by_view()
        while views < plan.micro_batch:
            room = int((self.usable - peak) / each)  # so many views more would surely fit
            if room < 1:
                break
            views = min(2 * views, views + room, plan.micro_batch)
            peak = self._try(plan, views)
        return replace(plan, micro_batch=views)

    def _decoding(self, plan: DecodePlan, room: int) -> DecodePlan:
        """Keep all that the decoder computes, or compute it again, or that in tiles: the fastest way that fits."""
        if plan.tile:
            return plan
        cells = math.prod(self.task.vqgan.code_grid(self.task.size))
        few, many = (self._saved_by_decoder(rows) for rows in (SMALLEST_TILE // 2, SMALLEST_TILE))
        each = max(1.0, 2 * (many - few) / SMALLEST_TILE**2)  # bytes that autograd keeps for a cell
        fixed = max(0.0, many - each * SMALLEST_TILE**2)  # and for weights in another format
        if 1.3 * (each * cells + fixed) <= room / 2:  # the rest is for the views
            return plan
        if AGAIN * each * cells + fixed <= room:
            return replace(plan, checkpoint=True)
        side = int(math.sqrt(max(0.0, (room / 1.3 - fixed) / each)))
        return replace(plan, tile=max(SMALLEST_TILE, side))

    def _saved_by_decoder(self, rows: int) -> int:
        """Bytes that autograd keeps of decoding `rows` rows of SMALLEST_TILE cells."""
        shape = (*self.task.start.shape[:2], rows, SMALLEST_TILE)
        part = self.task.start.new_zeros(shape).requires_grad_()
        with autocast(self.task.options.precision, part.device):
            return _saved_by(lambda: decode(self.task.vqgan, part, DecodePlan()), self.task.vqgan)

    def _saved_by_view(self) -> int:
        """Bytes that autograd keeps of each view more, for the CLIP that keeps the most."""
        o, image = self.task.options, self.task.start.new_zeros(1, 3, *self.task.size).requires_grad_()
        views = draw_views(replace(o, cutouts=2), self.task.size, stream(0))

        def look(clip: CLIP, count: int) -> Tensor:
            seen = see(image, views.rows(slice(count)), clip.image_size, o)
            with autocast(o.precision, image.device):
                return clip.image_encoder(clip.normalise(seen))

        saved = [[_saved_by(partial(look, j.clip, count), j.clip) for count in (1, 2)] for j in self.task.judges]
        return max(max(1, two - one) for one, two in saved)

    def _try(self, plan: MemoryPlan, views: int) -> int:
        """The process's peak after one step of `views` views at once, and a look at the picture."""
        cutouts = -(-views // len(self.task.pictures))
        task = replace(self.task, options=replace(self.task.options, cutouts=cutouts))
        guidance = Guidance(task, replace(plan, micro_batch=views))
        guidance.gradient()
        guidance.decode(guidance.shown()[0])
        return peak_memory()

    def _refuse(self, needed: int) -> None:
        least = math.ceil(1.1 * max(needed, self.limit) / (1 - KEPT_FREE) / MIB)
        raise UsageError(
            f"max_memory of {self.limit // MIB} MiB does not suffice, the least way took {needed // MIB} MiB:"
            f" give at least {least}MiB, or choose a smaller --size"
        )


def _saved_by(run: Callable[[], Tensor], model: nn.Module) -> int:
    """Bytes that autograd keeps of a run of `model`, its weights not counted."""
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


def peak_memory() -> int:
    """The most bytes that this process ever had resident."""
    try:
        return _status("VmHWM")
    except (OSError, KeyError):  # not Linux
        pass
    try:
        import resource
    except ImportError:
        raise UsageError("max_memory cannot be kept on this system: it does not say what a process uses") from None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _resident() -> int:
    """Bytes that are resident now; where the system does not tell, the most that ever were."""
    if _GLIBC is not None:
        _GLIBC.malloc_trim(0)
    try:
        return _status("VmRSS")
    except (OSError, KeyError):
        return peak_memory()


def _status(name: str) -> int:
    """Bytes that Linux gives under `name`. Its own figure: getrusage's may be that of the process that started this."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(dict(line.split(":", 1) for line in lines)[name].split()[0]) * 1024


def _glibc() -> ctypes.CDLL | None:
    try:
        library = ctypes.CDLL(None)
    except (OSError, TypeError):
        return None
    return library if hasattr(library, "mallopt") and hasattr(library, "malloc_trim") else None


_GLIBC = _glibc()


def _return_memory_at_once() -> None:
    """Have freed blocks of a megabyte and more go back to the system: kept ones would count as used."""
    if _GLIBC is not None:
        _GLIBC.mallopt(MMAP_THRESHOLD, MIB)
        _GLIBC.mallopt(TRIM_THRESHOLD, MIB)
