"""Reconstruction figures compared with their definitions."""

import numpy as np
import pytest
import torch

from codebrush.data.structural_similarity import structural_similarity
from codebrush.errors import CodebrushError
from codebrush.evaluation.fidelity import Fidelity
from codebrush.models.perceptual import CLIPPerceptual
from codebrush.models.vqgan import VQGAN
from codebrush.models.vqgan_sizes import vqgan_micro
from figures import reconstruction
from packs import micro_clip

pytest.importorskip("torchmetrics")


def test_figures_follow_their_definitions_whatever_the_batches() -> None:
    torch.manual_seed(0)
    vqgan = VQGAN(vqgan_micro()).eval()
    images = torch.rand(6, 3, 32, 32)
    whole, parts = reconstruction(vqgan, [images]), reconstruction(vqgan, images.split(2))
    assert parts == pytest.approx(whole, abs=1e-4)
    with torch.no_grad():
        quantised, codes = vqgan.quantize(vqgan.encode(images))
        made = vqgan.decode(quantised).clamp(0, 1)
        error = (made - images).square().mean((1, 2, 3))
    assert whole["psnr"] == pytest.approx(float((-10 * error.log10()).mean()), abs=1e-4)
    assert whole["ssim"] == pytest.approx(float(structural_similarity(made, images).mean()), abs=1e-6)
    assert whole["codebook_usage"] == codes.unique().numel() / vqgan.codebook_size


def test_one_picture_may_be_a_batch() -> None:
    torch.manual_seed(0)
    vqgan, images = VQGAN(vqgan_micro()).eval(), torch.rand(3, 3, 32, 32)
    psnrs = [reconstruction(vqgan, [image[None]])["psnr"] for image in images]
    assert sum(psnrs) / 3 == pytest.approx(reconstruction(vqgan, [images])["psnr"], abs=1e-4)


def test_figures_are_those_of_torchmetrics_and_the_perceptual_network() -> None:
    from torchmetrics.image import PeakSignalNoiseRatio, StructuralSimilarityIndexMeasure

    vqgan, perceptual = VQGAN(vqgan_micro()).eval(), CLIPPerceptual(micro_clip())
    images = torch.rand(5, 3, 32, 32)
    figures = Fidelity(vqgan, perceptual)
    made = torch.cat([figures.update(part) for part in images.split(2)])
    found = figures.compute()
    psnr = PeakSignalNoiseRatio(data_range=1.0, dim=(1, 2, 3), reduction="elementwise_mean")
    assert found["psnr"] == pytest.approx(float(psnr(made, images)), abs=1e-4)
    assert found["ssim"] == pytest.approx(
        float(StructuralSimilarityIndexMeasure(data_range=1.0)(made, images)), abs=1e-5
    )
    assert found["perceptual"] == pytest.approx(float(perceptual(made, images).mean()), abs=1e-6)
    assert figures.pictures == 5


def test_perplexity_is_counted_over_all_pictures_once() -> None:
    vqgan = VQGAN(vqgan_micro()).eval()
    images = torch.rand(6, 3, 32, 32)
    with torch.no_grad():
        codes = vqgan.quantize(vqgan.encode(images))[1].flatten().numpy()
    shares = np.bincount(codes) / len(codes)
    shares = shares[shares > 0]
    wanted = np.exp(-(shares * np.log(shares)).sum())
    for batch in (1, 4, 6):
        found = reconstruction(vqgan, images.split(batch))
        assert found["codebook_perplexity"] == pytest.approx(wanted, rel=1e-6)
        assert found["codebook_usage"] == len(shares) / vqgan.codebook_size
        assert "perceptual" not in found


def test_an_exact_reconstruction_counts_as_100_decibels(monkeypatch: pytest.MonkeyPatch) -> None:
    vqgan = VQGAN(vqgan_micro()).eval()
    white = torch.ones(1, 3, 32, 32)
    monkeypatch.setattr(vqgan, "decode", lambda latent: white)
    assert reconstruction(vqgan, [white])["psnr"] == 100.0


def test_without_pictures_there_are_no_figures() -> None:
    with pytest.raises(CodebrushError, match="no picture to measure"):
        reconstruction(VQGAN(vqgan_micro()), [])
