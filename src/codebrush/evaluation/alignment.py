"""Embeddings of pictures and of texts -> how well they find each other."""

from collections.abc import Sequence

import torch
from torch import Tensor

from codebrush.errors import CodebrushError


def ranks(queries: Tensor, keys: Tensor, right: Tensor) -> Tensor:
    """How many keys stand before the right one: unit queries (Q, E), keys (K, E), right (Q,) -> (Q,) int64.

    Others exactly as near count as nearer: a space that tells nothing apart finds nothing.
    """
    cosines = _cosines(queries, keys)
    own = cosines.gather(1, right[:, None])
    return (cosines >= own).sum(1) - 1  # the right one is as near as itself


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
    """Picture -> label among all `labels`: unit images (N, E) whose labels are `names`; top-1 and top-5.

    Each distinct label counts once, however many pictures share it.
    """
    place = {label: index for index, label in enumerate(labels)}
    found = ranks(images, label_embeddings, torch.tensor([place[name] for name in names]))
    counts = {"labels": float(len(labels)), "pictures": float(len(images))}
    return {"top1": top_k(found, 1), "top5": top_k(found, 5), **counts}


def retrieval(
    texts: Tensor, images: Tensor, text_groups: Sequence[str], image_groups: Sequence[str]
) -> dict[str, float]:
    """Text -> picture: the share of texts with a picture of their group among the first 1, 5 and 10.

    Pictures of other groups that are exactly as near stand before it.
    """
    cosines = _cosines(texts, images)  # (T, N)
    same = torch.tensor([[text == image for image in image_groups] for text in text_groups])
    best = cosines.masked_fill(~same, float("-inf")).amax(1, keepdim=True)
    found = ((cosines >= best) & ~same).sum(1)  # strangers ahead of the first right picture
    return {f"recall_at_{k}": top_k(found, k) for k in (1, 5, 10)} | {"texts": float(len(texts))}
