"""The embeddings of earlier batches, kept as more that a picture and a text are to be told from.

A cross-batch memory (Wang et al. 2020): embeddings drift slowly, so those of the last steps stand in for a batch many
times as large, at the price of two products.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from codebrush.training.losses import gather


class Earlier(NamedTuple):
    """Unit vectors of pictures and of texts (M, E) each, and the groups (M,) that they are of."""

    image: Tensor
    text: Tensor
    groups: Tensor


class Memory(nn.Module):
    """The last `size` pairs. Its buffers are saved with a run's checkpoint, so that a resumed run remembers."""

    image: Tensor
    text: Tensor
    groups: Tensor
    count: Tensor  # of all that were ever put in

    def __init__(self, size: int, embed_dim: int):
        super().__init__()
        self.register_buffer("image", torch.zeros(size, embed_dim))
        self.register_buffer("text", torch.zeros(size, embed_dim))
        self.register_buffer("groups", torch.zeros(size, dtype=torch.int64))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    def earlier(self) -> Earlier:
        """What is remembered, nothing at first; copies, as the step back needs them when others have their place."""
        held = min(int(self.count), len(self.groups))
        return Earlier(*(part[:held].clone() for part in (self.image, self.text, self.groups)))

    @torch.no_grad()
    def add(self, image: Tensor, text: Tensor, groups: Tensor) -> None:
        """Remember pairs of this step, those of all processes, in the place of the oldest."""
        image, text, groups = (gather(part.detach())[-len(self.groups) :] for part in (image, text, groups))
        places = (self.count + torch.arange(len(groups), device=self.count.device)) % len(self.groups)
        self.image[places], self.text[places] = image.to(self.image.dtype), text.to(self.text.dtype)
        self.groups[places] = groups
        self.count += len(groups)
