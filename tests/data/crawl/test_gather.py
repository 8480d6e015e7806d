"""Gathering: every picture that can be fetched is in a shard, the others have a reason, and a later run adds them."""

import hashlib
import io
import json
import struct
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageOps

from codebrush.data.crawl.gather import gather
from codebrush.data.crawl.options import FetchLimits, GatherOptions
from codebrush.data.crawl.url_lists import UrlRow
from codebrush.data.decoding.images import decode_image
from codebrush.data.sources.captioned_images import open_source
from codebrush.errors import CodebrushError, DataError, UsageError
from rude_server import RudeServer, rude_server

QUICK = GatherOptions(
    workers=8,
    at_once=8,
    delay=0.0,
    retries=1,
    pause=0.01,
    limits=FetchLimits(timeout=20, deadline=40, max_bytes=200_000, allow_local=True),
)


@pytest.fixture
def server() -> Iterator[RudeServer]:
    with rude_server() as running:
        yield running


def run(urls: list[str] | dict[str, str], out: Path, **changes: Any) -> dict[str, Any]:
    pairs = urls.items() if isinstance(urls, dict) else ((url, f"caption {i}") for i, url in enumerate(urls))
    rows = [UrlRow(url, caption) for url, caption in pairs]
    return gather(rows, len(rows), out, replace(QUICK, **changes))


def failures(out: Path) -> dict[str, str]:
    lines = [json.loads(line) for line in (out / "failures.jsonl").read_text().splitlines()]
    return {Path(line["url"]).name: line["reason"] for line in lines}


