"""Says whether any picture of a database is near to a text: whether it fits better than texts about other things do.

How high a cosine must be depends on the CLIP and on the pictures. The texts of a fixed list are therefore searched for
once, and what they reach is stored beside the table until the pictures change. A text of the list that the database has
a picture of is no measure: such texts are recognised by CLIP's own softmax over the list, and left out.
docs/log.md has the measurements that led to this rule.
"""

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from codebrush.data.text_embedding import embed_other_texts
from codebrush.files import atomic_file
from codebrush.models.clip import CLIP
from codebrush.search.database import Database
from codebrush.search.queries import search
from codebrush.text.other_things import LIST_HASH, NEAR, UNSURE
from codebrush.text.tokenizer import Tokenizer

FEWEST = 64  # of these texts; if fewer are left, the database has pictures of nearly everything


@dataclass(frozen=True)
class Nearness:
    """`level`, 0 to 1, is the share of texts about other things that fit every picture of the database less than the
    text fits the best one; `near` says whether that is at least `NEAR`.
    """

    level: float

    @property
    def near(self) -> bool:
        """Whether a picture is near to the text."""
        return self.level >= NEAR

    @property
    def doubt(self) -> str | None:
        """What there is to say to a reader of the results; None if a picture is near."""
        if self.near:
            return None
        opening = "perhaps nothing is near" if self.level >= UNSURE else "nothing is near"
        return f"{opening}: {1 - self.level:.0%} of texts about other things fit a picture as well or better"


def nearness(
    database: Database,
    text: Tensor,
    clip: CLIP,
    tokenizer: Tokenizer,
    *,
    temperature: float = 1.0,
    where: str | None = None,
) -> Nearness | None:
    """How near the pictures that meet the SQL condition `where` are to the unit vector (E,) of a text.

    `temperature` divides CLIP's logits, as in `ZeroShotClassifier`. None if there are no pictures, or if the database
    has pictures of so many of the listed texts that nothing can be said.

    Raises:
        UsageError: if the condition cannot be read.
        DataError: if the database is damaged.
    """
    best = search(database, text, k=1, where=where, thumbnails=False)
    others = _reached(database, clip, tokenizer, temperature)
    if not best or len(others) < FEWEST:
        return None
    return Nearness(float((others < best[0].score).float().mean()))


def _reached(database: Database, clip: CLIP, tokenizer: Tokenizer, temperature: float) -> Tensor:
    """The best cosines (M,) of those of the listed texts that the database has no picture of."""
    scale = clip.log_scale.exp().item() / temperature
    made_for = {"list": LIST_HASH, "clip": database.embedder.clip}
    about = made_for | {"version": str(database.table.version), "scale": f"{scale:.6g}"}
    file = database.place.cache_file()
    vectors = None
    with suppress(OSError, SafetensorError, KeyError), safe_open(file, "pt") as stored:
        known = stored.metadata() or {}
        if known == about:
            return stored.get_tensor("reached")
        if known | made_for == known:
            vectors = stored.get_tensor("embeddings")  # (N, E)
    if vectors is None:
        vectors = embed_other_texts(clip, tokenizer).float().cpu()
    reached = _search_all(database, vectors, scale)
    with suppress(OSError, SafetensorError):  # a database that may only be read is compared anew each time
        _store(file, {"embeddings": vectors, "reached": reached}, about)
    return reached


def _store(file: Path, tensors: dict[str, Tensor], about: dict[str, str]) -> None:
    with atomic_file(file) as part:
        save_file(tensors, part, about)


@torch.no_grad()
def _search_all(database: Database, vectors: Tensor, scale: float) -> Tensor:
    """Unit vectors (N, E) of texts -> the best cosines (M,) of those without a picture: at a text's best picture, the
    logits of all others together are higher than its own.
    """
    count = len(vectors)
    best = torch.full((count,), -torch.inf)
    there = torch.zeros(count, count)  # row i: the cosines of all texts with the best picture of text i
    for part in database.rows(["embedding"], "embedding IS NOT NULL"):
        flat = np.array(part["embedding"].flatten().to_numpy(zero_copy_only=False))
        scores = F.normalize(torch.from_numpy(flat).reshape(len(part), -1), dim=-1) @ vectors.T  # (B, N)
        if not len(scores):
            continue
        found, row = scores.max(0)  # (N,) each
        better = found > best
        best, there = torch.where(better, found, best), torch.where(better[:, None], scores[row], there)
    others = (scale * there).masked_fill(torch.eye(count, dtype=torch.bool), -torch.inf).logsumexp(1)  # (N,)
    return best[scale * best < others]
