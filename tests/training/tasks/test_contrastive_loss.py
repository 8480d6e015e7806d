"""The contrastive losses against NumPy, gradients included, in one process and across two."""

from functools import partial
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from gloo import run_together
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from codebrush.training.tasks.contrastive_loss import TextLikeness, contrastive_loss, sigmoid_loss

GROUPS = [None, [0, 1, 2, 3, 4, 5], [7, 7, 1, 2, 7, 1], [3, 3, 3, 3, 3, 3]]
SCALE, BIAS = 12.0, -3.0


def softmax_reference(image: np.ndarray, text: np.ndarray, scale: float, groups: np.ndarray) -> tuple:
    """Loss, and its gradients along image, text and scale."""
    cosines, n = image @ text.T, len(image)
    powers = np.exp(scale * cosines)
    rows, columns = powers / powers.sum(1, keepdims=True), powers / powers.sum(0, keepdims=True)
    same = (groups[:, None] == groups[None, :]).astype(float)
    target = same / same.sum(1, keepdims=True)
    loss = -(target * np.log(rows) + target.T * np.log(columns)).sum() / (2 * n)
    slope = (rows - target + columns - target.T) / (2 * n)
    return loss, scale * slope @ text, scale * slope.T @ image, (slope * cosines).sum()


def sigmoid_reference(image: np.ndarray, text: np.ndarray, scale: float, bias: float, groups: np.ndarray) -> tuple:
    """Loss, and its gradients along image, text, scale and bias."""
    cosines, n = image @ text.T, len(image)
    sign = np.where(groups[:, None] == groups[None, :], 1.0, -1.0)
    loss = np.log1p(np.exp(-sign * (scale * cosines + bias))).sum() / n
    slope = -sign / (1 + np.exp(sign * (scale * cosines + bias))) / n
    return loss, scale * slope @ text, scale * slope.T @ image, (slope * cosines).sum(), slope.sum()


def unit_rows(*shape: int) -> Tensor:
    return F.normalize(torch.randn(*shape), dim=-1).requires_grad_()


@pytest.mark.parametrize("groups", GROUPS)
def test_contrastive_loss_and_gradients_are_the_reference_s(groups: list[int] | None):
    image, text, scale = unit_rows(6, 5), unit_rows(6, 5), torch.tensor(SCALE, requires_grad=True)
    loss = contrastive_loss(image, text, scale, None if groups is None else torch.tensor(groups))
    found = [loss, *torch.autograd.grad(loss, (image, text, scale))]
    numbers = np.array(groups or range(6))
    expected = softmax_reference(image.detach().double().numpy(), text.detach().double().numpy(), SCALE, numbers)
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours.detach().numpy(), theirs, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("groups", GROUPS)
def test_sigmoid_loss_and_gradients_are_the_reference_s(groups: list[int] | None):
    image, text = unit_rows(6, 5), unit_rows(6, 5)
    scale, bias = torch.tensor(SCALE, requires_grad=True), torch.tensor(BIAS, requires_grad=True)
    loss = sigmoid_loss(image, text, scale, bias, None if groups is None else torch.tensor(groups))
    found = [loss, *torch.autograd.grad(loss, (image, text, scale, bias))]
    numbers = np.array(groups or range(6))
    expected = sigmoid_reference(image.detach().double().numpy(), text.detach().double().numpy(), SCALE, BIAS, numbers)
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours.detach().numpy(), theirs, rtol=2e-5, atol=2e-6)


def test_the_target_is_spread_evenly_over_a_row_s_positives():
    # With all cosines equal every softmax is flat, whatever the target; so weigh one positive of row 0 alone.
    image, text = torch.eye(4), torch.zeros(4, 4)
    text[1, 0] = 1.0  # picture 0 agrees with text 1 only, and 0, 1, 2 are of one group
    image.requires_grad_()
    contrastive_loss(image, text, torch.tensor(1.0), torch.tensor([0, 0, 0, 1])).backward()
    share = np.e / (np.e + 3)
    column = np.e / (np.e + 3)  # the same for text 1 among the pictures
    assert image.grad is not None
    assert image.grad[0, 0].item() == pytest.approx((share - 1 / 3 + column - 1 / 3) / 8, abs=1e-6)


@pytest.mark.parametrize("loss", [contrastive_loss, partial(sigmoid_loss, bias=torch.tensor(BIAS))])
def test_mixed_precision_leaves_the_loss_exact(loss):
    image, text, scale = unit_rows(32, 64), unit_rows(32, 64), torch.tensor(100.0)
    exact = loss(image, text, scale=scale)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = loss(image, text, scale=scale)
    torch.testing.assert_close(mixed, exact, rtol=1e-6, atol=1e-6)


