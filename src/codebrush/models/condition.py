"""What a picture is drawn from: the text, embedding, source picture or label given to the painter."""

from dataclasses import dataclass, fields

import torch
from torch import Tensor


@dataclass  # not frozen: Lightning's precision plugins rebuild a forward's arguments field by field
class Condition:
    """The conditions of B pictures, or of one row that all pictures of a batch share; None means "not given"."""

    text_features: Tensor | None = None  # (B, T, D)
    text_mask: Tensor | None = None  # (B, T) bool, True at text
    text_embedding: Tensor | None = None  # (B, E)
    image_embedding: Tensor | None = None  # (B, E)
    source_codes: Tensor | None = None  # (B, h, w) or (B, N) int64
    source_latent: Tensor | None = None  # (B, d, h, w), as a VQGAN's decoder reads it: what a flow has for codes
    source_mask: Tensor | None = None  # (B, h, w) or (B, N) bool: False at holes of the source; None: no holes
    labels: Tensor | None = None  # (B,) int64
    # (B, C) bool: which of the network's conditions, in its config's order, a row has; None: all that are given
    present: Tensor | None = None

    def _map(self, change) -> "Condition":
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return Condition(**{name: None if value is None else change(value) for name, value in values.items()})

    @property
    def batch(self) -> int:
        """B, the number of rows; 1 where nothing is given."""
        values = (getattr(self, field.name) for field in fields(self))
        return next((len(value) for value in values if value is not None), 1)

    def rows(self, index: Tensor | slice) -> "Condition":
        """The batch rows that `index` picks."""
        return self._map(lambda value: value[index])

    def expand(self, batch: int) -> "Condition":
        """A single row as `batch` equal ones, without copying; `batch` rows stay as they are."""
        return self._map(lambda value: value if len(value) == batch else value.expand(batch, *value.shape[1:]))

    def to(self, device: torch.device) -> "Condition":
        """The same condition on another device."""
        return self._map(lambda value: value.to(device))
