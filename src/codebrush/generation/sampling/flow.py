"""Draws latents with a flow transformer: from noise along the velocity that it predicts to a picture's latent.

Time runs from 1 (noise) to 0 (the picture). Three ways of taking a step: Euler's; Heun's, which corrects it by the
velocity at its end; and DPM-Solver++(2M) (Lu et al. 2022, algorithm 2), which extrapolates the predicted clean latent
from the last two. Each picture has its own noise, so it comes out the same whoever shares its batch (up to rounding).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from codebrush.errors import UsageError
from codebrush.generation.options import FLOAT32, FlowSettings
from codebrush.generation.sampling.weighted_conditions import WeightedConditions, guided_terms, rows_of
from codebrush.generation.seeding import stream
from codebrush.models.condition import Condition
from codebrush.models.flow_transformer import FlowTransformer
from codebrush.models.precision import autocast
from codebrush.progress import Progress

LEAST = 4  # rows of a batch in bfloat16: those of fewer round otherwise
TINY = 1e-20  # a gradient that is shorter has no direction
Seen = Callable[[Tensor, int, int], None]  # clean latents (B, d, h, w), number of the step, how many there are
Velocity = Callable[[Tensor, float], Tensor]  # x (B, d, h, w) and its time -> velocity, of the same shape


@dataclass(frozen=True)
class KnownLatent:
    """A latent (B, d, h, w), as the VQGAN's decoder reads it, and where it is kept, (B, h, w) bool; one row may serve
    every picture."""

    latent: Tensor
    fixed: Tensor


@dataclass(frozen=True)
class Start:
    """A latent (B, d, h, w) of a VQGAN, and the time, above 0 and up to 1, to which it is noised before it is drawn
    anew (SDEdit, Meng et al. 2022); one row may serve every picture."""

    latent: Tensor
    time: float

    def rows(self, rows: slice) -> "Start":
        """Where some pictures of a batch start."""
        return Start(own_rows(self.latent, rows), self.time)


@dataclass(frozen=True)
class Lead:
    """What leads a flow beside its conditions, such as CLIP's guidance.

    `gradient` maps clean latents (B, d, h, w) and the number of the step to the gradient of a loss, of the same shape.
    The velocity is bent by `scale` times its direction, so that the clean latent predicted at time t moves down the
    loss by `scale` * t standard deviations, whatever the length of the gradient.
    """

    gradient: Callable[[Tensor, int], Tensor]
    scale: float

    def bent(self, velocity: Tensor, x: Tensor, time: float, step: int, flow: FlowTransformer) -> Tensor:
        """The velocity (B, d, h, w) of `x` with the lead; each picture's own."""
        clean = x - time * velocity
        gradient = self.gradient(flow.denormalise(clean), step) * flow.deviation[:, None, None]
        size = gradient.square().mean((1, 2, 3), keepdim=True).sqrt()
        return velocity + self.scale * gradient / size.clamp(min=TINY)


def own_rows(tensor: Tensor, rows: slice) -> Tensor:
    """Some rows of a tensor, or the one that all pictures share."""
    return tensor if len(tensor) == 1 else tensor[rows]


def picture_noise(seed: int, pictures: Sequence[int], shape: tuple[int, int, int]) -> Tensor:
    """Gaussian noise of `shape` (d, h, w) for each of `pictures`, from the stream (seed, picture): (B, d, h, w)."""
    drawn = [stream(seed, index).standard_normal(shape, dtype=np.float32) for index in pictures]
    return torch.from_numpy(np.stack(drawn))


@torch.no_grad()
def draw_latents(
    flow: FlowTransformer,
    condition: Condition | WeightedConditions,
    noise: Tensor,
    settings: FlowSettings,
    cfg: float = 1.0,
    *,
    unconditional: Condition | None = None,
    known: KnownLatent | None = None,
    start: Start | None = None,
    lead: Lead | None = None,
    precision: str = FLOAT32,
    seen: Seen | None = None,
    progress: Progress | None = None,
) -> Tensor:
    """Draw one picture's latent from each row of `noise` (B, d, h, w) -> latents of that shape, not quantised.

    The known part of a latent is led along the straight line from its noise to what it is, so that what is drawn sees
    it at every step (Lugmayr et al. 2022, section 4.1, without their returns).

    Args:
        flow: in eval mode.
        condition: of B rows or of one; several with weights are added up as `guided_terms` says.
        noise: h and w must be multiples of the network's patch.
        settings: how the steps are taken.
        cfg: scale of classifier-free guidance.
        unconditional: what guidance leads away from; None is the empty condition.
        known: what is kept.
        start: what is drawn anew, from its time on and in that share of the steps; None is noise alone.
        lead: what bends the velocity at every step.
        precision: in what the network multiplies, as `autocast` names it.
        seen: gets what each step would end at, as the VQGAN's decoder reads it.
        progress: counts steps.

    Raises:
        UsageError: if the grid has no whole patches.
    """
    check_patches(flow, noise)
    noise = noise.to(flow.device)
    kept = None if known is None else (flow.normalise(known.latent), known.fixed.unsqueeze(1))
    terms = {scale: guided_terms(condition, scale, unconditional or Condition()) for scale in {1.0, cfg}}
    velocity = _Guided(flow, terms[cfg], terms[1.0], settings.cfg_interval, precision, lead)

    def settled(x: Tensor, time: float) -> Tensor:
        return x if kept is None else torch.where(kept[1], torch.lerp(kept[0], noise, time), x)

    first = 1.0 if start is None else start.time
    steps = max(1, round(first * settings.steps))
    times = torch.linspace(first, 0, steps + 1, dtype=torch.float64).tolist()
    step = SAMPLERS[settings.sampler]()
    x = noise if start is None else settled(torch.lerp(flow.normalise(start.latent), noise, first), first)
    for number, (time, after) in enumerate(pairwise(times)):
        velocity.step = number
        x = settled(step(velocity, x, time, after), after)
        if seen is not None:
            seen(flow.denormalise(velocity.clean), number + 1, steps)
        if progress is not None:
            progress(number + 1, steps)
    return flow.denormalise(x)


