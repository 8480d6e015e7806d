"""Embeddings of views and of what they should and should not resemble in, the loss of each view out."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from codebrush.errors import UsageError
from codebrush.generation.guided.guide_options import GuideOptions
from codebrush.text.prompts import LARGEST_WEIGHT, WeightedText, read_number

NONE = -math.inf  # a stop that is never reached
TINY = 1e-12  # squared distances below it have no direction
LONGEST_SEED = 20  # digits


@dataclass(frozen=True, eq=False)
class Targets:
    """What guidance goes to, and away from where the weight is negative, in one CLIP's space."""

    embeddings: Tensor  # (P, E) unit vectors
    weights: Tensor  # (P,)
    stops: Tensor  # (P,): where weight's sign times distance is below it, the target no longer counts; -inf: never

    def __len__(self) -> int:
        return len(self.weights)

    def to(self, device: torch.device | str) -> "Targets":
        """The same on another device."""
        return Targets(self.embeddings.to(device), self.weights.to(device), self.stops.to(device))


def join_targets(parts: Sequence[Targets]) -> Targets:
    """All targets of `parts`, in their order."""
    return Targets(*(torch.cat([getattr(part, name) for part in parts]) for name in ("embeddings", "weights", "stops")))


def text_targets(
    parts: Sequence[WeightedText], options: GuideOptions, embed: Callable[[Sequence[str]], Tensor]
) -> Targets:
    """Targets of a prompt's parts and of the included and excluded texts; `embed` gives unit vectors (n, E).

    What should be seen has the direction of w1 * text + w2 * the mean of the extra texts, and its weight times alpha.
    The excluded texts share the weight -beta. These are the meanings of the classic notebook, but that all embeddings
    are unit vectors, so that the shares are what they say. Raises UsageError where a mixture cancels out.
    """
    wanted = [*parts, *(WeightedText(text) for text in options.include)]
    embeddings = embed([part.text for part in wanted])
    if options.extra:
        extra = embed(options.extra).mean(0)
        mixed = options.w1 * embeddings + options.w2 * extra
        towards = torch.tensor([part.weight > 0 for part in wanted], device=embeddings.device)
        if bool((mixed[towards].square().sum(-1) < TINY).any()):
            raise UsageError(f"w1 {options.w1:g} and w2 {options.w2:g} leave nothing of prompt and extra: change one")
        embeddings = torch.where(towards[:, None], F.normalize(mixed, dim=-1), embeddings)
    weights = [options.alpha * part.weight for part in wanted]
    stops = [NONE if part.stop is None else part.stop for part in wanted]
    if options.exclude:
        embeddings = torch.cat([embeddings, embed(options.exclude)])
        weights += [-options.beta / len(options.exclude)] * len(options.exclude)
        stops += [NONE] * len(options.exclude)
    return Targets(embeddings, embeddings.new_tensor(weights), embeddings.new_tensor(stops))


def noise_targets(prompts: Sequence[str], embed_dim: int) -> Targets:
    """Random unit vectors, one for each "SEED[:weight[:stop]]"."""
    found = [split_weights(text) for text in prompts]
    for seed, _, _ in found:
        if not (seed.isascii() and seed.isdigit() and len(seed) <= LONGEST_SEED):
            raise UsageError(f"noise_prompt must begin with a seed of at most {LONGEST_SEED} digits, not {seed}")
    vectors = np.array([np.random.default_rng(int(seed)).standard_normal(embed_dim) for seed, _, _ in found])
    embeddings = F.normalize(torch.from_numpy(vectors).float(), dim=-1)
    stops = [NONE if stop is None else stop for _, _, stop in found]
    return Targets(embeddings, torch.tensor([weight for _, weight, _ in found]), torch.tensor(stops))


def split_weights(text: str) -> tuple[str, float, float | None]:
    """A name, its weight (1) and its stop (None) from NAME[:weight[:stop]].

    Numbers are read from the right, because names may hold colons; what is no number belongs to the name. Raises
    UsageError for a weight that is not within -100 and 100 and for a stop that is not finite.
    """
    name, numbers = text, []
    while len(numbers) < 2:
        head, colon, tail = name.rpartition(":")
        number = read_number(tail)
        if not colon or not head or number is None:
            break
        name, numbers = head, [number, *numbers]
    weight = numbers[0] if numbers else 1.0
    stop = numbers[1] if len(numbers) > 1 else None
    if not abs(weight) <= LARGEST_WEIGHT:  # nor is nan
        raise UsageError(f"the weight of {text} must lie between {-LARGEST_WEIGHT:g} and {LARGEST_WEIGHT:g}")
    if stop is not None and not math.isfinite(stop):
        raise UsageError(f"the stop of {text} must be a finite number, such as 0.4")
    return name, weight, stop


def spherical_distance(a: Tensor, b: Tensor) -> Tensor:
    """Half the squared angle between unit vectors a (V, E) and b (P, E): (V, P), as 2 arcsin(|a - b| / 2)^2."""
    square = (a[:, None] - b[None]).square().sum(-1)  # (V, P), of the chord
    # Away from both ends, where the root and the arcsine have infinite slopes.
    half = square.clamp(min=TINY).sqrt() / 2
    return 2 * half.clamp(max=1 - 1e-6).arcsin().square()


def cosine_distance(a: Tensor, b: Tensor) -> Tensor:
    """1 - cosine of unit vectors a (V, E) and b (P, E): (V, P)."""
    return 1 - a @ b.T


def view_loss(views: Tensor, targets: Targets, distance: str) -> Tensor:
    """The loss of each view (V,): the weighted sum of its distances to the targets, views being unit vectors (V, E).

    A target that has been reached as far as its stop says gives no gradient; its value still counts.
    """
    measure = spherical_distance if distance == "spherical" else cosine_distance
    distances = measure(views, targets.embeddings.to(views.dtype))  # (V, P)
    weights = targets.weights.to(views.dtype)
    reached = distances.detach() * weights.sign() < targets.stops.to(views.dtype)
    return torch.where(reached, distances.detach(), distances) @ weights


@torch.no_grad()
def similarity(views: Tensor, targets: Targets) -> Tensor:
    """The mean cosine of views (V, E) with what they should resemble, weighted: a scalar without gradient."""
    shares = targets.weights.clamp(min=0).to(views.dtype)
    return (views @ targets.embeddings.to(views.dtype).T).mean(0) @ shares / shares.sum().clamp(min=1e-12)


def target_pull(images: Tensor, targets: Sequence[tuple[Tensor, float]]) -> Tensor:
    """Weighted mean squared differences of images (B, 3, H, W) from target pictures (1, 3, H, W): a scalar."""
    return torch.stack([weight * (images - target).square().mean() for target, weight in targets]).sum()
