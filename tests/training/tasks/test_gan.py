import pytest
import torch
from torch import nn

from codebrush.training.tasks.gan import adaptive_weight, discriminator_loss, generator_loss


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def test_hinge_loss_of_hand_picked_logits() -> None:
    real, fake = torch.tensor([2.0, 0.5]), torch.tensor([-3.0, 0.5])
    # real: max(0, 1 - 2) = 0 and 0.5; fake: max(0, 1 - 3) = 0 and 1.5
    torch.testing.assert_close(discriminator_loss(real, fake), torch.tensor((0.25 + 0.75) / 2))
    assert discriminator_loss(torch.tensor([1.0]), torch.tensor([-1.0])) == 0


def test_the_generator_raises_the_logits_of_its_pictures() -> None:
    fake = torch.tensor([[1.0, -4.0]], requires_grad=True)
    loss = generator_loss(fake)
    assert loss == 1.5
    loss.backward()
    torch.testing.assert_close(fake.grad, torch.full((1, 2), -0.5))


def test_losses_of_half_precision_logits_are_float32() -> None:
    logits = torch.randn(4).bfloat16()
    assert discriminator_loss(logits, logits).dtype == generator_loss(logits).dtype == torch.float32


def last_layer_and_losses() -> tuple[nn.Parameter, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    inputs, target, judge = torch.randn(5, 3), torch.randn(5, 2), torch.randn(2)
    layer = nn.Parameter(torch.randn(2, 3))
    made = inputs @ layer.T  # (5, 2)
    reconstruction, adversarial = (made - target).square().mean(), -(made @ judge).mean()
    # the two gradients by hand: d(mean square) = 2 error^T inputs / n, d(-mean judge.made) = -judge x mean(inputs)
    pull = (2 * (made - target).T @ inputs / made.numel()).detach()
    push = -torch.outer(judge, inputs.mean(0))
    return layer, reconstruction, adversarial, pull, push


def test_the_adaptive_weight_is_the_ratio_of_the_gradients_at_the_last_layer() -> None:
    layer, reconstruction, adversarial, pull, push = last_layer_and_losses()
    weight = adaptive_weight(reconstruction, adversarial, layer)
    torch.testing.assert_close(weight, pull.norm() / (push.norm() + 1e-4))
    assert not weight.requires_grad
    assert layer.grad is None
    (reconstruction + weight * adversarial).backward()  # the graph is still there
    torch.testing.assert_close(layer.grad, pull + weight * push)


@pytest.mark.parametrize(("scale", "expected"), [(0.0, 1e4), (1e-9, 1e4)])
def test_the_adaptive_weight_is_clamped(scale: float, expected: float) -> None:
    layer, reconstruction, adversarial, _, _ = last_layer_and_losses()
    assert adaptive_weight(1e3 * reconstruction, scale * adversarial, layer) == expected
    assert adaptive_weight(0 * reconstruction, adversarial, layer) == 0
