"""Camera moves over a picture: zoom, pan and roll by one resampling."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


@torch.no_grad()
def move_camera(images: Tensor, zoom: float = 1.0, pan: tuple[float, float] = (0, 0), roll: float = 0.0) -> Tensor:
    """What a camera sees of images (B, 3, H, W) in [0, 1] once it has moved, of the same shape and range.

    The camera moves `pan` pixels right and down, turns clockwise by `roll` degrees and comes nearer by the factor
    `zoom`, so the picture moves left and up, turns counterclockwise and grows. Pixels at the border are repeated beyond
    it. The resampling is bilinear, because a bicubic one would ring at each move; a move by whole pixels is exact.
    """
    height, width = images.shape[-2:]
    cos, sin = math.cos(math.radians(roll)) / zoom, math.sin(math.radians(roll)) / zoom
    affine = [
        [cos, -sin * height / width, 2 * pan[0] / width],
        [sin * width / height, cos, 2 * pan[1] / height],
    ]
    # In double precision, which not every accelerator has, a whole pixel stays a whole pixel in large pictures too.
    pixels = images.double() if images.device.type in ("cpu", "cuda") else images.cpu().double()
    matrix = pixels.new_tensor(affine).expand(len(images), -1, -1)  # (B, 2, 3)
    grid = F.affine_grid(matrix, list(images.shape), align_corners=False)  # (B, H, W, 2)
    moved = F.grid_sample(pixels, grid, mode="bilinear", padding_mode="border", align_corners=False)
    return moved.to(images)
