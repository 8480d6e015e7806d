"""Random changes of contrast, saturation, brightness and hue, each picture's as one matrix and one offset."""

import numpy as np
import torch
from torch import Tensor

LUMA = np.array([0.299, 0.587, 0.114])  # Rec. 601: how bright the eye finds red, green and blue


def draw_colour_jitter(count: int, strength: float, rng: np.random.Generator, hue: float = 0.0) -> Tensor:
    """Draw `count` random changes of colour: (count, 3, 4) float32.

    The first three columns are a matrix on (red, green, blue), the last is added to the result. Contrast and saturation
    change by a factor of up to e^`strength` either way, brightness by up to half of `strength`. `hue` is the standard
    deviation, in degrees, of a rotation about the grey axis, which leaves greys as they are.
    """
    contrast, saturation = np.exp(rng.uniform(-strength, strength, (2, count, 1, 1)))
    brightness = rng.uniform(-strength / 2, strength / 2, (count, 1, 1))
    matrix = contrast * (saturation * np.eye(3) + (1 - saturation) * LUMA)  # (count, 3, 3)
    offset = (1 - contrast) / 2 + brightness + np.zeros((count, 3, 1))
    if hue:
        matrix = matrix @ _rotations(np.deg2rad(rng.normal(0, hue, count)))
    return torch.from_numpy(np.concatenate([matrix, offset], axis=2).astype(np.float32))


def _rotations(angles: np.ndarray) -> np.ndarray:
    """Rotations (count, 3, 3) about the axis (1, 1, 1) by `angles` (count,) in radians (Rodrigues' formula)."""
    cross = np.array([[0.0, -1.0, 1.0], [1.0, 0.0, -1.0], [-1.0, 1.0, 0.0]]) / np.sqrt(3)
    cos, sin = (part[:, None, None] for part in (np.cos(angles), np.sin(angles)))
    return cos * np.eye(3) + sin * cross + (1 - cos) / 3
