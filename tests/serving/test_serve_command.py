"""`codebrush serve` as people start it: without the extra, with wrong options, killed, started again, told to stop."""

import base64
import io
import json
import logging
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
import urllib.request
import warnings
from contextlib import suppress
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi", reason='needs the extra "serve"')
pytest.importorskip("uvicorn", reason='needs the extra "serve"')
pytest.importorskip("sqlalchemy", reason='needs the extra "serve"')

from api_calls import call
from serve_process import serve_command

from codebrush import Codebrush
from codebrush.cli.main import run
from codebrush.data.decoding.images import decode_image, read_manifest
from codebrush.models.layers.packed_linear import can_pack

SLOW = {"prompt": "a red circle", "seed": 1, "method": "guide", "steps": 40, "cutouts": 2, "init": "random"}


class Server:
    """A process of `codebrush serve` on the micro pack."""

    def __init__(
        self, processes: ForkServerContext, pack: Path, data: Path, *more: str, until: Path | None = None
    ) -> None:
        self.log = log = data / f"log_{time.monotonic_ns()}"
        arguments = ["--port", "0", "--pack", str(pack), "--data", str(data), *more]
        self.process = processes.Process(target=serve_command, args=(arguments, log, until))
        self.process.start()
        self.events: list[dict[str, Any]] = []
        while not self.events or self.events[-1]["event"] != "serving":
            assert self.process.is_alive()
            time.sleep(0.05)
            lines = log.read_text().splitlines(keepends=True) if log.exists() else []
            self.events = [json.loads(line) for line in lines if line.endswith("\n")]
        self.url = self.events[-1]["address"]

    def call(self, path: str, body: Any = None) -> dict[str, Any]:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self.url}{path}", data, {"content-type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as reply:
            return json.loads(reply.read())

    def wait(self, job: str, state: str, step: int = 0) -> dict[str, Any]:
        while True:
            now = self.call(f"/v1/jobs/{job}")
            if now["state"] == state and now["progress"]["step"] >= step:
                return now
            assert now["state"] in ("queued", "running"), now
            time.sleep(0.02)

    def end(self, number: int) -> int | None:
        os.kill(self.process.pid, number)
        self.process.join(60)
        return self.process.exitcode


def test_after_a_kill_and_after_a_stop_every_job_is_done(
    processes: ForkServerContext, micro_pack: Path, tmp_path: Path
) -> None:
    server = Server(processes, micro_pack, tmp_path)
    guided, drawn = (
        server.call("/v1/images/generations", {**asked, "wait": False})["id"]
        for asked in (SLOW, {"prompt": "a blue square", "seed": 2})
    )
    server.wait(guided, "running", 25)  # past the checkpoint of step 20
    assert server.end(signal.SIGKILL) == -signal.SIGKILL
    server = Server(processes, micro_pack, tmp_path)
    assert [event["job"] for event in server.events if event["event"] == "job resumed"] == [guided, drawn]
    assert [each["id"] for each in server.call("/v1/models")["data"]] == [micro_pack.name]  # and not where it lies
    brush = Codebrush.from_pretrained(micro_pack, device="cpu")
    expected = {guided: brush.generate(n=1, **SLOW), drawn: brush.generate("a blue square", n=1, seed=2)}
    for job, results in expected.items():
        now = server.wait(job, "done")
        with urllib.request.urlopen(now["data"][0]["url"], timeout=60) as reply:
            content = reply.read()
        assert decode_image(content, keep_mode=True).tobytes() == results[0].image.tobytes()
        assert read_manifest(io.BytesIO(content))["pack"]["source"] == micro_pack.name  # and not where it lies
        assert str(micro_pack.parent).encode() not in content
    with socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2]))) as connection:
        connection.sendall(b"no request\r\n\r\n")
        assert b" 400 " in connection.recv(1000)
    late = server.call("/v1/images/generations", {**SLOW, "wait": False})["id"]
    server.wait(late, "running", 1)
    assert server.end(signal.SIGTERM) == 0
    assert (tmp_path / "jobs" / late / "picture_00.png").exists()  # it was finished first
    said = [json.loads(line) for line in server.log.read_text().splitlines()]  # no line is anything else
    assert [each["said"] for each in said if each["event"] == "uvicorn"] == ["Invalid HTTP request received."]


@pytest.mark.parametrize("waits", [False, True])
def test_a_second_interrupt_leaves_what_runs_to_the_next_start(
    processes: ForkServerContext, micro_pack: Path, tmp_path: Path, waits: bool
) -> None:
    """Also of a job whose caller waits for it; and that it was stopped counts as no attempt."""
    server = Server(processes, micro_pack, tmp_path, "--no-page")

    def ask() -> None:
        with suppress(OSError, ValueError):  # it is not answered in the end
            call(f"{server.url}/v1/images/generations", {**SLOW, "steps": 1000, "wait": waits})

    threading.Thread(target=ask, daemon=True).start()
    while not (running := kept(tmp_path, "running")):
        time.sleep(0.05)
    os.kill(server.process.pid, signal.SIGINT)
    time.sleep(1)
    assert server.process.is_alive()  # it finishes what runs
    began = time.monotonic()
    assert server.end(signal.SIGINT) == 0
    assert time.monotonic() - began < 20  # of the 30 s that it has otherwise
    assert kept(tmp_path, "queued") == [(running[0][0], 0)]