@dataclass
class _Guided:
    """The velocity that a step takes: with classifier-free guidance at the times of `interval`, and the lead's bend.

    `guided` and `plain` are the terms that are added up. `step` is the number of the step, and `clean` (B, d, h, w) the
    normalised latent that the last velocity leads to.
    """

    flow: FlowTransformer
    guided: WeightedConditions
    plain: WeightedConditions
    interval: tuple[float, float]
    precision: str
    lead: Lead | None
    step: int = 0
    clean: Tensor = field(default_factory=lambda: torch.empty(0))

    def __call__(self, x: Tensor, time: float) -> Tensor:
        low, high = self.interval
        velocity = self._added_up(x, time, self.guided if low <= time <= high else self.plain)
        if self.lead is not None:
            velocity = self.lead.bent(velocity, x, time, self.step, self.flow)
        self.clean = x - time * velocity
        return velocity

    def _added_up(self, x: Tensor, time: float, terms: WeightedConditions) -> Tensor:
        """The sum of the velocities of `x` (B, d, h, w) at a time, each of a condition and with its factor."""
        least = 1 if self.precision == FLOAT32 else LEAST
        rows = torch.arange(max(least, len(x)), device=x.device) % len(x)
        times = x.new_full((len(rows),), time)
        pairs = [(rows_of(part, rows), share) for part, share in terms]
        with autocast(self.precision, self.flow.device):
            parts = [share * self.flow(x[rows], times, part) for part, share in pairs]
        return torch.stack(parts).sum(0)[: len(x)]


@torch.no_grad()
def noise_of(flow: FlowTransformer, latent: Tensor, steps: int) -> Tensor:
    """The noise that the flow leads to a VQGAN's latent (B, d, h, w), without a condition: of the same shape.

    The same path is followed from time 0 to 1, in Heun's steps (as DDIM's inversion, Song et al. 2021, section 4.3).

    Raises:
        UsageError: if the grid has no whole patches.
    """
    check_patches(flow, latent)
    x, step = flow.normalise(latent), _Heun()
    for time, after in pairwise(torch.linspace(0, 1, steps + 1, dtype=torch.float64).tolist()):
        x = step(lambda x, time: flow(x, x.new_full((len(x),), time)), x, time, after)
    return x


def check_patches(flow: FlowTransformer, latent: Tensor) -> None:
    """Raises UsageError if a latent (B, d, h, w) has no whole patches of the network."""
    (rows, columns), patch = latent.shape[-2:], flow.config.patch
    if rows % patch or columns % patch:
        raise UsageError(f"a grid of {rows} x {columns} codes has no whole squares of {patch} x {patch}")


class _Euler:
    def __call__(self, velocity: Velocity, x: Tensor, time: float, after: float) -> Tensor:
        return x + (after - time) * velocity(x, time)


class _Heun:
    def __call__(self, velocity: Velocity, x: Tensor, time: float, after: float) -> Tensor:
        first = velocity(x, time)
        ahead = x + (after - time) * first
        if after == 0:
            return ahead  # no noise is left there that a velocity could be learned from
        return x + (after - time) * (first + velocity(ahead, after)) / 2


class _DPM:
    """With x_t = (1 - t) x + t e the half log-SNR is log((1 - t) / t). The first and the last step are of first order,
    which is Euler's."""

    def __init__(self) -> None:
        self.before: tuple[Tensor, float] | None = None  # the clean latent predicted at the step before, and its time

    def __call__(self, velocity: Velocity, x: Tensor, time: float, after: float) -> Tensor:
        clean = x - time * velocity(x, time)
        before, self.before = self.before, (clean, time)
        if before is None or before[1] == 1 or after == 0:
            target = clean
        else:
            ahead = _log_snr(after) - _log_snr(time)
            back = _log_snr(time) - _log_snr(before[1])
            target = clean + (clean - before[0]) * (ahead / (2 * back))
        return x * (after / time) + target * (1 - after / time)


def _log_snr(time: float) -> float:
    return float(np.log((1 - time) / time))


SAMPLERS: dict[str, Callable[[], Callable[[Velocity, Tensor, float, float], Tensor]]] = {
    "euler": _Euler,
    "heun": _Heun,
    "dpm": _DPM,
}
