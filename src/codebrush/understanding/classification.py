"""Zero-shot classification: probabilities of labels for pictures, from CLIP's embeddings of the labels' texts."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from codebrush.data.known_texts import KnownTexts
from codebrush.data.picture_fitting import Fit, embed_views, views_for
from codebrush.data.text_embedding import embed_other_texts, embed_texts
from codebrush.errors import PackError, PromptError, UsageError
from codebrush.files import read_entries
from codebrush.models.clip import CLIP
from codebrush.text.prompts import ZERO_SHOT_TEMPLATES
from codebrush.text.reading import REMEDY, is_unreadable, named_texts
from codebrush.text.tokenizer import Tokenizer
from codebrush.warned import warn

BATCH = 32  # pictures or sentences encoded together
NONE = "none of these"  # the answer beside the labels


class ZeroShotClassifier:
    """Zero-shot classifier (Radford et al. 2021, section 3.1).

    A label is represented by the normalised mean of the unit embeddings of its sentences, one for each of `templates`
    (each with one {} where the label goes). Logits are the cosines with a picture times CLIP's learned scale, divided
    by `temperature`: 1 keeps CLIP's own scale, `pack_temperature` gives a pack's calibrated one.

    Labels with words that the CLIP was not trained with are understood with the help of `known` ones, if there are any.

    With `none` the last label is "none of these". Its share of the softmax is that of a fixed list of texts about other
    things (`OTHER_TEXTS`) together, as if they were labels too. A single label is enough then.

    Labels of which the tokenizer reads nothing say nothing about a picture: they are left out with a warning, have no
    probability, and are listed in `unread_labels`. `labels` are the others.

    Raises:
        PromptError: if so many labels cannot be read that there is nothing to choose between.
        UsageError: if there are fewer than two labels, one is empty, or two are the same but for case and spaces; if a
            template does not hold {} once; if the temperature is not positive.
    """

    def __init__(
        self,
        clip: CLIP,
        tokenizer: Tokenizer,
        labels: Sequence[str],
        templates: Sequence[str] = ZERO_SHOT_TEMPLATES,
        temperature: float = 1.0,
        none: bool = False,
        known: KnownTexts | None = None,
    ):
        check_labels(labels, none)
        check_temperature(temperature)
        labels, self.unread_labels = _split_labels(labels, tokenizer, none)
        self.clip, self.labels, self.temperature = clip, (*labels, NONE) if none else tuple(labels), temperature
        classes = label_embeddings(clip, tokenizer, labels, templates)
        self.classes = classes if known is None else known.helped(labels, classes)
        self.others = embed_other_texts(clip, tokenizer) if none else None  # (N, E)

    @torch.no_grad()
    def logits(self, embeddings: Tensor) -> Tensor:
        """Unit embeddings of pictures (B, E) -> logits (B, L), divided by the temperature."""
        scaled = self.clip.log_scale.exp() / self.temperature * embeddings
        logits = scaled @ self.classes.T  # (B, L)
        if self.others is None:
            return logits
        return torch.cat([logits, (scaled @ self.others.T).logsumexp(-1, keepdim=True)], dim=-1)  # (B, L)

    def rank(self, embeddings: Tensor) -> list[list[tuple[str, float]]]:
        """Unit embeddings of pictures (B, E) -> each one's labels with their probabilities, most probable first."""
        return ranked(self.labels, self.logits(embeddings))

    @torch.no_grad()
    def classify(
        self, images: Sequence[bytes | str | Path | Image.Image], fit: Fit | None = None
    ) -> list[list[tuple[str, float]]]:
        """`rank` for pictures or picture files, fitted as `views_for` does. Raises ImageError if one cannot be read."""
        found: list[list[tuple[str, float]]] = []
        for start in range(0, len(images), BATCH):
            views = [views_for(self.clip, image, fit) for image in images[start : start + BATCH]]
            found += self.rank(embed_views(self.clip, views))
        return found


def ranked(labels: Sequence[str], logits: Tensor) -> list[list[tuple[str, float]]]:
    """Logits (B, L) -> for each row the labels with their probabilities, most probable first."""
    shares, order = logits.softmax(-1).sort(dim=-1, descending=True, stable=True)  # (B, L) each
    rows: list[tuple[list[int], list[float]]] = list(zip(order.tolist(), shares.tolist(), strict=True))
    return [[(labels[place], share) for place, share in zip(*row, strict=True)] for row in rows]


