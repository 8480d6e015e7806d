"""A network that makes pictures in; what a discriminator that joins in late adds to its loss, and its own, out."""

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from codebrush.models.discriminator import PatchGAN
from codebrush.training.engine.optimizer import make_adamw
from codebrush.training.engine.task import Objective
from codebrush.training.field_types import Count, Rate, Share, Weight

NAME = "discriminator"
BETAS = (0.5, 0.95)  # of both sides: a moving target forgives no long memory
MAX_WEIGHT = 1e4  # of the adversarial loss, at most
ALONE = (0.9, 0.99)  # of a generator that nothing opposes


class AdversarialRecipe(Protocol):
    """The settings of a network and its discriminator, as recipes name them. `adversarial_from` is the share of the run
    after which it joins in; 1 leaves it out, and so does `adversarial` 0."""

    @property
    def learning_rate(self) -> Rate: ...
    @property
    def weight_decay(self) -> Weight: ...
    @property
    def adversarial(self) -> Weight: ...
    @property
    def adversarial_from(self) -> Share: ...
    @property
    def discriminator_channels(self) -> Count: ...
    @property
    def discriminator_layers(self) -> Count: ...
    @property
    def discriminator_rate(self) -> Rate: ...


class Adversary:
    """A discriminator with its optimizer, which joins in at a step of the run."""

    def __init__(self, recipe: AdversarialRecipe, steps: int):
        self.weight = recipe.adversarial
        self.starts = round(recipe.adversarial_from * steps)
        self.judge = PatchGAN(recipe.discriminator_channels, recipe.discriminator_layers)
        self.optimizer: torch.optim.Optimizer = make_adamw([self.judge], recipe.discriminator_rate, betas=BETAS)

    def oppose(self, loss: Tensor, made: Tensor, last_layer: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of pictures (B, 3, H, W), made by a network that ends with `last_layer`, with its part for fooling
        the discriminator, and figures of it."""
        self.judge.requires_grad_(False)  # the generator's step leaves no gradient in the judge
        fooled = generator_loss(self.judge(made))
        weight = self.weight * adaptive_weight(loss, fooled, last_layer)
        self.judge.requires_grad_(True)
        return loss + weight * fooled, {"adversarial_weight": weight, "generator": fooled}


def opposed(
    name: str, network: nn.Module, recipe: AdversarialRecipe, steps: int
) -> tuple[Adversary | None, dict[str, nn.Module], dict[str, torch.optim.Optimizer]]:
    """What a run of so many steps trains: the discriminator, None where the recipe leaves it out; all networks, the
    first under its name; and the optimizer of each."""
    adversary = Adversary(recipe, steps) if recipe.adversarial and recipe.adversarial_from < 1 else None
    betas = ALONE if adversary is None else BETAS
    networks = {name: network}
    optimizers: dict[str, torch.optim.Optimizer] = {
        name: make_adamw([network], recipe.learning_rate, recipe.weight_decay, betas)
    }
    if adversary is not None:
        networks[NAME], optimizers[NAME] = adversary.judge, adversary.optimizer
    return adversary, networks, optimizers


def judge_pictures(judge: nn.Module, images: Tensor, made: Tensor) -> Objective:
    """The discriminator's own loss of true pictures and made ones, (B, 3, H, W) each."""
    return Objective(NAME, discriminator_loss(judge(images), judge(made.detach())), {})


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
