"""Commands in bad places: a full disk, a folder that cannot be written or vanishes, sources that change while they are
read, two processes at once, a clock that was set back, too little memory.

Each ends well, or with one line and exit status 1; nothing is half written under its final name; and done again in a
good place it ends as if nothing had been. Some of it here, all of it many times in `make test-long`."""

import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from campaign import Campaign, half_written
from works import NAMES, make_works

KB, MB = 1024, 1024**2
# How native code ends a process that gets no memory: Rust and C++; what does not look; glibc for the data of a thread.
BY_NATIVE_CODE = (-signal.SIGABRT, -signal.SIGSEGV, 127)


def each_of(usual: str) -> Any:
    """A parameter for each command; all but one of them in the long suite."""
    long = pytest.mark.long
    return pytest.mark.parametrize("name", [pytest.param(each, marks=() if each == usual else long) for each in NAMES])


def mount(*arguments: str) -> None:
    subprocess.run(["mount", *arguments], check=True, capture_output=True)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[..., Path]]:
    """A function that makes a file system of its own in memory, and one that changes it."""
    place = tmp_path / "disk"
    place.mkdir()
    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("needs Linux and the rights to mount a file system")

    def change(size: int = 64 * MB, way: str = "rw") -> Path:
        new = () if os.path.ismount(place) else ("tmpfs",)
        options = f"size={size},{way}" if new else f"remount,size={size},{way}"
        try:
            mount(*(("-t", "tmpfs") if new else ()), "-o", options, *new, str(place))
        except (OSError, subprocess.CalledProcessError):
            pytest.skip("file systems cannot be mounted here")
        return place

    try:
        yield change
    finally:
        if os.path.ismount(place):
            subprocess.run(["umount", "--lazy", str(place)], check=True)


def check(campaign: Campaign, name: str, out: Path, status: int, ends: tuple[int, ...] = (0, 1)) -> None:
    """What must hold whenever a command has ended."""
    said = campaign.said(out)
    assert status in ends, f"{name}: exit status {status}: {said[-2000:]}"
    assert "Traceback" not in said, f"{name}: {said[-2000:]}"
    assert half_written(out) == []


def again(campaign: Campaign, name: str, out: Path, status: int) -> None:
    """Done again in a good place, unless it was done, it ends as if it had been left alone."""
    work = campaign.works[name]
    if status != 0 or not out.exists():
        assert campaign.run(work.again(out), out) == 0, campaign.said(out)[-2000:]
    assert half_written(out) == []
    assert work.outcome(out) == campaign.outcome(name)


def on_a_full_disk(campaign: Campaign, name: str, disk: Callable[..., Path], size: int) -> int:
    out = disk(size) / "out"
    campaign.outcome(name)  # in a good place, so that caches are full
    status = campaign.run(campaign.works[name].first(out), out)
    check(campaign, name, out, status)
    disk()
    again(campaign, name, out, status)
    return status


@each_of("guide")
def test_a_full_disk(name: str, campaign: Campaign, disk: Callable[..., Path]) -> None:
    on_a_full_disk(campaign, name, disk, 16 * KB)


@pytest.mark.long
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", [4, 8, 24, 40, 64, 96, 128, 192, 256, 384, 512, 1024])
def test_disks_of_all_sizes(name: str, campaign: Campaign, disk: Callable[..., Path], size: int) -> None:
    on_a_full_disk(campaign, name, disk, size * KB)


@each_of("train-vqgan")
def test_a_folder_that_cannot_be_written(name: str, campaign: Campaign, disk: Callable[..., Path]) -> None:
    out = disk() / "out"
    disk(way="ro")
    log = out.parent.parent / "out"  # the log lies beside `out` otherwise
    status = campaign.run(campaign.works[name].first(out), log)
    said = campaign.said(log)
    assert (status, "Traceback" in said) == (1, False), said[-2000:]
    assert not out.exists()
    assert "Read-only file system" in said or "is read-only; name another folder" in said


def vanishing(campaign: Campaign, name: str, number: int) -> None:
    seconds, _ = campaign.unbroken(name)
    out, gone = campaign.folder / f"{name}-vanishing-{number}", campaign.folder / f"{name}-gone-{number}"
    removed: list[str] = []

    def remove() -> None:
        if out.exists():
            out.rename(gone)  # at once, as `rm` of a whole folder is not
            removed.extend(str(path) for path in gone.rglob("*"))
            shutil.rmtree(gone)

    status = campaign.run(
        campaign.works[name].first(out), out, after=campaign.chance.uniform(0, seconds), meanwhile=remove
    )
    check(campaign, name, out, status)
    if status == 0 and removed:  # finished pictures may be taken away while more are made: they are not made again
        shutil.rmtree(out, ignore_errors=True)
    again(campaign, name, out, status)
    shutil.rmtree(out)


