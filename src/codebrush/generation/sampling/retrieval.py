"""DALL-E's three steps: a text's embedding, the embedding of a picture that fits it, a picture drawn from that.

The second step looks into a bank of known pictures, asks a learned prior, or takes the text's own embedding as it is.
"""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from codebrush.errors import ImageError, PackError, UsageError
from codebrush.generation.options import DrawOptions
from codebrush.generation.sampling.sampler import Drawing, Sampler
from codebrush.models.prior import Neighbours, blended

PRIORS = ("retrieval", "mlp", "none")
NEIGHBOURS = 4
MOST_NEIGHBOURS = 1000
Find = Callable[[Tensor, int], Neighbours]  # a unit vector (E,) and k -> the nearest pictures


@dataclass(frozen=True)
class Retrieval:
    """How a picture's embedding is found: by which of PRIORS, of how many neighbours blended, in which bank ("": the
    pack's own, else a database of `codebrush index`)."""

    prior: str = "retrieval"
    neighbours: int = NEIGHBOURS
    bank: str = ""

    def __post_init__(self) -> None:
        if self.prior not in PRIORS:
            raise UsageError(f"prior must be one of {', '.join(PRIORS)}, not {self.prior}")
        if not 1 <= self.neighbours <= MOST_NEIGHBOURS:
            raise UsageError(f"neighbours must be from 1 to {MOST_NEIGHBOURS}, not {self.neighbours}")
        if self.prior != "retrieval" and self.bank:
            raise UsageError(f"a bank is looked into by the retrieval prior, not by {self.prior}")


@torch.no_grad()
def retrieved(
    sampler: Sampler, prompt: str, options: DrawOptions, how: Retrieval, find: Find | None, prior: Any = None
) -> Drawing:
    """A prompt made ready to be drawn from the embedding of a picture that fits it, beside its own words.

    `find` looks into the bank and `prior` is the learned one. The neighbours used stand in the manifest. Raises
    PackError where the code transformer reads no picture's embedding or what is asked for is not there.
    """
    if not sampler.transformer.config.image_embedding:
        raise PackError("this pack's code transformer reads no picture's embedding: train one with image_share")
    drawing = sampler.prepare(prompt, options)
    weights = torch.tensor(drawing.weights, device=drawing.texts.device)
    query = F.normalize(weights @ drawing.texts, dim=0)  # (E,): what leads away is gone from it
    bank = os.path.abspath(how.bank) if how.bank else ""
    about: dict[str, Any] = {"prior": how.prior, "neighbours": how.neighbours, "bank": bank}
    if how.prior == "retrieval":
        if find is None:
            raise PackError("this pack has no bank of pictures: name a database of codebrush index with --bank")
        found = find(query, how.neighbours)
        if not found.names:
            raise PackError("the bank is empty: index some pictures")
        embedding = blended(found)
        near = [
            {"name": name, "cosine": cosine} for name, cosine in zip(found.names, found.cosines.tolist(), strict=True)
        ]
        about["found"] = near
    elif how.prior == "mlp":
        if prior is None:
            raise PackError("this pack has no learned prior: use --prior retrieval or none")
        embedding = prior(query[None])[0]
    else:
        embedding = query
    member = {"retrieval": "" if how.bank else "bank", "mlp": "prior", "none": ""}[how.prior]
    about |= {"hash": sampler.pack.hash_of(member)} if member and sampler.pack.has(member) else {}
    conditions = [
        (replace(condition, image_embedding=embedding[None]), weight) for condition, weight in drawing.conditions
    ]
    return replace(drawing, conditions=conditions, about={"method": "retrieve", "retrieval": about})


def same_as(drawing: Drawing, manifest: Mapping[str, Any]) -> Drawing:
    """A drawing that is made ready again; see `check_retrieved`."""
    check_retrieved(drawing.about["retrieval"], manifest["retrieval"])
    return drawing


def check_retrieved(now: Mapping[str, Any], then: Mapping[str, Any]) -> None:
    """Raises ImageError where a replay has found something else than the picture was drawn from."""
    names = [[near["name"] for near in found.get("found", [])] for found in (now, then)]
    if names[0] != names[1] or now.get("hash") != then.get("hash"):
        where = now["bank"] or f"the pack's {'prior' if now['prior'] == 'mlp' else 'bank'}"
        raise ImageError(f"{where} has changed since the picture was made: put the old one back")
