"""How far colours may stray in; random changes of contrast, saturation and brightness out, one product a picture."""

import numpy as np
import torch
from torch import Tensor

LUMA = np.array([0.299, 0.587, 0.114])  # Rec. 601: how bright the eye finds red, green and blue


def draw_colour(count: int, stray: float, rng: np.random.Generator) -> Tensor:
    """Random changes of colour (count, 3, 4) float32: a matrix on (red, green, blue) and what is added to it."""
    contrast, saturation = np.exp(rng.uniform(-stray, stray, (2, count, 1, 1)))
    brightness = rng.uniform(-stray / 2, stray / 2, (count, 1, 1))
    matrix = contrast * (saturation * np.eye(3) + (1 - saturation) * LUMA)  # (count, 3, 3)
    offset = (1 - contrast) / 2 + brightness + np.zeros((count, 3, 1))
    return torch.from_numpy(np.concatenate([matrix, offset], axis=2).astype(np.float32))
