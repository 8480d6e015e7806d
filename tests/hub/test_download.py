"""Downloads are complete and right or do not appear at all, from mirrors that break off, hang or send wrong files."""

import hashlib
import os
import random
import shutil
import subprocess
import sys
import threading
import urllib.request
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from mirror_server import Mirror, running_mirror

from codebrush.errors import PackError
from codebrush.hub import download, http_range
from codebrush.hub.catalogue import FileEntry
from codebrush.hub.download import fetch_file

CONTENT = random.Random(0).randbytes(300_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()
NAME = "weights.bin"
HALF = 100_000


@pytest.fixture(autouse=True)
def online(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture
def mirror() -> Iterator[Mirror]:
    with running_mirror() as server:
        yield server


@pytest.fixture
def other() -> Iterator[Mirror]:
    with running_mirror() as server:
        yield server


def entry(*mirrors: str, path: str = NAME, size: int | None = len(CONTENT), sha256: str | None = SHA256) -> FileEntry:
    return FileEntry(path=path, size=size, sha256=sha256, mirrors=mirrors)


def fetch(file: FileEntry, folder: Path, **options: Any) -> Path:
    return fetch_file(file, folder, **{"pause": 0.001, "timeout": 5.0, **options})


def visible(folder: Path) -> list[str]:
    """What a user sees in a folder: the locks are hidden files."""
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))


def ranges(mirror: Mirror) -> list[str | None]:
    return [asked for _, asked, _ in mirror.asked]


def test_a_file_is_fetched_and_its_progress_reported(mirror: Mirror, tmp_path: Path) -> None:
    steps: list[tuple[int, int]] = []
    url = mirror.serve("/a", CONTENT)
    path = fetch(entry(url), tmp_path / "in", progress=lambda done, total: steps.append((done, total)))
    assert path == tmp_path / "in" / NAME
    assert path.read_bytes() == CONTENT
    assert visible(tmp_path / "in") == [NAME]
    assert steps == sorted(steps)
    assert steps[-1] == (len(CONTENT), len(CONTENT))


def test_the_right_file_is_not_fetched_again(mirror: Mirror, tmp_path: Path) -> None:
    (tmp_path / NAME).write_bytes(CONTENT)
    assert fetch(entry(mirror.serve("/a", CONTENT)), tmp_path) == tmp_path / NAME
    assert mirror.asked == []


@pytest.mark.parametrize("existing", [CONTENT[:-1], CONTENT[:-1] + b"x", b""])
def test_a_wrong_file_is_replaced(existing: bytes, mirror: Mirror, tmp_path: Path) -> None:
    (tmp_path / NAME).write_bytes(existing)
    assert fetch(entry(mirror.serve("/a", CONTENT)), tmp_path).read_bytes() == CONTENT


@pytest.mark.parametrize("known", [True, False])
def test_after_a_cut_only_the_rest_is_fetched(known: bool, mirror: Mirror, tmp_path: Path) -> None:
    url = mirror.serve("/a", CONTENT, cuts=[HALF, HALF])
    file = entry(url) if known else entry(url, size=None, sha256=None)
    assert fetch(file, tmp_path).read_bytes() == CONTENT
    assert mirror.sent == len(CONTENT)
    assert mirror.asked == [
        ("/a", None, None),
        ("/a", f"bytes={HALF}-", '"one"'),
        ("/a", f"bytes={2 * HALF}-", '"one"'),
    ]


def test_a_later_run_resumes_an_earlier_one(mirror: Mirror, tmp_path: Path) -> None:
    url = mirror.serve("/a", CONTENT, cuts=[HALF, 0, 0, 0, 0])
    with pytest.raises(PackError, match="broke after 100000 of 300000"):
        fetch(entry(url), tmp_path)
    assert visible(tmp_path) == [f"{NAME}.part", f"{NAME}.part.json"]
    assert fetch(entry(url), tmp_path).read_bytes() == CONTENT
    assert mirror.sent == len(CONTENT)
    assert visible(tmp_path) == [NAME]


def test_a_download_may_break_more_often_than_there_are_retries(mirror: Mirror, tmp_path: Path) -> None:
    url = mirror.serve("/a", CONTENT, cuts=[30_000] * 9)
    assert fetch(entry(url), tmp_path).read_bytes() == CONTENT
    assert mirror.sent == len(CONTENT)


def test_a_mirror_that_always_breaks_at_the_same_byte_is_given_up(mirror: Mirror, tmp_path: Path) -> None:
    url = mirror.serve("/a", CONTENT, cuts=[HALF] * 99, ranges=False)
    with pytest.raises(PackError, match="the connection broke"):
        fetch(entry(url), tmp_path)
    assert len(mirror.asked) == 2 + download.RETRIES


