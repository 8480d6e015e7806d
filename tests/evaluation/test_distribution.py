"""Distances of distributions compared with numpy."""

import numpy as np
import pytest
import torch

from codebrush.errors import CodebrushError
from codebrush.evaluation.distribution import SetDistances

pytest.importorskip("torchmetrics")


def measured(real: torch.Tensor, made: torch.Tensor, batch: int = 7) -> dict[str, float]:
    distances = SetDistances(real.shape[1])
    for one, other in zip(real.split(batch), made.split(batch), strict=True):
        distances.update(one, other)
    return distances.compute()


def test_rfid_is_the_frechet_distance_of_two_gaussians() -> None:
    real, made = torch.randn(60, 5), 1.5 * torch.randn(60, 5) + 0.3
    x, y = real.double().numpy(), made.double().numpy()
    a, b = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    values, vectors = np.linalg.eigh(a)
    root = vectors @ np.diag(np.sqrt(values)) @ vectors.T
    cross = np.sqrt(np.linalg.eigvalsh(root @ b @ root)).sum()
    wanted = ((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(a) + np.trace(b) - 2 * cross
    assert measured(real, made)["rfid"] == pytest.approx(wanted, rel=1e-6)


def test_kid_is_the_mean_unbiased_kernel_distance_of_subsets() -> None:
    real, made = torch.randn(12, 4), torch.randn(12, 4) + 0.5
    x, y = real.double().numpy(), made.double().numpy()

    def unbiased(p: np.ndarray, q: np.ndarray) -> float:
        n = len(p)
        own = sum(((s @ s.T + 1) ** 3).sum() - (((s**2).sum(1) + 1) ** 3).sum() for s in (p, q))
        return own / (n * (n - 1)) - 2 * ((p @ q.T + 1) ** 3).mean()

    found = measured(real, made)
    assert found["kid_subset"] == 6
    torch.manual_seed(0)  # torchmetrics draws its subsets in this order
    draws = []
    for _ in range(100):
        p = x[torch.randperm(12)[:6].numpy()]
        draws.append(unbiased(p, y[torch.randperm(12)[:6].numpy()]))
    assert found["kid"] == pytest.approx(np.mean(draws), rel=1e-6)
    assert found["kid_std"] == pytest.approx(np.std(draws), rel=1e-6)


def test_the_distance_of_a_set_to_itself_is_zero_and_batches_do_not_matter() -> None:
    real = torch.randn(30, 4)
    assert measured(real, real)["rfid"] == pytest.approx(0, abs=1e-5)
    far = measured(real, real + 3)
    assert far["rfid"] == pytest.approx(36, rel=1e-5)
    assert measured(real, real + 3, batch=30) == pytest.approx(far, rel=1e-9)


def test_the_global_random_stream_is_left_alone() -> None:
    real, made = torch.randn(8, 3), torch.randn(8, 3)
    torch.manual_seed(5)
    wanted = torch.rand(1)
    torch.manual_seed(5)
    measured(real, made)
    assert torch.equal(torch.rand(1), wanted)


def test_too_few_pictures_are_refused() -> None:
    with pytest.raises(CodebrushError, match="3 pictures are too few"):
        measured(torch.rand(3, 2), torch.rand(3, 2))