def bomb() -> bytes:
    """A PNG of 40,000 x 40,000 pixels in a few bytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", 40_000, 40_000, 1, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(5_000))) + chunk(b"IEND", b"")
    )


def noisy(size: tuple[int, int], kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.effect_noise(size, 80).convert("RGB").save(file, kind)
    return file.getvalue()


def test_a_rude_web(server: RudeServer, tmp_path: Path, picture: Callable[..., bytes]):
    """All kinds of misbehaviour at once: good pictures arrive complete, and every other row has its reason."""
    jpeg = noisy((60, 40), "JPEG")
    server.serve("/robots.txt", b"User-agent: *\nDisallow: /*secret", type="text/plain")
    expected = {
        "hang": ({"way": "hang"}, "time-out"),
        "drip": ({"way": "drip", "content": b"x" * 999}, "too slow"),
        "large": ({"content": b"x" * 200_001}, "too large"),
        "endless": ({"content": b"x" * 300_000, "length": False}, "too large"),
        "gone": ({"statuses": [404]}, "http 404"),
        "broken": ({"statuses": [500] * 9}, "http 500"),
        "loop": ({"statuses": [302] * 9, "headers": [("Location", "/loop")]}, "redirects"),
        "html": ({"content": b"<html>Not found</html>", "type": "text/html"}, "content type"),
        "disguised": ({"content": b"<html>Not found</html>"}, "not a picture"),
        "truncated": ({"content": noisy((60, 40))[:-2000]}, "not a picture"),
        "cut": ({"content": jpeg[:-9], "length": len(jpeg)}, "cut off"),
        "secret": ({"content": picture()}, "robots.txt"),
        "noai": ({"content": picture(), "headers": [("X-Robots-Tag", "noai")]}, "no-AI header"),
        "tdm": ({"content": picture(), "headers": [("tdm-reservation", "1")]}, "no-AI header"),
        "reset": ({"way": "reset"}, "connection"),
        "text": ({"content": picture(), "type": "text/plain"}, "content type"),
        "bomb": ({"content": bomb()}, "too many pixels"),
    }
    urls = [server.serve(f"/{name}", **{"content": b"x", **how}) for name, (how, _) in expected.items()]
    good = [
        server.serve("/good.png", picture("red")),
        server.serve("/jpeg", jpeg, type="image/jpeg"),
        server.serve("/late", picture("blue"), statuses=[500]),
        server.serve("/moved", statuses=[301], headers=[("Location", "/good.png")]),
    ]
    hasty = replace(QUICK.limits, timeout=1, deadline=2)  # for those that hang or drip
    report = run([*urls, *good], tmp_path / "out", limits=hasty)
    assert failures(tmp_path / "out") == {name: reason for name, (_, reason) in expected.items()}
    assert (report["fetched"], report["new"], report["shards"]) == (4, 4, 1)
    assert sum(report["failed"].values()) == len(expected)
    assert server.asked["/secret"] == 0
    assert (server.asked["/late"], server.asked["/broken"], server.asked["/gone"]) == (2, 2, 1)
    assert server.asked["/robots.txt"] == 1
    source = open_source(tmp_path / "out")
    assert [source.row(index)["url"] for index in range(len(source))] == good
    assert source.captions(1) == [f"caption {len(urls) + 1}"]
    row = source.row(1)
    assert (row["width"], row["height"], row["sha256"]) == (60, 40, hashlib.sha256(jpeg).hexdigest())
    assert source.image(1).tobytes() == Image.open(io.BytesIO(jpeg)).tobytes()  # the file itself, not a copy of it


def test_another_run_fetches_what_is_missing(server: RudeServer, tmp_path: Path, picture: Callable[..., bytes]):
    out = tmp_path / "out"
    urls = [server.serve(f"/{number}", picture()) for number in range(7)]
    server.pages["/1"].statuses = [404] * 9
    server.pages["/2"].statuses = [503] * 9
    server.pages["/5"].way = "reset"
    first = run(urls, out, shard_rows=3)
    assert (first["fetched"], first["shards"], first["failed"]) == (
        4,
        3,
        {"http 404": 1, "http 503": 1, "connection": 1},
    )
    before = {path.name: path.stat().st_mtime_ns for path in out.glob("*.tar")}
    asked = dict(server.asked)
    server.pages["/2"].statuses = []
    second = run(urls, out, shard_rows=3)
    assert (second["fetched"], second["new"], second["shards"]) == (5, 1, 4)
    assert {name for name in server.asked if server.asked[name] > asked.get(name, 0)} == {"/2", "/5", "/robots.txt"}
    after = {path.name: path.stat().st_mtime_ns for path in out.glob("*.tar")}
    assert before.items() <= after.items()
    assert set(after) - set(before) == {"00000-1.tar"}
    server.pages["/5"].way = ""
    third = run(urls, out, shard_rows=3)
    assert (third["fetched"], third["failed"]) == (6, {"http 404": 1})
    source = open_source(out)
    assert sorted(source.row(index)["url"] for index in range(6)) == [url for url in urls if not url.endswith("/1")]
    assert run(urls, out, shard_rows=3)["new"] == 0


def test_a_list_may_grow(server: RudeServer, tmp_path: Path, picture: Callable[..., bytes]):
    urls = [server.serve(f"/{number}", picture()) for number in range(4)]
    run(urls[:2], tmp_path / "out", shard_rows=3)
    assert run(urls, tmp_path / "out", shard_rows=3)["new"] == 2
    assert all(server.asked[f"/{number}"] == 1 for number in range(4))
    assert len(open_source(tmp_path / "out")) == 4


class Stop(BaseException):
    """Stands for Ctrl-C, which may come at any time."""


def test_a_run_that_is_stopped_loses_no_picture(
    server: RudeServer, tmp_path: Path, picture: Callable[..., bytes], monkeypatch: pytest.MonkeyPatch
):
    out = tmp_path / "out"
    urls = [server.serve(f"/{number}", picture()) for number in range(6)]
    rows = [UrlRow(url, "caption") for url in urls]

    def stop(done: int, _: int) -> None:
        if done == 4:
            raise Stop

    with pytest.raises(Stop):
        gather(rows, 6, out, replace(QUICK, workers=1), stop)
    assert not list(out.glob("*.tar"))
    asked = server.asked.copy()
    assert 4 <= sum(asked[f"/{number}"] for number in range(6)) <= 5
    report = gather(rows, 6, out, QUICK)
    assert (report["fetched"], report["new"]) == (6, 6)
    assert all(server.asked[f"/{number}"] == 1 for number in range(6))
    assert len(open_source(out)) == 6


@pytest.mark.parametrize("at", ["00000.json", "00000.tar"])
def test_a_crash_between_shard_and_note_doubles_nothing(
    server: RudeServer, tmp_path: Path, picture: Callable[..., bytes], monkeypatch: pytest.MonkeyPatch, at: str
):
    import os

    out = tmp_path / "out"
    urls = [server.serve(f"/{number}", picture()) for number in range(3)]
    real = os.replace

    def crash(source: Path, target: Path) -> None:
        if Path(target).name == at:
            raise Stop
        real(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", crash)
        with pytest.raises(Stop):
            run(urls, out)
    run(urls, out)
    assert [path.name for path in out.glob("*.tar")] == ["00000.tar"]
    assert len(open_source(out)) == 3
    assert all(server.asked[f"/{number}"] == 1 for number in range(3))


def test_pictures_are_made_smaller_but_never_larger(server: RudeServer, tmp_path: Path):
    small = noisy((20, 30))
    urls = [
        server.serve("/a", noisy((200, 90))),
        server.serve("/b", small),
        server.serve("/c", noisy((60, 90), "JPEG")),
    ]
    run(urls, tmp_path / "out", resize=40)
    source = open_source(tmp_path / "out")
    assert [source.image(index).size for index in range(3)] == [(89, 40), (20, 30), (40, 60)]
    assert [(source.row(index)["width"], source.row(index)["height"]) for index in range(3)] == [
        (89, 40),
        (20, 30),
        (40, 60),
    ]
    assert source.row(0)["sha256"] == hashlib.sha256(server.pages["/a"].content).hexdigest()


def test_a_strip_stays_as_it_is(server: RudeServer, tmp_path: Path):
    """Scaled down it would still be longer than a JPEG can be."""
    file = io.BytesIO()
    Image.new("1", (90_000, 40)).save(file, "PNG")
    run([server.serve("/strip", file.getvalue())], tmp_path / "out", resize=39)
    assert open_source(tmp_path / "out").image(0).size == (90_000, 40)


def test_no_more_pictures_are_decoded_at_once_than_there_are_cores(
    server: RudeServer, tmp_path: Path, picture: Callable[..., bytes], monkeypatch: pytest.MonkeyPatch
):
    """A picture in a file of 10 kB may take half a gigabyte."""
    now, most, lock, pair = 0, 0, threading.Lock(), threading.Barrier(2)

    def slow(data: bytes) -> Image.Image:
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
        with suppress(threading.BrokenBarrierError):
            pair.wait(60)  # two at once, and time for a third to join them
        time.sleep(0.03)
        with lock:
            now -= 1
        return decode_image(data)

    monkeypatch.setattr("codebrush.data.crawl.gather.decode_image", slow)
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    urls = [server.serve(f"/{number}", picture()) for number in range(10)]
    assert run(urls, tmp_path / "out")["fetched"] == 10
    assert most == 2


def test_a_lack_of_memory_is_retried(
    server: RudeServer, tmp_path: Path, picture: Callable[..., bytes], monkeypatch: pytest.MonkeyPatch
):
    """In this run and in the next one: it is not the picture's fault."""
    rich = ImageOps.exif_transpose
    short = {"red": 1, "blue": 9}  # how often memory is lacking for the picture of this colour

    def poor(image: Image.Image) -> Image.Image:
        colour = "red" if image.convert("RGB").getpixel((0, 0)) == (255, 0, 0) else "blue"
        short[colour] -= 1
        if short[colour] >= 0:
            raise MemoryError
        return rich(image)

    urls = [server.serve(f"/{colour}", picture(colour)) for colour in short]
    with monkeypatch.context() as patch:
        patch.setattr(ImageOps, "exif_transpose", poor)
        report = run(urls, tmp_path / "out")
    assert (report["fetched"], report["failed"]) == (1, {"out of memory": 1})
    assert failures(tmp_path / "out") == {"blue": "out of memory"}
    assert run(urls, tmp_path / "out")["fetched"] == 2


