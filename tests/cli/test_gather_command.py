"""`codebrush data gather`: from a list of URLs to a source, also when the run is killed."""

import csv
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from codebrush.cli.main import run
from codebrush.data.sources.captioned_images import open_source
from rude_server import RudeServer, rude_server


@pytest.fixture
def server() -> Iterator[RudeServer]:
    with rude_server() as running:
        yield running


def picture(number: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (9, 7), (number, 0, 0)).save(file, "PNG")
    return file.getvalue()


def noise(seed: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (7, 9, 3), np.uint8)).save(file, "PNG")
    return file.getvalue()


def write_list(path: Path, urls: list[str]) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["url", "caption"])
        writer.writerows((url, f"picture {number}") for number, url in enumerate(urls))
    return path


def test_a_list_becomes_a_source(server: RudeServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    urls = [server.serve(f"/{number}", picture(number)) for number in range(4)]
    server.pages["/2"].headers = [("X-Robots-Tag", "noai")]
    server.pages["/3"].statuses = [404] * 9
    given = [str(write_list(tmp_path / "list.csv", urls)), "--out", str(tmp_path / "out"), "--delay", "0"]
    assert run(["data", "gather", *given, "--allow-local", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["rows"], report["fetched"], report["new"]) == (4, 2, 2)
    assert report["failed"] == {"no-AI header": 1, "http 404": 1}
    source = open_source(tmp_path / "out")
    assert [source.captions(index) for index in range(2)] == [["picture 0"], ["picture 1"]]
    assert run(["data", "gather", *given, "--allow-local"]) == 0
    assert "2 of 4 pictures are in" in (text := capsys.readouterr().out)
    assert "1 failed: no-AI header" in text


def test_what_is_gathered_can_be_curated(
    server: RudeServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    urls = [server.serve(f"/{number}", noise(number % 3)) for number in range(4)]
    given = [str(write_list(tmp_path / "list.csv", urls)), "--out", str(tmp_path / "web"), "--delay", "0"]
    assert run(["data", "gather", *given, "--allow-local"]) == 0
    assert run(["curate", str(tmp_path / "web"), "--out", str(tmp_path / "out"), "--shares", "1,0,0"]) == 0
    assert "1 dropped: exact duplicate" in capsys.readouterr().out
    source = open_source(tmp_path / "out", split="train")
    assert [source.row(index)["url"] for index in range(len(source))] == urls[:3]


def test_private_addresses_need_a_flag(server: RudeServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_list(tmp_path / "list.csv", [server.serve("/x", picture(0))])
    assert run(["data", "gather", str(path), "--out", str(tmp_path / "out")]) == 1
    assert "(1 private address: give --allow-local to allow it)" in (message := capsys.readouterr().err)
    assert message.count("\n") == 1
    assert not server.asked


@pytest.mark.parametrize(
    ("content", "given", "status", "message"),
    [
        ("url,caption\n", [], 1, "has no rows"),
        (
            "a,b\n1,2\n",
            [],
            1,
            "no column url and caption; name one with --url-column and one with --caption-column: a, b",
        ),
        ("url,b\n1,2\n", [], 1, "no column caption; name one with --caption-column: url, b"),
        ("url,caption\nx,y\n", ["--workers", "0"], 2, "--workers is too low"),
        ("url,caption\nx,y\n", ["--timeout", "0"], 2, "--timeout, --deadline and --max-bytes must be above 0"),
    ],
)
def test_failures_are_one_line(
    content: str, given: list[str], status: int, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "list.csv").write_text(content)
    out = tmp_path / "out"
    assert run(["data", "gather", str(tmp_path / "list.csv"), "--out", str(out), *given]) == status
    output = capsys.readouterr()
    assert message in output.err
    assert output.err.count("\n") == 1
    assert not out.exists()


def test_a_run_that_is_killed_can_be_continued(
    server: RudeServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """SIGKILL in the middle of a slice: no stored picture is requested again, and each is stored once."""
    urls = [server.serve(f"/{number}", picture(number)) for number in range(30)]
    out = tmp_path / "out"
    given = [str(write_list(tmp_path / "list.csv", urls)), "--out", str(out), "--allow-local", "--json"]
    command = ["data", "gather", *given, "--shard-rows", "12", "--workers", "3"]
    program = [sys.executable, "-m", "codebrush"]
    slow = subprocess.Popen([*program, *command, "--delay", "0.05"], stdout=subprocess.PIPE)
    stored = out / ".gather" / "00001"
    try:
        end = time.monotonic() + 300
        while len(list(stored.glob("*.json"))) < 4:
            assert slow.poll() is None, "the run ended before it could be killed"
            assert time.monotonic() < end, "the run stored nothing"
            time.sleep(0.005)
    finally:
        os.kill(slow.pid, signal.SIGKILL)
        slow.communicate()
    assert slow.returncode == -signal.SIGKILL
    assert [path.name for path in out.glob("*.tar")] == ["00000.tar"]
    kept = {path.stem for path in stored.glob("*.json")}
    asked = server.asked.copy()
    assert run([*command, "--delay", "0"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["fetched"], report["new"], report["failed"], report["shards"]) == (30, 18, {}, 3)
    for number in range(30):
        had = number < 12 or f"{number:09d}" in kept
        assert server.asked[f"/{number}"] == asked[f"/{number}"] + (not had), number
    source = open_source(out)
    assert sorted(source.row(row)["url"] for row in range(len(source))) == sorted(urls)
    assert {source.image(row).getpixel((0, 0))[0] for row in range(30)} == set(range(30))  # pyright: ignore
