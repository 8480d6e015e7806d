"""Encodes pictures with a VQGAN once and keeps their codes, or their latents before quantisation, on disk."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

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
    dtype = np.uint16 if vqgan.codebook_size <= 1 << 16 else np.uint32

    def encode(images: Tensor) -> Tensor:
        return vqgan.quantize(vqgan.encode(images))[1].flatten(1)  # (B, h, w) -> (B, h * w)

    height, width = vqgan.code_grid(pixels.pixels.shape[1])
    return _stored("codes", vqgan, pixels, folder, np.empty((len(pixels), height * width), dtype), encode)


def latents_once(vqgan: VQGAN, pixels: PixelCache, folder: Path) -> np.ndarray:
    """The latents of every picture before quantisation, (N, d, h, w) float16; kept as `encode_once` keeps codes.

    Raises:
        CodebrushError: if `folder` cannot be written.
    """
    shape = (len(pixels), vqgan.config.code_dim, *vqgan.code_grid(pixels.pixels.shape[1]))
    return _stored("latents", vqgan, pixels, folder, np.empty(shape, np.float16), vqgan.encode)


def _stored(
    kind: str, vqgan: VQGAN, pixels: PixelCache, folder: Path, room: np.ndarray, encode: Callable[[Tensor], Tensor]
) -> np.ndarray:
    """What `encode` makes of every picture, of the shape and type of `room`, which it is written into."""
    facts = {
        "vqgan": weights_hash(vqgan),
        "pixels": pixels_hash(pixels),
        "grid": list(vqgan.code_grid(pixels.pixels.shape[1])),
    }
    name = hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]
    path = Path(folder) / f"{kind}-{name}.npy"

    def make() -> None:
        _encode_all(vqgan, pixels, room, encode)
        with atomic_file(path) as part, part.open("wb") as file:
            np.save(file, room)

    return made_once(path.with_suffix(".lock"), f"{kind} in {folder}", lambda: _open(path, room.shape), make)


def _open(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    """Open the array at `path`. Raises one of `files.UNUSABLE` if there is none or it is damaged."""
    stored = np.load(path, mmap_mode="r")
    if stored.shape != shape:
        raise ValueError(f"{path} holds another array")
    return stored


@torch.no_grad()
def _encode_all(vqgan: VQGAN, pixels: PixelCache, room: np.ndarray, encode: Callable[[Tensor], Tensor]) -> None:
    device = next(vqgan.parameters()).device
    for first in range(0, len(pixels), BATCH):
        rows = np.arange(first, min(first + BATCH, len(pixels)))
        images = pixels.batch(rows).to(device).float() / 255
        room[rows] = encode(images).cpu().numpy()


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