def check_labels(labels: Sequence[str], none: bool = False) -> None:
    """Raise UsageError unless `labels` are two or more different texts; with `none` one or more, other than `NONE`."""
    if isinstance(labels, str) or not labels:
        raise UsageError("labels must be a list of at least two texts, such as cat and dog")
    seen = {NONE: NONE} if none else dict[str, str]()
    for label in labels:
        if not label.strip():
            raise UsageError("one of the labels is empty: name it or leave it out")
        key = " ".join(label.casefold().split())
        if key in seen:
            raise UsageError(f'the labels "{seen[key]}" and "{label}" are the same: name it once')
        seen[key] = label
    if len(labels) == 1 and not none:
        raise UsageError(f'"{labels[0]}" is the only label, so its probability is always 1: give at least one more')


def _split_labels(labels: Sequence[str], tokenizer: Tokenizer, none: bool) -> tuple[list[str], list[str]]:
    """The labels that are compared with pictures, and those of which nothing can be read, after a warning for them."""
    lost = [label for label in labels if is_unreadable(label, tokenizer)]
    known = [label for label in labels if label not in lost]
    if lost and len(known) < (1 if none else 2):
        rest = f', so "{known[0]}" is the only label left' if known else ""
        kind = "label" if len(lost) == 1 else "labels"
        raise PromptError(f"the pack cannot read the {kind} {named_texts(lost)}{rest}: {REMEDY}")
    if lost:
        kind, are = ("label", "it is") if len(lost) == 1 else ("labels", "they are")
        message = f"the pack cannot read the {kind} {named_texts(lost)}, so {are} left out: {REMEDY}"
        warn(message)
    return known, lost


def check_templates(templates: Sequence[str]) -> None:
    """Raise UsageError unless every one of `templates` holds {} once."""
    if isinstance(templates, str) or not templates:
        raise UsageError('templates must be a list of at least one text, such as ["a photo of a {}"]')
    for template in templates:
        if template.count("{}") != 1:
            raise UsageError(f'the template "{template}" must hold {{}} once, where the label goes')


def check_temperature(temperature: float) -> None:
    """Raise UsageError unless `temperature` is a positive, finite number."""
    if not 0 < temperature < float("inf"):
        raise UsageError(f"the temperature must be positive, not {temperature}")


def pack_temperature(info: Mapping[str, Any]) -> float:
    """The calibration temperature (Guo et al. 2017) in a pack's pack.json, under "classification"; 1 if it has none.

    Raises PackError if it is not a positive number.
    """
    found = info.get("classification", {})
    value = found.get("temperature", 1.0) if isinstance(found, dict) else None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
        raise PackError(
            f"the pack '{info.get('name')}': classification must hold a positive temperature; correct its pack.json"
        )
    return float(value)


def read_labels(text: str) -> list[str]:
    """Labels from a line of CSV: separated by commas; one that contains a comma is in double quotes.

    Raises UsageError if the quotes do not match.
    """
    try:
        rows = list(csv.reader(text.splitlines(), skipinitialspace=True, strict=True))
    except csv.Error as error:
        raise UsageError(f'the labels cannot be read ({error}): write them like cat,"dog, asleep",car') from error
    return [label.strip() for row in rows for label in row]


def read_label_file(path: Path) -> list[str]:
    """The non-empty lines of a UTF-8 text file as labels. Raises UsageError if it cannot be read."""
    return [line.strip() for line in read_entries(path, "label", UsageError) if line.strip()]


@torch.no_grad()
def label_embeddings(
    clip: CLIP, tokenizer: Tokenizer, labels: Sequence[str], templates: Sequence[str] = ZERO_SHOT_TEMPLATES
) -> Tensor:
    """Labels -> unit vectors (L, E), each the normalised mean over its sentences (Radford et al. 2021, section 3.1.4).

    Raises UsageError if a template does not hold {} once.
    """
    check_templates(templates)
    means = []
    for start in range(0, len(labels), BATCH):  # bounds how many sentences are in memory
        some = labels[start : start + BATCH]
        sentences = [template.replace("{}", label) for label in some for template in templates]
        vectors = embed_texts(clip, tokenizer, sentences, BATCH)
        means.append(vectors.unflatten(0, (len(some), len(templates))).mean(1))  # (some labels, E)
    return F.normalize(torch.cat(means), dim=-1)  # (L, E)