def test_the_rest_may_come_from_another_mirror(mirror: Mirror, other: Mirror, tmp_path: Path) -> None:
    first = mirror.serve("/a", CONTENT, cuts=[HALF, 0, 0, 0, 0])
    second = other.serve("/b", CONTENT)
    assert fetch(entry(first, second), tmp_path).read_bytes() == CONTENT
    assert other.asked == [("/b", f"bytes={HALF}-", None)]
    assert mirror.sent + other.sent == len(CONTENT)


def test_without_a_sha256_mirrors_are_not_mixed(mirror: Mirror, other: Mirror, tmp_path: Path) -> None:
    first = mirror.serve("/a", CONTENT[::-1], cuts=[HALF, 0, 0, 0, 0])
    second = other.serve("/b", CONTENT)
    assert fetch(entry(first, second, sha256=None), tmp_path).read_bytes() == CONTENT
    assert ranges(other) == [None]


def test_a_file_that_changed_meanwhile_is_fetched_anew(mirror: Mirror, tmp_path: Path) -> None:
    url = mirror.serve("/a", b"x" * len(CONTENT), etag='"old"', cuts=[HALF, 0, 0, 0, 0])
    file = entry(url, sha256=None)
    with pytest.raises(PackError, match="the connection broke after 100000 of 300000 bytes"):
        fetch(file, tmp_path)
    mirror.serve("/a", CONTENT, etag='"new"')
    assert fetch(file, tmp_path).read_bytes() == CONTENT
    assert mirror.asked[-1] == ("/a", f"bytes={HALF}-", '"old"')


def test_a_mirror_without_ranges_starts_over(mirror: Mirror, tmp_path: Path) -> None:
    url = mirror.serve("/a", CONTENT, cuts=[HALF], ranges=False)
    assert fetch(entry(url), tmp_path).read_bytes() == CONTENT
    assert mirror.sent == HALF + len(CONTENT)


def test_a_partial_file_that_is_complete_is_accepted(mirror: Mirror, tmp_path: Path) -> None:
    (tmp_path / f"{NAME}.part").write_bytes(CONTENT)
    file = entry(mirror.serve("/a", CONTENT), size=None)
    assert fetch(file, tmp_path).read_bytes() == CONTENT
    assert (mirror.sent, ranges(mirror)) == (0, [f"bytes={len(CONTENT)}-"])


@pytest.mark.parametrize("part", [CONTENT + b"more", b"x" * HALF, b"x" * len(CONTENT)])
@pytest.mark.parametrize("size", [len(CONTENT), None])
def test_a_damaged_partial_file_does_no_harm(part: bytes, size: int | None, mirror: Mirror, tmp_path: Path) -> None:
    (tmp_path / f"{NAME}.part").write_bytes(part)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # the mirror is not to blame
        path = fetch(entry(mirror.serve("/a", CONTENT), size=size), tmp_path)
    assert path.read_bytes() == CONTENT
    assert visible(tmp_path) == [NAME]


def test_a_partial_file_that_is_a_link_is_not_followed(mirror: Mirror, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "mine.txt").write_text("mine")
    (tmp_path / "in" / f"{NAME}.part").symlink_to(tmp_path / "mine.txt")
    fetch(entry(mirror.serve("/a", CONTENT)), tmp_path / "in")
    assert (tmp_path / "mine.txt").read_text() == "mine"


def test_a_mirror_with_another_file_is_passed_over(mirror: Mirror, other: Mirror, tmp_path: Path) -> None:
    wrong = mirror.serve("/a", CONTENT[:-1] + b"x")
    right = other.serve("/b", CONTENT)
    with pytest.warns(UserWarning, match=f"127.0.0.1 sent a wrong {NAME} .*the next mirror is tried"):
        path = fetch(entry(wrong, right), tmp_path)
    assert path.read_bytes() == CONTENT
    assert ranges(other) == [None]  # nothing of the wrong file is kept


@pytest.mark.parametrize(("size", "length"), [(len(CONTENT), True), (None, True), (None, False)])
def test_a_wrong_file_never_gets_the_final_name(size: int | None, length: bool, mirror: Mirror, tmp_path: Path) -> None:
    url = mirror.serve("/a", CONTENT[::-1], length=length)
    with pytest.warns(UserWarning, match="sent a wrong"), pytest.raises(PackError, match="sha256") as caught:
        fetch(entry(url, size=size), tmp_path)
    assert "\n" not in str(caught.value)
    assert visible(tmp_path) == []


def test_another_size_is_refused_before_a_byte_is_kept(mirror: Mirror, tmp_path: Path) -> None:
    url = mirror.serve("/a", CONTENT[:-1])
    with pytest.raises(PackError, match="has 299999 bytes, not 300000"):
        fetch(entry(url), tmp_path)
    assert visible(tmp_path) == []
    assert len(mirror.asked) == 1


