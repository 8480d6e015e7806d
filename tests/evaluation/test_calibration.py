"""Calibration compared with its definition as plain sums."""

import math

import pytest
import torch

from codebrush.errors import CodebrushError
from codebrush.evaluation.calibration import calibrate, expected_calibration_error
from codebrush.models.temperature import fit_temperature

pytest.importorskip("torchmetrics")


@pytest.fixture
def answers() -> tuple[torch.Tensor, torch.Tensor]:
    """Targets drawn from the softmax of the logits: temperature 1 is the true one."""
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(4000, 6, generator=generator)
    return logits, logits.softmax(-1).multinomial(1, generator=generator)[:, 0]


@pytest.mark.parametrize("heat", [0.25, 1.0, 3.0])
def test_the_temperature_that_spoilt_the_logits_is_found(
    answers: tuple[torch.Tensor, torch.Tensor], heat: float
) -> None:
    logits, targets = answers
    assert fit_temperature(logits / heat, targets) == pytest.approx(1 / heat, rel=0.06)


def test_the_fitted_temperature_has_the_least_loss(answers: tuple[torch.Tensor, torch.Tensor]) -> None:
    logits, targets = answers[0] * 3, answers[1]
    best = fit_temperature(logits, targets)

    def loss(heat: float) -> float:
        return torch.nn.functional.cross_entropy(logits.double() / heat, targets).item()

    assert loss(best) <= min(loss(best * 1.01), loss(best / 1.01))


def test_smoothing_keeps_what_is_always_right_from_being_certain() -> None:
    logits, targets = torch.eye(4).repeat(3, 1), torch.arange(4).repeat(3)
    assert (logits / fit_temperature(logits, targets)).softmax(-1).amax(-1).min() > 0.9999
    smoothing = 1 / 14
    sure = (logits / fit_temperature(logits, targets, smoothing)).softmax(-1).max(-1).values
    torch.testing.assert_close(sure, torch.full((12,), 1 - smoothing * 3 / 4))


def test_the_calibration_error_is_its_definition(answers: tuple[torch.Tensor, torch.Tensor]) -> None:
    logits, targets = answers[0][:200] * 2, answers[1][:200]
    sure, guess = logits.softmax(-1).max(-1)
    error = 0.0
    for number in range(15):
        inside = [row for row in range(200) if math.ceil(float(sure[row]) * 15) - 1 == number]
        if inside:
            right = sum(float(guess[row] == targets[row]) for row in inside) / len(inside)
            error += len(inside) / 200 * abs(right - float(sure[inside].mean()))
    assert expected_calibration_error(logits, targets) == pytest.approx(error, abs=1e-5)


def test_calibration_corrects_overconfidence(answers: tuple[torch.Tensor, torch.Tensor]) -> None:
    found = calibrate(answers[0] * 4, answers[1])
    assert found.temperature == pytest.approx(4, rel=0.08)
    assert found.ece_after < 0.04 < found.ece_before
    assert found.nll_after < found.nll_before
    assert found.pictures == 2000


def test_too_few_pictures_are_refused() -> None:
    with pytest.raises(CodebrushError, match="too few to calibrate"):
        calibrate(torch.zeros(3, 2), torch.zeros(3, dtype=torch.int64))
