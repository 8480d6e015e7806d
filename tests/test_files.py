"""Files and folders appear complete or not at all, touch nothing of others, and leave nothing beside them."""

import errno
import json
import os
import stat
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from codebrush.errors import CodebrushError, DataError
from codebrush.files import (
    LEFTOVER_AGE,
    atomic_file,
    atomic_folder,
    from_home,
    made_once,
    new_folder,
    replaced_folder,
    write_json,
)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def write_half(part: Path, error: type[BaseException]) -> None:
    part.write_text("half")
    raise error


def in_another_process(code: str, path: Path) -> int:
    """Run `code` with `path` as sys.argv[1]; its exit status."""
    start = "import os, sys; from pathlib import Path; from codebrush.files import *\n"
    return subprocess.run([sys.executable, "-c", start + code, path]).returncode


def test_a_tilde_is_the_home_folder_unless_a_file_is_called_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/me")
    assert from_home("~/a.png") == "/home/me/a.png"
    assert from_home("~nobody-of-this-name/a.png") == "~nobody-of-this-name/a.png"
    (tmp_path / "~").mkdir()
    assert from_home(Path("~")) == "~"


def test_a_file_appears_complete_and_alone(tmp_path: Path):
    path = tmp_path / "deep" / "a.txt"
    with atomic_file(path) as part:
        part.write_text("half")
        assert part.parent == path.parent
        assert not path.exists()
        part.write_text("whole")
    assert names(tmp_path / "deep") == ["a.txt"]
    assert path.read_text() == "whole"


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_interrupted_write_leaves_the_old_file(tmp_path: Path, error: type[BaseException]):
    (tmp_path / "a.txt").write_text("old")
    with pytest.raises(error), atomic_file(tmp_path / "a.txt") as part:
        write_half(part, error)
    assert names(tmp_path) == ["a.txt"]
    assert (tmp_path / "a.txt").read_text() == "old"


@pytest.mark.parametrize("there", [True, False])
def test_a_symbolic_link_stays_and_its_target_is_written(tmp_path: Path, there: bool):
    (tmp_path / "far").mkdir()
    if there:
        (tmp_path / "far" / "a.txt").write_text("old")
    (tmp_path / "link.txt").symlink_to(Path("far") / "a.txt")
    with atomic_file(tmp_path / "link.txt") as part:
        part.write_text("new")
    assert (tmp_path / "link.txt").is_symlink()
    assert (tmp_path / "far" / "a.txt").read_text() == "new"
    assert names(tmp_path / "far") == ["a.txt"]


def test_a_file_named_from_within_a_folder_that_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    with atomic_file("a.txt") as part:
        part.write_text("whole")
        monkeypatch.chdir("/")
    assert names(tmp_path) == ["a.txt"]


def test_what_a_killed_writer_left_is_removed_by_a_later_process(tmp_path: Path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    killed = "f = atomic_file(sys.argv[1]); f.__enter__().write_text('half'); os._exit(9)"
    assert [in_another_process(killed, path) for _ in range(2)] == [9, 9]
    assert path.read_text() == "old"
    first, second = (tmp_path / name for name in names(tmp_path) if name != "a.txt")
    mine = [tmp_path / name for name in (".a.txt.part", ".deadbeef.part", "a.txt.deadbeef.part")]
    long_ago = time.time() - LEFTOVER_AGE - 60
    for leftover in (first, *mine):
        leftover.touch()
        os.utime(leftover, (long_ago, long_ago))
    assert in_another_process("with atomic_file(sys.argv[1]) as part: part.write_text('new')", path) == 0
    assert path.read_text() == "new"
    assert names(tmp_path) == sorted(["a.txt", second.name, *(file.name for file in mine)])


def test_two_writers_of_one_file_do_not_mix(tmp_path: Path):
    with atomic_file(tmp_path / "a.txt") as one, atomic_file(tmp_path / "a.txt") as other:
        one.write_text("one")
        other.write_text("other")
        assert one.read_text() == "one"
    assert (tmp_path / "a.txt").read_text() == "one"  # whose block ended last

    def write(letter: str) -> None:
        for _ in range(50):
            with atomic_file(tmp_path / "b.txt") as part:
                part.write_text(letter * 5_000)

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(write, "xyz"))
    assert set((tmp_path / "b.txt").read_text()) < set("xyz")
    assert len((tmp_path / "b.txt").read_text()) == 5_000
    assert names(tmp_path) == ["a.txt", "b.txt"]


