"""Searches of a small database: nearest first, conditions, captions, and refused queries."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from codebrush.errors import UsageError
from codebrush.search.database import Database
from codebrush.search.queries import combine, search
from search_helpers import database_of, unit

CAPTIONS = ["a red flower", "two red flowers", "the blue dog", "", "a red dog", "the the the"]


@pytest.fixture(scope="module")
def vectors() -> np.ndarray:
    return unit(np.random.default_rng(0).normal(size=(len(CAPTIONS), 8)))


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory, vectors: np.ndarray) -> Database:
    return database_of(tmp_path_factory.mktemp("queries") / "db", vectors, CAPTIONS)


def _paths(database: Database, *arguments, **options) -> list[str]:
    return [hit.path for hit in search(database, *arguments, **options)]


def test_the_nearest_come_first_with_their_cosines(database: Database, vectors: np.ndarray) -> None:
    query = unit(np.arange(8) - 3.0)
    hits = search(database, torch.from_numpy(query), k=4)
    cosines = vectors @ query
    assert [int(hit.path) for hit in hits] == np.argsort(-cosines)[:4].tolist()
    assert [hit.score for hit in hits] == pytest.approx(sorted(cosines, reverse=True)[:4], abs=1e-5)
    assert [hit.caption for hit in hits] == [CAPTIONS[int(hit.path)] for hit in hits]
    assert len(search(database, torch.from_numpy(query), k=100)) == len(CAPTIONS)


def test_conditions(database: Database, vectors: np.ndarray) -> None:
    query = torch.from_numpy(vectors[0])
    assert set(_paths(database, query, where="size >= 2 AND size < 4")) == {"2", "3"}
    assert _paths(database, query, where="caption LIKE '%dog' AND path != '4'") == ["2"]
    assert _paths(database, query, where="size > 100") == []
    for wrong in ("colour = 'red'", "size >", "caption", "1; DROP TABLE pictures", "", "(size > 2"):
        with pytest.raises(UsageError, match=r"cannot read the condition .*the columns are path, source, caption"):
            search(database, query, where=wrong)


@pytest.mark.parametrize(
    ("where", "fault"),
    [
        ("colour = 'red'", "there is no column colour; text stands in quotes, like 'colour'"),
        ("caption like cat", "there is no column cat; text stands in quotes, like 'cat'"),
        ('path = "a dog"', "there is no column a dog; text stands in single quotes, like 'a dog'"),
        ("size >", "it ends too early"),
        ("", "it ends too early"),
        ("(size > 2", "it ends before )"),
        ("size between 1", "it ends before AND"),
        ("size in (1 2)", "it has 2 in place of )"),
        ("path = 'cat", "a quote is not closed"),
        ("size => 2", "it compares nothing: write a comparison, like width > 64"),
        ("size > 'x'", "a column that holds no text is compared with 'x'"),
        ("embedding > 3", "a column is compared with a value of another kind"),
        ("big(size) > 2", "there is no function big"),
        ("count(*) > 1", "only comparisons of columns with values are known here"),
    ],
)
def test_what_is_wrong_with_a_condition_is_said_plainly(
    database: Database, vectors: np.ndarray, where: str, fault: str
) -> None:
    with pytest.raises(UsageError) as caught:
        search(database, torch.from_numpy(vectors[0]), where=where)
    assert str(caught.value).startswith(f'cannot read the condition "{where}" ({fault}); the columns are path, ')


def test_a_condition_is_read_to_its_end(database: Database, vectors: np.ndarray) -> None:
    query = torch.from_numpy(vectors[0])
    for wrong in (
        "1=1; drop",
        "size > 2;",
        "size > 2 LIMIT 1",
        "size > 2 ORDER BY path",
        "size > 2, path",
        "1=1) drop",
    ):
        with pytest.raises(UsageError, match=r"only its beginning is a condition.*the columns are path"):
            search(database, query, where=wrong)
    assert _paths(database, query, where="path = 'a;b)'") == []
    assert _paths(database, query, where="path = '2' OR path = 'it''s; x'") == ["2"]
    assert _paths(database, query, where="path = '2' -- ; and no more") == ["2"]


def test_words_in_captions(database: Database) -> None:
    assert set(_paths(database, None, "flower", mode="text")) == {"0", "1"}  # inflected or not
    assert set(_paths(database, None, "RED", mode="text")) == {"0", "1", "4"}
    assert _paths(database, None, "red", mode="text", without=["flower"]) == ["4"]
    assert set(_paths(database, None, "red", mode="text", where="size > 0")) == {"1", "4"}
    assert _paths(database, None, "zebra", mode="text") == []


def test_stop_words_only_count_if_there_are_no_other_words(database: Database, vectors: np.ndarray) -> None:
    assert set(_paths(database, None, "A zebra, or the dog", mode="text")) == {"2", "4"}
    assert set(_paths(database, None, "the red", mode="text", without=["a flower"])) == {"4"}
    assert _paths(database, None, "the", mode="text")[0] == "5"
    hits = search(database, torch.from_numpy(vectors[2]), "a the flower", mode="hybrid", k=10)
    scores = {hit.path: hit.score for hit in hits}
    assert scores["5"] < 1 / 60  # found by its picture alone, though its caption has "the" thrice
    assert min(scores["0"], scores["1"]) > max(scores[path] for path in "345")


def test_a_stop_word_inside_a_word_stays(tmp_path: Path) -> None:
    database = database_of(tmp_path / "db", np.eye(3, dtype=np.float32), ["a theatre", "the hat", "an atlas"])
    assert _paths(database, None, "the theatre", mode="text") == ["0"]
    assert _paths(database, None, "an_atlas", mode="text") == ["2"]


@pytest.mark.parametrize("words", ['dog" AND (', "dog:1.5", "dog | -dog", "dog*", "+dog -red", "caption:dog\\"])
def test_nothing_in_the_words_is_an_operator(database: Database, words: str) -> None:
    assert {"2", "4"} <= set(_paths(database, None, words, mode="text"))


def test_hybrid_joins_both_lists(database: Database, vectors: np.ndarray) -> None:
    hits = search(database, torch.from_numpy(vectors[2]), "dog", mode="hybrid", k=3)
    assert hits[0].path == "2"  # first in one list and among the first in the other
    assert {hit.path for hit in hits} > {"2", "4"}
    assert hits[0].score == pytest.approx(sum(1 / (60 + rank) for rank in (1, 1)), rel=0.02)
    assert _paths(database, torch.from_numpy(vectors[2]), "dog", mode="hybrid", where="path = '4'") == ["4"]


def test_hybrid_finds_what_is_second_in_both_lists(tmp_path: Path) -> None:
    """And ranks it above a row that is first in one list and last in the other."""
    vectors = unit(np.array([[1, 0], [1, 0.2], [-1, 0], [-1, 0.1], [-1, 0.2]]))
    database = database_of(tmp_path / "db", vectors, ["no word", "dog and a word", "dog dog", "", ""])
    (hit,) = search(database, torch.tensor([1.0, 0.0]), "dog", mode="hybrid", k=1)
    assert hit.path == "1"


def test_a_row_read_in_two_versions_of_the_table_is_one_result(tmp_path: Path) -> None:
    """When another process writes between the two lists of a hybrid search, a row can be in them twice: here by two
    rows of one path, the first found by its picture, the second by its caption."""
    vectors = unit(np.array([[1, 0.3], [-1, 0], [1, 0], [1, 0.1]]))
    captions = ["no word", "dog", "a dog and more words", "no word"]
    apart = database_of(tmp_path / "apart", vectors, captions)
    twice = database_of(tmp_path / "twice", vectors, captions)
    twice.table.update(where="path = '1'", values={"path": "0"})
    query = torch.tensor([1.0, 0.0])
    scores = {hit.path: hit.score for hit in search(apart, query, "dog", mode="hybrid")}
    scores["0"] += scores.pop("1")
    found = search(twice, query, "dog", mode="hybrid")
    assert {hit.path: hit.score for hit in found} == pytest.approx(scores)
    assert [hit.path for hit in found] == sorted(scores, key=lambda path: -scores[path])
    assert [hit.path for hit in search(twice, query, "dog", mode="hybrid", k=1)] == ["0"]


def test_bad_queries_are_refused(database: Database) -> None:
    query = torch.eye(8)[0]
    for k in (0, 10_001):
        with pytest.raises(UsageError, match="between 1 and 10,000"):
            search(database, query, k=k)
    with pytest.raises(UsageError, match="give a text"):
        search(database, query, " ", mode="hybrid")
    with pytest.raises(UsageError, match="give one"):
        search(database, None, "dog")


def test_texts_pictures_and_unwanted_texts_are_combined() -> None:
    text, image, unwanted = torch.eye(3)
    assert torch.equal(combine(text, None), text)
    assert torch.equal(combine(None, image), image)
    assert torch.allclose(combine(text, image, image_weight=0.25), F.normalize(torch.tensor([0.75, 0.25, 0]), dim=0))
    query = combine(text, None, unwanted[None])
    assert query @ unwanted < 0 < query @ text
    assert query.norm() == pytest.approx(1)
    assert torch.equal(combine(text, image, image_weight=1.0), image)
    with pytest.raises(UsageError, match="there is nothing to search for: give a text, a picture or both"):
        combine(None, None)
    with pytest.raises(UsageError, match=r"the weight of the picture is 1\.5; it must be between 0 and 1"):
        combine(text, image, None, 1.5)
    with pytest.raises(UsageError, match="cancel out"):
        combine(text, None, torch.stack([text, text]))


@pytest.mark.parametrize(
    ("where", "hint"),
    [
        ("caption > 3", "caption is text: write cast(caption as float) > 3"),
        ("size > 0 and `caption` <= -2.5", "caption is text: write cast(caption as float) <= -2.5"),
        ("3 < caption", "caption is text: write 3 < cast(caption as float)"),
        ("caption not between 1 and 2", "caption is text: write cast(caption as float) not between ..."),
        ("path != 'caption > 7' and caption = 3", "caption is text: write cast(caption as float) = 3"),
        (
            "cast(caption as float) > 3",
            "caption holds '0,99', which this cast cannot read: write cast(replace(caption, ',', '.') as float)",
        ),
        (
            "cast(replace(caption, ',', '.') as float) > 3",
            "caption holds 'free', which this cast cannot read: write try_cast(caption as float), which leaves it out",
        ),
    ],
)
def test_text_that_is_compared_with_a_number(tmp_path: Path, where: str, hint: str) -> None:
    database = database_of(tmp_path / "db", unit(np.eye(3)), ["0,99", "4,5", "free"])
    with pytest.raises(UsageError) as caught:
        search(database, torch.from_numpy(unit(np.eye(3)))[0], where=where)
    assert str(caught.value) == f'cannot read the condition "{where}": {hint}'


def test_what_the_hints_say_works(tmp_path: Path) -> None:
    database = database_of(tmp_path / "db", unit(np.eye(3)), ["0,99", "4,5", "7"])
    query = torch.from_numpy(unit(np.eye(3)))[0]
    assert set(_paths(database, query, where="cast(replace(caption, ',', '.') as float) > 3")) == {"1", "2"}
    assert _paths(database, query, where="try_cast(caption as float) > 3") == ["2"]
