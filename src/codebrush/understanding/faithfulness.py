"""A picture, a text's direction and a heat map in; whether the map is true to the encoder out: insertion and deletion.

Petsiuk, Das and Saenko 2018 (RISE), section 4.2: pixels are taken away hottest first, and the sooner the score falls
the better the map; or given back to a picture without content hottest first, and the sooner it rises the better.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from codebrush.models.clip import CLIP
from codebrush.progress import Progress
from codebrush.understanding.occlusion import encode

STEPS = 24  # pictures a curve, from the whole to the last pixel; evenly many pixels change each time
RANDOM_MAPS, SEED = 6, 0
GRAIN = 8  # a random map is as coarse as a real one: noise on a grid of this side


@dataclass(frozen=True)
class Faithfulness:
    """Areas under the curves of the cosine, as its mean over the steps. Insertion is good high, deletion low."""

    insertion: float
    deletion: float
    insertion_random: float
    deletion_random: float

    @property
    def better_than_random(self) -> dict[str, bool]:
        """Whether the map is true to the encoder at all, by each of the two figures."""
        return {
            "insertion": self.insertion > self.insertion_random,
            "deletion": self.deletion < self.deletion_random,
        }


def faithfulness(
    clip: CLIP, image: Tensor, direction: Tensor, heat: Tensor, progress: Progress | None = None
) -> Faithfulness:
    """Areas of a map (H, W) of one image (3, H, W) in [0, 1], and the mean of those of `RANDOM_MAPS` random maps.

    The score is the cosine with `direction` (E,). What is taken away turns grey, the mean colour of the picture; what
    is given back appears in the picture blurred, where single pixels have no hard edges (both as in the paper).
    """
    draw = torch.Generator().manual_seed(SEED)
    noise = torch.rand(RANDOM_MAPS, 1, GRAIN, GRAIN, generator=draw).to(image.device)
    random = F.interpolate(noise, heat.shape, mode="bicubic")[:, 0]  # (R, H, W)
    maps = [heat, *random]
    grey = image.mean((1, 2), keepdim=True).expand_as(image)
    areas = []
    for number, each in enumerate(maps):
        turns = _turns(each)  # (H, W) the step at which a pixel changes
        inserted = _area(clip, direction, turns, before=_blurred(image), after=image)
        areas.append((inserted, _area(clip, direction, turns, before=image, after=grey)))
        if progress is not None:
            progress(number + 1, len(maps))
    (insertion, deletion), others = areas[0], torch.tensor(areas[1:]).mean(0).tolist()
    return Faithfulness(insertion, deletion, *others)


def _turns(heat: Tensor) -> Tensor:
    """The step, 1 to STEPS, at which each pixel of a map (H, W) changes: hottest first, equally many a step."""
    order = heat.flatten().argsort(descending=True, stable=True)
    ranks = torch.empty_like(order)
    ranks[order] = torch.arange(len(order), device=order.device)
    return (ranks * STEPS // len(order) + 1).view_as(heat)


def _area(clip: CLIP, direction: Tensor, turns: Tensor, before: Tensor, after: Tensor) -> float:
    """Mean cosine while pixels go over from `before` to `after`, both (3, H, W): the trapezium rule."""
    steps = torch.arange(STEPS + 1, device=turns.device)[:, None, None, None]
    curve = encode(clip, torch.where(turns <= steps, after, before)) @ direction  # (STEPS + 1,)
    return float(torch.trapezoid(curve) / STEPS)


def _blurred(image: Tensor) -> Tensor:
    """A picture (3, H, W) without what is in it: smoothed over a quarter of its side."""
    small = F.interpolate(image[None], (4, 4), mode="bilinear", antialias=True)
    return F.interpolate(small, image.shape[-2:], mode="bicubic")[0].clamp(0, 1)