def test_a_truncated_answer_without_a_length_is_noticed(mirror: Mirror, tmp_path: Path) -> None:
    url = mirror.serve("/a", CONTENT, cuts=[HALF], length=False)
    assert fetch(entry(url), tmp_path).read_bytes() == CONTENT
    assert mirror.sent == len(CONTENT)


def test_a_failing_server_is_tried_again_but_not_for_a_missing_file(
    mirror: Mirror, other: Mirror, tmp_path: Path
) -> None:
    failing = mirror.serve("/a", CONTENT, statuses=[500, 503, 429])
    assert fetch(entry(other.url("/none"), failing), tmp_path).read_bytes() == CONTENT
    assert (len(other.asked), len(mirror.asked)) == (1, 4)


def test_all_mirrors_failing_is_one_line_with_each_reason(mirror: Mirror, tmp_path: Path) -> None:
    failing = mirror.serve("/a", CONTENT, statuses=[500] * 9).replace("127.0.0.1", "localhost")
    gone = tmp_path / "gone.bin"
    with pytest.raises(PackError) as caught:
        fetch(entry(mirror.url("/none"), failing, gone.as_uri()), tmp_path / "in")
    message = str(caught.value)
    for part in (NAME, "127.0.0.1: HTTP 404", "localhost: HTTP 500, 4 times", "gone.bin", str(tmp_path / "in" / NAME)):
        assert part in message
    assert "\n" not in message


def test_a_mirror_that_hangs_is_left(mirror: Mirror, other: Mirror, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(download, "RETRIES", 1)
    mirror.serve("/a", CONTENT, hang=threading.Event())
    path = fetch(entry(mirror.url("/a"), other.serve("/b", CONTENT)), tmp_path, timeout=1.0)
    mirror.files["/a"].hang.set()  # type: ignore[union-attr]
    assert path.read_bytes() == CONTENT
    assert len(mirror.asked) == 2


def test_nobody_listening_is_a_reason(tmp_path: Path) -> None:
    with running_mirror() as gone:
        url = gone.serve("/a", CONTENT)
    with pytest.raises(PackError, match=r"127.0.0.1: Connection refused, 4 times"):
        fetch(entry(url), tmp_path)


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ({"type": "text/html; charset=utf-8"}, "sends a web page"),
        ({"headers": {"Content-Encoding": "gzip"}}, "with the encoding gzip"),
        ({"location": "file:///etc/hosts"}, "HTTP 302"),
        ({"location": "ftp://127.0.0.1/a"}, "redirects to ftp:"),
    ],
)
def test_responses_that_are_not_the_file_are_refused(how: dict, reason: str, mirror: Mirror, tmp_path: Path) -> None:
    url = mirror.serve("/a", CONTENT, **how)
    with pytest.raises(PackError, match=reason):
        fetch(entry(url, size=None, sha256=None), tmp_path)
    assert visible(tmp_path) == []
    assert len(mirror.asked) == 1


def test_a_web_page_is_accepted_if_the_file_is_one(mirror: Mirror, tmp_path: Path) -> None:
    url = mirror.serve("/a", CONTENT, type="text/html")
    assert fetch(entry(url, path="page.html"), tmp_path).read_bytes() == CONTENT


def test_redirects_are_followed_with_the_range(mirror: Mirror, other: Mirror, tmp_path: Path) -> None:
    there = other.serve("/b", CONTENT, cuts=[HALF])
    assert fetch(entry(mirror.serve("/a", b"", location=there)), tmp_path).read_bytes() == CONTENT
    assert ranges(other) == [None, f"bytes={HALF}-"]


def test_a_redirect_never_leaves_https() -> None:
    asked = urllib.request.Request("https://example.org/a")
    handler = http_range.WebRedirects()
    with pytest.raises(http_range.Refused, match="redirects to http:"):
        handler.redirect_request(asked, None, 302, "", {}, "http://example.org/b")
    followed = handler.redirect_request(asked, None, 302, "", {}, "https://example.org/b")
    assert followed.full_url == "https://example.org/b"


