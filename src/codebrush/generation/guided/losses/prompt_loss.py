"""Prompts as weighted embeddings in CLIP's space, and the loss of a view: its distances to them."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from codebrush.errors import UsageError
from codebrush.generation.guided.guide_options import GuideOptions
from codebrush.generation.guided.option_values import split_weights
from codebrush.text.prompts import WeightedText

NO_STOP = -math.inf  # a stop that no distance is below
TINY = 1e-12  # squared distances below it have no direction
LONGEST_SEED = 20  # digits


@dataclass(frozen=True, eq=False)
class PromptEmbeddings:
    """What guidance moves the views towards, or away from where the weight is negative, in one CLIP's space."""

    embeddings: Tensor  # (P, E) unit vectors
    weights: Tensor  # (P,)
    stops: Tensor  # (P,): no gradient from a prompt while sign(weight) * distance is below it; -inf: always one

    def __len__(self) -> int:
        return len(self.weights)

    def to(self, device: torch.device | str) -> "PromptEmbeddings":
        """The same object on another device."""
        return PromptEmbeddings(self.embeddings.to(device), self.weights.to(device), self.stops.to(device))


def join_prompts(parts: Sequence[PromptEmbeddings]) -> PromptEmbeddings:
    """All prompts of `parts`, in their order."""
    names = ("embeddings", "weights", "stops")
    return PromptEmbeddings(*(torch.cat([getattr(part, name) for part in parts]) for name in names))


def embed_prompt(
    parts: Sequence[WeightedText], options: GuideOptions, embed: Callable[[Sequence[str]], Tensor]
) -> PromptEmbeddings:
    """Embed a prompt's parts and the included and excluded texts; `embed` maps n texts to unit vectors (n, E).

    A part that attracts has the direction of w1 * text + w2 * the mean of the extra texts; all parts have their weight
    times alpha. The excluded texts share the weight -beta. This follows the classic notebook, except that all
    embeddings are unit vectors, so that the weights are what they say.

    Raises:
        UsageError: if w1 and w2 make a blend of prompt and extra texts vanish.
    """
    included = [*parts, *(WeightedText(text) for text in options.include)]
    embeddings = embed([part.text for part in included])
    if options.extra:
        extra = embed(options.extra).mean(0)
        mixed = options.w1 * embeddings + options.w2 * extra
        attracts = torch.tensor([part.weight > 0 for part in included], device=embeddings.device)
        if bool((mixed[attracts].square().sum(-1) < TINY).any()):
            raise UsageError(f"w1 {options.w1:g} and w2 {options.w2:g} leave nothing of prompt and extra: change one")
        embeddings = torch.where(attracts[:, None], F.normalize(mixed, dim=-1), embeddings)
    weights = [options.alpha * part.weight for part in included]
    stops = [NO_STOP if part.stop is None else part.stop for part in included]
    if options.exclude:
        embeddings = torch.cat([embeddings, embed(options.exclude)])
        weights += [-options.beta / len(options.exclude)] * len(options.exclude)
        stops += [NO_STOP] * len(options.exclude)
    return PromptEmbeddings(embeddings, embeddings.new_tensor(weights), embeddings.new_tensor(stops))


def noise_prompts(prompts: Sequence[str], embed_dim: int) -> PromptEmbeddings:
    """Random unit vectors, one for each "SEED[:weight[:stop]]". Raises UsageError if one does not begin with a seed."""
    found = [split_weights(text) for text in prompts]
    for seed, _, _ in found:
        if not (seed.isascii() and seed.isdigit() and len(seed) <= LONGEST_SEED):
            raise UsageError(f"noise_prompt must begin with a seed of at most {LONGEST_SEED} digits, not {seed}")
    vectors = np.array([np.random.default_rng(int(seed)).standard_normal(embed_dim) for seed, _, _ in found])
    embeddings = F.normalize(torch.from_numpy(vectors).float(), dim=-1)
    stops = [NO_STOP if stop is None else stop for _, _, stop in found]
    return PromptEmbeddings(embeddings, torch.tensor([weight for _, weight, _ in found]), torch.tensor(stops))


def spherical_distance(a: Tensor, b: Tensor) -> Tensor:
    """Half the squared angle between unit vectors a (V, E) and b (P, E): (V, P), as 2 arcsin(|a - b| / 2)^2.

    The loss of VQGAN-CLIP (Crowson et al. 2022).
    """
    square = (a[:, None] - b[None]).square().sum(-1)  # (V, P), of the chord
    # Away from both ends, where the root and the arcsine have infinite slopes.
    half = square.clamp(min=TINY).sqrt() / 2
    return 2 * half.clamp(max=1 - 1e-6).arcsin().square()


def cosine_distance(a: Tensor, b: Tensor) -> Tensor:
    """1 - cosine of unit vectors a (V, E) and b (P, E): (V, P)."""
    return 1 - a @ b.T


def prompt_loss(views: Tensor, prompts: PromptEmbeddings, distance: str) -> Tensor:
    """The loss of each view (V,): the weighted sum of its distances to the prompts. Views (V, E) are unit vectors.

    A prompt that is closer than its stop gives no gradient; its distance still counts in the loss.
    """
    measure = spherical_distance if distance == "spherical" else cosine_distance
    distances = measure(views, prompts.embeddings.to(views.dtype))  # (V, P)
    weights = prompts.weights.to(views.dtype)
    reached = distances.detach() * weights.sign() < prompts.stops.to(views.dtype)
    return torch.where(reached, distances.detach(), distances) @ weights


@torch.no_grad()
def similarity(views: Tensor, prompts: PromptEmbeddings) -> Tensor:
    """The weighted mean cosine of views (V, E) with the prompts that attract: a scalar without gradient."""
    shares = prompts.weights.clamp(min=0).to(views.dtype)
    return (views @ prompts.embeddings.to(views.dtype).T).mean(0) @ shares / shares.sum().clamp(min=1e-12)
