"""Decoded pictures and a VQGAN in; every picture's codes, computed once and kept on disk, out."""

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from codebrush.data.pixels import PixelCache
from codebrush.errors import CodebrushError
from codebrush.models.vqgan import VQGAN

BATCH = 64


@torch.no_grad()
def encode_once(
    vqgan: VQGAN, pixels: PixelCache, folder: Path, progress: Callable[[int, int], None] | None = None
) -> np.ndarray:
    """Codes (N, h * w) uint16 or uint32 of every picture, reused while VQGAN and pictures are the same.

    `progress(done, total)` is called after each batch. Raises CodebrushError when `folder` cannot be written.
    """
    height, width = vqgan.code_grid(pixels.pixels.shape[1])
    facts = {"vqgan": weights_hash(vqgan), "pixels": pixels_hash(pixels), "grid": [height, width]}
    name = hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]
    path = Path(folder) / f"codes-{name}.npy"
    if path.is_file():
        return np.load(path, mmap_mode="r")
    device = next(vqgan.parameters()).device
    kind = np.uint16 if vqgan.codebook_size <= 1 << 16 else np.uint32
    codes = np.empty((len(pixels), height * width), dtype=kind)
    for first in range(0, len(pixels), BATCH):
        rows = np.arange(first, min(first + BATCH, len(pixels)))
        images = pixels.batch(rows).to(device).float() / 255
        codes[rows] = vqgan.quantize(vqgan.encode(images))[1].flatten(1).cpu().numpy()  # (B, h, w) -> (B, h * w)
        if progress is not None:
            progress(int(rows[-1]) + 1, len(pixels))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        with part.open("wb") as file:
            np.save(file, codes)
        os.replace(part, path)
    except OSError as error:
        raise CodebrushError(f"cannot write codes in {folder}: {error.strerror}; free space or name another") from error
    return codes


def weights_hash(network: torch.nn.Module) -> str:
    """sha256 over a network's tensors, in the order of their names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def pixels_hash(pixels: PixelCache) -> str:
    """sha256 over the array's shape and a thousand of its pictures."""
    digest = hashlib.sha256(str(pixels.pixels.shape).encode())
    for row in np.unique(np.linspace(0, len(pixels) - 1, 1000).astype(np.int64)):
        digest.update(np.ascontiguousarray(pixels.pixels[row]).tobytes())
    return digest.hexdigest()
