"""A CLIP and captioned pictures in; the bank of known pictures that a pack brings along, out."""

import time

import numpy as np
import torch
from torch import Tensor

from codebrush.models.bank import Bank, BankConfig
from codebrush.models.clip import CLIP
from codebrush.training.dataset import Captioned, evenly

MOST = 2048  # pictures
BATCH = 64


def spread(groups: np.ndarray, most: int) -> np.ndarray:
    """Up to `most` row numbers of `groups` (N,), in their order: each group has its turn before one has another."""
    order = np.argsort(groups, kind="stable")
    _, first, counts = np.unique(groups[order], return_index=True, return_counts=True)
    turn = np.arange(len(groups)) - np.repeat(first, counts)  # of each row of `order` within its group
    by_turn = order[np.argsort(turn, kind="stable")]
    if len(first) > most:  # not all groups have a place: take them from all over the source
        by_turn = by_turn[: len(first)][evenly(len(first), most)]
    return np.sort(by_turn[:most])


@torch.no_grad()
def make_bank(clip: CLIP, data: Captioned, most: int = MOST, seconds: float | None = None) -> Bank:
    """The embeddings of up to `most` pictures, called by their first captions; fewer where `seconds` allow no more."""
    if seconds is not None:
        began = time.monotonic()
        _embed(clip, data, np.arange(min(BATCH, len(data))))
        most = min(most, max(BATCH, int(BATCH * seconds / (time.monotonic() - began))))
    rows = spread(data.groups, most)
    parts = [_embed(clip, data, rows[start : start + BATCH]) for start in range(0, len(rows), BATCH)]
    bank = Bank(BankConfig(clip.embed_dim, tuple(data.captions(row)[0] for row in rows.tolist())))
    bank.embeddings.copy_(torch.cat(parts))
    return bank.eval()


def _embed(clip: CLIP, data: Captioned, rows: np.ndarray) -> Tensor:
    return clip.encode_image(data.images(rows).to(clip.log_scale.device).float() / 255)
