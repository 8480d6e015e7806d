"""Embeddings of pictures and of texts -> how well they find each other."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from codebrush.errors import CodebrushError

CUTS = (1, 5, 10)  # the k of recall@k
CANDIDATES = 100  # texts that a drawn picture's own is to be told from, itself among them
BLOCK = 1024  # queries compared at a time, which bounds the memory
Right = Callable[[int, int], Tensor]


def ranks(queries: Tensor, keys: Tensor, right: Tensor) -> Tensor:
    """How many keys stand before the right one: unit queries (Q, E), keys (K, E), right (Q,) -> (Q,) int64.

    Others exactly as near count as nearer: a space that tells nothing apart finds nothing.
    """
    found = []
    for start in range(0, len(queries), BLOCK):
        cosines = _cosines(queries[start : start + BLOCK], keys)
        own = cosines.gather(1, right[start : start + BLOCK, None])
        found.append((cosines >= own).sum(1) - 1)  # the right one is as near as itself
    return torch.cat(found)


def _cosines(queries: Tensor, keys: Tensor) -> Tensor:
    """(Q, E), (K, E) -> (Q, K); what is no number would compare as neither nearer nor farther."""
    cosines = queries @ keys.T
    if cosines.isnan().any():
        raise CodebrushError("embeddings hold values that are no numbers (NaN): the model that made them is damaged")
    return cosines


def top_k(found: Tensor, k: int) -> float:
    """Share of queries whose right key is among the first `k`."""
    return (found < k).float().mean().item()


def zero_shot(
    images: Tensor, labels: Sequence[str], label_embeddings: Tensor, names: Sequence[str]
) -> dict[str, float]:
    """Picture -> label among all `labels`: unit images (N, E) whose labels are `names`; top-1, top-5, and the mean of
    the labels' own top-1 (of those with pictures), by which a rare label counts as much as a common one.

    Each distinct label counts once, however many pictures share it.
    """
    place = {label: index for index, label in enumerate(labels)}
    right = torch.tensor([place[name] for name in names])
    found = ranks(images, label_embeddings, right)
    counts = {"labels": float(len(labels)), "pictures": float(len(images))}
    return {"top1": top_k(found, 1), "top5": top_k(found, 5), "mean_per_class": per_class(found, right), **counts}


def per_class(found: Tensor, right: Tensor) -> float:
    """The mean over classes of the share that is first in each: ranks (N,) and the right classes' numbers (N,)."""
    _, classes, counts = right.unique(return_inverse=True, return_counts=True)
    hits = torch.zeros(len(counts), dtype=torch.float64).index_add_(0, classes, (found < 1).double())
    return (hits / counts).mean().item()


def cross_retrieval(images: Tensor, texts: Tensor, owners: Sequence[Sequence[int]]) -> dict[str, dict[str, float]]:
    """Pictures (N, E) and distinct texts (T, E), unit vectors, both ways; `owners` are each picture's texts' places.

    recall@k is the share of queries with anything right among the first k (torchmetrics' retrieval hit rate). Every
    text of a picture is right for it, and every picture with a text for that text; strangers exactly as near as the
    nearest right one stand before it.
    """
    rows = torch.tensor([row for row, places in enumerate(owners) for _ in places])
    columns = torch.tensor([place for places in owners for place in places])

    def block(lines: Tensor, across: Tensor, width: int) -> Right:
        def cut(start: int, stop: int) -> Tensor:
            inside = (lines >= start) & (lines < stop)
            right = torch.zeros(stop - start, width, dtype=torch.bool)
            right[lines[inside] - start, across[inside]] = True
            return right

        return cut

    found = {
        "image_to_text": first_right(images, texts, block(rows, columns, len(texts))),
        "text_to_image": first_right(texts, images, block(columns, rows, len(images))),
    }
    among = {"image_to_text": len(texts), "text_to_image": len(images)}
    return {
        way: {f"recall_at_{k}": top_k(places, k) for k in CUTS} | {"queries": len(places), "among": among[way]}
        for way, places in found.items()
    }


def first_right(queries: Tensor, keys: Tensor, right: Right) -> Tensor:
    """How many wrong keys stand before the first right one: unit queries (Q, E), keys (K, E) -> (Q,) int64.

    `right(start, stop)` says which keys are right for those queries, (stop - start, K) bool; a query without any
    has all keys before it.
    """
    found = []
    for start in range(0, len(queries), BLOCK):
        stop = min(start + BLOCK, len(queries))
        cosines, own = _cosines(queries[start:stop], keys), right(start, stop)
        best = cosines.masked_fill(~own, float("-inf")).amax(1, keepdim=True)
        found.append(((cosines >= best) & ~own).sum(1))
    return torch.cat(found)


def clip_score(images: Tensor, texts: Tensor, owners: Sequence[Sequence[int]]) -> dict[str, float]:
    """How well pictures (N, E) fit their own texts (T, E), unit vectors; `owners` are each picture's texts' places.

    `mean_cosine` is over pictures, of the mean over the texts of each. `torchmetrics` is that library's convention:
    100 times it, and nothing below 0 (Hessel et al. 2021 take 2.5 times the cosine instead).
    """
    rows = [float((texts[list(places)] @ image).mean()) for image, places in zip(images, owners, strict=True)]
    mean = sum(rows) / len(rows)
    return {"mean_cosine": mean, "torchmetrics": max(100 * mean, 0.0)}


def r_precision(
    images: Tensor, own: Sequence[int], texts: Tensor, candidates: int = CANDIDATES, seed: int = 0
) -> dict[str, float]:
    """How often a drawn picture's own prompt is its nearest text (Xu et al. 2018, section 4.1: one right, 99 wrong).

    Unit images (N, E), the places of their prompts among distinct texts (T, E). The wrong ones are drawn anew for each
    picture; fewer than `candidates` texts are all taken. One exactly as near stands before it.
    """
    generator = torch.Generator().manual_seed(seed)
    right = 0
    for image, place in zip(images, own, strict=True):
        others = torch.randperm(len(texts), generator=generator)
        others = others[others != place][: candidates - 1]
        cosines = _cosines(image[None], texts[torch.cat([torch.tensor([place]), others])])[0]
        right += int((cosines[1:] < cosines[0]).all())
    return {"r_precision": right / len(images), "candidates": min(candidates, len(texts))}
