"""Draws latents with a flow transformer: from noise along the velocity it predicts to a picture's latent."""

from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from codebrush.generation.seeding import stream
from codebrush.models.condition import Condition
from codebrush.models.flow_transformer import FlowTransformer


@dataclass(frozen=True)
class FlowSettings:
    """How a latent is drawn: in `steps` steps, with classifier-free guidance of scale `cfg` (1: none)."""

    steps: int = 25
    cfg: float = 3.0


def picture_noise(seed: int, pictures: range, shape: tuple[int, int, int]) -> Tensor:
    """Gaussian noise of `shape` (d, h, w) for each of `pictures`, from the stream of (seed, picture): (B, d, h, w)."""
    drawn = [stream(seed, index).standard_normal(shape, dtype=np.float32) for index in pictures]
    return torch.from_numpy(np.stack(drawn))


@torch.no_grad()
def draw_latent(network: FlowTransformer, condition: Condition, noise: Tensor, settings: FlowSettings) -> Tensor:
    """Draw latents with Euler steps; those of pictures, (B, d, h, w), before quantisation.

    Args:
        network: in eval mode.
        condition: of B rows or of one.
        noise: (B, d, h, w).
        settings: the number of steps and the scale of guidance.
    """
    x, batch = noise.to(network.device), len(noise)
    times = torch.linspace(1, 0, settings.steps + 1, device=network.device)
    for time, after in pairwise(times):
        velocity = _velocity(network, condition.expand(batch), x, time.expand(batch), settings.cfg)
        x = x + (after - time) * velocity
    return network.denormalise(x)


def _velocity(network: FlowTransformer, condition: Condition, x: Tensor, time: Tensor, cfg: float) -> Tensor:
    if cfg == 1:
        return network(x, time, condition)
    count = len(network.config.conditions)
    given = torch.ones(len(x), count, dtype=torch.bool, device=x.device)
    present = given if condition.present is None else condition.present
    both = Condition(
        **{
            name: None if value is None else torch.cat([value, value])
            for name, value in vars(replace(condition, present=None)).items()
        }
    )
    both.present = torch.cat([present, torch.zeros_like(given)])
    with_text, without = network(torch.cat([x, x]), torch.cat([time, time]), both).chunk(2)
    return without + cfg * (with_text - without)
