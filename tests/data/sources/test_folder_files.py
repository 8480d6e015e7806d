"""Every entry of a folder is given out to be read, or counted by its kind."""

import os
import socket
import sys
from pathlib import Path

import pytest

from codebrush.data.sources.folder_files import files_in
from codebrush.data.sources.unread import Unread


def walked(folder: Path, exclude: tuple[str, ...] = ()) -> tuple[list[str], dict[str, int]]:
    unread = Unread(folder.name)
    return files_in(folder, unread, exclude), dict(unread.counted)


def write(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")


def test_bins_thumbnails_and_hidden_entries_are_counted(tmp_path: Path):
    write(
        tmp_path, "b.png", "a/c.png", "@eaDir/b.png/S.jpg", "#recycle/d.png", "$RECYCLE.BIN/e.png", "lost+found/f.png"
    )
    write(tmp_path, ".hidden.png", ".git/x", "Thumbs.db", "a/desktop.ini", "__MACOSX/._b.png")
    assert walked(tmp_path) == (
        ["a/c.png", "b.png"],
        {
            "folder called @eaDir": 1,
            "folder called #recycle": 1,
            "folder called $RECYCLE.BIN": 1,
            "folder called lost+found": 1,
            "folder called __MACOSX": 1,
            "hidden file": 1,
            "hidden folder": 1,
            "file of the operating system": 2,
        },
    )


def test_names_can_be_excluded(tmp_path: Path):
    write(tmp_path, "a.png", "a.bak", "drafts/b.png", "deep/drafts/c.png", "deep/d.png")
    assert walked(tmp_path, ("*.bak", "drafts")) == (
        ["a.png", "deep/d.png"],
        {"file that --exclude leaves out": 1, "folder that --exclude leaves out": 2},
    )
    assert walked(tmp_path, ("deep/d*",))[0] == ["a.bak", "a.png", "drafts/b.png"]


def test_linked_folders_are_followed_once_by_their_real_path(tmp_path: Path):
    library = tmp_path / "library"
    write(tmp_path, "library/own.png", "store/x/1.png", "store/x/y/2.png")
    (library / "a").symlink_to("../store/x")
    (library / "b").symlink_to("../store/x")  # again
    (tmp_path / "store" / "x" / "up").symlink_to("../../library")  # in a circle
    (library / "inner").symlink_to("../store/x/y")  # inside what is read already
    (library / "dead.jpg").symlink_to("/nowhere.jpg")  # named when it is decoded
    (library / "dead").symlink_to("/nowhere")
    (library / "linked.png").symlink_to("own.png")
    names, counted = walked(library)
    assert names == ["a/1.png", "a/y/2.png", "dead.jpg", "linked.png", "own.png"]
    assert counted == {"linked folder that is read already": 3, "broken link": 1}


def test_pipes_and_sockets_are_not_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write(tmp_path, "a.png")
    os.mkfifo(tmp_path / "p.png")
    monkeypatch.chdir(tmp_path)  # the path of a socket must be short
    with socket.socket(socket.AF_UNIX) as made:
        made.bind("s.png")
        assert walked(tmp_path) == (["a.png"], {"pipe": 1, "socket": 1})


def test_a_link_to_itself_is_a_broken_link(tmp_path: Path):
    write(tmp_path, "a.png")
    for name in ("b.png", "c"):
        (tmp_path / name).symlink_to(name)
    assert walked(tmp_path) == (["a.png", "b.png"], {"broken link": 1})  # b.png is named when it is decoded


def test_folders_may_be_deeper_than_the_stack_of_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(1000)  # some package may have raised it, and paths end at 4096 characters
    depth = sys.getrecursionlimit() + 20
    for _ in range(depth):  # one after the other, as a path is limited to 4096 characters
        os.mkdir("d")
        os.chdir("d")
    Path("a.png").write_bytes(b"")
    try:
        assert walked(tmp_path) == ([f"{'d/' * depth}a.png"], {})
    finally:  # the clean-up of pytest would run out of its stack
        sys.setrecursionlimit(limit)
        os.remove("a.png")
        for _ in range(depth):
            os.chdir("..")
            os.rmdir("d")