def test_a_third_interrupt_does_not_break_off_the_stop(
    processes: ForkServerContext, micro_pack: Path, tmp_path: Path
) -> None:
    """It comes when no call is served any more, and the server waits for the end of a step."""
    server = Server(processes, micro_pack, tmp_path, "--no-page", until=tmp_path / "go on")

    def ask() -> None:
        with suppress(OSError, ValueError):  # it is not answered in the end
            call(f"{server.url}/v1/images/generations", SLOW)

    threading.Thread(target=ask, daemon=True).start()
    while not (running := kept(tmp_path, "running")):
        time.sleep(0.05)
    for _ in range(2):
        os.kill(server.process.pid, signal.SIGINT)
        time.sleep(1)
    assert server.process.is_alive()
    os.kill(server.process.pid, signal.SIGINT)
    time.sleep(0.1)
    os.kill(server.process.pid, signal.SIGTERM)
    time.sleep(0.1)
    (tmp_path / "go on").touch()
    server.process.join(60)
    assert server.process.exitcode == 0
    assert kept(tmp_path, "queued") == [(running[0][0], 0)]


def kept(data: Path, state: str) -> list[tuple[str, int]]:
    """The jobs of a state that a server keeps, and how often they were begun."""
    with sqlite3.connect(f"file:{data / 'jobs.sqlite'}?mode=ro", uri=True) as connection:
        return connection.execute("SELECT id, attempts FROM jobs WHERE state = ?", [state]).fetchall()


def test_workers_finish_what_they_draw_when_all_processes_are_told_to_stop(
    processes: ForkServerContext, micro_pack: Path, tmp_path: Path
) -> None:
    psutil = pytest.importorskip("psutil")
    server = Server(processes, micro_pack, tmp_path, "--workers", "2", "--queue", "1", "--no-page")
    while (health := call(f"{server.url}/health"))[1]["workers"]["ready"] < 2:
        assert health[0] == (200 if health[1]["workers"]["ready"] else 503)
        time.sleep(0.1)
    jobs = list[str]()
    while (reply := call(f"{server.url}/v1/images/generations", {**SLOW, "wait": False}))[0] == 202:
        jobs.append(reply[1]["id"])
    assert reply[0] == 429
    said = [json.loads(line) for line in server.log.read_text().splitlines()]
    workers = [psutil.Process(each["process"]) for each in said if each["event"] == "worker ready"]
    for each in workers:  # as Ctrl-C and service managers do
        os.kill(each.pid, signal.SIGINT)
        os.kill(each.pid, signal.SIGTERM)
    assert server.end(signal.SIGTERM) == 0
    assert all((tmp_path / "jobs" / job / "picture_00.png").exists() for job in jobs[:-1])  # the last one waited
    assert len(workers) == 2
    assert not any(each.is_running() for each in workers)
    said = [json.loads(line)["event"] for line in server.log.read_text().splitlines()]  # no line is anything else
    assert "worker died" not in said


@pytest.mark.skipif(not can_pack(), reason="this build of PyTorch has no such products")
def test_packs_draw_with_the_weights_that_are_asked_for(
    processes: ForkServerContext, micro_pack: Path, tmp_path: Path
) -> None:
    shutil.copytree(micro_pack, tmp_path / "packs" / "mine")  # as one that was trained here
    server = Server(processes, micro_pack, tmp_path, "--weights", "int8")
    for model in ("micro", "mine"):
        asked = {"prompt": "a red circle", "seed": 1, "model": model}
        (made,) = server.call("/v1/images/generations", asked)["data"]
        manifest = read_manifest(io.BytesIO(base64.b64decode(made["b64_json"])))
        assert manifest["options"]["weights"] == "int8"
        assert manifest["pack"]["source"] == model
    assert server.end(signal.SIGTERM) == 0


def test_what_cannot_be_served_is_one_line(
    micro_pack: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CODEBRUSH_API_KEY", raising=False)
    assert run(["serve", "--host", "0.0.0.0", "--data", str(tmp_path)]) == 2
    assert "0.0.0.0 can be reached from other machines: set CODEBRUSH_API_KEY" in capsys.readouterr().err
    assert run(["serve", "--pack", str(tmp_path / "none"), "--data", str(tmp_path)]) == 1
    assert "none" in capsys.readouterr().err
    assert run(["serve", "--host", "192.0.2.1", "--no-key", "--pack", str(micro_pack), "--data", str(tmp_path)]) == 2
    assert "cannot listen on 192.0.2.1:7860" in capsys.readouterr().err
    monkeypatch.setattr("codebrush.loaded_pack.can_pack", lambda: False)
    assert run(["serve", "--weights", "int8", "--pack", str(micro_pack), "--data", str(tmp_path / "no")]) == 2
    assert "weights in int8 are for x86 processors" in capsys.readouterr().err
    assert not (tmp_path / "no").exists()
    monkeypatch.setitem(sys.modules, "fastapi", None)
    assert run(["serve"]) == 2
    assert capsys.readouterr().err == 'codebrush: codebrush serve needs FastAPI: pip install "codebrush[serve]"\n'


def test_a_server_that_ended_leaves_logging_and_warnings_as_they_were(tmp_path: Path) -> None:
    loggers = [logging.getLogger(name) for name in ("codebrush.serving", "uvicorn.error")]
    before = [(list(each.handlers), each.propagate) for each in loggers]
    filters = list(warnings.filters)
    assert run(["serve", "--pack", str(tmp_path / "none"), "--data", str(tmp_path)]) == 1
    assert [(each.handlers, each.propagate) for each in loggers] == before
    assert warnings.filters == filters


def test_nothing_else_loads_the_server() -> None:
    code = (
        "import sys, codebrush, codebrush.cli.main, codebrush.cli.generate, codebrush.cli.serve\n"
        "print([name for name in ('fastapi', 'uvicorn', 'sqlalchemy', 'prometheus_client') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "[]", done.stderr