class Towers(nn.Module):
    """Two linear towers with all that the losses learn."""

    def __init__(self):
        super().__init__()
        self.image, self.text = nn.Linear(7, 5), nn.Linear(6, 5)
        self.scale, self.bias = nn.Parameter(torch.tensor(SCALE)), nn.Parameter(torch.tensor(BIAS))

    def loss(self, kind: str, pictures: Tensor, words: Tensor, groups: Tensor | None) -> Tensor:
        image, text = F.normalize(self.image(pictures), dim=-1), F.normalize(self.text(words), dim=-1)
        if kind == "sigmoid":
            return sigmoid_loss(image, text, self.scale, self.bias, groups)
        if kind == "softmax":
            return contrastive_loss(image, text, self.scale, groups)
        more, numbers = torch.linspace(-1, 1, 18).view(3, 6), torch.tensor([0, 2, 9])  # the same in every process
        likeness = TextLikeness(F.normalize(words, dim=1), F.normalize(more, dim=1), 0.3, 0.5)
        others = F.normalize(self.text(more), dim=-1), numbers
        return contrastive_loss(image, text, self.scale, groups, others, likeness if kind == "likeness" else None)


def towers_and_batch() -> tuple[Towers, Tensor, Tensor]:
    torch.manual_seed(3)
    return Towers(), torch.randn(8, 7), torch.randn(8, 6)


CASES = [(kind, groups) for kind in ("softmax", "sigmoid") for groups in (None, [0, 1, 0, 2, 2, 0, 3, 1])]
CASES += [(kind, [0, 1, 0, 2, 2, 0, 3, 1]) for kind in ("others", "likeness")]


def averages(rank: int, folder: str, count: int) -> None:
    """One of several processes with a part of the batch each: the first writes the mean of all losses and gradients."""
    found = []
    for kind, groups in CASES:
        towers, pictures, words = towers_and_batch()
        mine = slice(rank * 8 // count, (rank + 1) * 8 // count)
        numbers = None if groups is None else torch.tensor(groups)[mine]
        loss = towers.loss(kind, pictures[mine], words[mine], numbers)
        loss.backward()
        parts = {name: part.grad for name, part in towers.named_parameters() if part.grad is not None}
        parts["loss"] = loss.detach()
        for part in parts.values():
            dist.all_reduce(part)
            part /= count
        found.append(parts)
    if rank == 0:
        torch.save(found, f"{folder}/found.pt")


@pytest.mark.parametrize("count", [2, pytest.param(4, marks=pytest.mark.long)])
def test_averages_over_processes_are_those_of_the_whole_batch(count: int, tmp_path: Path, processes: ForkServerContext):
    assert run_together(processes, count, averages, str(tmp_path), count) == [0] * count
    for (kind, groups), found in zip(CASES, torch.load(tmp_path / "found.pt"), strict=True):
        towers, pictures, words = towers_and_batch()
        loss = towers.loss(kind, pictures, words, None if groups is None else torch.tensor(groups))
        loss.backward()
        gradients = {name: part.grad for name, part in towers.named_parameters() if part.grad is not None}
        torch.testing.assert_close(
            found, {"loss": loss.detach(), **gradients}, rtol=1e-5, atol=1e-6, msg=f"{kind} {groups}"
        )


def largest(rank: int, folder: str) -> None:
    """The most numbers that any operation of a loss and its gradients makes."""
    most = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            nonlocal most
            made = func(*args, **(kwargs or {}))
            most = max([most, *(part.numel() for part in tree_leaves(made) if isinstance(part, Tensor))])
            return made

    found = {}
    for kind in ("softmax", "sigmoid"):
        image, text, scale = unit_rows(64, 2), unit_rows(64, 2), torch.tensor(SCALE)
        most = 0
        with Watch():
            (
                sigmoid_loss(image, text, scale, -scale) if kind == "sigmoid" else contrastive_loss(image, text, scale)
            ).backward()
        found[kind] = most
    torch.save(found, f"{folder}/largest-{rank}.pt")


def test_no_process_holds_the_pairs_of_all(tmp_path: Path, processes: ForkServerContext):
    assert run_together(processes, 2, largest, str(tmp_path)) == [0, 0]
    for rank in range(2):
        assert torch.load(tmp_path / f"largest-{rank}.pt") == {"softmax": 64 * 128, "sigmoid": 64 * 64}
