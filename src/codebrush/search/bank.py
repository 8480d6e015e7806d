"""Looks up the pictures of a database that are nearest to a vector, with their embeddings, for retrieval."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from codebrush.models.bank import Neighbours
from codebrush.pack.pack import Pack, clip_hash
from codebrush.search.database import Database, Embedder, is_in, open_database
from codebrush.search.queries import search


def open_bank(place: str, pack: Pack) -> Callable[[Tensor, int], Neighbours]:
    """The lookup in the database at `place`, as `bank_of` returns it.

    Raises:
        DataError: if there is no database, or it is damaged.
        PackError: if another CLIP than that of `pack` made it.
    """
    return bank_of(open_database(place, Embedder(pack.name, clip_hash(pack.member("clip")))))


def bank_of(database: Database) -> Callable[[Tensor, int], Neighbours]:
    """A function of a unit vector (E,) and k: names, cosines (k,) and embeddings (k, E) of the k nearest pictures."""

    def nearest(vector: Tensor, k: int) -> Neighbours:
        hits = search(database, vector.cpu(), k=k, thumbnails=False)
        wanted = [hit.path for hit in hits]
        stored: dict[str, list[float]] = {}
        for batch in database.rows(["path", "embedding"], is_in("path", wanted)) if wanted else ():
            rows = batch.to_pydict()
            stored |= dict(zip(rows["path"], rows["embedding"], strict=True))
        names = [path for path in wanted if path in stored]  # another process may have removed one
        vectors = torch.tensor([stored[path] for path in names]).reshape(len(names), len(vector))
        embeddings = F.normalize(vectors, dim=-1).to(vector.device)
        return Neighbours(names, embeddings @ vector, embeddings)

    return nearest
