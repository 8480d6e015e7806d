"""Packs trained over HTTP by real processes: followed, stopped, resumed, used at once; refused in a line."""

import errno
import json
import os
import re
import shutil
import signal
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi", reason='needs the extra "serve"')
pytest.importorskip("uvicorn", reason='needs the extra "serve"')
pytest.importorskip("sqlalchemy", reason='needs the extra "serve"')

from api_calls import call, job_when
from PIL import Image
from server_thread import running

from codebrush import Codebrush
from codebrush.data.synthetic.scene_folder import write_shapes
from codebrush.serving.threads import training_threads
from codebrush.serving.work.training_report import POINTS, Places

BUDGET = "90s"
Server = tuple[str, Any]


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("library") / "shapes"
    write_shapes(folder, 24, size=32, objects=1)
    return folder


@pytest.fixture
def server(served_brush: Codebrush, shapes: Path, tmp_path: Path) -> Iterator[Server]:
    with running(served_brush, tmp_path / "data", libraries=(shapes,)) as found:
        yield found


def train(url: str, **asked: Any) -> dict[str, Any]:
    status, job = call(f"{url}/v1/train", {"source": "shapes", "name": "mine", "budget": BUDGET, **asked})
    assert (status, job["kind"]) == (202, "train"), job
    return job


def has_checkpoint(engine: Any) -> bool:
    return any(engine.trainer.places.work("mine").glob("*/checkpoint.pt"))


def test_a_training_that_cannot_be_done_says_why_and_leaves_its_name_free(server: Server, tmp_path: Path) -> None:
    url, engine = server
    done = job_when(url, train(url, budget="2s")["id"], lambda job: False)
    assert (done["state"], done["error"]["code"]) == ("failed", "training_failed")
    assert "budget 2s is too short" in done["error"]["message"]
    assert done["training"]["said"][0] == "24 pictures with captions from shapes"
    assert str(tmp_path) not in json.dumps(done)
    assert (done["training"]["can_resume"], done["training"]["threads"]) == (False, training_threads())
    assert call(f"{url}/v1/train")[1]["data"] == []
    engine.trainer.check_name("mine", resume=False)


@pytest.mark.long
def test_a_training_is_stopped_resumed_and_its_pack_draws_at_once(server: Server, tmp_path: Path) -> None:
    url, engine = server
    job = train(url)["id"]
    now = job_when(url, job, lambda job: has_checkpoint(engine))
    assert (now["state"], now["progress"]["of"]) == ("running", 90)
    status, reply = call(f"{url}/v1/train", {"source": "shapes", "name": "mine"})
    assert (status, reply["error"]["message"]) == (400, "'mine' is being trained")
    drawn = call(f"{url}/v1/images/generations", {"prompt": "a red circle", "seed": 1})[0]
    assert drawn == 200  # while the training goes on
    call(f"{url}/v1/jobs/{job}", method="DELETE")
    assert job_when(url, job, lambda job: False)["state"] == "cancelled"
    while not call(f"{url}/v1/train")[1]["data"]:
        time.sleep(0.1)
    (stopped,) = call(f"{url}/v1/train")[1]["data"]
    assert (stopped["name"], stopped["source"], stopped["budget"]) == ("mine", "shapes", 90)
    assert 0 < stopped["seconds"] < 90
    assert stopped["disk_bytes"] > 10_000
    assert call(f"{url}/v1/train", {"source": "shapes", "name": "mine"})[1]["error"]["code"] == "name_taken"

    status, again = call(f"{url}/v1/train/mine/resume", {})
    assert status == 202
    done = job_when(url, again["id"], lambda job: False)
    assert (done["state"], done["error"]) == ("done", None)
    report = done["training"]
    assert report["verdict"]
    assert "vqgan" in report["curves"]
    steps = [point["step"] for point in report["curves"]["vqgan"]]
    assert steps == sorted(set(steps))
    for sheet in report["sheets"]:
        with urllib.request.urlopen(sheet["url"], timeout=60) as file:
            assert Image.open(file).format == "PNG"
    assert {sheet["name"] for sheet in report["sheets"]} >= {"reconstructions.png"}
    assert not engine.trainer.places.work("mine").exists()
    assert str(tmp_path) not in json.dumps(done)

    models = call(f"{url}/v1/models")[1]["data"]
    assert [model["id"] for model in models] == ["micro", "mine"]
    guided = {"method": "guide", "init": "random", "steps": 2, "cutouts": 2}  # on a slow machine there is no painter
    asked = {"prompt": "a red circle", "seed": 1, "model": "mine", **guided}
    status, picture = call(f"{url}/v1/images/generations", asked)
    assert status == 200, picture
    assert call(f"{url}/v1/train", {"source": "shapes", "name": "mine"})[1]["error"]["code"] == "name_taken"
    assert call(f"{url}/v1/models/mine", method="DELETE")[1]["deleted"] is True
    assert [model["id"] for model in call(f"{url}/v1/models")[1]["data"]] == ["micro"]


