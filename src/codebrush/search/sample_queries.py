"""Makes queries to measure a search by, from the embeddings of the database itself.

Texts lie apart from pictures in CLIP's space. No CLIP is at hand here, so texts are made of the table's pictures: on
the other side of what all pictures have in common, with a cosine of 0.3 to a picture beside that, and otherwise spread
as pictures are. Of the built-in pack's true texts the nearest pictures lie in as many partitions (docs/log.md).
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

TEXT_COSINE, APART = 0.3, 0.7


def sample_queries(sample: Tensor, count: int, draw: np.random.Generator) -> Tensor:
    """Unit vectors (2 Q, E) from those of S pictures, (S, E), in a random order: the first Q = min(`count`, S) of them,
    then as many texts."""
    pictures, common = sample[:count], sample.mean(0)
    mix = torch.from_numpy(draw.normal(size=(len(pictures), len(sample)))).float()  # (Q, S)
    spread = F.normalize(mix @ (sample - common), dim=-1)  # (Q, E), distributed as pictures are
    texts = TEXT_COSINE * F.normalize(pictures - common, dim=-1) + (1 - TEXT_COSINE**2) ** 0.5 * spread
    return torch.cat([pictures, F.normalize(texts - APART * F.normalize(common, dim=0), dim=-1)])
