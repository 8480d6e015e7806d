"""VQGAN-CLIP (Crowson et al. 2022): a latent in; step by step one whose picture CLIP finds closer to the prompt out.

latent -> quantised latent -> picture -> many random views -> CLIP's embeddings -> distance to the prompts, and the
gradient all the way back. `Guidance.steps` is a generator: whoever drives it decides when to look and when to stop.
"""

import inspect
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from codebrush.errors import CodebrushError, UsageError
from codebrush.generation.guided.cutouts import Views, draw_views, join_views, see
from codebrush.generation.guided.decoder_tiling import DecodePlan, decode
from codebrush.generation.guided.guide_options import GuideOptions, parse_pair
from codebrush.generation.guided.initial_latents import encoded
from codebrush.generation.guided.latents import make_latent
from codebrush.generation.guided.objectives import Targets, similarity, target_pull, view_loss
from codebrush.generation.guided.penalties import Penalties
from codebrush.generation.guided.videos import move_camera
from codebrush.generation.seeding import Purpose, stream
from codebrush.models.clip import CLIP
from codebrush.models.precision import autocast
from codebrush.models.vqgan import VQGAN

SMOOTHING = 0.9  # of the loss that the plateau is judged by


@dataclass(frozen=True)
class Judge:
    """A CLIP that guides: its weight, and its targets in each chapter of the story."""

    clip: CLIP
    weight: float
    chapters: tuple[Targets, ...]


@dataclass(frozen=True)
class Task:
    """What is guided to where. `start` (B, d, h, w) is the latent of the first stage of growth."""

    vqgan: VQGAN
    judges: Sequence[Judge]
    options: GuideOptions
    seed: int
    pictures: range  # their numbers in the run, which choose their random streams
    size: tuple[int, int]  # height and width at the end
    start: Tensor
    targets: Sequence[tuple[Tensor, float]] = ()  # pictures (1, 3, H, W) in [0, 1] that attract, with their weights
    mask: Tensor | None = None  # (1, 1, H, W): 1 where guidance may act


@dataclass(frozen=True)
class MemoryPlan:
    """How a step fits into memory: views that CLIP reads at once, and how the decoder runs.

    But for tiles, which blend at their borders and take the norms' statistics as constants, none of it changes a
    gradient by more than rounding.
    """

    micro_batch: int
    decode: DecodePlan = DecodePlan()


@dataclass
class State:
    """All that a run needs to go on exactly."""

    step: int
    value: Tensor  # what is optimised: see `codebrush.generation.guided.latents`
    anchor: Tensor  # the value at the start
    optimizer: dict[str, Any] | None = None
    mean: Tensor | None = None  # running mean of the value, not yet divided by its weight
    mean_steps: int = 0
    smooth: float = math.inf
    best: float = math.inf
    best_step: int = 0
    stage: int = 0
    finished: bool = False


@dataclass(frozen=True, eq=False)
class Step:
    """One step as it was taken. The latent is the one after it."""

    step: int  # steps done
    steps: int
    pictures: range
    losses: dict[str, float]  # "loss" in all, "similarity" (mean cosine to what should be seen), and each term
    shown: bool  # whether it is one of those that are kept
    events: tuple[str, ...]  # what happened beside: memory that ran out, a plateau
    guidance: "Guidance" = field(repr=False)

    def latent(self) -> tuple[Tensor, Tensor]:
        """What the decoder reads (B, d, h, w), and the codes (B, h, w) nearest to it."""
        return self.guidance.shown()

    def images(self) -> Tensor:
        """The pictures (B, 3, H, W), clamped to [0, 1]: decoded when asked for."""
        return self.guidance.decode(self.latent()[0]).clamp(0, 1)


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


def stage_sizes(size: tuple[int, int], stages: int, factor: int) -> list[tuple[int, int]]:
    """Heights and widths of the stages of growth, each about half of the next, in multiples of `factor`."""
    halvings = reversed(range(stages))
    height, width = size
    return [(_multiple(height / 2**half, factor), _multiple(width / 2**half, factor)) for half in halvings]


