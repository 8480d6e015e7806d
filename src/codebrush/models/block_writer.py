"""The short transformer of a code transformer with blocks: it writes the codes of one block, one after the other."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from codebrush.models.layers.transformer import Transformer, TransformerConfig


class BlockWriter(nn.Module):
    """Joins the M codes of a block to one vector for the long transformer, and predicts M codes from its output.

    The depth transformer of RQ-Transformer (Lee et al. 2022, section 3.2), with the codes of a block in place of the
    codes of one position's residuals.

    Args:
        size: M, the number of codes of a block.
        trunk: sizes of the short transformer; its width D is that of the long one.
    """

    def __init__(self, size: int, trunk: TransformerConfig):
        super().__init__()
        width = trunk.width
        self.size = size
        self.reader = nn.Linear(size * width, width, bias=False)
        self.before = nn.Linear(width, width, bias=False)  # of what is known: see `forward`
        self.places = nn.Parameter(torch.randn(size, width) * 0.02)
        self.transformer = Transformer(trunk)
        with torch.no_grad():  # at first a block is the sum of its codes
            self.reader.weight.copy_(torch.eye(width).repeat(1, size))

    def join(self, vectors: Tensor) -> Tensor:
        """Vectors of the codes of whole blocks (B, n, D) -> one vector a block (B, n / M, D)."""
        return self.reader(vectors.unflatten(1, (-1, self.size)).flatten(2))

    def forward(self, hidden: Tensor, vectors: Tensor, causal: bool = True) -> Tensor:
        """Predict the codes of b blocks.

        Args:
            hidden: (B, b, D), the long transformer's output from which each block is predicted.
            vectors: (B, n, D), the codes known so far from the first of these blocks on; n is at most b M.
            causal: False if `vectors` are those of all b M codes, known or not: each then sees all of its block.

        Returns:
            (B, b M, D): what predicts each code. A code depends on those before it in its block.
        """
        if not causal:
            x = self.before(vectors).unflatten(1, (-1, self.size)) + hidden.unsqueeze(2) + self.places  # (B, b, M, D)
            return self.transformer(x.flatten(0, 1)).view(len(x), -1, x.shape[-1])
        before = F.pad(vectors, (0, 0, 0, hidden.shape[1] * self.size - vectors.shape[1]))  # (B, b M, D)
        before = before.unflatten(1, (-1, self.size))[:, :, :-1]  # (B, b, M - 1, D)
        x = F.pad(self.before(before), (0, 0, 1, 0)) + hidden.unsqueeze(2) + self.places  # (B, b, M, D)
        return self.transformer(x.flatten(0, 1), causal=True).view(len(x), -1, x.shape[-1])
