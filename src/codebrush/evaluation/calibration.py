"""Measures how well classification probabilities are calibrated, before and after fitting a temperature."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from codebrush.errors import CodebrushError
from codebrush.models.temperature import fit_temperature
from codebrush.optional import require

BINS = 15  # of the calibration error
FEWEST = 4  # labelled pictures; half of them are used to fit


@dataclass(frozen=True)
class Calibration:
    """A temperature that was fitted on half of a labelled set, and its effect on the other half.

    `nll` is the mean negative log-likelihood of the true label in nats, `ece` the expected calibration error in [0, 1]
    (Guo et al. 2017, 15 bins weighted by their pictures), each `before` at temperature 1 and `after` at the fitted one.
    `pictures` is the size of the other half.
    """

    temperature: float
    nll_before: float
    nll_after: float
    ece_before: float
    ece_after: float
    pictures: int


def calibrate(logits: Tensor, targets: Tensor) -> Calibration:
    """Fit one temperature to logits (N, L), given at temperature 1, and the true labels (N,) int64 (Guo et al. 2017).

    It minimises the negative log-likelihood on a random half and is measured on the other half.

    Raises:
        CodebrushError: if there are fewer than four pictures, or torchmetrics is not installed.
    """
    if len(logits) < FEWEST:
        raise CodebrushError(f"{len(logits)} labelled pictures are too few to calibrate on: give {FEWEST} or more")
    order = torch.randperm(len(logits), generator=torch.Generator().manual_seed(0)).to(logits.device)
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
    """The mean gap in [0, 1] between the probability of the likeliest label and how often it is right, over 15 bins.

    Takes logits (N, L) and the true labels (N,) int64 (Guo et al. 2017, equation 3).

    Raises:
        CodebrushError: if torchmetrics is not installed.
    """
    require("torchmetrics", "calibration needs")
    from torchmetrics.functional.classification import multiclass_calibration_error

    probabilities = logits.softmax(-1)
    return float(multiclass_calibration_error(probabilities, targets, probabilities.shape[1], BINS))
