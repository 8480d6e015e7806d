"""Reads latents from files: a picture, which is encoded, or a .safetensors file with a latent or codes."""

from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from codebrush.data.decoding.images import decode_image, to_tensor
from codebrush.errors import ImageError
from codebrush.models.vqgan import VQGAN

LATENTS = ".safetensors"  # ending of files of latents; all others are pictures


def file_latents(name: str, vqgan: VQGAN, size: tuple[int, int]) -> Tensor:
    """The latents (n, d, h, w) in the file `name` for pictures of `size` (H, W), resized where their grid differs.

    A picture is scaled and cropped to `size` and encoded. A .safetensors file holds a "latent" (d, h, w) or
    (n, d, h, w), or "codes" (h, w) or (n, h, w).

    Raises:
        ImageError: if the file cannot be read or its tensors do not fit `vqgan`.
    """
    path, device = Path(name), vqgan.last_layer.device
    if path.suffix.lower() != LATENTS:
        return encoded(vqgan, cover(decode_image(path), size)[None].to(device))
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:100]
        raise ImageError(f"{name} is not a readable .safetensors file ({reason})") from error
    if "latent" in tensors:
        latents = _checked_latents(name, tensors["latent"], vqgan.config.code_dim)
    elif "codes" in tensors:
        codes = _checked_codes(name, tensors["codes"], vqgan.codebook_size)
        latents = vqgan.quantizer.look_up(codes.to(device)).detach()
    else:
        raise ImageError(f"{name}: holds neither a latent nor codes, but {', '.join(sorted(tensors)) or 'nothing'}")
    return F.interpolate(latents.to(device), vqgan.code_grid(size), mode="bilinear")


@torch.no_grad()
def encoded(vqgan: VQGAN, images: Tensor) -> Tensor:
    """Encode images (B, 3, H, W) in [0, 1] as latents (B, d, h, w) in the codebook's space.

    A Gumbel quantiser's encoder gives logits, so there the vectors of the codes are returned.
    """
    latent = vqgan.encode(images)
    return vqgan.quantize(latent)[0] if vqgan.config.quantizer == "gumbel" else latent


def cover(image: Image.Image, size: tuple[int, int]) -> Tensor:
    """Scale `image` until it covers `size` (H, W) and crop its centre: (3, H, W) in [0, 1]."""
    height, width = size
    scale = min(image.width / width, image.height / height)  # of the picture's pixels, for one of ours
    across, down = min(width * scale, image.width), min(height * scale, image.height)  # rounding may go beyond
    left, top = (image.width - across) / 2, (image.height - down) / 2
    box = (left, top, left + across, top + down)
    return to_tensor(image.resize((width, height), Image.Resampling.BICUBIC, box=box))


def _checked_latents(name: str, stored: Tensor, code_dim: int) -> Tensor:
    """A stored (d, h, w) or (n, d, h, w) as finite float32 (n, d, h, w)."""
    latents = stored[None] if stored.ndim == 3 else stored
    if latents.ndim != 4 or latents.shape[1] != code_dim or not latents.numel():
        raise ImageError(f"{name}: its latent has the shape {tuple(stored.shape)}, and must have ({code_dim}, h, w)")
    if not latents.is_floating_point() or not latents.isfinite().all():
        raise ImageError(f"{name}: its latent is not all finite floating-point numbers")
    return latents.float()


def _checked_codes(name: str, stored: Tensor, codebook_size: int) -> Tensor:
    """A stored (h, w) or (n, h, w) as int64 (n, h, w), each within the codebook."""
    codes = stored[None] if stored.ndim == 2 else stored
    if codes.ndim != 3 or codes.is_floating_point() or codes.is_complex() or not codes.numel():
        raise ImageError(f"{name}: its codes have the shape {tuple(stored.shape)}, and must be whole numbers (h, w)")
    codes = codes.long()
    if int(codes.min()) < 0 or int(codes.max()) >= codebook_size:
        raise ImageError(f"{name}: its codes are not all from 0 to {codebook_size - 1}")
    return codes
