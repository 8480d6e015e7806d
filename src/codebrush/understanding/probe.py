"""Frozen features and labels in; a linear classifier of them (a linear probe, Radford et al. 2021, A.3), out."""

import json
import os
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
from codebrush.models.temperature import fit_temperature
from codebrush.understanding.classification import ranked

STRENGTHS = tuple(10.0**power for power in range(-2, 4))  # C, the inverse of the pull of weights to zero
HELD_OUT = 0.2  # of each label's pictures, to choose C on
STEPS = 1000
KIND = "codebrush linear probe 1"


@dataclass(frozen=True)
class LinearProbe:
    """`weight` (L, E) and `bias` (L,) give logits of unit embeddings; `clip` is the `clip_hash` of whose they are.

    `strength` is scikit-learn's C, chosen for the best of `scores`: each C's share of right answers on what was held
    out (empty where every label has one picture). `temperature` is what the logits are divided by, so that the
    probabilities are as true as they were on what was held out.
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
        """Whether C is the least or the largest of those tried, so that one beyond them might do better."""
        return bool(self.scores) and self.strength in (min(self.scores), max(self.scores))

    def logits(self, embeddings: Tensor) -> Tensor:
        """Unit embeddings (B, E) -> (B, L), at the temperature."""
        return (embeddings @ self.weight.T + self.bias) / self.temperature

    def rank(self, embeddings: Tensor) -> list[list[tuple[str, float]]]:
        """Unit embeddings (B, E) -> each one's labels with their probabilities, likeliest first."""
        return ranked(self.labels, self.logits(embeddings))

    def to(self, device: torch.device) -> "LinearProbe":
        """The same probe on another device."""
        return replace(self, weight=self.weight.to(device), bias=self.bias.to(device))

    def save(self, path: Path) -> None:
        """Write the probe as one safetensors file, whole or not at all."""
        about = {"kind": KIND, "labels": self.labels, "strength": self.strength, "clip": self.clip}
        about |= {"scores": list(self.scores.items()), "temperature": self.temperature}
        part = path.with_name(f"{path.name}.part")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            tensors = {"weight": self.weight.contiguous(), "bias": self.bias.contiguous()}
            save_file(tensors, part, metadata={"probe": json.dumps(about)})
            os.replace(part, path)
        except (OSError, SafetensorError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise CodebrushError(f"cannot write {path}: {reason}; name another file") from error
        finally:
            if part.exists():
                part.unlink()

    @classmethod
    def load(cls, path: Path) -> "LinearProbe":
        """The inverse of `save`. A file that is missing, damaged or something else is a PackError."""
        if not path.is_file():
            raise PackError(f"{path}: no such file; codebrush probe --out FILE makes one")
        try:
            with safe_open(path, framework="pt") as file:
                about = json.loads((file.metadata() or {})["probe"])
                weight, bias = file.get_tensor("weight"), file.get_tensor("bias")
            labels, strength, clip = tuple(map(str, about["labels"])), float(about["strength"]), str(about["clip"])
            scores = {float(candidate): float(score) for candidate, score in about["scores"]}
            temperature = float(about.get("temperature", 1.0))  # older probes have none
            fits = about["kind"] == KIND and 0 < temperature < float("inf")
            shaped = weight.ndim == 2 and len(weight) == len(bias) == len(labels)
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            raise PackError(f"{path} is no probe, or damaged: make it again with codebrush probe --out") from error
        if not (fits and shaped):
            raise PackError(f"{path} is no probe, or damaged: make it again with codebrush probe --out")
        return cls(labels, weight, bias, strength, scores, clip, temperature)


def fit_probe(
    features: Tensor,
    labels: Sequence[str],
    val: tuple[Tensor, Sequence[str]] | None = None,
    seed: int = 0,
    clip: str = "",
) -> LinearProbe:
    """Unit embeddings (N, E) and their labels -> scikit-learn's logistic regression on them.

    C is the one of `STRENGTHS` that is most often right on `val` (embeddings and labels of other pictures), or without
    it on a fifth of each label's pictures; the smallest of several. The same pictures give the temperature. The probe
    is then fitted to all of them together.
    Raises DataError for fewer than two labels.
    """
    names, targets = np.unique(np.array(labels, dtype=object), return_inverse=True)
    if len(names) < 2:
        raise DataError(f"a probe needs two labels or more; all {len(labels)} pictures have {names.tolist()}")
    points = _points(features)
    if val is None:
        kept, held = _halves(targets, seed)
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
        warnings.warn(
            f"the probe had not settled after {STEPS} steps at C {strength:g}: take it with care", stacklevel=2
        )
    weight, bias = torch.from_numpy(model.coef_).float(), torch.from_numpy(model.intercept_).float()
    if len(names) == 2:  # scikit-learn keeps the second label's alone
        weight, bias = torch.cat([torch.zeros_like(weight), weight]), torch.cat([torch.zeros_like(bias), bias])
    return LinearProbe(tuple(map(str, names)), weight, bias, strength, scores, clip, temperature)


def _choose(
    points: np.ndarray, targets: np.ndarray, others: np.ndarray, known: np.ndarray
) -> tuple[float, float, dict[float, float]]:
    """The C that is best on the points held out, `others`, the temperature that it needs there, and all scores."""
    scores, most, strength, temperature, model = {}, -1.0, 1.0, 1.0, _regression()
    for candidate in STRENGTHS if len(known) else ():
        _fit(model, points, targets, candidate)
        scores[candidate] = right = float(np.mean(model.predict(others) == known))
        if right > most:
            most, strength, temperature = right, candidate, _temperature(model.decision_function(others), known)
    return strength, temperature, scores


def _temperature(decisions: np.ndarray, known: np.ndarray) -> float:
    """The temperature for scikit-learn's decisions, (N, L), or (N,) for the second label of two."""
    two = decisions.ndim == 1
    logits = torch.from_numpy(np.stack([np.zeros_like(decisions), decisions], 1) if two else decisions)  # (N, L)
    told = torch.from_numpy(known >= 0)
    count = int(told.sum())
    return fit_temperature(logits[told], torch.from_numpy(known)[told], doubt=1 / (count + 2)) if count else 1.0


@torch.no_grad()
def probe_figures(probe: LinearProbe, features: Tensor, labels: Sequence[str]) -> dict[str, float]:
    """Unit embeddings (N, E) and their labels -> top-1, top-5 and the mean of the labels' own top-1.

    A label that the probe never saw is wrong whatever it says; `unseen` counts such pictures.
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


def _halves(targets: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The rows to fit and those held out: a fifth of each label's, and none of a label that has one."""
    rng = np.random.default_rng(seed)
    held = np.zeros(len(targets), bool)
    for label in range(targets.max() + 1):
        rows = rng.permutation(np.flatnonzero(targets == label))
        held[rows[: max(1, round(HELD_OUT * len(rows)))] if len(rows) > 1 else []] = True
    return np.flatnonzero(~held), np.flatnonzero(held)


def _regression():
    try:
        from sklearn.linear_model import LogisticRegression
    except ImportError as error:
        raise CodebrushError("a probe needs scikit-learn: pip install 'codebrush[eval]'") from error
    # Each C begins anew: from a smaller C's weights the solver takes no step at all, its gradient being small there.
    return LogisticRegression(max_iter=STEPS)


def _fit(model: Any, points: np.ndarray, targets: np.ndarray, strength: float) -> bool:
    """Fit `model` at this C; whether it settled."""
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.set_params(C=strength).fit(points, targets)
    return bool(model.n_iter_.max() < STEPS)