def test_a_file_may_be_read_by_whom_an_ordinary_one_may(tmp_path: Path):
    before = os.umask(0o027)
    try:
        (tmp_path / "plain").write_text("")
        (tmp_path / "replaced").write_text("")
        (tmp_path / "replaced").chmod(0o600)
        write_json(tmp_path / "new", {})
        write_json(tmp_path / "replaced", {})
        with atomic_file(tmp_path / "tensors") as part:
            save_file({"x": torch.zeros(1)}, part)  # makes its own file, which nobody else may read
    finally:
        os.umask(before)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    assert modes == dict.fromkeys(("plain", "replaced", "new", "tensors"), 0o640)


def test_a_file_that_cannot_be_written_is_an_oserror(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError), atomic_file(tmp_path / "file" / "a.txt"):
        pytest.fail("there is no such folder")
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError), atomic_file(tmp_path / "folder") as part:
        part.write_text("x")
    assert names(tmp_path) == ["file", "folder"]


def test_json_is_complete_or_the_old_one(tmp_path: Path):
    path = tmp_path / "a.json"
    write_json(path, {"grüße": [1, None], "b": 0.5})
    assert path.read_text(encoding="utf-8") == '{\n  "grüße": [\n    1,\n    null\n  ],\n  "b": 0.5\n}\n'
    with pytest.raises(TypeError, match="object is not JSON serializable"):
        write_json(path, {"a": object()})
    assert json.loads(path.read_text(encoding="utf-8")) == {"grüße": [1, None], "b": 0.5}
    assert names(tmp_path) == ["a.json"]


def test_a_folder_without_a_lock_appears_complete_and_alone(tmp_path: Path):
    with new_folder(tmp_path / "out") as part:
        assert names(part) == []
        (part / "a").write_text("1")
        assert not (tmp_path / "out").exists()
    assert names(tmp_path) == ["out"]
    assert names(tmp_path / "out") == ["a"]


def test_a_folder_that_a_killed_process_left_is_removed_by_a_later_one(tmp_path: Path):
    killed = "f = new_folder(sys.argv[1]); (f.__enter__() / 'half').touch(); os._exit(9)"
    assert in_another_process(killed, tmp_path / "out") == 9
    (leftover,) = tmp_path.iterdir()
    long_ago = time.time() - LEFTOVER_AGE - 60
    os.utime(leftover, (long_ago, long_ago))
    assert in_another_process("with new_folder(sys.argv[1]) as part: (part / 'a').touch()", tmp_path / "out") == 0
    assert names(tmp_path) == ["out"]
    assert names(tmp_path / "out") == ["a"]


def test_two_writers_of_one_folder_do_not_mix(tmp_path: Path):
    first, second = new_folder(tmp_path / "out"), new_folder(tmp_path / "out")
    for writer, name in ((first, "a"), (second, "b")):
        (writer.__enter__() / name).touch()
    second.__exit__(None, None, None)
    with pytest.raises(OSError):
        first.__exit__(None, None, None)
    assert names(tmp_path) == ["out"]
    assert names(tmp_path / "out") == ["b"]


