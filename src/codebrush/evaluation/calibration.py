"""Logits and right labels in; how far their probabilities can be trusted, before and after calibration, out."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from codebrush.errors import CodebrushError
from codebrush.models.temperature import fit_temperature

BINS = 15  # of the calibration error
FEWEST = 4  # labelled pictures to fit on half of


@dataclass(frozen=True)
class Calibration:
    """One temperature, fitted on half of a labelled set, and what it does on the other half.

    `nll` is the mean negative log-likelihood of the right label in nats, `ece` the expected calibration error in
    [0, 1] (Guo et al. 2017, 15 bins weighed by their pictures), each `before` at temperature 1 and `after` at the
    fitted one; `pictures` are those of the other half.
    """

    temperature: float
    nll_before: float
    nll_after: float
    ece_before: float
    ece_after: float
    pictures: int


def calibrate(logits: Tensor, targets: Tensor, seed: int = 0) -> Calibration:
    """Fit one temperature to logits (N, L) at temperature 1 and the right labels' places (N,) (Guo et al. 2017).

    A random half finds the temperature that minimises the negative log-likelihood, the other half says how well it
    does. Raises CodebrushError for fewer than four pictures.
    """
    if len(logits) < FEWEST:
        raise CodebrushError(f"{len(logits)} labelled pictures are too few to calibrate on: give {FEWEST} or more")
    order = torch.randperm(len(logits), generator=torch.Generator().manual_seed(seed)).to(logits.device)
    fitted, held = order[: len(order) // 2], order[len(order) // 2 :]
    temperature = fit_temperature(logits[fitted], targets[fitted])
    logits, targets = logits[held].double(), targets[held]
    return Calibration(
        temperature,
        F.cross_entropy(logits, targets).item(),
        F.cross_entropy(logits / temperature, targets).item(),
        expected_calibration_error(logits, targets),
        expected_calibration_error(logits / temperature, targets),
        len(held),
    )


def expected_calibration_error(logits: Tensor, targets: Tensor) -> float:
    """By how much the likeliest label's probability misses how often it is right, on average over 15 bins."""
    try:
        from torchmetrics.functional.classification import multiclass_calibration_error
    except ImportError as error:
        raise CodebrushError("calibration needs torchmetrics: pip install 'codebrush[eval]'") from error
    probabilities = logits.softmax(-1)
    return float(multiclass_calibration_error(probabilities, targets, probabilities.shape[1], BINS))
