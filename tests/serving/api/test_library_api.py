"""Folders of a library over HTTP: listed, indexed and searched, and nothing outside it is read."""

import io
import json
import os
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi", reason='needs the extra "serve"')
pytest.importorskip("uvicorn", reason='needs the extra "serve"')
pytest.importorskip("sqlalchemy", reason='needs the extra "serve"')
pytest.importorskip("lancedb", reason='needs the extra "search"')

from api_calls import call, data_url, job_when
from PIL import Image

from codebrush import Codebrush
from codebrush.data.decoding.images import decode_image
from codebrush.search import indexing
from codebrush.search.memory_index import MemoryIndexes
from codebrush.serving.jobs.engine import Engine
from codebrush.serving.jobs.store import Store
from codebrush.serving.library import Library
from codebrush.serving.work import library as library_work
from engine_helpers import ended, wait_until

COLOURS = ("red", "blue", "green", "orange", "navy", "white")


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Six pictures with captions, and one outside."""
    folder = tmp_path / "pictures"
    (folder / "plain").mkdir(parents=True)
    (tmp_path / "outside").mkdir()
    for number, colour in enumerate(COLOURS):
        picture = Image.new("RGB", (40, 32), colour)
        picture.paste("gray", (4 * number, 4, 4 * number + 8, 20))
        picture.save(folder / "plain" / f"{colour}.png")
        (folder / "plain" / f"{colour}.txt").write_text(f"a {colour} picture")
    Image.new("RGB", (32, 32), "black").save(tmp_path / "outside" / "secret.png")
    return folder


@pytest.fixture
def url(serve: Callable[..., tuple[str, Any]], pictures: Path) -> str:
    return serve(libraries=(pictures,))[0]


def index(url: str, folder: str = "pictures/plain", **more: Any) -> dict[str, Any]:
    status, job = call(f"{url}/v1/library/index", {"folder": folder, **more})
    assert (status, job["kind"], job["model"]) == (202, "index", "micro")
    return job_when(url, job["id"], lambda job: False)


def fetch(url: str) -> tuple[int, bytes]:
    try:
        with urllib.request.urlopen(url, timeout=60) as reply:
            return reply.status, reply.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def test_all_searches_of_a_server_share_what_is_in_memory(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert index(url)["state"] == "done"
    opened, held = library_work.open_database, list[Any]()

    def noted(*given: Any, **named: Any) -> Any:
        held.append(named.get("memory"))
        return opened(*given, **named)

    monkeypatch.setattr(library_work, "open_database", noted)
    for text in ("a red circle", "a blue square"):
        assert call(f"{url}/v1/search", {"folder": "pictures/plain", "text": text})[0] == 200
    searched = [each for each in held if each is not None]
    assert len(searched) == 2
    assert isinstance(searched[0], MemoryIndexes)
    assert searched[0] is searched[1]


def test_a_folder_is_indexed_searched_and_looked_at(url: str, pictures: Path, served_brush: Codebrush) -> None:
    assert call(f"{url}/v1/library")[1]["data"] == [{"folder": "pictures", "kind": "folder", "pictures": 0}]
    assert call(f"{url}/v1/library?folder=pictures")[1]["data"][0]["pictures"] == 6
    done = index(url)
    assert done["state"] == "done"
    assert {name: done["index"][name] for name in ("added", "pictures", "skipped")} == {
        "added": 6, "pictures": 6, "skipped": 0
    }  # fmt: skip
    (known,) = call(f"{url}/v1/library")[1]["indexes"]
    assert (known["folder"], known["model"], known["pictures"]) == ("pictures/plain", "micro", 6)

    found = call(f"{url}/v1/search", {"folder": "pictures/plain", "text": "a red circle", "n": 6})[1]
    files = {f"pictures/plain/{colour}.png": pictures / "plain" / f"{colour}.png" for colour in COLOURS}
    cosines = dict(zip(files, served_brush.score(list(files.values()), "a red circle"), strict=True))
    assert {each["picture"]: each["score"] for each in found["data"]} == pytest.approx(cosines, abs=1e-5)
    assert [each["score"] for each in found["data"]] == sorted(cosines.values(), reverse=True) or found["by_meaning"]
    assert found["index"] == known["id"]
    assert {each["caption"] for each in found["data"]} == {f"a {colour} picture" for colour in COLOURS}
    first = found["data"][0]
    status, small = fetch(first["thumbnail"])
    assert (status, Image.open(io.BytesIO(small)).format) == (200, "WEBP")
    original = decode_image(files[first["picture"]])
    assert decode_image(small).resize((1, 1)).getpixel((0, 0)) == pytest.approx(
        original.resize((1, 1)).getpixel((0, 0)), abs=6
    )
    assert (first["width"], first["height"]) == (40, 32)


def test_a_picture_and_words_together(url: str, pictures: Path) -> None:
    index(url)
    asked = {"folder": "pictures/plain", "n": 1}
    picture = data_url(Image.open(pictures / "plain" / "navy.png"))
    alone = call(f"{url}/v1/search", {**asked, "image": picture})[1]
    assert alone["data"][0]["picture"] == "pictures/plain/navy.png"
    assert alone["data"][0]["score"] == pytest.approx(1, abs=1e-5)
    assert (alone["near"], alone["level"]) == (None, None)
    both = {"image": picture, "text": "a red circle"}
    scores = [
        call(f"{url}/v1/search", {**asked, **both, "image_weight": weight})[1]["data"][0]["score"]
        for weight in (1.0, 0.5, 0.0)
    ]
    assert scores[0] == pytest.approx(1, abs=1e-5)
    assert len({round(score, 5) for score in scores}) == 3
    captions = call(f"{url}/v1/search", {**asked, "text": "orange", "mode": "text"})[1]
    assert [each["picture"] for each in captions["data"]] == ["pictures/plain/orange.png"]
    none = call(f"{url}/v1/search", {**asked, "text": "a red circle", "min_score": 1.0})[1]
    assert (none["data"], none["near"] or False) == ([], False)
    assert none["best_score"] < 1


def test_similar_to_a_result_or_to_a_picture(url: str, pictures: Path, served_brush: Codebrush) -> None:
    index(url)
    asked = {"folder": "pictures/plain", "n": 3}
    picture = pictures / "plain" / "green.png"
    alike = call(f"{url}/v1/similar", {**asked, "image": data_url(Image.open(picture))})[1]["data"]
    assert alike[0]["picture"] == "pictures/plain/green.png"
    others = call(f"{url}/v1/similar", {**asked, "id": alike[0]["id"]})[1]["data"]
    assert [each["picture"] for each in others[:2]] == [each["picture"] for each in alike[1:]]
    files = [pictures / "plain" / f"{colour}.png" for colour in COLOURS if colour != "green"]
    vectors = served_brush.embed_images([picture, *files])
    expected = sorted((vectors[1:] @ vectors[0]).tolist(), reverse=True)[:3]
    assert [each["score"] for each in others] == pytest.approx(expected, abs=1e-5)


def test_an_index_follows_its_folder_and_is_deleted(url: str, pictures: Path, tmp_path: Path) -> None:
    index(url)
    (pictures / "plain" / "red.png").unlink()
    (pictures / "plain" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nno picture")
    again = index(url, captions=["{file_name}"])["index"]
    counts = {name: again[name] for name in ("added", "removed", "updated", "skipped", "pictures")}
    assert counts == {"added": 0, "removed": 1, "updated": 5, "skipped": 1, "pictures": 5}
    assert [each["picture"] for each in again["named"]] == ["pictures/plain/broken.png"]
    assert str(tmp_path) not in json.dumps(again)
    assert call(f"{url}/v1/library/index/{again['id']}", method="DELETE") == (
        200, {"id": again["id"], "object": "index", "deleted": True}
    )  # fmt: skip
    status, reply = call(f"{url}/v1/search", {"folder": "pictures/plain", "text": "red"})
    assert (status, reply["error"]["code"]) == (404, "not_indexed")
    assert call(f"{url}/v1/library/index/{again['id']}", method="DELETE")[0] == 404
    assert (pictures / "plain" / "blue.png").exists()


def test_an_index_whose_place_is_gone_is_named_and_deleted(
    serve: Callable[..., tuple[str, Any]], pictures: Path, tmp_path: Path
) -> None:
    url, engine = serve(libraries=(pictures,))
    known = index(url)["index"]["id"]
    assert [each["gone"] for each in call(f"{url}/v1/library")[1]["indexes"]] == [False]
    (pictures / "plain").rename(tmp_path / "elsewhere")
    (left,) = call(f"{url}/v1/library")[1]["indexes"]
    assert (left["id"], left["folder"], left["gone"]) == (known, "pictures/plain", True)
    assert call(f"{url}/v1/library/index/{known}", method="DELETE")[0] == 200
    assert call(f"{url}/v1/library")[1]["indexes"] == []
    assert list(engine.library.indexes.iterdir()) == []
    for other in (known, "0" * 16, "..", "%2E%2E%2Fpacks"):
        assert call(f"{url}/v1/library/index/{other}", method="DELETE")[0] in (404, 405)


def test_links_and_tables_lead_nowhere_outside(url: str, pictures: Path, tmp_path: Path) -> None:
    secret = tmp_path / "outside" / "secret.png"
    os.symlink(secret, pictures / "plain" / "link.png")
    failed = index(url)
    assert failed["state"] == "failed"
    assert failed["error"]["message"].startswith("'pictures/plain/link.png' links to something outside the library")
    (pictures / "plain" / "link.png").unlink()
    table = pictures / "table.csv"
    table.write_text(f"file_name,caption\nplain/red.png,a\n../outside/secret.png,b\n{secret},c\n")
    done = index(url, "pictures/table.csv")["index"]
    assert (done["added"], done["skipped"]) == (1, 2)
    assert {each["reason"] for each in done["named"]} == {"leads out of the library"}
    found = call(f"{url}/v1/similar", {"folder": "pictures/table.csv", "image": data_url(Image.open(secret))})[1]
    assert [each["picture"] for each in found["data"]] == ["pictures/plain/red.png"]
    status, reply = call(f"{url}/v1/library/check", {"source": "pictures/table.csv"})
    assert (status, reply["error"]["code"]) == (400, "invalid_path")
    assert "secret.png" in reply["error"]["message"]
    assert str(tmp_path) not in json.dumps(reply)


def test_thumbnails_are_those_of_an_index_and_need_their_address(url: str, tmp_path: Path) -> None:
    index(url)
    found = call(f"{url}/v1/search", {"folder": "pictures/plain", "text": "red", "n": 2})[1]["data"]
    one, other = (each["thumbnail"] for each in found)
    start, index_id, signed, picture = one.rsplit("/", 3)
    wrong = [
        f"{start}/{index_id}/{'0' * 32}/{picture}",
        f"{start}/{index_id}/{signed}/{other.rsplit('/', 1)[1]}",
        f"{start}/..%2Findexes/{signed}/{picture}",
        f"{start}/{index_id}/%C3%A9/{picture}",
        f"{start}/{'0' * 16}/{signed}/{picture}",
    ]
    assert [fetch(each)[0] for each in (one, other, *wrong)] == [200, 200, 404, 404, 404, 404, 404]


def test_a_source_is_looked_through_before_a_training(url: str, pictures: Path, tmp_path: Path) -> None:
    (pictures / "plain" / "blue.txt").unlink()
    (pictures / "plain" / "notes.pdf").write_bytes(b"%PDF-1.4")
    status, found = call(f"{url}/v1/library/check", {"source": "pictures/plain"})
    assert (status, found["pictures"]) == (200, 5)
    assert set(found["captions"]) <= {f"a {colour} picture" for colour in COLOURS}
    assert "no caption" in " ".join(found["problems"])
    named = call(f"{url}/v1/library/check", {"source": "pictures/plain", "captions": ["the file {file_name}"]})[1]
    assert named["pictures"] == 6
    assert "the file blue.png" in named["captions"]
    status, reply = call(f"{url}/v1/library/check", {"source": "pictures/plain", "captions": ["a {breed}"]})
    assert (status, reply["error"]["code"]) == (400, "invalid_value")
    assert "needs the column breed" in reply["error"]["message"]
    assert str(tmp_path) not in json.dumps([found, reply])


@pytest.mark.parametrize(
    ("path", "body", "status", "code"),
    [
        ("library/index", {"folder": "../outside"}, 404, "not_in_library"),
        ("library/index", {"folder": "pictures/../outside"}, 400, "invalid_path"),
        ("library/index", {}, 400, "missing_required_parameter"),
        ("library/index", {"folder": "pictures", "model": "dall-e-3"}, 404, "model_not_found"),
        ("library/check", {"source": "/etc"}, 404, "not_in_library"),
        ("search", {"folder": "pictures"}, 400, "missing_required_parameter"),
        ("search", {"folder": "pictures", "text": "red"}, 404, "not_indexed"),
        ("search", {"folder": "pictures\0", "text": "red"}, 400, "invalid_path"),
        ("search", {"folder": "pictures", "text": "red", "n": 1000}, 400, "invalid_value"),
        ("search", {"folder": "pictures", "text": "red", "mode": "text", "min_score": 0.5}, 400, "invalid_value"),
        ("search", {"folder": "pictures", "image": "/etc/passwd"}, 400, "invalid_value"),
        ("search", {"folder": "pictures", "text": "red", "where": "1 = 1"}, 400, "unknown_parameter"),
        ("similar", {"folder": "pictures"}, 400, "missing_required_parameter"),
        ("similar", {"folder": "pictures", "id": "L2V0Yy9wYXNzd2Q"}, 404, "picture_not_found"),
    ],
)
def test_errors(url: str, path: str, body: dict[str, Any], status: int, code: str) -> None:
    got, reply = call(f"{url}/v1/{path}", body)
    assert (got, reply["error"]["code"]) == (status, code), reply


def test_listing_stays_in_the_library(url: str, pictures: Path, tmp_path: Path) -> None:
    for folder in ("..", "%2Fetc", "pictures%2F..", "pictures%00", "outside"):
        status, reply = call(f"{url}/v1/library?folder={folder}")
        assert status in (400, 404)
        assert str(tmp_path) not in json.dumps(reply)


def test_without_a_library_the_way_to_one_is_named(serve: Callable[..., tuple[str, Any]]) -> None:
    url, _ = serve()
    assert call(f"{url}/v1/library")[1] == {"object": "list", "data": [], "indexes": []}
    status, reply = call(f"{url}/v1/search", {"folder": "pictures", "text": "red"})
    assert (status, reply["error"]["code"]) == (404, "no_library")
    assert "--library FOLDER" in reply["error"]["message"]


def test_an_index_whose_run_was_stopped_goes_on_with_the_next_server(
    served_brush: Codebrush, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    monkeypatch.setattr(indexing, "BATCH", 2)
    library = Library((pictures,), tmp_path / "own")
    engine = Engine({"micro": lambda: served_brush}, Store(tmp_path / "own"), library=library)
    job = engine.submit("index", "micro", {"folder": "pictures/plain", "captions": []}, "ann")
    job.listen(lambda: engine.begin_stop() if job.step >= 2 else None)
    engine.start()
    wait_until(job, lambda job: job.step == 2)
    engine.stop()
    assert (job.state, job.of) == ("queued", 6)
    again = Engine({"micro": lambda: served_brush}, Store(tmp_path / "own"), library=library)
    found = again.find(job.id)
    again.start()
    assert ended(found).result is not None
    again.stop()
    assert {name: found.result[name] for name in ("added", "unchanged", "pictures")} == {
        "added": 4, "unchanged": 2, "pictures": 6
    }  # fmt: skip
