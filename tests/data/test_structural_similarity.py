"""SSIM as used by training and evaluation."""

import torch

from codebrush.data.structural_similarity import structural_similarity


def test_structural_similarity_is_of_each_picture_and_in_full_precision() -> None:
    torch.manual_seed(0)
    images = torch.rand(3, 3, 32, 32, requires_grad=True)
    targets = images.detach().clone()
    targets[1] += 0.3 * torch.randn(3, 32, 32)
    alike = structural_similarity(images, targets)
    assert alike.shape == (3,)
    torch.testing.assert_close(alike[[0, 2]], torch.ones(2))
    assert float(alike[1].detach()) < 0.9
    (1 - alike).sum().backward()
    assert images.grad is not None
    assert images.grad[1].abs().sum() > 0
    flat = torch.full((1, 3, 32, 32), 0.95)
    noisy = flat + 0.01 * torch.randn_like(flat)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = structural_similarity(noisy.bfloat16().float(), flat)
    torch.testing.assert_close(mixed, structural_similarity(noisy.bfloat16().float(), flat))
