"""Files and folders that appear under their final name whole or not at all."""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from codebrush.errors import CodebrushError, DataError


@contextmanager
def atomic_file(path: str | Path) -> Iterator[Path]:
    """Yield a path beside `path` to write to; at the end of the block that file takes the place of `path`.

    Folders above `path` are made. If the block raises, `path` stays as it was and nothing is left beside it.

    Raises:
        OSError: if a folder cannot be made or the file cannot be renamed.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    try:
        yield part
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def write_json(path: str | Path, content: Any) -> None:
    """Write `content` as an indented JSON file, by way of `atomic_file`."""
    with atomic_file(path) as part:
        part.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


@contextmanager
def replaced_folder(folder: str | Path) -> Iterator[Path]:
    """Yield an empty folder beside `folder`; at the end of the block it becomes `folder`, which must not hold anything.

    Unlike `atomic_folder` this takes no lock: it is for a folder inside one that the caller owns.

    Raises:
        OSError: if a folder cannot be made or renamed, for example because `folder` is not empty.
    """
    folder = Path(folder)
    part = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)  # left by a run that was killed
    try:
        part.mkdir(parents=True)
        yield part
        os.replace(part, folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)


@contextmanager
def atomic_folder(folder: str | Path) -> Iterator[Path]:
    """Yield an empty folder beside `folder` to fill; at the end of the block it becomes `folder`.

    One run at a time: a lock is held until the end. The lock and the unfinished folder are hidden, lie beside `folder`,
    and are removed if the block raises.

    Raises:
        DataError: if `folder` holds something already.
        CodebrushError: if another run holds the lock, or a file cannot be written.
    """
    place = Path(os.path.realpath(folder))  # one lock and one file system, however the folder was named
    part = place.with_name(f".{place.name}.codebrush-part")
    with _unwritable_is_told(folder), ExitStack() as held:
        _take_lock(folder, place, held)
        if place.is_file() or (place.is_dir() and any(place.iterdir())):
            raise DataError(f"{folder}: there is something there already; name a new folder")
        shutil.rmtree(part, ignore_errors=True)  # left by a run that was killed
        part.mkdir()
        held.callback(shutil.rmtree, part, ignore_errors=True)
        yield part
        os.replace(part, place)


def _take_lock(folder: str | Path, place: Path, held: ExitStack) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(place.with_name(f".{place.name}.codebrush-lock"), timeout=0)
    try:
        held.enter_context(lock)
    except Timeout:
        raise CodebrushError(f"{folder}: another run is writing there; wait for it or name another folder") from None
    # Removed while it is held, so that it is nobody else's. Where an open file cannot be removed, its release does it.
    held.callback(_remove_quietly, lock.lock_file)


def _remove_quietly(path: str) -> None:
    with suppress(OSError):
        os.unlink(path)


@contextmanager
def _unwritable_is_told(folder: str | Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise CodebrushError(f"cannot write {folder}: {reason}; free space there or name another folder") from error
