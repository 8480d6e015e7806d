"""How well a VQGAN reconstructs the pictures of a training, as a figure and as a sheet to look at."""

import math
import time

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from codebrush.data.contact_sheet import contact_sheet
from codebrush.data.decoding.images import to_pil
from codebrush.models.vqgan import VQGAN
from codebrush.training.dataset import Captioned, evenly
from codebrush.training.tasks.psnr import psnr

MEASURED, SHOWN = 32, 16  # pictures that are reconstructed, and those of them on the sheet, where there is time
BATCH = 8


def reconstructed_psnr(vqgan: VQGAN, data: Captioned, count: int) -> float:
    """The mean PSNR in dB of `count` pictures, spread over the set, through the codes of the VQGAN."""
    true, rebuilt = _reconstructed(vqgan, data, count)
    return float(psnr(rebuilt, true, each=True))


def reconstructions(vqgan: VQGAN, data: Captioned, until: float = math.inf) -> tuple[float, Image.Image]:
    """The mean PSNR in dB of pictures through the VQGAN's codes, and a sheet of some of them: a row of originals above
    a row of reconstructions.

    After the time `until`, of `time.monotonic`, no further BATCH of pictures is begun.
    """
    true, rebuilt = _reconstructed(vqgan, data, MEASURED, until)
    figure = float(psnr(rebuilt, true, each=True))
    shown = evenly(len(true), SHOWN)
    half = -(-len(shown) // 2)
    lines = [images[part] for part in (shown[:half], shown[half:]) for images in (true, rebuilt)]
    return figure, contact_sheet([to_pil(image) for line in lines for image in line], columns=half)


@torch.no_grad()
def _reconstructed(vqgan: VQGAN, data: Captioned, count: int, until: float = math.inf) -> tuple[Tensor, Tensor]:
    """Pictures (n, 3, H, W) in 0..1, and what the VQGAN makes of them."""
    vqgan = vqgan.eval()
    rows, parts = evenly(len(data), count), []
    batches = -(-len(rows) // BATCH)
    for number in range(batches):
        parts.append(vqgan(data.images(rows[number::batches]).float() / 255).images.clamp(0, 1))
        if time.monotonic() >= until:
            break
    taken = np.concatenate([rows[number::batches] for number in range(len(parts))])
    return data.images(taken).float() / 255, torch.cat(parts)
