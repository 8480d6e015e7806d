"""Makes the bank of a pack: the embeddings of some of the pictures that it was trained on."""

import time

import numpy as np
import torch
from torch import Tensor

from codebrush.models.bank import Bank, BankConfig
from codebrush.models.clip import CLIP
from codebrush.training.dataset import Captioned, evenly

MOST = 2048  # pictures in a bank
BATCH = 64


def spread(groups: np.ndarray, most: int) -> np.ndarray:
    """Up to `most` row numbers of `groups` (N,), sorted; no group gets a second row before every group has one."""
    order = np.argsort(groups, kind="stable")
    _, first, counts = np.unique(groups[order], return_index=True, return_counts=True)
    place = np.arange(len(groups)) - np.repeat(first, counts)  # of each row of `order` within its group
    by_place = order[np.argsort(place, kind="stable")]
    if len(first) > most:  # more groups than rows: take them from the whole source
        by_place = by_place[: len(first)][evenly(len(first), most)]
    return np.sort(by_place[:most])


@torch.no_grad()
def make_bank(clip: CLIP, data: Captioned, most: int = MOST, seconds: float | None = None) -> Bank:
    """The embeddings of up to `most` pictures, named by their first captions; fewer if `seconds` allow no more."""
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
