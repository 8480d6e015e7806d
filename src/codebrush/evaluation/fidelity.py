"""Pictures and what a VQGAN makes of them -> how near they are, and how much of the codebook is in use."""

from collections.abc import Iterable

import torch
from torch import Tensor

from codebrush.errors import CodebrushError
from codebrush.models.quantizer import perplexity, usage
from codebrush.models.vqgan import VQGAN


@torch.no_grad()
def reconstruction(vqgan: VQGAN, batches: Iterable[Tensor]) -> dict[str, float]:
    """Figures over batches of images (B, 3, H, W) in [0, 1], seen once: PSNR (mean of the pictures' own, in dB),
    SSIM (Wang et al. 2004), and usage (0 to 1) and perplexity of the codes over all pictures together."""
    try:
        from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure
    except ImportError as error:
        raise CodebrushError("measuring needs torchmetrics: pip install 'codebrush[eval]'") from error
    psnr, ssim, codes = [], [], []
    for images in batches:
        quantised, found = vqgan.quantize(vqgan.encode(images))
        made = vqgan.decode(quantised).clamp(0, 1)
        pixels = (1, 2, 3)
        psnr.append(peak_signal_noise_ratio(made, images, data_range=1.0, dim=pixels, reduction="none"))
        ssim.append(structural_similarity_index_measure(made, images, data_range=1.0, reduction="none"))
        codes.append(found.flatten())
    every = torch.cat(codes)
    return {
        "psnr": torch.cat(psnr).mean().item(),
        "ssim": torch.cat([torch.as_tensor(part).reshape(-1) for part in ssim]).mean().item(),
        "codebook_usage": usage(every, vqgan.codebook_size),
        "codebook_perplexity": perplexity(every, vqgan.codebook_size),
    }