def _multiple(side: float, factor: int) -> int:
    return max(1, round(side / factor)) * factor


class Guidance:
    """A task on its way. `state` is None for a new run; a stored one goes on bit for bit on the same machine."""

    def __init__(self, task: Task, plan: MemoryPlan, state: State | None = None):
        self.task, self.plan, self.options = task, plan, task.options
        self.latent = make_latent(task.vqgan, task.options)
        self.sizes = stage_sizes(task.size, task.options.grow, task.vqgan.factor)
        self.penalties = Penalties(task.options)
        self.device = task.start.device
        if state is None:
            value = self.latent.begin(task.start)
            state = State(0, value, value.clone())
        self.state = state
        self.optimizer = self._make_optimizer()
        if state.optimizer is not None:
            self.optimizer.load_state_dict(state.optimizer)
        self.events: list[str] = []
        self.settled = True  # False while a step changes the state, which must not be stored then

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the picture at this stage."""
        return self.sizes[self.state.stage]

    def steps(self) -> Iterator[Step]:
        """Take steps until the last one, or until the loss no longer falls."""
        o, state = self.options, self.state
        while state.step < o.steps and not state.finished:
            self._grow()
            losses, chapter = self._gradient_in_memory(), self._chapter()
            self.settled = False
            self.optimizer.step()
            self._after_step()
            state.step += 1
            self._move()
            if self._chapter() != chapter:
                self._forget_losses()
            else:
                state.finished = self._plateau(losses["loss"])
            self.settled = True
            last = state.finished or state.step == o.steps
            shown = last or bool(o.show_every and state.step % o.show_every == 0)
            yield Step(state.step, o.steps, self.task.pictures, losses, shown, tuple(self.events), self)
            self.events.clear()

    def snapshot(self) -> State:
        """The state with the optimizer's in it, to be stored."""
        return replace(self.state, optimizer=self.optimizer.state_dict(), value=self.state.value.detach())

    @torch.no_grad()
    def shown(self) -> tuple[Tensor, Tensor]:
        """What the decoder reads now (B, d, h, w), of the running mean where there is one, and its codes (B, h, w)."""
        state, value = self.state, self.state.value
        if self.options.ema and state.mean is not None:
            value = state.mean / (1 - self.options.ema**state.mean_steps)
        return self.latent.read(value)

    def decode(self, latent: Tensor) -> Tensor:
        """See `decode_to_show`."""
        return decode_to_show(self.task.vqgan, latent, self.plan, self.options)

    def _gradient_in_memory(self) -> dict[str, float]:
        """`gradient` at this step's learning rate, with fewer views at once each time that the memory runs out."""
        factor = rate_factor(self.state.step, self.options)
        for group in self.optimizer.param_groups:
            group["lr"] = self.options.learning_rate * factor
        while True:
            try:
                losses = self.gradient()
                break
            except torch.OutOfMemoryError as error:
                self._shrink(error)
        if not all(map(math.isfinite, losses.values())):
            raise CodebrushError(f"the loss of step {self.state.step + 1} is not finite: lower --learning-rate")
        return losses | {"learning_rate": self.options.learning_rate * factor}

    def gradient(self) -> dict[str, float]:
        """Leave the gradient of one step's loss in `state.value.grad`, and return the loss and its terms.

        The pictures are decoded once. CLIP's views of them are taken in micro-batches, whose gradients add up at the
        pictures; then the decoder is differentiated once. Each picture's loss is its own, so none depends on the batch.
        """
        o, value = self.options, self.state.value
        value.grad = None
        decoded, _ = self.latent.read(value)
        with autocast(o.precision, self.device):
            raw = decode(self.task.vqgan, decoded, self.plan.decode)
        pixels = raw.detach().to(value.dtype).requires_grad_()  # (B, 3, H, W), not clamped
        images = _ClampInward.apply(pixels)
        assert isinstance(images, Tensor)
        leaf = images.detach().requires_grad_()
        losses = self._judge(leaf)
        terms = self.penalties(images, pixels)
        if self.task.targets:
            terms["target"] = target_pull(images, self._resized_targets())
        seen = torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
        each = float(len(images))  # the terms are means over the batch, and the gradient is each picture's own
        torch.autograd.backward([images, *terms.values()], [seen, *(torch.full_like(t, each) for t in terms.values())])
        assert pixels.grad is not None
        raw.backward(self._masked(pixels.grad).to(raw.dtype))
        if o.init_weight:
            away = self.latent.vectors(value) - self.latent.vectors(self.state.anchor).detach()
            terms["init"] = o.init_weight * away.square().mean()
            (terms["init"] * each).backward()
        losses |= {name: float(term.detach()) for name, term in terms.items()}
        total = losses["guidance"] + sum(float(term.detach()) for term in terms.values())
        return {"loss": total, **losses}

    def _judge(self, images: Tensor) -> dict[str, float]:
        """Add the gradient of every CLIP's loss to `images.grad`; the loss and the first CLIP's similarity."""
        chapter, pictures = self._chapter(), len(images)
        views = self._views()
        per_picture = len(views) // pictures
        loss = close = 0.0
        for number, judge in enumerate(self.task.judges):
            targets = judge.chapters[min(chapter, len(judge.chapters) - 1)]
            for first in range(0, len(views), self.plan.micro_batch):
                part = views.rows(slice(first, first + self.plan.micro_batch))
                seen = see(images, part, judge.clip.image_size, self.options)  # (V, 3, S, S)
                with autocast(self.options.precision, self.device):
                    embeddings = judge.clip.image_encoder(judge.clip.normalise(seen))
                embeddings = F.normalize(embeddings.to(images.dtype), dim=-1)  # (V, E)
                share = judge.weight * view_loss(embeddings, targets, self.options.distance).sum() / per_picture
                share.backward()
                loss += float(share.detach()) / pictures
                if not number:
                    close += float(similarity(embeddings, targets)) * len(part) / len(views)
        return {"guidance": loss, "similarity": close}

    def _views(self) -> Views:
        step, size = self.state.step, self.size
        drawn = [
            draw_views(self.options, size, stream(self.task.seed, picture, Purpose.VIEWS, step), row)
            for row, picture in enumerate(self.task.pictures)
        ]
        return join_views(drawn)

    def _chapters(self) -> int:
        return max(len(judge.chapters) for judge in self.task.judges)

    def _chapter(self) -> int:
        chapters = self._chapters()
        each = self.options.story_every or -(-self.options.steps // chapters)
        return min(self.state.step // max(each, 1), chapters - 1)

    def _resized_targets(self) -> list[tuple[Tensor, float]]:
        return [(F.interpolate(image, self.size, mode="area"), weight) for image, weight in self.task.targets]

    def _masked(self, gradient: Tensor) -> Tensor:
        if self.task.mask is None:
            return gradient
        return gradient * F.interpolate(self.task.mask, self.size, mode="area").to(gradient.dtype)

    @torch.no_grad()
    def _after_step(self) -> None:
        state, o = self.state, self.options
        self.latent.confine(state.value)
        if self.task.mask is not None:  # cells that no guided pixel lies in stay as they were
            free = F.adaptive_max_pool2d(self.task.mask, state.value.shape[-2:]) > 0  # (1, 1, h, w)
            state.value.copy_(torch.where(free, state.value, state.anchor))
        if o.ema:
            mean = torch.zeros_like(state.value) if state.mean is None else state.mean
            state.mean = mean.mul_(o.ema).add_(state.value, alpha=1 - o.ema)
            state.mean_steps += 1

    def _plateau(self, loss: float) -> bool:
        state, o = self.state, self.options
        state.smooth = loss if math.isinf(state.smooth) else SMOOTHING * state.smooth + (1 - SMOOTHING) * loss
        if state.smooth < state.best - o.min_delta:
            state.best, state.best_step = state.smooth, state.step
        if not o.patience or state.step - state.best_step < o.patience:
            return False
        if state.stage < len(self.sizes) - 1 or self._chapter() < self._chapters() - 1:
            return False  # what is still to come has not had its turn
        self.events.append(f"the loss has not fallen by {o.min_delta:g} for {o.patience} steps")
        return True

    @torch.no_grad()
    def _grow(self) -> None:
        """Enter the stage that this step belongs to: the latent is enlarged, and the optimizer begins anew."""
        stage = min(self.state.step * len(self.sizes) // self.options.steps, len(self.sizes) - 1)
        if stage == self.state.stage:
            return
        self.state.stage = stage
        grid = self.task.vqgan.code_grid(self.size)
        self.state.anchor = self.latent.resize(self.state.anchor, grid)
        self._restart(self.latent.resize(self.state.value.detach(), grid))

    @torch.no_grad()
    def _move(self) -> None:
        """Move the camera, where it is time: the picture is moved and encoded again."""
        o = self.options
        if not o.move_every or self.state.step % o.move_every or self.state.step >= o.steps:
            return
        pan = parse_pair(o.pan, "pan", ",")
        images = self.decode(self.latent.read(self.state.value)[0]).clamp(0, 1)
        value = self.latent.begin(encoded(self.task.vqgan, move_camera(images, o.zoom, pan, o.roll)))
        self.state.anchor = value.clone()
        self._restart(value)

    def _restart(self, value: Tensor) -> None:
        self.state.value, self.state.mean, self.state.mean_steps = value, None, 0
        self._forget_losses()
        self.optimizer = self._make_optimizer()

    def _forget_losses(self) -> None:
        """Those of another stage, chapter or view do not say whether this one still improves."""
        self.state.smooth = self.state.best = math.inf
        self.state.best_step = self.state.step

    def _make_optimizer(self) -> torch.optim.Optimizer:
        self.state.value = self.state.value.detach().clone().requires_grad_()
        kind = getattr(torch.optim, self.options.optimizer)
        settings: dict[str, Any] = {"lr": self.options.learning_rate}
        if "weight_decay" in inspect.signature(kind).parameters:
            settings["weight_decay"] = self.options.wd
        elif self.options.wd:
            raise UsageError(f"torch.optim.{self.options.optimizer} knows no weight decay: leave out --wd")
        return kind([self.state.value], **settings)

    def _shrink(self, error: torch.OutOfMemoryError) -> None:
        before = min(self.plan.micro_batch, self.options.cutouts * len(self.task.pictures))
        if before == 1:
            raise CodebrushError(
                "the memory does not suffice for one view at a time: choose a smaller --size or --batch-size"
            ) from error
        self.plan = replace(self.plan, micro_batch=before // 2)
        self.events.append(f"memory ran out: micro-batch {before} -> {before // 2}")
        if self.device.type == "cuda":
            torch.cuda.empty_cache()


@torch.no_grad()
def decode_to_show(vqgan: VQGAN, latent: Tensor, plan: MemoryPlan, options: GuideOptions) -> Tensor:
    """Latents (B, d, h, w) -> pictures (B, 3, H, W) float32, unclamped.

    Decoded in float32, but where memory is short in the precision of the steps.
    """
    short = plan.decode.checkpoint or plan.decode.tile
    with autocast(options.precision if short else "float32", latent.device):
        return decode(vqgan, latent, plan.decode).float()


def rate_factor(step: int, options: GuideOptions) -> float:
    """What the learning rate is multiplied by at `step` (0 is the first): linear warm-up, then the schedule."""
    if step < options.warmup:
        return (step + 1) / options.warmup
    done = (step - options.warmup) / max(1, options.steps - options.warmup)
    if options.schedule == "linear":
        return 1 - done
    return (1 + math.cos(math.pi * done)) / 2 if options.schedule == "cosine" else 1.0