def test_requests_to_one_site_are_limited(server: RudeServer, tmp_path: Path, picture: Callable[..., bytes]):
    urls = [server.serve(f"/{number}", picture()) for number in range(8)]
    run(urls, tmp_path / "out", at_once=2, delay=0.03)
    assert server.most_at_once <= 2
    begins = sorted(server.times)[1:]  # after robots.txt
    assert begins[-1] - begins[0] >= 0.03 * 7 * 0.6  # a busy machine may record the first one late


def test_local_addresses_are_refused(server: RudeServer, tmp_path: Path, picture: Callable[..., bytes]):
    url = server.serve("/x", picture())
    with pytest.raises(DataError, match="1 private address"):
        run([url], tmp_path / "out", limits=replace(QUICK.limits, allow_local=False))
    assert not server.asked
    assert failures(tmp_path / "out") == {"x": "private address"}


def test_local_addresses_are_retried_once_they_are_allowed(
    server: RudeServer, tmp_path: Path, picture: Callable[..., bytes]
):
    """And only they; no row is stored or reported twice."""
    urls, out = [server.serve("/x", picture()), "mailto:x"], tmp_path / "out"
    with pytest.raises(DataError, match="1 private address: give --allow-local"):
        run(urls, out, limits=replace(QUICK.limits, allow_local=False))
    assert "--allow-local" in (out / "failures.jsonl").read_text()
    report = run(urls, out)
    assert (report["fetched"], report["new"], report["failed"]) == (1, 1, {"bad URL": 1})
    assert server.asked["/x"] == 1
    report = run(urls, out, limits=replace(QUICK.limits, allow_local=False))
    assert (report["fetched"], report["new"], report["failed"]) == (1, 0, {"bad URL": 1})