def test_a_folder_without_a_lock_takes_no_others_place(tmp_path: Path):
    with pytest.raises(RuntimeError), new_folder(tmp_path / "out") as part:
        write_half(part / "a", RuntimeError)
    assert names(tmp_path) == []
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").touch()
    with pytest.raises(OSError), new_folder(tmp_path / "out"):
        pass
    assert names(tmp_path) == ["out"]
    assert names(tmp_path / "out") == ["mine"]


class TestReplacedFolder:
    @pytest.fixture
    def out(self, tmp_path: Path) -> Path:
        """A folder with a pack's member and something of the user's."""
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "member").write_text("old")
        (tmp_path / "out" / "notes").write_text("mine")
        return tmp_path / "out"

    def test_it_takes_the_place_of_the_old_one_and_keeps_the_rest(self, out: Path):
        with replaced_folder(out) as part:
            assert names(part) == []
            (part / "member").write_text("new")
            assert (out / "member").read_text() == "old"
        assert [(out / name).read_text() for name in names(out)] == ["new", "mine"]
        assert names(out.parent) == ["out"]

    @pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, OSError])
    def test_a_failure_in_the_middle_keeps_the_old_one(self, out: Path, error: type[BaseException]):
        with pytest.raises(error), replaced_folder(out) as part:
            write_half(part / "member", error)
        assert [(out / name).read_text() for name in names(out)] == ["old", "mine"]
        assert names(out.parent) == ["out"]

    def test_a_failure_of_the_second_rename_keeps_the_old_one(self, out: Path):
        with pytest.raises(OSError), replaced_folder(out) as part:
            part.rename(out / "away")
        assert (out / "member").read_text() == "old"
        assert names(out) == ["away", "member", "notes"]
        assert names(out.parent) == ["out"]

    def test_two_writers_do_not_mix_and_the_last_wins(self, out: Path):
        first, second = replaced_folder(out), replaced_folder(out)
        for writer, name in ((first, "a"), (second, "b")):
            (writer.__enter__() / "member").write_text(name)
        second.__exit__(None, None, None)
        assert (out / "member").read_text() == "b"
        first.__exit__(None, None, None)
        assert [(out / name).read_text() for name in names(out)] == ["a", "mine"]
        assert names(out.parent) == ["out"]

    def test_many_writers_at_once_leave_one_whole_folder(self, out: Path):
        def write(number: int) -> None:
            with replaced_folder(out) as part:
                for name in ("member", "other"):
                    (part / name).write_text(str(number))

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(write, range(40)))
        assert names(out) == ["member", "notes", "other"]
        assert (out / "member").read_text() == (out / "other").read_text()
        assert (out / "notes").read_text() == "mine"
        assert names(out.parent) == ["out"]

    def test_one_that_was_moved_away_by_a_killed_writer_is_brought_back(self, out: Path):
        killed = """
from codebrush import files
def die(part, folder):
    os.replace(folder, folder.with_name(f".{folder.name}.old"))
    os._exit(9)
files._take_place = die
with replaced_folder(sys.argv[1]): pass
"""
        assert in_another_process(killed, out) == 9
        assert not out.exists()
        with replaced_folder(out) as part:
            (part / "member").write_text("new")
        assert [(out / name).read_text() for name in names(out)] == ["new", "mine"]


def test_many_that_want_a_file_make_it_once(tmp_path: Path):
    made, path = [], tmp_path / "deep" / "made"

    def make() -> None:
        made.append(1)
        time.sleep(0.05)
        path.write_text("whole")

    def get(_: int) -> str:
        return made_once(path.with_suffix(".lock"), "it", path.read_text, make)

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(get, range(8))) == {"whole"}
    assert len(made) == 1
    (tmp_path / "taken").touch()
    with pytest.raises(CodebrushError, match=r"cannot write it: .*; free space there or name another folder"):
        made_once(tmp_path / "taken" / "lock", "it", (tmp_path / "none").read_text, make)


