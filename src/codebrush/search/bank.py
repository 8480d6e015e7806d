"""A database of embedded pictures in; the nearest of them to a vector, with their embeddings, out."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from codebrush.models.prior import Neighbours
from codebrush.pack.pack import Pack, clip_hash
from codebrush.search.database import Database, Mark, is_in, open_database
from codebrush.search.queries import search


def open_bank(place: str, pack: Pack) -> Callable[[Tensor, int], Neighbours]:
    """What looks into the database at `place`, which this pack's CLIP has made."""
    return bank_of(open_database(place, Mark(pack.name, clip_hash(pack.member("clip")))))


def bank_of(database: Database) -> Callable[[Tensor, int], Neighbours]:
    """What looks for the k pictures nearest to a unit vector (E,)."""

    def nearest(vector: Tensor, k: int) -> Neighbours:
        hits = search(database, vector.cpu(), k=k)
        wanted = [hit.path for hit in hits]
        stored: dict[str, list[float]] = {}
        for batch in database.rows(["path", "embedding"], is_in("path", wanted)) if wanted else ():
            rows = batch.to_pydict()
            stored |= dict(zip(rows["path"], rows["embedding"], strict=True))
        names = [path for path in wanted if path in stored]  # a process beside may have dropped one
        vectors = torch.tensor([stored[path] for path in names]).reshape(len(names), len(vector))
        embeddings = F.normalize(vectors, dim=-1).to(vector.device)
        return Neighbours(names, embeddings @ vector, embeddings)

    return nearest
