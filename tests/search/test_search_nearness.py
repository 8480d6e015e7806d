"""Whether anything in a database is near to a text, and the least score of a result."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from codebrush.errors import UsageError
from codebrush.search import nearness as module
from codebrush.search.database import Database
from codebrush.search.nearness import Nearness, nearness
from codebrush.search.places import OTHER_TEXTS_FILE
from codebrush.search.queries import search
from codebrush.text.other_things import OTHER_TEXTS
from packs import micro_clip, micro_tokenizer
from search_helpers import database_of, unit

WIDTH = 32
RANDOM = np.random.default_rng(0)
TEXTS = unit(
    RANDOM.normal(size=(len(OTHER_TEXTS), WIDTH))
)  # in place of the embeddings of the texts about other things
QUERY = torch.eye(WIDTH)[0]


@pytest.fixture
def embedded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many texts were embedded by each call; they get the vectors TEXTS."""
    calls: list[int] = []

    def embed(_clip: object, _tokenizer: object) -> torch.Tensor:
        calls.append(len(OTHER_TEXTS))
        return torch.from_numpy(TEXTS)

    monkeypatch.setattr(module, "embed_other_texts", embed)
    return calls


def judge(database: Database, query: torch.Tensor = QUERY, scale: float = 30, **options: str) -> Nearness | None:
    clip = micro_clip()
    return nearness(
        database, query, clip, micro_tokenizer(), temperature=clip.log_scale.exp().item() / scale, **options
    )


def pictures_with(cosines: list[float], others: np.ndarray = TEXTS[:0]) -> np.ndarray:
    """Unit vectors that have these cosines with QUERY, and `others`."""
    rest = unit(RANDOM.normal(size=(len(cosines), WIDTH)) * (np.arange(WIDTH) > 0))
    given = np.array(cosines)[:, None]
    return np.concatenate([unit(given * QUERY.numpy() + np.sqrt(1 - given**2) * rest), others])


def test_a_text_is_near_if_it_fits_better_than_texts_about_other_things(tmp_path: Path, embedded: list[int]) -> None:
    vectors = pictures_with([0.9, *[0.1] * 20])
    database = database_of(tmp_path / "db", vectors)
    best = (TEXTS @ vectors.T).max(1)
    found = judge(database)
    assert found == Nearness(1.0)
    assert Nearness(1.0).near
    level = (best < 0.1).mean()  # 0.1 is the best that is left without the first picture
    far = judge(database, where="size > 0")
    assert far is not None
    assert far.level == pytest.approx(level)
    assert not far.near
    assert judge(database, where="size > 100") is None
    assert embedded == [len(OTHER_TEXTS)], "once, and stored"


def test_texts_that_the_database_has_pictures_of_are_no_measure(tmp_path: Path, embedded: list[int]) -> None:
    database = database_of(tmp_path / "db", pictures_with([0.8], TEXTS[:150]))
    found = judge(database)
    assert found == Nearness(1.0), "150 of the 256 texts reach 1, but they are there"
    assert judge(database_of(tmp_path / "all", pictures_with([0.8], TEXTS[:200]))) is None, "too few are left"


def test_what_is_stored_is_made_anew_when_pictures_or_scale_change(tmp_path: Path, embedded: list[int]) -> None:
    database = database_of(tmp_path / "db", pictures_with([0.1] * 4))
    before = judge(database)
    stored = (tmp_path / "db" / OTHER_TEXTS_FILE).read_bytes()
    assert judge(database) == before
    assert (tmp_path / "db" / OTHER_TEXTS_FILE).read_bytes() == stored
    vectors = pictures_with([0.7])
    schema = pa.schema([database.table.schema.field(name) for name in ("path", "embedding")])
    flat = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), WIDTH)
    database.write(pa.table([pa.array(["new"]), flat], schema=schema))
    after = judge(database)
    assert before is not None
    assert after is not None
    assert after.level > before.level
    assert embedded == [len(OTHER_TEXTS)], "the pictures have changed, not the texts"
    for damage in (b"nothing", b""):
        (tmp_path / "db" / OTHER_TEXTS_FILE).write_bytes(damage)
        assert judge(database) == after
    assert len(embedded) == 3
    assert judge(database, scale=1) is not None
    assert len(embedded) == 3


def test_the_least_score_is_a_cosine(tmp_path: Path) -> None:
    database = database_of(tmp_path / "db", pictures_with([0.9, 0.5, 0.1]), ["a", "b", "c"])
    assert [hit.path for hit in search(database, QUERY, min_score=0.3)] == ["0", "1"]
    assert search(database, QUERY, min_score=0.95) == []
    assert len(search(database, QUERY, min_score=-1)) == 3
    with pytest.raises(UsageError, match=r"the least score is 1\.5; it is a cosine, between -1 and 1"):
        search(database, QUERY, min_score=1.5)
    with pytest.raises(UsageError, match="the mode text has other scores than cosines"):
        search(database, None, "a", mode="text", min_score=0.3)


@pytest.mark.parametrize(
    ("level", "doubt"),
    [
        (0.95, None),
        (0.91, "perhaps nothing is near: 9% of texts about other things fit a picture as well or better"),
        (0.8, "perhaps nothing is near: 20% of texts about other things fit a picture as well or better"),
        (0.79, "nothing is near: 21% of texts about other things fit a picture as well or better"),
    ],
)
def test_words_for_how_near_a_text_is(level: float, doubt: str | None) -> None:
    assert Nearness(level).doubt == doubt
