"""Linear probe: logistic regression on a CLIP's frozen image embeddings (Radford et al. 2021, appendix A.3)."""

import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from codebrush.errors import CodebrushError, DataError, PackError
from codebrush.files import atomic_file
from codebrush.models.temperature import fit_temperature
from codebrush.optional import require
from codebrush.understanding.classification import ranked
from codebrush.warned import warn

STRENGTHS = tuple(10.0**power for power in range(-2, 4))  # candidates for C, the inverse of the L2 penalty
HELD_OUT = 0.2  # share of each label's pictures on which C is chosen
STEPS = 1000  # the most that the solver takes
KIND = "codebrush linear probe 1"


@dataclass(frozen=True)
class LinearProbe:
    """`weight` (L, E) and `bias` (L,) give the logits of unit embeddings; `clip` is the `clip_hash` of their CLIP.

    `scores` maps each tried C to its accuracy on held-out pictures, 0 to 1 (empty if every label has one picture), and
    `strength` is the C that was chosen. Logits are divided by `temperature`, fitted on the held-out pictures to
    calibrate the probabilities.
    """

    labels: tuple[str, ...]
    weight: Tensor
    bias: Tensor
    strength: float
    scores: Mapping[float, float] = field(default_factory=dict)
    clip: str = ""
    temperature: float = 1.0

    @property
    def at_edge(self) -> bool:
        """Whether C is the least or the largest of those tried, so that one beyond might be better."""
        return bool(self.scores) and self.strength in (min(self.scores), max(self.scores))

    def logits(self, embeddings: Tensor) -> Tensor:
        """Unit embeddings (B, E) -> logits (B, L), divided by the temperature."""
        return (embeddings @ self.weight.T + self.bias) / self.temperature

    def rank(self, embeddings: Tensor) -> list[list[tuple[str, float]]]:
        """Unit embeddings (B, E) -> each one's labels with their probabilities, likeliest first."""
        return ranked(self.labels, self.logits(embeddings))

    def to(self, device: torch.device) -> "LinearProbe":
        """The same probe on another device."""
        return replace(self, weight=self.weight.to(device), bias=self.bias.to(device))

    def save(self, path: Path) -> None:
        """Write the probe as one safetensors file, atomically. Raises CodebrushError if it cannot be written."""
        about = {"kind": KIND, "labels": self.labels, "strength": self.strength, "clip": self.clip}
        about |= {"scores": list(self.scores.items()), "temperature": self.temperature}
        tensors = {"weight": self.weight.contiguous(), "bias": self.bias.contiguous()}
        try:
            with atomic_file(path) as part:
                save_file(tensors, part, metadata={"probe": json.dumps(about)})
        except (OSError, SafetensorError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise CodebrushError(f"cannot write {path}: {reason}; name another file") from error

    @classmethod
    def load(cls, path: Path) -> "LinearProbe":
        """Read a file that `save` wrote. Raises PackError if it is missing, damaged or not a probe."""
        if not path.is_file():
            raise PackError(f"{path}: no such file; codebrush probe --out FILE makes one")
        try:
            with safe_open(path, framework="pt") as file:
                about = json.loads((file.metadata() or {})["probe"])
                weight, bias = file.get_tensor("weight"), file.get_tensor("bias")
            labels, strength, clip = tuple(map(str, about["labels"])), float(about["strength"]), str(about["clip"])
            scores = {float(candidate): float(score) for candidate, score in about["scores"]}
            temperature = float(about.get("temperature", 1.0))  # probes of version 0.1.0 have none
            known = about["kind"] == KIND and 0 < temperature < float("inf")
            shaped = weight.ndim == 2 and len(weight) == len(bias) == len(labels)
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            raise PackError(f"{path} is not a probe, or damaged: make it again with codebrush probe --out") from error
        if not (known and shaped):
            raise PackError(f"{path} is not a probe, or damaged: make it again with codebrush probe --out")
        return cls(labels, weight, bias, strength, scores, clip, temperature)


def fit_probe(
    features: Tensor,
    labels: Sequence[str],
    val: tuple[Tensor, Sequence[str]] | None = None,
    seed: int = 0,
    clip: str = "",
) -> LinearProbe:
    """Fit scikit-learn's logistic regression to unit embeddings (N, E) and their labels.

    C is the one of `STRENGTHS` with the best accuracy on `val` (embeddings and labels of other pictures) or, without
    it, on a fifth of each label's pictures; the smallest if several are equal. The temperature is fitted on the same
    pictures, and the probe then on all pictures together.

    Raises:
        DataError: if there are fewer than two labels.
        CodebrushError: if scikit-learn is not installed.
    """
    names, targets = np.unique(np.array(labels, dtype=object), return_inverse=True)
    if len(names) < 2:
        raise DataError(f"a probe needs two labels or more; all {len(labels)} pictures have {names.tolist()}")
    points = _points(features)
    if val is None:
        kept, held = _held_out_split(targets, seed)
        others, wanted = points[held], np.array(labels, dtype=object)[held]
    else:
        kept, others, wanted = np.arange(len(points)), _points(val[0]), np.array(val[1], dtype=object)
    places = {name: place for place, name in enumerate(names)}
    known = np.array([places.get(name, -1) for name in wanted], dtype=np.int64)  # -1: a label that only val has
    strength, temperature, scores = _choose(points[kept], targets[kept], others, known)
    if val is not None:
        points = np.concatenate([points, others])
        names, targets = np.unique(np.concatenate([np.array(labels, dtype=object), wanted]), return_inverse=True)
    model = _regression()
    if not _fit(model, points, targets, strength):
        warn(f"the probe had not converged after {STEPS} steps at C {strength:g}: its accuracy may suffer")
    weight, bias = torch.from_numpy(model.coef_).float(), torch.from_numpy(model.intercept_).float()
    if len(names) == 2:  # scikit-learn stores the second label's row alone
        weight, bias = torch.cat([torch.zeros_like(weight), weight]), torch.cat([torch.zeros_like(bias), bias])
    return LinearProbe(tuple(map(str, names)), weight, bias, strength, scores, clip, temperature)


def _choose(
    points: np.ndarray, targets: np.ndarray, others: np.ndarray, known: np.ndarray
) -> tuple[float, float, dict[float, float]]:
    """The C with the best accuracy on the held-out points `others`, its temperature there, and every C's accuracy."""
    scores, most, strength, temperature, model = {}, -1.0, 1.0, 1.0, _regression()
    for candidate in STRENGTHS if len(known) else ():
        _fit(model, points, targets, candidate)
        scores[candidate] = right = float(np.mean(model.predict(others) == known))
        if right > most:
            most, strength, temperature = right, candidate, _temperature(model.decision_function(others), known)
    return strength, temperature, scores


def _temperature(decisions: np.ndarray, known: np.ndarray) -> float:
    """The temperature for scikit-learn's decision function: (N, L), or (N,) for the second of two labels."""
    two = decisions.ndim == 1
    logits = torch.from_numpy(np.stack([np.zeros_like(decisions), decisions], 1) if two else decisions)  # (N, L)
    has_target = torch.from_numpy(known >= 0)
    count = int(has_target.sum())
    if not count:
        return 1.0
    return fit_temperature(logits[has_target], torch.from_numpy(known)[has_target], smoothing=1 / (count + 2))


@torch.no_grad()
def probe_figures(probe: LinearProbe, features: Tensor, labels: Sequence[str]) -> dict[str, float]:
    """Accuracy, 0 to 1, on unit embeddings (N, E) with their labels: top-1, top-5 and mean top-1 per class.

    A picture whose label the probe has not learned counts as wrong; `unseen` is the number of such pictures.
    """
    place = {label: index for index, label in enumerate(probe.labels)}
    targets = torch.tensor([place.get(label, -1) for label in labels])
    best = probe.logits(features).topk(min(5, len(place))).indices  # (N, 5)
    hits = (best == targets[:, None]).double()
    _, classes, counts = np.unique(np.array(labels, dtype=object), return_inverse=True, return_counts=True)
    each = np.bincount(classes, weights=hits[:, 0].numpy()) / counts
    return {
        "top1": hits[:, 0].mean().item(),
        "top5": hits.sum(1).mean().item(),
        "mean_per_class": float(each.mean()),
        "pictures": len(labels),
        "unseen": int((targets < 0).sum()),
    }


def _points(features: Tensor) -> np.ndarray:
    return features.cpu().double().numpy()


def _held_out_split(targets: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The rows to fit and those held out: a fifth of each label's, at least one, but none of a label with a single
    row."""
    rng = np.random.default_rng(seed)
    held = np.zeros(len(targets), bool)
    for label in range(targets.max() + 1):
        rows = rng.permutation(np.flatnonzero(targets == label))
        held[rows[: max(1, round(HELD_OUT * len(rows)))] if len(rows) > 1 else []] = True
    return np.flatnonzero(~held), np.flatnonzero(held)


def _regression():
    require("sklearn", "a probe needs")
    from sklearn.linear_model import LogisticRegression

    # No warm start between values of C: from a smaller C's weights the gradient is so small that the solver stops at
    # once.
    return LogisticRegression(max_iter=STEPS)


def _fit(model: Any, points: np.ndarray, targets: np.ndarray, strength: float) -> bool:
    """Fit `model` with this C; returns whether the solver converged."""
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.set_params(C=strength).fit(points, targets)
    return bool(model.n_iter_.max() < STEPS)
