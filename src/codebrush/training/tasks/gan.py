"""Adversarial training: a discriminator that joins in late, the hinge losses, and the weight that balances them."""

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from codebrush.models.discriminator import PatchGAN
from codebrush.training.engine.optimizer import make_adamw
from codebrush.training.engine.task import Objective
from codebrush.training.field_types import Count, Rate, Share, Weight
from codebrush.training.guards import PATIENCE, Fault, falls

DISCRIMINATOR = "discriminator"
BETAS = (0.5, 0.95)  # of Adam for both sides: the target moves, so old gradients must be forgotten quickly
MAX_WEIGHT = 1e4  # of the adversarial loss
WORSE = 1.5  # dB; a discriminator that only sharpens costs less
BETAS_ALONE = (0.9, 0.99)  # of a generator without a discriminator


class AdversarialRecipe(Protocol):
    """The settings of a network and its discriminator, as recipes name them. `adversarial_from` is the share of the run
    after which the discriminator joins in; 1 leaves it out, and so does `adversarial` 0."""

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
    """A discriminator and its optimizer; `starts` is the step of the run at which it joins in."""

    def __init__(self, recipe: AdversarialRecipe, steps: int):
        self.weight = recipe.adversarial
        self.starts = round(recipe.adversarial_from * steps)
        self.discriminator = PatchGAN(recipe.discriminator_channels, recipe.discriminator_layers)
        self.optimizer: torch.optim.Optimizer = make_adamw([self.discriminator], recipe.discriminator_rate, betas=BETAS)

    def at(self, step: int) -> "Adversary | None":
        """The adversary at a step of the run; None before it joins in."""
        return self if step >= self.starts else None

    def add_generator_loss(self, loss: Tensor, made: Tensor, last_layer: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of pictures `made` (B, 3, H, W) plus the weighted adversarial loss, and its metrics.

        `last_layer` is the weight of the last layer of the network that made them.
        """
        self.discriminator.requires_grad_(False)  # no gradients of the generator's step in it
        fooled = generator_loss(self.discriminator(made))
        weight = self.weight * adaptive_weight(loss, fooled, last_layer)
        self.discriminator.requires_grad_(True)
        return loss + weight * fooled, {"adversarial_weight": weight, "generator": fooled}


def adversary_fault(adversary: Adversary, name: str) -> Fault:
    """The fault of a discriminator that makes the pictures of `name` worse, by the "looked_at_psnr" that is measured;
    its weight is halved."""

    def halve() -> None:
        adversary.weight /= 2

    return Fault(
        "adversary",
        lambda values: values[-PATIENCE][0] > adversary.starts and falls(values, "looked_at_psnr", WORSE),
        f"the discriminator makes the {name}'s pictures worse, by more than {WORSE} dB: lower recipe.adversarial or "
        "recipe.discriminator_rate",
        halve,
        "the weight of the adversarial loss is halved",
        lasting=True,
    )


def with_discriminator(
    name: str, network: nn.Module, recipe: AdversarialRecipe, steps: int
) -> tuple[Adversary | None, dict[str, nn.Module], dict[str, torch.optim.Optimizer]]:
    """What a run of `steps` trains: the adversary (None if the recipe leaves it out), and all networks with their
    optimizers by name, of which the first is `network`."""
    adversary = Adversary(recipe, steps) if recipe.adversarial and recipe.adversarial_from < 1 else None
    betas = BETAS_ALONE if adversary is None else BETAS
    networks = {name: network}
    optimizers: dict[str, torch.optim.Optimizer] = {
        name: make_adamw([network], recipe.learning_rate, recipe.weight_decay, betas)
    }
    if adversary is not None:
        networks[DISCRIMINATOR], optimizers[DISCRIMINATOR] = adversary.discriminator, adversary.optimizer
    return adversary, networks, optimizers


def discriminator_objective(discriminator: nn.Module, images: Tensor, made: Tensor) -> Objective:
    """The discriminator's own loss on real pictures and made ones, (B, 3, H, W) each."""
    return Objective(DISCRIMINATOR, discriminator_loss(discriminator(images), discriminator(made.detach())), {})


def discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """Hinge loss (Lim and Ye 2017) of the logits of real and made pictures: 0 once they are above 1 and below -1."""
    return (F.relu(1 - real.float()).mean() + F.relu(1 + fake.float()).mean()) / 2


def generator_loss(fake: Tensor) -> Tensor:
    """The generator's loss: minus the mean logit of its pictures."""
    return -fake.float().mean()


def adaptive_weight(reconstruction: Tensor, adversarial: Tensor, last_layer: Tensor) -> Tensor:
    """The factor that gives both losses gradients of equal norm at `last_layer` (Esser et al. 2021, eq. 7), detached.

    Both are scalars that depend on `last_layer`; their graph is kept. The factor is clamped to [0, 10,000].
    """
    pull, push = (torch.autograd.grad(loss, last_layer, retain_graph=True)[0] for loss in (reconstruction, adversarial))
    return (pull.float().norm() / (push.float().norm() + 1e-4)).clamp(0.0, MAX_WEIGHT).detach()