@pytest.mark.long
def test_a_training_ends_with_a_killed_server_and_goes_on_with_the_next(
    served_brush: Codebrush, shapes: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = tmp_path / "data"
    with running(served_brush, data, libraries=(shapes,)) as (url, engine):
        job = train(url, budget="240s")["id"]
        job_when(url, job, lambda job: has_checkpoint(engine))
    # the server was told to stop: the training has saved, and waits for the next start
    process = int(re.findall(r'"training began".*?"process": (\d+)', caplog.text)[-1])
    with pytest.raises(ProcessLookupError):
        os.kill(process, 0)
    with running(served_brush, data, libraries=(shapes,)) as (url, engine):
        done = job_when(url, job, lambda job: False)
        assert (done["state"], done["error"], done["training"]["name"]) == ("done", None, "mine")
    with running(served_brush, data, libraries=(shapes,)) as (url, _):
        assert [model["id"] for model in call(f"{url}/v1/models")[1]["data"]] == ["micro", "mine"]


@pytest.mark.parametrize(
    ("asked", "status", "code", "said"),
    [
        ({"name": "micro"}, 400, "name_taken", "there is a model 'micro' already"),
        ({"name": "../mine"}, 400, "invalid_value", "name"),
        ({"name": "mine.work"}, 400, "invalid_value", "name"),
        ({"budget": "9h"}, 400, "invalid_value", "at most"),
        ({"budget": "60"}, 400, "invalid_value", "budget 60 has no unit"),
        ({"source": "../etc"}, 404, "not_in_library", "there is no library '..'"),
        ({"source": "shapes/none"}, 404, "not_in_library", "there is no 'shapes/none'"),
        ({"model": "none"}, 404, "model_not_found", "there is no model 'none'"),
    ],
)
def test_errors(server: Server, asked: dict[str, Any], status: int, code: str, said: str) -> None:
    url, _ = server
    got, reply = call(f"{url}/v1/train", {"source": "shapes", "name": "mine", "budget": "60s", **asked})
    assert (got, reply["error"]["code"]) == (status, code)
    assert said in reply["error"]["message"]
    assert call(f"{url}/v1/train/mine/resume", {})[0] == 404
    assert call(f"{url}/v1/models/micro", method="DELETE")[0] == 400
    assert call(f"{url}/v1/models/mine", method="DELETE")[0] == 404


def test_what_cannot_be_taken_away_is_not_deleted_and_stays_in_use(
    served_brush: Codebrush, shapes: Path, micro_pack: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("lancedb", reason='needs the extra "search"')
    data, replace = tmp_path / "data", os.replace
    pack, work = (data / "packs" / name for name in ("mine", "mine.work"))
    shutil.copytree(micro_pack, pack)
    work.mkdir()

    def refused(source: Any, target: Any) -> None:
        if Path(source) in held:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(source))
        replace(source, target)

    with running(served_brush, data, libraries=(shapes,)) as (url, engine):
        indexed = call(f"{url}/v1/library/index", {"folder": "shapes"})[1]["id"]
        index = job_when(url, indexed, lambda job: False)["index"]["id"]
        monkeypatch.setattr(os, "replace", refused)
        for path, place, named in (
            ("models/mine", pack, "'mine'"),
            ("models/mine", work, "'mine'"),
            (f"library/index/{index}", engine.library.indexes / index, "the index of 'shapes'"),
        ):
            held = {place}
            status, reply = call(f"{url}/v1/{path}", method="DELETE")
            assert (status, reply["error"]["code"]) == (500, "not_deleted")
            said = f"{named} is not deleted (permission denied): let the server write in the folder above it"
            assert reply["error"]["message"] == said
            assert sorted(each.name for each in pack.parent.iterdir()) == ["mine", "mine.work"]
        assert call(f"{url}/v1/search", {"folder": "shapes", "text": "red"})[0] == 200
        assert [model["id"] for model in call(f"{url}/v1/models")[1]["data"]] == ["micro", "mine"]
        asked = {"prompt": "a red circle", "seed": 1, "model": "mine"}
        assert call(f"{url}/v1/images/generations", asked)[0] == 200
        held = set[Path]()
        assert call(f"{url}/v1/models/mine", method="DELETE")[1]["deleted"] is True
        assert list(pack.parent.iterdir()) == []


def test_a_source_outside_the_library_is_not_trained_on(server: Server, shapes: Path, tmp_path: Path) -> None:
    url, _ = server
    table = shapes / "table.csv"
    table.write_text(f"file_name,caption\n{tmp_path / 'secret.png'},a\n")
    try:
        done = job_when(url, train(url, source="shapes/table.csv")["id"], lambda job: False)
        assert done["error"]["message"] == "'shapes/table.csv' names pictures outside the library, such as secret.png"
    finally:
        table.unlink()


def test_curves_are_those_of_the_work_or_of_the_pack(tmp_path: Path) -> None:
    places = Places(tmp_path)
    lines = [json.dumps({"step": step, "clip_loss": 1 / step}) for step in range(1, 1001)]
    work = places.work("mine") / "clip"
    work.mkdir(parents=True)
    (work / "metrics.jsonl").write_text("\n".join([*lines, '{"step": 1001, "cl']))
    curve = places.curves("mine")["clip"]
    assert (curve[-1], len(curve)) == ({"step": 1000, "clip_loss": 0.001}, POINTS)
    assert (places.stopped(), places.size("mine")) == (["mine"], (work / "metrics.jsonl").stat().st_size)
    curves = places.pack("mine") / "training"
    curves.mkdir(parents=True)
    shutil.move(work / "metrics.jsonl", curves / "clip.jsonl")
    shutil.rmtree(work)
    assert places.curves("mine") == {"clip": curve}


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs signals")
def test_half_of_the_cores_are_for_trainings() -> None:
    assert 1 <= training_threads() <= max(1, (os.cpu_count() or 1) // 2)