@pytest.mark.parametrize("value", ["1", "true", "YES"])
def test_offline_no_server_is_asked(value: str, mirror: Mirror, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", value)
    file = entry(mirror.serve("/a", CONTENT), "hf://owner/name/weights.bin@main")
    with pytest.raises(PackError, match="offline, as HF_HUB_OFFLINE says") as caught:
        fetch(file, tmp_path)
    assert "\n" not in str(caught.value)
    assert mirror.asked == []


@pytest.mark.parametrize("address", [str, Path.as_uri])
def test_offline_local_mirrors_serve(address: Callable, mirror: Mirror, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    source = tmp_path / "a copy.bin"
    source.write_bytes(CONTENT)
    file = entry(mirror.serve("/a", CONTENT), address(source))
    assert fetch(file, tmp_path / "in").read_bytes() == CONTENT
    assert source.exists()


def test_a_wrong_local_mirror_is_not_taken(tmp_path: Path) -> None:
    (tmp_path / "copy.bin").write_bytes(CONTENT[:-1])
    with pytest.warns(UserWarning, match="instead of 300000"), pytest.raises(PackError, match="299999 bytes instead"):
        fetch(entry(str(tmp_path / "copy.bin")), tmp_path / "in")
    assert visible(tmp_path / "in") == []


@pytest.mark.parametrize("size", [len(CONTENT), None])
def test_a_full_disk_is_refused_first(size: int | None, mirror: Mirror, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=850_000))
    with pytest.raises(PackError, match=rf"{NAME} needs 900 kB, but 850 kB are free in .*--home"):
        fetch(entry(mirror.serve("/a", CONTENT), size=size), tmp_path)
    assert visible(tmp_path) == []


def test_the_received_part_of_a_file_needs_no_room(mirror: Mirror, tmp_path: Path, monkeypatch) -> None:
    (tmp_path / f"{NAME}.part").write_bytes(CONTENT[:HALF])
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=850_000))
    assert fetch(entry(mirror.serve("/a", CONTENT)), tmp_path).read_bytes() == CONTENT


def test_two_at_once_fetch_once(mirror: Mirror, tmp_path: Path) -> None:
    gate = threading.Event()
    file = entry(mirror.serve("/a", CONTENT, slow=gate))
    found: list[bytes] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        threads = [threading.Thread(target=lambda: found.append(fetch(file, tmp_path).read_bytes())) for _ in range(3)]
        for thread in threads:
            thread.start()
        while len(caught) < 2:  # those that wait warn
            threading.Event().wait(0.005)
        gate.set()
        for thread in threads:
            thread.join()
    assert found == [CONTENT] * 3
    assert mirror.sent == len(CONTENT)
    assert "another process is fetching weights.bin" in str(caught[0].message)


def test_a_folder_that_leads_elsewhere_is_refused(mirror: Mirror, tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "sub").symlink_to(tmp_path / "outside")
    with pytest.raises(PackError, match="is a link out of"):
        fetch(entry(mirror.serve("/a", CONTENT), path=f"sub/{NAME}"), tmp_path / "in")
    assert list((tmp_path / "outside").iterdir()) == []


def test_a_file_in_the_way_is_one_line(mirror: Mirror, tmp_path: Path) -> None:
    (tmp_path / "in").write_text("a file")
    with pytest.raises(
        PackError, match=r"weights.bin cannot be written: (Not a directory|File exists); free space there"
    ):
        fetch(entry(mirror.serve("/a", CONTENT)), tmp_path / "in")


def test_the_hub_serves(mirror: Mirror, tmp_path: Path) -> None:
    """In a process of its own: huggingface_hub reads HF_ENDPOINT once."""
    commit = "0123456789abcdef0123456789abcdef01234567"
    mirror.serve("/owner/name/resolve/main/sub/w.bin", CONTENT, headers={"X-Repo-Commit": commit})
    code = (
        "from codebrush.hub.catalogue import FileEntry\n"
        "from codebrush.hub.download import fetch_file\n"
        f"file = FileEntry(path='{NAME}', size={len(CONTENT)}, sha256='{SHA256}',"
        " mirrors=('hf://owner/name/sub/w.bin@main',))\n"
        f"steps = []\nfetch_file(file, r'{tmp_path / 'in'}', progress=lambda *step: steps.append(step))\n"
        "print(steps[-1])\n"
    )
    settings = {"HF_ENDPOINT": mirror.url(""), "HF_HOME": str(tmp_path / "hf"), "HF_HUB_DISABLE_TELEMETRY": "1"}
    done = subprocess.run([sys.executable, "-c", code], env={**os.environ, **settings}, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.strip() == str((len(CONTENT), len(CONTENT)))
    assert (tmp_path / "in" / NAME).read_bytes() == CONTENT
    assert sorted(path.name for path in (tmp_path / "in").iterdir()) == [f".{NAME}.lock", NAME]


def test_a_wrong_file_of_the_hub_is_fetched_anew_the_next_time(tmp_path: Path, monkeypatch) -> None:
    found = iter([CONTENT[::-1], CONTENT])

    def keep_local_copy(mirror: str, staging: Path, _: object) -> Path:  # as huggingface_hub does
        path = staging / "w.bin"
        if not path.exists():
            staging.mkdir(exist_ok=True)
            path.write_bytes(next(found))
        return path

    monkeypatch.setattr(download, "fetch_from_hub", keep_local_copy)
    file = entry("hf://owner/name/w.bin@main")
    with pytest.warns(UserWarning, match="sent a wrong"), pytest.raises(PackError, match="cannot be fetched"):
        fetch(file, tmp_path)
    assert fetch(file, tmp_path).read_bytes() == CONTENT
