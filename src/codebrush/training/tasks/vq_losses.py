"""A discriminator's logits -> the adversarial losses of a VQGAN, and the weight that balances them."""

import torch
import torch.nn.functional as F
from torch import Tensor

MAX_WEIGHT = 1e4


def discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """Hinge loss (Lim and Ye 2017) of the logits of real and of made pictures: 0 once they are 1 and -1 apart."""
    return (F.relu(1 - real.float()).mean() + F.relu(1 + fake.float()).mean()) / 2


def generator_loss(fake: Tensor) -> Tensor:
    """What the generator lowers: minus the mean logit of its pictures."""
    return -fake.float().mean()


def adaptive_weight(reconstruction: Tensor, adversarial: Tensor, last_layer: Tensor) -> Tensor:
    """The factor that makes both losses pull at `last_layer` equally hard (Esser et al. 2021, eq. 7), no gradient.

    Both are scalars that depend on `last_layer`, whose graph is kept. The factor is clamped to [0, 10,000]; before the
    discriminator starts leave the adversarial loss out altogether.
    """
    pull, push = (torch.autograd.grad(loss, last_layer, retain_graph=True)[0] for loss in (reconstruction, adversarial))
    return (pull.float().norm() / (push.float().norm() + 1e-4)).clamp(0.0, MAX_WEIGHT).detach()
