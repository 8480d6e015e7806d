"""Writes files and folders so that they appear under their final name complete or not at all, and hashes files."""

import errno
import hashlib
import json
import os
import re
import secrets
import shutil
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from filelock import FileLock, Timeout

from codebrush.errors import CodebrushError, DataError

LEFTOVER = re.compile(r"\..+\.[0-9a-f]{8}\.part")
LEFTOVER_AGE = 3600.0  # seconds without a change after which a temporary file or folder is of a killed process

FULL = 1 << 20  # bytes that are left on a disk that is called full
UNWRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT)  # numbers of OSErrors
UNUSABLE = (OSError, EOFError, ValueError, KeyError, TypeError)  # what reading a missing or damaged file raises
T = TypeVar("T")


def from_home(path: str | Path) -> str:
    """`path` with a leading ~ or ~user as that home folder, unless something of this very name exists."""
    return str(path) if os.path.lexists(path) else os.path.expanduser(path)


def file_sha256(path: str | Path) -> str:
    """The sha256 (hex) of a file. Raises OSError if it cannot be read."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def cannot_write(what: object, reason: str, other: str = "folder") -> CodebrushError:
    """The error line for `what` cannot be written; `other` is what the user may name in its place."""
    return CodebrushError(f"cannot write {what}: {reason}; free space there or name another {other}")


@contextmanager
def write_errors(what: object, other: str = "folder") -> Iterator[None]:
    """A context in which an OSError becomes `cannot_write`."""
    try:
        yield
    except OSError as error:
        raise cannot_write(what, error.strerror or str(error), other) from error


def made_once(lock: Path, what: str, read: Callable[[], T], make: Callable[[], None]) -> T:
    """Return what `read` finds; if it raises one of `UNUSABLE`, `make` writes the files first.

    If several processes want the same files, one makes them and the others wait, by the file `lock`.

    Raises:
        CodebrushError: if they cannot be written; the line names `what`.
    """
    with suppress(*UNUSABLE):
        return read()
    with write_errors(what):
        lock.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(lock):
            with suppress(*UNUSABLE):
                return read()
            make()
            return read()


def folder_size(folder: str | Path) -> int:
    """Bytes that the files below a folder take, of those that are not removed meanwhile; 0 if there is none."""
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):
                total += os.lstat(os.path.join(place, name)).st_size
    return total


@contextmanager
def atomic_file(path: str | Path) -> Iterator[Path]:
    """Yield an empty file beside `path` to write to; at the end of the block it takes the place of `path`.

    Its name is hidden and unique, so that two processes that write `path` at once do not mix: the last one to finish
    wins. A symbolic link stays: the file that it leads to is written. Folders above `path` are made. If the block
    raises, `path` stays as it was and nothing is left beside it. What a killed process left is removed by the first
    write into the same folder of a later process, an hour after.

    Raises:
        OSError: if a folder cannot be made, or the file cannot be written or renamed.
    """
    path = Path(os.path.realpath(path)) if os.path.islink(path) else Path(path).absolute()
    part = _part_beside(path)
    try:
        part.parent.mkdir(parents=True, exist_ok=True)
        part.touch()
        mode = stat.S_IMODE(part.stat().st_mode)
        with _told_as_os_errors(part.parent):
            yield part
        if stat.S_IMODE(part.stat().st_mode) != mode:
            part.chmod(mode)  # safetensors makes files that nobody else may read
        os.replace(part, path)
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)


@contextmanager
def _told_as_os_errors(folder: Path) -> Iterator[None]:
    """A context in which what PyTorch and safetensors raise where a file cannot be written becomes an OSError."""
    try:
        yield
    except (OSError, CodebrushError):  # says all itself
        raise
    except Exception as error:
        number = re.search(r"\(os error (\d+)\)", str(error))
        if number is not None:
            raise OSError(int(number[1]), os.strerror(int(number[1]))) from error
        if isinstance(error, RuntimeError) and "inline_container" in str(error):  # which does not say why
            reason = errno.ENOSPC if shutil.disk_usage(folder).free < FULL else errno.EIO
            raise OSError(reason, os.strerror(reason)) from error
        raise


def _part_beside(path: Path) -> Path:
    """A hidden and unique name beside `path`."""
    _remove_leftovers(path.parent)
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")


@cache
def _remove_leftovers(folder: Path) -> None:
    """Once for each folder in a process, because a long folder takes a while to list."""
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            with suppress(OSError):
                if LEFTOVER.fullmatch(entry.name) and time.time() - entry.stat().st_mtime > LEFTOVER_AGE:
                    shutil.rmtree(entry.path) if entry.is_dir(follow_symlinks=False) else os.unlink(entry.path)


def write_json(path: str | Path, content: Any) -> None:
    """Write `content` as an indented UTF-8 JSON file through `atomic_file`."""
    with atomic_file(path) as part:
        part.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file; an empty one if there is no such file."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def read_entries(path: Path, entry: str, error: type[CodebrushError]) -> list[str]:
    """The lines of a UTF-8 text file with one `entry` (such as "label") a line. Raises `error` if it cannot be read."""
    try:
        return path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as cause:
        reason = cause.strerror.lower() if isinstance(cause, OSError) and cause.strerror else "not UTF-8 text"
        raise error(f"{path}: {reason}; give a text file with one {entry} a line") from cause


def set_aside(folder: str | Path) -> Path:
    """Rename a folder to a hidden name beside it, so that it is gone at once; the caller removes it then.

    Raises:
        OSError: if there is none, or it cannot be renamed.
    """
    part = _part_beside(Path(folder).absolute())
    os.replace(folder, part)
    return part


@contextmanager
def new_folder(folder: str | Path) -> Iterator[Path]:
    """Yield an empty folder beside `folder`; at the end of the block it is renamed to `folder`.

    Like `atomic_file` it needs no lock: of two processes that write `folder` at once the second to finish fails.

    Raises:
        OSError: if a folder cannot be made or renamed, for example because `folder` exists and is not empty.
    """
    folder = Path(folder).absolute()
    part = _part_beside(folder)
    try:
        part.mkdir(parents=True)
        yield part
        os.replace(part, folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)


@contextmanager
def replaced_folder(folder: str | Path) -> Iterator[Path]:
    """Yield an empty folder beside `folder` to fill; at the end of the block it takes the place of `folder`.

    Whatever the old folder held under other names moves along. If the block raises, or the new folder cannot be
    renamed, the old one stays as it was. Two processes that write `folder` at once do not mix: the last one to finish
    wins. An old folder whose successor was killed between the two renames is brought back first.

    Raises:
        OSError: if a folder cannot be made or renamed.
    """
    folder = Path(folder).absolute()
    part = _part_beside(folder)
    try:
        part.mkdir(parents=True)
        yield part
        with ExitStack() as held:
            _take_lock(_lock_of(folder), held, timeout=-1)
            _take_place(part, folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _take_place(part: Path, folder: Path) -> None:
    """Rename `part` to `folder`, and move what an earlier one held beside into it. One process at a time."""
    old = folder.with_name(f".{folder.name}.old")
    if old.exists() and not folder.exists():
        os.replace(old, folder)
    shutil.rmtree(old, ignore_errors=True)
    if not folder.exists():
        os.replace(part, folder)
        return
    os.replace(folder, old)
    try:
        os.replace(part, folder)
    except OSError:
        os.replace(old, folder)
        raise
    for entry in old.iterdir():
        if not (folder / entry.name).exists():
            os.replace(entry, folder / entry.name)
    shutil.rmtree(old, ignore_errors=True)


@contextmanager
def atomic_folder(folder: str | Path) -> Iterator[Path]:
    """Yield an empty folder beside `folder` to fill; at the end of the block it is renamed to `folder`.

    Only one process at a time: a lock is held until the end. The lock and the unfinished folder are hidden, lie beside
    `folder`, and are removed if the block raises.

    Raises:
        DataError: if `folder` exists and is not empty.
        CodebrushError: if another process holds the lock, or a file cannot be written.
    """
    place = Path(os.path.realpath(folder))  # one lock and one file system, however the folder was named
    if not place.name:
        raise DataError(f"{folder}: already exists; name a new folder")  # the root, beside which nothing can lie
    part = place.with_name(f".{place.name}.codebrush-part")
    with write_errors(folder), ExitStack() as held:
        try:
            _take_lock(_lock_of(place), held, timeout=0)
        except Timeout:
            raise CodebrushError(
                f"{folder}: another process is writing there; wait for it or name another folder"
            ) from None
        if place.is_file() or (place.is_dir() and any(place.iterdir())):
            raise DataError(f"{folder}: already exists; name a new folder")
        shutil.rmtree(part, ignore_errors=True)  # left by a process that was killed
        part.mkdir()
        held.callback(shutil.rmtree, part, ignore_errors=True)
        yield part
        os.replace(part, place)


@contextmanager
def held_alone(folder: Path, lock: Path | None = None) -> Iterator[None]:
    """Keep other processes that ask for the same from working in `folder`, by the file `lock`; None: one beside it.

    Raises:
        CodebrushError: if one is at work there.
    """
    with ExitStack() as held:
        with write_errors(folder):
            try:
                _take_lock(lock or _lock_of(Path(os.path.abspath(folder))), held, timeout=0)
            except Timeout:
                raise CodebrushError(f"another process is at work in {folder}: wait for it, or stop it") from None
        yield


def _lock_of(folder: Path) -> Path:
    """The lock file beside a folder."""
    return folder.with_name(f".{folder.name}.codebrush-lock")


def _take_lock(path: Path, held: ExitStack, timeout: float) -> None:
    """Hold the lock file `path` until `held` is left; -1 waits for it without end."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path, timeout=timeout)
    held.enter_context(lock)
    # Removed while it is held, so that nobody else can hold it. (Windows removes it on release.)
    held.callback(_remove_quietly, lock.lock_file)


def _remove_quietly(path: str) -> None:
    with suppress(OSError):
        os.unlink(path)
