"""k-means clustering, from which a codebook starts."""

import torch
import torch.nn.functional as F
from torch import Tensor

from codebrush.models.quantizers.quantizer import nearest_codes

LLOYD_ITERATIONS = 10


def kmeans(vectors: Tensor, clusters: int, iterations: int = LLOYD_ITERATIONS, spherical: bool = False) -> Tensor:
    """Lloyd's algorithm on `vectors` (N, d) -> centres (clusters, d), unit vectors if `spherical`.

    The first centres are vectors drawn from torch's global CPU generator. A cluster that loses all its vectors moves to
    one of those that lie farthest from their centres.
    """
    if spherical:
        vectors = F.normalize(vectors, dim=1)
    centres = vectors[draw_indices(len(vectors), clusters)].clone()
    for _ in range(iterations):
        nearest = nearest_codes(vectors, centres)  # (N,)
        counts = torch.bincount(nearest, minlength=clusters)
        sums = torch.zeros_like(centres).index_add_(0, nearest, vectors)  # (clusters, d)
        empty = (counts == 0).nonzero().flatten()
        farthest = (vectors - centres[nearest]).square().sum(1).topk(min(len(empty), len(vectors))).indices
        centres = sums / counts.clamp(min=1)[:, None]
        centres[empty[: len(farthest)]] = vectors[farthest]
        if spherical:
            centres = F.normalize(centres, dim=1)
    return centres


def draw_indices(population: int, count: int) -> Tensor:
    """`count` random indices below `population`, (count,) int64, repeated only as often as must be.

    They come from torch's global CPU generator.
    """
    rounds = -(-count // population)
    return torch.cat([torch.randperm(population) for _ in range(rounds)])[:count]
