"""Metrics of how well embeddings of pictures and texts match: zero-shot accuracy, recall, CLIP score, R-precision."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from codebrush.errors import CodebrushError

CUTS = (1, 5, 10)  # the k of recall@k
CANDIDATES = 100  # texts that R-precision ranks for each drawn picture, its own prompt included
BLOCK = 1024  # queries compared at once, which bounds the memory
Right = Callable[[int, int], Tensor]


def ranks(queries: Tensor, keys: Tensor, right: Tensor) -> Tensor:
    """How many keys rank before the right one: unit queries (Q, E), keys (K, E), right key of each (Q,) -> (Q,) int64.

    Ties rank before the right one, so that embeddings which are all equal find nothing.

    Raises:
        CodebrushError: if an embedding holds NaN.
    """
    found = []
    for start in range(0, len(queries), BLOCK):
        cosines = _cosines(queries[start : start + BLOCK], keys)
        own = cosines.gather(1, right[start : start + BLOCK, None])
        found.append((cosines >= own).sum(1) - 1)  # without the right one itself
    return torch.cat(found)


def _cosines(queries: Tensor, keys: Tensor) -> Tensor:
    """(Q, E), (K, E) -> cosines (Q, K); NaN is refused, since it compares as neither nearer nor farther."""
    cosines = queries @ keys.T
    if cosines.isnan().any():
        raise CodebrushError("embeddings hold NaN: the CLIP that made them is damaged, use another")
    return cosines


def top_k(found: Tensor, k: int) -> float:
    """The share of queries whose right key is among the first `k`, from the ranks of `ranks` or `first_right` (Q,)."""
    return (found < k).float().mean().item()


def zero_shot(
    images: Tensor, labels: Sequence[str], label_embeddings: Tensor, names: Sequence[str]
) -> dict[str, float]:
    """Zero-shot classification of unit images (N, E), whose true labels are `names`, by the distinct `labels` with unit
    embeddings (L, E).

    Returns top-1 and top-5 accuracy, and the mean over labels (those with pictures) of their own top-1, in which rare
    labels count as much as common ones; accuracies are 0 to 1.

    Raises:
        CodebrushError: if an embedding holds NaN.
    """
    place = {label: index for index, label in enumerate(labels)}
    right = torch.tensor([place[name] for name in names])
    found = ranks(images, label_embeddings, right)
    counts = {"labels": float(len(labels)), "pictures": float(len(images))}
    return {"top1": top_k(found, 1), "top5": top_k(found, 5), "mean_per_class": per_class(found, right), **counts}


def per_class(found: Tensor, right: Tensor) -> float:
    """The mean over classes of their top-1 accuracy, from ranks (N,) and the true classes (N,)."""
    _, classes, counts = right.unique(return_inverse=True, return_counts=True)
    hits = torch.zeros(len(counts), dtype=torch.float64).index_add_(0, classes, (found < 1).double())
    return (hits / counts).mean().item()


def cross_retrieval(images: Tensor, texts: Tensor, owners: Sequence[Sequence[int]]) -> dict[str, dict[str, float]]:
    """Retrieval of texts by picture and of pictures by text, from unit vectors of pictures (N, E) and of distinct texts
    (T, E); `owners` lists for each picture the rows of its texts.

    recall@k is the share of queries with a right result among the first k (torchmetrics' retrieval hit rate). All texts
    of a picture are right for it, and all pictures with a text are right for that text. Ties rank before the right one.

    Raises:
        CodebrushError: if an embedding holds NaN.
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
    """How many wrong keys rank before the first right one: unit queries (Q, E), keys (K, E) -> (Q,) int64.

    `right(start, stop)` says which keys are right for those queries, (stop - start, K) bool. A query without a right
    key gets K.
    """
    found = []
    for start in range(0, len(queries), BLOCK):
        stop = min(start + BLOCK, len(queries))
        cosines, own = _cosines(queries[start:stop], keys), right(start, stop)
        best = cosines.masked_fill(~own, float("-inf")).amax(1, keepdim=True)
        found.append(((cosines >= best) & ~own).sum(1))
    return torch.cat(found)


def clip_score(images: Tensor, texts: Tensor, owners: Sequence[Sequence[int]]) -> dict[str, float]:
    """How well pictures (N, E) match their texts (T, E), unit vectors; `owners` lists the rows of each picture's texts.

    `mean_cosine` is the mean over pictures of the mean over their texts. `torchmetrics` is the score as that library
    scales it: 100 times the cosine, at least 0 (Hessel et al. 2021 take 2.5 times the cosine instead).
    """
    rows = [float((texts[list(places)] @ image).mean()) for image, places in zip(images, owners, strict=True)]
    mean = sum(rows) / len(rows)
    return {"mean_cosine": mean, "torchmetrics": max(100 * mean, 0.0)}


def r_precision(
    images: Tensor, own: Sequence[int], texts: Tensor, candidates: int = CANDIDATES, seed: int = 0
) -> dict[str, float]:
    """How often the prompt of a drawn picture is its nearest text (Xu et al. 2018, section 4.1: one right, 99 wrong).

    Takes unit images (N, E) and the rows `own` of their prompts among the distinct texts (T, E). The wrong texts are
    drawn at random for each picture; with fewer than `candidates` texts all are used. Ties rank before the prompt.

    Raises:
        CodebrushError: if an embedding holds NaN.
    """
    generator = torch.Generator().manual_seed(seed)
    right = 0
    for image, place in zip(images, own, strict=True):
        others = torch.randperm(len(texts), generator=generator)
        others = others[others != place][: candidates - 1]
        cosines = _cosines(image[None], texts[torch.cat([torch.tensor([place]), others])])[0]
        right += int((cosines[1:] < cosines[0]).all())
    return {"r_precision": right / len(images), "candidates": min(candidates, len(texts))}
