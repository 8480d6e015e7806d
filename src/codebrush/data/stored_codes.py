"""Encodes pictures with a VQGAN once and keeps their codes on disk."""

import hashlib
import json
from pathlib import Path

import numpy as np
import torch

from codebrush.data.pixel_cache import PixelCache
from codebrush.files import atomic_file, made_once
from codebrush.models.vqgan import VQGAN

BATCH = 64  # pictures encoded at once


def encode_once(vqgan: VQGAN, pixels: PixelCache, folder: Path) -> np.ndarray:
    """The codes of every picture, (N, h * w) uint16 or uint32; reused while the VQGAN and the pictures are the same.

    If several processes ask for the same codes, one encodes and the others wait.

    Raises:
        CodebrushError: if `folder` cannot be written.
    """
    height, width = vqgan.code_grid(pixels.pixels.shape[1])
    facts = {"vqgan": weights_hash(vqgan), "pixels": pixels_hash(pixels), "grid": [height, width]}
    name = hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]
    path = Path(folder) / f"codes-{name}.npy"
    shape = (len(pixels), height * width)

    def make() -> None:
        codes = _encoded(vqgan, pixels, shape)
        with atomic_file(path) as part, part.open("wb") as file:
            np.save(file, codes)

    return made_once(path.with_suffix(".lock"), f"codes in {folder}", lambda: _open(path, shape), make)


def _open(path: Path, shape: tuple[int, int]) -> np.ndarray:
    """Open the codes at `path`. Raises one of `files.UNUSABLE` if there are none or they are damaged."""
    codes = np.load(path, mmap_mode="r")
    if codes.shape != shape:
        raise ValueError(f"{path} holds other codes")
    return codes


@torch.no_grad()
def _encoded(vqgan: VQGAN, pixels: PixelCache, shape: tuple[int, int]) -> np.ndarray:
    device = next(vqgan.parameters()).device
    codes = np.empty(shape, dtype=np.uint16 if vqgan.codebook_size <= 1 << 16 else np.uint32)
    for first in range(0, len(pixels), BATCH):
        rows = np.arange(first, min(first + BATCH, len(pixels)))
        images = pixels.batch(rows).to(device).float() / 255
        codes[rows] = vqgan.quantize(vqgan.encode(images))[1].flatten(1).cpu().numpy()  # (B, h, w) -> (B, h * w)
    return codes


def weights_hash(network: torch.nn.Module) -> str:
    """The sha256 of a network's tensors, in the order of their names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def pixels_hash(pixels: PixelCache) -> str:
    """The sha256 of the array's shape and up to a thousand of its pictures."""
    digest = hashlib.sha256(str(pixels.pixels.shape).encode())
    for row in np.unique(np.linspace(0, len(pixels) - 1, 1000).astype(np.int64)):
        digest.update(np.ascontiguousarray(pixels.pixels[row]).tobytes())
    return digest.hexdigest()