@each_of("upscale")
def test_a_folder_that_vanishes(name: str, campaign: Campaign) -> None:
    vanishing(campaign, name, 0)


@pytest.mark.long
@pytest.mark.parametrize("name", NAMES)
def test_folders_that_vanish_at_many_moments(name: str, campaign: Campaign) -> None:
    for number in range(1, 11):
        vanishing(campaign, name, number)


def together(campaign: Campaign, name: str, number: int) -> None:
    """Two at once in one folder: one does it, and the other does, too, or says that somebody is at work there."""
    out = campaign.folder / f"{name}-together-{number}"
    campaign.outcome(name)  # in a good place, so that caches are full
    statuses: list[int] = []
    logs = [campaign.folder / f"{name}-{number}-{each}" for each in "ab"]

    def one(log: Path, late: float) -> None:
        time.sleep(late)
        statuses.append(campaign.run(campaign.works[name].first(out), log))

    threads = [
        threading.Thread(target=one, args=(log, late))
        for log, late in zip(logs, (0, campaign.chance.uniform(0, 0.3)), strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    said = "".join(campaign.said(log) for log in logs)
    assert set(statuses) <= {0, 1}, said[-2000:]
    assert 0 in statuses, said[-2000:]
    assert "Traceback" not in said, said[-2000:]
    assert half_written(out) == []
    assert campaign.works[name].outcome(out) == campaign.outcome(name), said[-2000:]


@each_of("curate")  # tests/training/packs and tests/generation/guided have two that train, and two that guide
def test_two_processes_in_one_folder(name: str, campaign: Campaign) -> None:
    together(campaign, name, 0)


@pytest.mark.long
@pytest.mark.parametrize("name", NAMES)
def test_two_processes_many_times(name: str, campaign: Campaign) -> None:
    for number in range(1, 6):
        together(campaign, name, number)


@each_of("curate")
def test_a_clock_that_was_set_back(name: str, campaign: Campaign) -> None:
    """What a command left behind is of tomorrow when it is taken up again."""
    seconds, _ = campaign.unbroken(name)
    out = campaign.folder / f"{name}-tomorrow"
    status = campaign.run(campaign.works[name].first(out), out, signal.SIGKILL, seconds * 0.6)
    assert half_written(out) == []
    tomorrow = time.time() + 86400
    for path in [out, *out.rglob("*"), *campaign.folder.glob(f".{out.name}*")]:
        if path.exists():
            os.utime(path, (tomorrow, tomorrow))
    again(campaign, name, out, status)


def short_of_memory(campaign: Campaign, name: str, room: int) -> int:
    out = campaign.folder / f"{name}-memory-{room}"
    campaign.outcome(name)  # in a good place, so that caches are full
    status = campaign.run(campaign.works[name].first(out), out, room=room)
    check(campaign, name, out, status, ends=(0, 1, *BY_NATIVE_CODE))
    again(campaign, name, out, status)
    shutil.rmtree(out)
    return status


@each_of("upscale")
def test_too_little_memory(name: str, campaign: Campaign) -> None:
    short_of_memory(campaign, name, 4 * MB)


@pytest.mark.long
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("room", [1, 16, 32, 48, 64, 96, 128, 192, 256])
def test_little_memory_of_all_sizes(name: str, campaign: Campaign, room: int) -> None:
    short_of_memory(campaign, name, room * MB)


def changing(whole: Campaign, folder: Path, name: str, chance: random.Random) -> None:
    """Files that a command reads are cut, emptied, replaced and removed while it reads them."""
    (folder / "given").mkdir()
    (folder / "out").mkdir()
    campaign = Campaign(make_works(folder / "given"), folder / "out", whole.processes, seed=0)
    seconds, _ = whole.unbroken(name)

    def change() -> None:
        files = [path for path in sorted((folder / "given").rglob("*")) if path.suffix in (".png", ".jsonl")]
        for path in chance.sample(files, len(files) // 2):
            match chance.randrange(4):
                case 0:
                    os.truncate(path, path.stat().st_size // 2)
                case 1:
                    path.write_bytes(b"")
                case 2:
                    path.unlink()
                case _:
                    path.write_bytes(chance.randbytes(500))

    out = folder / "out" / "changed"
    status = campaign.run(campaign.works[name].first(out), out, after=chance.uniform(0, seconds), meanwhile=change)
    check(campaign, name, out, status)


@each_of("curate")  # reads its source as `index` and the trainings do
def test_sources_that_change_while_they_are_read(name: str, campaign: Campaign, tmp_path: Path) -> None:
    changing(campaign, tmp_path, name, random.Random(1))


@pytest.mark.long
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("seed", range(2, 8))
def test_sources_that_change_at_many_moments(name: str, campaign: Campaign, tmp_path: Path, seed: int) -> None:
    changing(campaign, tmp_path, name, random.Random(seed))
