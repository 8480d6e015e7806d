"""A database as a retrieval bank: the nearest pictures with their embeddings."""

from pathlib import Path

import numpy as np
import torch

from codebrush.search.bank import bank_of
from search_helpers import database_of, unit


def test_the_nearest_come_with_their_embeddings(tmp_path: Path) -> None:
    vectors = unit(np.random.default_rng(0).normal(size=(20, 8)))
    query = torch.from_numpy(unit(np.arange(8) - 3.0)).float()
    found = bank_of(database_of(tmp_path / "db", vectors, [""] * 20))(query, 4)
    order = np.argsort(-(vectors @ query.numpy()))[:4]
    assert [int(name) for name in found.names] == order.tolist()
    torch.testing.assert_close(found.embeddings, torch.from_numpy(vectors[order]).float())
    torch.testing.assert_close(found.cosines, found.embeddings @ query)
    assert len(bank_of(database_of(tmp_path / "other", vectors, [""] * 20))(query, 100).names) == 20