def test_the_folder_appears_whole_and_alone(tmp_path: Path):
    with atomic_folder(tmp_path / "deep" / "out") as part:
        (part / "a").write_text("1")
        assert not (tmp_path / "deep" / "out").exists()
    assert names(tmp_path / "deep") == ["out"]
    assert names(tmp_path / "deep" / "out") == ["a"]


def test_a_second_run_is_refused_and_the_first_keeps_its_work(tmp_path: Path):
    (tmp_path / "link").symlink_to(tmp_path / "out")
    with atomic_folder(tmp_path / "out") as part:
        (part / "a").write_text("1")
        for same in (tmp_path / "out", tmp_path / "x" / ".." / "out", tmp_path / "link"):
            with pytest.raises(CodebrushError, match="another process is writing there"), atomic_folder(same):
                pytest.fail("two runs write to one folder")
    assert names(tmp_path / "out") == ["a"]
    with pytest.raises(DataError, match="already exists"), atomic_folder(tmp_path / "out"):
        pytest.fail("it is taken")
    assert names(tmp_path) == ["link", "out"]


def test_the_root_is_not_a_new_folder():
    with pytest.raises(DataError, match=r"^/: already exists; name a new folder$"), atomic_folder("/"):
        pass


def test_another_process_is_refused(tmp_path: Path):
    code = "import sys; from codebrush.files import *\nwith atomic_folder(sys.argv[1]): pass"
    with atomic_folder(tmp_path / "out") as part:
        (part / "a").write_text("1")
        other = subprocess.run([sys.executable, "-c", code, tmp_path / "out"], capture_output=True, text=True)
    assert "another process is writing there" in other.stderr
    assert names(tmp_path / "out") == ["a"]


def test_what_others_have_named_part_stays(tmp_path: Path):
    for name in ("out.part", ".out.part"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "mine.txt").write_text("mine")
    with pytest.raises(RuntimeError), atomic_folder(tmp_path / "out"):
        raise RuntimeError
    with atomic_folder(tmp_path / "out"):
        pass
    assert names(tmp_path) == [".out.part", "out", "out.part"]
    assert names(tmp_path / "out.part") == names(tmp_path / ".out.part") == ["mine.txt"]


def test_what_a_killed_run_left_is_cleared(tmp_path: Path):
    assert in_another_process("f = atomic_folder(sys.argv[1]); f.__enter__(); os._exit(9)", tmp_path / "out") == 9
    assert names(tmp_path) == [".out.codebrush-lock", ".out.codebrush-part"]
    with atomic_folder(tmp_path / "out") as part:
        assert names(part) == []
    assert names(tmp_path) == ["out"]


def test_a_run_that_fails_lets_go(tmp_path: Path):
    """A full disk is one line; the next run may use the name, also if an empty folder has it."""
    with pytest.raises(CodebrushError, match=r"cannot write .*: No space left"), atomic_folder(tmp_path / "out"):
        raise OSError(28, "No space left on device")
    assert names(tmp_path) == []
    (tmp_path / "out").mkdir()
    with atomic_folder(tmp_path / "out") as part:
        (part / "a").write_text("1")
    assert names(tmp_path / "out") == ["a"]


def test_a_folder_named_from_within(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "a").write_text("1")
    monkeypatch.chdir(tmp_path / "taken")
    with pytest.raises(DataError, match="already exists"), atomic_folder("."):
        pytest.fail("it is taken")


@pytest.mark.parametrize(
    ("error", "number"),
    [
        (SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"), errno.ENOSPC),
        (RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 576 vs 534"), errno.EIO),
    ],
)
def test_what_libraries_say_of_a_disk_is_an_error_of_the_system(tmp_path: Path, error: Exception, number: int) -> None:
    with pytest.raises(OSError, match=os.strerror(number)), atomic_file(tmp_path / "a"):
        raise error
    assert names(tmp_path) == []
    with pytest.raises(RuntimeError, match="another"), atomic_file(tmp_path / "a"):
        raise RuntimeError("another")
