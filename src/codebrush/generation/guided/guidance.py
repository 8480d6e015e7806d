"""The loop of VQGAN-CLIP (Crowson et al. 2022): step by step CLIP's gradient moves a latent towards the prompts.

latent -> quantised latent -> picture -> random views -> CLIP's embeddings -> distances to the prompts, and the gradient
all the way back (`step_loss`). `Guidance.steps` is a generator: its caller decides when to look and when to stop.
"""

import inspect
import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from codebrush.errors import CodebrushError, UsageError
from codebrush.generation.guided.camera import move_camera
from codebrush.generation.guided.guidance_state import State
from codebrush.generation.guided.guide_options import GuideOptions
from codebrush.generation.guided.guided_batch import GuidedBatch
from codebrush.generation.guided.latents import make_latent
from codebrush.generation.guided.learning_rate import learning_rate
from codebrush.generation.guided.losses.step_loss import StepLoss
from codebrush.generation.guided.memory.decoder_tiling import decode
from codebrush.generation.guided.memory.plan import MemoryPlan
from codebrush.generation.latent_files import encoded
from codebrush.generation.options import parse_pair
from codebrush.models.precision import autocast
from codebrush.models.vqgan import VQGAN

SMOOTHING = 0.9  # decay of the running mean of the loss that `patience` watches


@dataclass(frozen=True, eq=False)
class Step:
    """One step that was taken. `latent` and `images` are those after it, until the next step is taken."""

    step: int  # number of steps done
    steps: int  # of the run
    pictures: range
    losses: dict[str, float]  # "loss" is the sum, "similarity" the mean cosine to the prompts; then each term
    shown: bool  # whether its pictures are among those that are stored
    events: tuple[str, ...]  # such as memory that ran out, or a plateau
    guidance: "Guidance" = field(repr=False)
    scores: tuple[float, ...] = ()  # of its pictures by the scorer, if it looked at this step
    note: str = ""  # why the scorer ended the run here

    def latent(self) -> tuple[Tensor, Tensor]:
        """What is decoded (B, d, h, w), and the nearest codes (B, h, w)."""
        return self.guidance.shown()

    def images(self) -> Tensor:
        """The pictures (B, 3, H, W), clamped to [0, 1]. They are decoded when this is called."""
        return self.guidance.decode(self.latent()[0]).clamp(0, 1)


