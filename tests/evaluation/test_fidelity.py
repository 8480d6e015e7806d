"""Reconstruction figures against their definitions."""

import pytest
import torch

from codebrush.evaluation.fidelity import reconstruction
from codebrush.models.vqgan import VQGAN, vqgan_micro

pytest.importorskip("torchmetrics")


def test_figures_follow_their_definitions_whatever_the_batches() -> None:
    torch.manual_seed(0)
    vqgan = VQGAN(vqgan_micro()).eval()
    images = torch.rand(6, 3, 32, 32)
    whole, parts = reconstruction(vqgan, [images]), reconstruction(vqgan, images.split(2))
    assert parts == pytest.approx(whole, abs=1e-4)
    with torch.no_grad():
        quantised, codes = vqgan.quantize(vqgan.encode(images))
        error = (vqgan.decode(quantised).clamp(0, 1) - images).square().mean((1, 2, 3))
    assert whole["psnr"] == pytest.approx(float((-10 * error.log10()).mean()), abs=1e-4)
    assert whole["codebook_usage"] == codes.unique().numel() / vqgan.codebook_size
    assert 0 < whole["ssim"] < 1


def test_one_picture_may_be_a_batch() -> None:
    torch.manual_seed(0)
    vqgan = VQGAN(vqgan_micro()).eval()
    assert reconstruction(vqgan, [torch.rand(1, 3, 32, 32)])["psnr"] > 0