def test_rows_that_cannot_be_requested(server: RudeServer, tmp_path: Path, picture: Callable[..., bytes]):
    good = server.serve("/x", picture())
    report = run(
        {good: "a caption", "": "no url", good + "?2": "", "ftp://host/x": "ftp", "nonsense": "?"}, tmp_path / "o"
    )
    assert report["failed"] == {"bad URL": 2, "no URL": 1, "no caption": 1}
    assert report["fetched"] == 1


def test_another_list_is_refused(server: RudeServer, tmp_path: Path, picture: Callable[..., bytes]):
    urls = [server.serve(f"/{number}", picture()) for number in range(3)]
    run(urls, tmp_path / "out")
    with pytest.raises(DataError, match="another list"):
        run(urls[::-1], tmp_path / "out")
    with pytest.raises(DataError, match="another list"):
        run(urls[:2], tmp_path / "out")
    with pytest.raises(DataError, match="--resize none"):
        run(urls, tmp_path / "out", resize=32)
    with pytest.raises(DataError, match="--shard-rows 1000"):
        run(urls, tmp_path / "out", shard_rows=9)


def test_a_folder_of_something_else_is_refused(server: RudeServer, tmp_path: Path, picture: Callable[..., bytes]):
    """Otherwise a shard could replace a file there."""
    (tmp_path / "00000.tar").write_bytes(b"mine")
    with pytest.raises(DataError, match="name a new folder"):
        run([server.serve("/x", picture())], tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["00000.tar"]


def test_two_runs_do_not_mix(server: RudeServer, tmp_path: Path, picture: Callable[..., bytes]):
    from filelock import FileLock

    (tmp_path / "out" / ".gather").mkdir(parents=True)
    with FileLock(tmp_path / "out" / ".gather" / "lock"), pytest.raises(CodebrushError, match="another run"):
        run([server.serve("/x", picture())], tmp_path / "out")


def test_a_full_disk_ends_the_run(server: RudeServer, tmp_path: Path, picture: Callable[..., bytes], monkeypatch):
    def full(*_: Any, **__: Any) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(CodebrushError, match="No space left on device"):
        run([server.serve("/x", picture())], tmp_path / "out")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"workers": 0}, "--workers is too low"),
        ({"delay": -1}, "--delay is too low"),
        ({"resize": 0}, "--resize is too low"),
        ({"contact": "zoë"}, "--contact must be plain ASCII"),
        ({"limits": FetchLimits(0)}, "--timeout, --deadline and --max-bytes must be above 0"),
    ],
)
def test_options_out_of_range(change: dict[str, Any], message: str):
    with pytest.raises(UsageError, match=message):
        replace(QUICK, **change)