class Guidance:
    """Guides one batch. `state` is None for a new run; from a stored one it goes on exactly, on the same machine."""

    def __init__(self, batch: GuidedBatch, plan: MemoryPlan, state: State | None = None):
        self.batch, self.plan, self.options = batch, plan, batch.options
        self.latent = make_latent(batch.vqgan, batch.options)
        self.loss = StepLoss(batch, self.latent)
        self.device = batch.initial.device
        if state is None:
            value = self.latent.initial_value(batch.initial)
            state = State(0, value, value.clone())
        self.state = state
        self.optimizer = self._make_optimizer()
        if state.optimizer is not None:
            self.optimizer.load_state_dict(state.optimizer)
        self.events: list[str] = []
        self.settled = True  # False while a step changes the state, which must not be stored then

    def steps(self, until: int | None = None) -> Iterator[Step]:
        """Take steps up to the last one, or up to step `until`, or until `patience` runs out.

        Raises:
            CodebrushError: if the loss is not finite, or memory does not suffice for one view.
        """
        o, state = self.options, self.state
        last_step = o.steps if until is None else min(until, o.steps)
        while state.step < last_step and not state.finished:
            self._grow()
            losses, chapter = self._gradient_at_rate(), self._chapter()
            self.settled = False
            self.optimizer.step()
            self._after_step()
            state.step += 1
            self._move_camera()
            if self._chapter() != chapter:
                self._forget_losses()
            else:
                state.finished = self._plateau(losses["loss"])
            self.settled = True
            last = state.finished or state.step == o.steps
            shown = last or bool(o.show_every and state.step % o.show_every == 0)
            yield Step(state.step, o.steps, self.batch.pictures, losses, shown, tuple(self.events), self)
            self.events.clear()

    def snapshot(self) -> State:
        """The state, with the optimizer's in it, to be stored."""
        return replace(self.state, optimizer=self.optimizer.state_dict(), value=self.state.value.detach())

    @torch.no_grad()
    def shown(self) -> tuple[Tensor, Tensor]:
        """What is decoded to be shown (B, d, h, w), the running mean if `ema` is on, and its codes (B, h, w)."""
        state, value = self.state, self.state.value
        if self.options.ema and state.mean is not None:
            value = state.mean / (1 - self.options.ema**state.mean_steps)
        return self.latent.decoder_input(value)

    @torch.no_grad()
    def kept(self, latent: Tensor) -> tuple[Tensor, Tensor]:
        """Latents (B, d, h, w) that `shown` gave earlier, and their codes (B, h, w)."""
        return latent, self.latent.codes(latent)

    def decode(self, latent: Tensor) -> Tensor:
        """Latents (B, d, h, w) as pictures; see `decode_to_show`."""
        return decode_to_show(self.batch.vqgan, latent, self.plan, self.options)

    def gradient(self) -> dict[str, float]:
        """Leave the gradient of the next step in `state.value.grad` and return its losses; see `StepLoss`."""
        return self.loss.backward(self.state, self.plan)

    def gradient_in_memory(self) -> dict[str, float]:
        """`gradient`, with half as many views at once each time that memory runs out."""
        while True:
            try:
                return self.gradient()
            except torch.OutOfMemoryError as error:
                self._halve_micro_batch(error)

    def _gradient_at_rate(self) -> dict[str, float]:
        """`gradient_in_memory` at this step's learning rate."""
        rate = learning_rate(self.state.step, self.options)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        losses = self.gradient_in_memory()
        if not all(map(math.isfinite, losses.values())):
            raise CodebrushError(f"the loss of step {self.state.step + 1} is not finite: lower --learning-rate")
        return losses | {"learning_rate": rate}

    def _chapter(self) -> int:
        return self.batch.chapter(self.state.step)

    @torch.no_grad()
    def _after_step(self) -> None:
        state, o = self.state, self.options
        self.latent.clamp_(state.value)
        if self.batch.mask is not None:  # cells without a guided pixel stay as they were
            free = F.adaptive_max_pool2d(self.batch.mask, state.value.shape[-2:]) > 0  # (1, 1, h, w)
            state.value.copy_(torch.where(free, state.value, state.anchor))
        if o.ema:
            mean = torch.zeros_like(state.value) if state.mean is None else state.mean
            state.mean = mean.mul_(o.ema).add_(state.value, alpha=1 - o.ema)
            state.mean_steps += 1

    def _plateau(self, loss: float) -> bool:
        """Take note of `loss`; whether it has not fallen for `patience` steps, which ends the run."""
        state, o = self.state, self.options
        state.smooth = loss if math.isinf(state.smooth) else SMOOTHING * state.smooth + (1 - SMOOTHING) * loss
        if state.smooth < state.best - o.min_delta:
            state.best, state.best_step = state.smooth, state.step
        if not o.patience or state.step - state.best_step < o.patience:
            return False
        if state.stage < len(self.batch.sizes) - 1 or self._chapter() < self.batch.chapters - 1:
            return False  # stages or chapters are still to come
        self.events.append(f"the loss has not fallen by {o.min_delta:g} for {o.patience} steps")
        return True

    @torch.no_grad()
    def _grow(self) -> None:
        """Enter the stage of growth that this step belongs to: enlarge the latent and begin with a new optimizer."""
        sizes = self.batch.sizes
        stage = min(self.state.step * len(sizes) // self.options.steps, len(sizes) - 1)
        if stage == self.state.stage:
            return
        self.state.stage = stage
        grid = self.batch.vqgan.code_grid(sizes[stage])
        self.state.anchor = self.latent.resize(self.state.anchor, grid)
        self._restart(self.latent.resize(self.state.value.detach(), grid))

    @torch.no_grad()
    def _move_camera(self) -> None:
        """If a move is due, move the picture and encode it again."""
        o = self.options
        if not o.move_every or self.state.step % o.move_every or self.state.step >= o.steps:
            return
        pan = parse_pair(o.pan, "pan", ",")
        images = self.decode(self.latent.decoder_input(self.state.value)[0]).clamp(0, 1)
        value = self.latent.initial_value(encoded(self.batch.vqgan, move_camera(images, o.zoom, pan, o.roll)))
        self.state.anchor = value.clone()
        self._restart(value)

    def _restart(self, value: Tensor) -> None:
        self.state.value, self.state.mean, self.state.mean_steps = value, None, 0
        self._forget_losses()
        self.optimizer = self._make_optimizer()

    def _forget_losses(self) -> None:
        """The losses of another stage, chapter or camera do not say whether this one still improves."""
        self.state.smooth = self.state.best = math.inf
        self.state.best_step = self.state.step

    def _make_optimizer(self) -> torch.optim.Optimizer:
        self.state.value = self.state.value.detach().clone().requires_grad_()
        kind = getattr(torch.optim, self.options.optimizer)
        settings: dict[str, Any] = {"lr": self.options.learning_rate}
        if "weight_decay" in inspect.signature(kind).parameters:
            settings["weight_decay"] = self.options.wd
        elif self.options.wd:
            raise UsageError(f"torch.optim.{self.options.optimizer} has no weight decay: leave out --wd")
        return kind([self.state.value], **settings)

    def _halve_micro_batch(self, error: torch.OutOfMemoryError) -> None:
        before = min(self.plan.micro_batch, self.options.cutouts * len(self.batch.pictures))
        if before == 1:
            raise CodebrushError(
                "memory does not suffice for one view at a time: choose a smaller --size or --batch-size"
            ) from error
        self.plan = replace(self.plan, micro_batch=before // 2)
        self.events.append(f"memory ran out: micro-batch {before} -> {before // 2}")
        if self.device.type == "cuda":
            torch.cuda.empty_cache()


@torch.no_grad()
def decode_to_show(vqgan: VQGAN, latent: Tensor, plan: MemoryPlan, options: GuideOptions) -> Tensor:
    """Decode latents (B, d, h, w) as pictures (B, 3, H, W) float32, unclamped.

    In float32, or where memory is short in the precision of the steps.
    """
    short = plan.decode.checkpoint or plan.decode.tile
    with autocast(options.precision if short else "float32", latent.device):
        return decode(vqgan, latent, plan.decode).float()
