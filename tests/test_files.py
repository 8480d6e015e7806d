"""A folder in the making: one run at a time, nothing of others touched, nothing left lying beside it."""

import subprocess
import sys
from pathlib import Path

import pytest

from codebrush.errors import CodebrushError, DataError
from codebrush.files import atomic_folder


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


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
            with pytest.raises(CodebrushError, match="another run is writing there"), atomic_folder(same):
                pytest.fail("two runs write to one folder")
    assert names(tmp_path / "out") == ["a"]
    with pytest.raises(DataError, match="something there already"), atomic_folder(tmp_path / "out"):
        pytest.fail("it is taken")
    assert names(tmp_path) == ["link", "out"]


def test_another_process_is_refused(tmp_path: Path):
    code = "import sys; from codebrush.files import *\nwith atomic_folder(sys.argv[1]): pass"
    with atomic_folder(tmp_path / "out") as part:
        (part / "a").write_text("1")
        other = subprocess.run([sys.executable, "-c", code, tmp_path / "out"], capture_output=True, text=True)
    assert "another run is writing there" in other.stderr
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
    code = "import os, sys; from codebrush.files import *\nf = atomic_folder(sys.argv[1]); f.__enter__(); os._exit(9)"
    assert subprocess.run([sys.executable, "-c", code, tmp_path / "out"]).returncode == 9
    assert names(tmp_path) == [".out.codebrush-lock", ".out.codebrush-part"]
    with atomic_folder(tmp_path / "out") as part:
        assert names(part) == []
    assert names(tmp_path) == ["out"]


def test_a_run_that_fails_lets_go(tmp_path: Path):
    """A full disk is told in one line; the next run finds the place free, also as an empty folder."""
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
    with pytest.raises(DataError, match="something there already"), atomic_folder("."):
        pytest.fail("it is taken")
