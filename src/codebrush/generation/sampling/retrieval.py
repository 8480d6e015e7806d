"""Draws from the embedding of a picture that fits the prompt: text embedding, image embedding, picture, as DALL-E 2.

The image embedding is blended from known pictures near the text (a bank), predicted by a learned prior, or the text's
own embedding is used in its place.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from codebrush.errors import PackError, UsageError
from codebrush.generation.manifest import retrieval_entry
from codebrush.generation.options import DrawOptions
from codebrush.generation.sampling.drawing import Drawing
from codebrush.generation.sampling.sampler import Sampler
from codebrush.models.bank import Neighbours, blended
from codebrush.models.prior import Prior

PRIORS = ("retrieval", "mlp", "none")
NEIGHBOURS = 4
MOST_NEIGHBOURS = 1000
NearestPictures = Callable[[Tensor, int], Neighbours]  # a unit vector (E,) and k -> the k nearest known pictures


@dataclass(frozen=True)
class Retrieval:
    """Where the image embedding comes from.

    `prior` is one of PRIORS. "retrieval" blends the `neighbours` nearest pictures of a `bank`: a database of
    `codebrush index`, or "" for the pack's own.

    Raises:
        UsageError: if a value is out of its range, or a bank is given that the prior does not use.
    """

    prior: str = "retrieval"
    neighbours: int = NEIGHBOURS
    bank: str = ""

    def __post_init__(self) -> None:
        if self.prior not in PRIORS:
            raise UsageError(f"prior must be one of {', '.join(PRIORS)}, not {self.prior}")
        if not isinstance(self.neighbours, int) or not 1 <= self.neighbours <= MOST_NEIGHBOURS:
            raise UsageError(f"neighbours must be from 1 to {MOST_NEIGHBOURS}, not {self.neighbours}")
        if self.prior != "retrieval" and self.bank:
            raise UsageError(f"bank is used by the prior retrieval only, not by {self.prior}: leave one of them out")


@torch.no_grad()
def prepare_retrieval(
    sampler: Sampler,
    prompt: str,
    options: DrawOptions,
    how: Retrieval,
    nearest: NearestPictures | None = None,
    prior: Prior | None = None,
) -> Drawing:
    """A drawing from the embedding of a picture that fits the prompt, beside the prompt itself.

    `nearest` searches the bank and `prior` is the learned one; what `how` does not ask for may be left out. The
    neighbours found are listed in the manifest.

    Raises:
        PackError: if the code transformer takes no image embedding, or there is no bank or prior.
        PromptError: if the prompt cannot be read.
    """
    sampler.require_image_embedding()
    drawing = sampler.prepare(prompt, options)
    weights = torch.tensor(drawing.weights, device=drawing.texts.device)
    query = F.normalize(weights @ drawing.texts, dim=0)  # (E,); parts of negative weight are subtracted
    found: list[tuple[str, float]] | None = None
    if how.prior == "retrieval":
        if nearest is None:
            raise sampler.pack.missing("bank")
        neighbours = nearest(query, how.neighbours)
        if not neighbours.names:
            raise PackError("the bank is empty: index some pictures")
        embedding = blended(neighbours)
        found = list(zip(neighbours.names, neighbours.cosines.tolist(), strict=True))
    elif how.prior == "mlp":
        if prior is None:
            raise sampler.pack.missing("prior")
        embedding = prior(query[None])[0]
    else:
        embedding = query
    conditions = [
        (replace(condition, image_embedding=embedding[None]), weight) for condition, weight in drawing.conditions
    ]
    bank = os.path.abspath(how.bank) if how.bank else ""
    member = {"retrieval": "" if how.bank else "bank", "mlp": "prior", "none": ""}[how.prior]
    digest = sampler.pack.hash_of(member) if member and sampler.pack.has(member) else None
    method = sampler.painter.method if sampler.painter.from_noise else "retrieve"
    entry = retrieval_entry(method, how.prior, how.neighbours, bank, found, digest)
    return replace(drawing, conditions=conditions, entry=entry)
