"""Downloads and verifies one file of the catalogue.

Mirrors are tried in order. A partial download is kept as `NAME.part` and resumed, also by a later run. Only a file of
the right size and sha256 gets its final name.
"""

import hashlib
import os
import shutil
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import unquote, urlsplit

from filelock import FileLock, Timeout

from codebrush.errors import PackError
from codebrush.files import file_sha256
from codebrush.hub.catalogue import FileEntry
from codebrush.hub.http_range import CHUNK, Interrupted, Refused, Transfer
from codebrush.hub.hugging_face import fetch_from_hub, is_offline
from codebrush.progress import Progress
from codebrush.warned import warn

TIMEOUT = 30.0  # seconds without a byte
RETRIES = 3  # for each mirror, after the first attempt
PAUSE = 1.0  # seconds before the first retry, doubled for each further one
CONVERSION_ROOM = 2  # times a file's size to keep free beside it: converting writes it again, perhaps in float32


def fetch_file(
    entry: FileEntry,
    folder: str | Path,
    *,
    progress: Progress | None = None,
    timeout: float = TIMEOUT,
    pause: float = PAUSE,
) -> Path:
    """Download the file of `entry` into `folder`, unless the right file is already there; returns its path.

    `progress` is called with bytes; `timeout` and `pause` are in seconds. With HF_HUB_OFFLINE=1 only local mirrors and
    huggingface_hub's local cache are used. A second process that wants the same file waits for the first.

    Raises:
        PackError: if the disk has no room or no mirror provides the right file; a partial file is kept for later.
    """
    folder = Path(folder)
    target = folder / entry.path
    if not target.parent.resolve().is_relative_to(folder.resolve()):
        raise PackError(f"{target} is a link out of {folder}: remove the link")
    with locked(target):
        if _is_complete(target, entry):
            return target
        return _Fetch(entry, target, progress, timeout, pause).run()


def check_room(folder: Path, needed: int, what: str) -> None:
    """Raise a PackError if the disk of `folder`, which need not exist yet, has fewer than `needed` bytes free."""
    existing = next((place for place in (folder, *folder.absolute().parents) if place.exists()), folder)
    free = shutil.disk_usage(existing).free
    if needed > free:
        raise PackError(
            f"{what} needs {size_text(needed)}, but {size_text(free)} are free in {folder}: "
            "free some space, or name another folder with --home"
        )


def size_text(size: int | None) -> str:
    """A number of bytes as people read it: 354 MB, 1.3 GB; ? if it is not known."""
    if size is None:
        return "?"
    for unit, name in ((10**9, "GB"), (10**6, "MB"), (10**3, "kB")):
        if size >= unit * 0.9995:
            return f"{size / unit:.1f} {name}" if size < 10 * unit else f"{size / unit:.0f} {name}"
    return f"{size} bytes"


