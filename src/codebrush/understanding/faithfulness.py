"""Measures whether a heat map is faithful to the encoder, by the insertion and deletion metrics of RISE.

Petsiuk, Das and Saenko 2018, section 4.2: deletion removes the hottest pixels first, and the faster the score falls,
the better the map; insertion restores the hottest pixels first in a blurred picture, and the faster it rises, the
better.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from codebrush.models.clip import CLIP
from codebrush.progress import Progress
from codebrush.understanding.occlusion import Kept, encode_in_batches

STEPS = 24  # of a curve; the same number of pixels changes at each
RANDOM_MAPS, SEED = 6, 0
RANDOM_GRID = 8  # a random map is noise on a grid of this side, about as coarse as a real map


@dataclass(frozen=True)
class Faithfulness:
    """Mean cosines, -1 to 1, over the curves of insertion and deletion: of a map, and averaged over random maps.

    A good map has a high insertion and a low deletion.
    """

    insertion: float
    deletion: float
    insertion_random: float
    deletion_random: float

    @property
    def better_than_random(self) -> dict[str, bool]:
        """For each of the two figures, whether the map does better than random maps."""
        return {
            "insertion": self.insertion > self.insertion_random,
            "deletion": self.deletion < self.deletion_random,
        }


def faithfulness(
    clip: CLIP,
    image: Tensor,
    direction: Tensor,
    heat: Tensor,
    progress: Progress | None = None,
    kept: Kept | None = None,
) -> Faithfulness:
    """Insertion and deletion of a map (H, W) of one image (3, H, W) in [0, 1], and of `RANDOM_MAPS` random maps.

    The score is the cosine with `direction` (E,). Deleted pixels take the picture's mean colour; insertion starts from
    the blurred picture, in which single sharp pixels make fewer artefacts (both as in the paper). The random maps are
    the same for every text: `kept` is filled with what the CLIP sees of them, and used for further texts.
    """
    kept = {} if kept is None else kept
    insertion, deletion = (_area(each, direction) for each in _curves(clip, image, heat))
    if progress is not None:
        progress(1, 1 + RANDOM_MAPS)
    if "random" not in kept:
        draw = torch.Generator().manual_seed(SEED)
        noise = torch.rand(RANDOM_MAPS, 1, RANDOM_GRID, RANDOM_GRID, generator=draw).to(image.device)
        random, found = F.interpolate(noise, heat.shape, mode="bicubic")[:, 0], []  # (R, H, W)
        for number, each in enumerate(random):
            found.append(torch.stack(_curves(clip, image, each)))
            if progress is not None and number < RANDOM_MAPS - 1:
                progress(2 + number, 1 + RANDOM_MAPS)
        kept["random"] = torch.stack(found)  # (R, 2, STEPS + 1, E)
    areas = torch.tensor([[_area(each, direction) for each in curves] for curves in kept["random"]])  # (R, 2)
    if progress is not None:
        progress(1 + RANDOM_MAPS, 1 + RANDOM_MAPS)
    return Faithfulness(insertion, deletion, *areas.mean(0).tolist())


def _change_steps(heat: Tensor) -> Tensor:
    """The step, 1 to STEPS, at which each pixel of a map (H, W) changes: hottest first, equally many at each step."""
    order = heat.flatten().argsort(descending=True, stable=True)
    ranks = torch.empty_like(order)
    ranks[order] = torch.arange(len(order), device=order.device)
    return (ranks * STEPS // len(order) + 1).view_as(heat)


def _curves(clip: CLIP, image: Tensor, heat: Tensor) -> tuple[Tensor, Tensor]:
    """What the CLIP sees while pixels are restored, and while they are removed, in the order of a map (H, W): unit
    vectors, each (STEPS + 1, E)."""
    changes = _change_steps(heat)  # (H, W)
    steps = torch.arange(STEPS + 1, device=changes.device)[:, None, None, None]
    grey = image.mean((1, 2), keepdim=True).expand_as(image)
    restored = torch.where(changes <= steps, image, _blurred(image))  # (STEPS + 1, 3, H, W)
    removed = torch.where(changes <= steps, grey, image)
    return encode_in_batches(clip, restored), encode_in_batches(clip, removed)


def _area(seen: Tensor, direction: Tensor) -> float:
    """Mean cosine with a direction (E,), by the trapezoidal rule, of vectors (STEPS + 1, E)."""
    return float(torch.trapezoid(seen @ direction) / STEPS)


def _blurred(image: Tensor) -> Tensor:
    """The picture (3, H, W) blurred over a quarter of its side, so that nothing in it can be recognised."""
    small = F.interpolate(image[None], (4, 4), mode="bilinear", antialias=True)
    return F.interpolate(small, image.shape[-2:], mode="bicubic")[0].clamp(0, 1)
