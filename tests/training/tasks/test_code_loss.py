"""The loss of a code transformer is cross-entropy, with soft targets where codes look alike."""

import pytest
import torch

from codebrush.training.tasks.code_loss import code_likeness, code_loss


def test_code_loss_is_the_mean_nats_a_code():
    logits, codes = torch.randn(2, 3, 5), torch.tensor([[0, 4, 2], [1, 1, 3]])
    picked = torch.log_softmax(logits, -1).gather(-1, codes.unsqueeze(-1))
    assert code_loss(logits, codes).item() == pytest.approx(-picked.mean().item(), rel=1e-6)


def test_similar_codes_count_as_right_as_well():
    codebook = torch.tensor([[0.0, 0.0], [0.1, 0.0], [3.0, 0.0], [0.0, 4.0]])
    likeness = code_likeness(codebook, 0.01)
    apart = torch.cdist(codebook, codebook) ** 2
    for row in range(4):
        expected = torch.exp(-apart[row] / (0.01 * apart.mean()))
        torch.testing.assert_close(likeness[row], expected / expected.sum())
    assert likeness[0, 1] > 0.4
    torch.testing.assert_close(code_likeness(7 * codebook, 0.01), likeness)
    torch.testing.assert_close(code_likeness(codebook, 1e-6), torch.eye(4))
    logits, codes = torch.randn(2, 3, 4), torch.tensor([[0, 3, 2], [1, 1, 3]])
    nats = -(likeness[codes] * torch.log_softmax(logits, -1)).sum(-1).mean()
    assert code_loss(logits, codes, likeness=likeness).item() == pytest.approx(nats.item(), rel=1e-6)
    hard = code_loss(logits, codes, likeness=torch.eye(4))
    assert hard.item() == pytest.approx(code_loss(logits, codes).item(), rel=1e-6)