class _Fetch:
    """The download of one file from the first mirror that provides it."""

    def __init__(self, entry: FileEntry, target: Path, progress: Progress | None, timeout: float, pause: float) -> None:
        self.entry, self.target, self.progress, self.pause = entry, target, progress, pause
        self.part = target.with_name(target.name + ".part")
        self.staging = target.with_name(f".{target.name}.hub")
        self.transfer = Transfer(
            self.part,
            size=entry.size,
            has_sha256=entry.sha256 is not None,
            timeout=timeout,
            progress=progress,
            check_room=self._check_room,
        )

    def run(self) -> Path:
        """Try the mirrors in order; returns the path of the verified file."""
        if self.entry.size is not None:
            self._check_room(self.entry.size)
        reasons = []
        for number, mirror in enumerate(self.entry.mirrors, start=1):
            try:
                self._accept(self._from(mirror))
                return self.target
            except _WrongFile as error:
                then = "the next mirror is tried" if number < len(self.entry.mirrors) else "it is not kept"
                warn(f"{_host(mirror)} sent a wrong {self.entry.path} ({error}): {then}")
                reasons.append(f"{_host(mirror)}: {error}")
            except Refused as error:
                reasons.append(f"{_host(mirror)}: {error}")
        raise PackError(
            f"{self.entry.path} cannot be fetched ({'; '.join(reasons)}): try again later, "
            f"or put the file at {self.target} yourself"
        )

    def _check_room(self, size: int) -> None:
        check_room(self.target.parent, size - self.transfer.received() + CONVERSION_ROOM * size, self.entry.path)

    def _from(self, mirror: str) -> str:
        """Complete the partial file from one mirror; returns its sha256."""
        scheme = urlsplit(mirror).scheme
        if scheme == "hf":
            return self._copy(fetch_from_hub(mirror, self.staging, self.progress))
        if scheme not in ("http", "https"):
            return self._copy(Path(urllib.request.url2pathname(urlsplit(mirror).path)) if scheme else Path(mirror))
        if is_offline():
            raise Refused("offline, as HF_HUB_OFFLINE says")
        return self._from_web(mirror)

    def _from_web(self, url: str) -> str:
        """Fetch with retries. Attempts that received something do not count: a long download may break often."""
        may_be_html = self.target.suffix.lower() in (".html", ".htm")
        farthest, tries = self.transfer.received(), 0
        while True:
            try:
                sha256 = self.transfer.fetch(url, may_be_html)
                if not self.transfer.resumed or self._fault(sha256) is None:
                    return sha256
                self.transfer.discard()  # bytes of an earlier attempt may be at fault
                raise Interrupted("the partial file was damaged")
            except Interrupted as error:
                tries = 0 if self.transfer.received() > farthest else tries + 1
                farthest = max(farthest, self.transfer.received())
                if tries > RETRIES:
                    raise Refused(f"{error}, {tries} times") from error
                time.sleep(self.pause * 2 ** max(0, tries - 1))

    def _copy(self, source: Path) -> str:
        """Copy a local file to the partial file; returns its sha256."""
        self.transfer.discard()
        digest, copied = hashlib.sha256(), 0
        try:
            size = source.stat().st_size
            if self.entry.size is None:
                self._check_room(size)
            with source.open("rb") as file, self.part.open("wb") as part:
                while chunk := file.read(CHUNK):
                    part.write(chunk)
                    digest.update(chunk)
                    copied += len(chunk)
                    if self.progress is not None:
                        self.progress(copied, size)
        except OSError as error:
            raise Refused(f"cannot be copied ({error.strerror or error})") from error
        return digest.hexdigest()

    def _fault(self, sha256: str) -> str | None:
        """How the partial file differs from the entry; None if it does not."""
        size = self.transfer.received()
        if self.entry.size not in (None, size):
            return f"{size} bytes instead of {self.entry.size}"
        if self.entry.sha256 not in (None, sha256):
            return f"sha256 {sha256[:8]}... instead of {str(self.entry.sha256)[:8]}..."
        return None

    def _accept(self, sha256: str) -> None:
        """Give the partial file its final name; if it is wrong, delete it and raise _WrongFile."""
        fault = self._fault(sha256)
        if fault is not None:
            self.transfer.discard()
            shutil.rmtree(self.staging, ignore_errors=True)  # otherwise huggingface_hub would return its copy again
            raise _WrongFile(fault)
        try:
            os.replace(self.part, self.target)
        except OSError as error:
            raise unwritable(self.target, error) from error
        self.transfer.discard()
        shutil.rmtree(self.staging, ignore_errors=True)


class _WrongFile(Exception):
    """The mirror sent a complete file, but not the right one."""


def _is_complete(target: Path, entry: FileEntry) -> bool:
    """Whether the file with the final name has the size and sha256 of the entry."""
    if not target.is_file() or entry.size not in (None, target.stat().st_size):
        return False
    return entry.sha256 in (None, file_sha256(target))


@contextmanager
def locked(target: Path) -> Iterator[None]:
    """Lock a file or folder and make the folders above it; a second process that wants it waits, with a warning."""
    lock = FileLock(target.with_name(f".{target.name}.lock"))
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout:
        warn(f"another process is fetching {target.name}: waiting for it")
        lock.acquire()
    except OSError as error:
        raise unwritable(target, error) from error
    try:
        yield
    finally:
        lock.release()


def unwritable(path: Path, error: OSError) -> PackError:
    """The error for a file or folder that cannot be written."""
    reason = error.strerror or error
    return PackError(f"{path} cannot be written: {reason}; free space there, or name another folder with --home")


def _host(mirror: str) -> str:
    """A mirror's name in messages: its host, or the local file."""
    parts = urlsplit(mirror)
    if parts.scheme == "hf":
        return f"Hugging Face {'/'.join([parts.netloc, *parts.path.split('/')[1:2]])}"
    return parts.hostname or unquote(mirror)
