"""An entry of the catalogue in; its file, verified, in a folder of this machine out.

Mirrors are tried in their order. What has arrived is kept as `name.part` and resumed, also by a later run; the final
name is only ever given to a file of the right size and sha256.
"""

import hashlib
import os
import shutil
import time
import urllib.request
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import unquote, urlsplit

from filelock import FileLock, Timeout

from codebrush.errors import PackError
from codebrush.hub.catalogue import FileEntry
from codebrush.hub.http_range import CHUNK, Cut, Refused, Transfer
from codebrush.hub.hugging_face import fetch_from_hub, is_offline
from codebrush.progress import Progress

TIMEOUT = 30.0  # seconds without a byte
RETRIES = 3  # of each mirror, after the first attempt
PAUSE = 1.0  # seconds before the first retry; doubled for each further one
CONVERSION_ROOM = 2  # times a file's size that must be free beside it: converting writes it anew, maybe in float32


def fetch_file(
    entry: FileEntry,
    folder: str | Path,
    *,
    progress: Progress | None = None,
    timeout: float = TIMEOUT,
    pause: float = PAUSE,
) -> Path:
    """The file of `entry` in `folder`, fetched unless it is there and right.

    `progress` is called with (bytes, bytes in all). With HF_HUB_OFFLINE=1 nothing but local mirrors and the hub's
    local cache is asked. A second process that wants the same file waits for the first one. Raises PackError where
    the disk has no room or no mirror gives the right file; what has arrived is kept for the next run.
    """
    folder = Path(folder)
    target = folder / entry.path
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise PackError(f"{target.parent} cannot be made: {error.strerror or error}") from error
    if not target.parent.resolve().is_relative_to(folder.resolve()):
        raise PackError(f"{target} leads out of {folder}: remove the link")
    with locked(target):
        if _is_right(target, entry):
            return target
        return _Fetch(entry, target, progress, timeout, pause).run()


def check_room(folder: Path, needed: int, what: str) -> None:
    """PackError where `folder`, which need not be there yet, has fewer than `needed` bytes free."""
    there = next((place for place in (folder, *folder.absolute().parents) if place.exists()), folder)
    free = shutil.disk_usage(there).free
    if needed > free:
        raise PackError(
            f"{what} needs {size_text(needed)}, {size_text(free)} are free in {folder}: "
            "make room, or name another place with --home"
        )


def size_text(size: int | None) -> str:
    """A number of bytes for people: 354 MB, 1.3 GB; ? where it is not known."""
    if size is None:
        return "?"
    for unit, name in ((10**9, "GB"), (10**6, "MB"), (10**3, "kB")):
        if size >= unit * 0.9995:
            return f"{size / unit:.1f} {name}" if size < 10 * unit else f"{size / unit:.0f} {name}"
    return f"{size} bytes"


def file_sha256(path: Path) -> str:
    """sha256 (hex) of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class _Fetch:
    """One file from whichever mirror has it."""

    def __init__(self, entry: FileEntry, target: Path, progress: Progress | None, timeout: float, pause: float) -> None:
        self.entry, self.target, self.progress, self.pause = entry, target, progress, pause
        self.part = target.with_name(target.name + ".part")
        self.staging = target.with_name(f".{target.name}.hub")
        self.transfer = Transfer(
            self.part,
            size=entry.size,
            known=entry.sha256 is not None,
            timeout=timeout,
            progress=progress,
            check_room=self._check_room,
        )

    def run(self) -> Path:
        """Try the mirrors in their order."""
        if self.entry.size is not None:
            self._check_room(self.entry.size)
        reasons = []
        for number, mirror in enumerate(self.entry.mirrors, start=1):
            try:
                self._accept(self._from(mirror))
                return self.target
            except _Wrong as error:
                then = "the next mirror is tried" if number < len(self.entry.mirrors) else "it is not kept"
                warnings.warn(f"{_host(mirror)} gave a wrong {self.entry.path} ({error}): {then}", stacklevel=2)
                reasons.append(f"{_host(mirror)}: {error}")
            except Refused as error:
                reasons.append(f"{_host(mirror)}: {error}")
        raise PackError(
            f"{self.entry.path} cannot be fetched ({'; '.join(reasons)}): try again later, "
            f"or put the file at {self.target} yourself"
        )

    def _check_room(self, size: int) -> None:
        check_room(self.target.parent, size - self.transfer.held() + CONVERSION_ROOM * size, self.entry.path)

    def _from(self, mirror: str) -> str:
        """Complete the partial file from one mirror; its sha256."""
        scheme = urlsplit(mirror).scheme
        if scheme == "hf":
            return self._copy(fetch_from_hub(mirror, self.staging, self.progress))
        if scheme not in ("http", "https"):
            return self._copy(Path(urllib.request.url2pathname(urlsplit(mirror).path)) if scheme else Path(mirror))
        if is_offline():
            raise Refused("offline, as HF_HUB_OFFLINE says")
        return self._from_web(mirror)

    def _from_web(self, url: str) -> str:
        """Attempts that bring the file further do not count: a long download may break often."""
        may_be_html = self.target.suffix.lower() in (".html", ".htm")
        farthest, tries = self.transfer.held(), 0
        while True:
            try:
                sha256 = self.transfer.fetch(url, may_be_html)
                if not self.transfer.resumed or self._fault(sha256) is None:
                    return sha256
                self.transfer.discard()  # bytes of an earlier attempt may be at fault
                raise Cut("what had been fetched before was damaged")
            except Cut as error:
                tries = 0 if self.transfer.held() > farthest else tries + 1
                farthest = max(farthest, self.transfer.held())
                if tries > RETRIES:
                    raise Refused(f"{error}, {tries} times") from error
                time.sleep(self.pause * 2 ** max(0, tries - 1))

    def _copy(self, source: Path) -> str:
        """A local file as the partial file, hashed on its way."""
        self.transfer.discard()
        digest, held = hashlib.sha256(), 0
        try:
            whole = source.stat().st_size
            if self.entry.size is None:
                self._check_room(whole)
            with source.open("rb") as file, self.part.open("wb") as part:
                while chunk := file.read(CHUNK):
                    part.write(chunk)
                    digest.update(chunk)
                    held += len(chunk)
                    if self.progress is not None:
                        self.progress(held, whole)
        except OSError as error:
            raise Refused(f"cannot be copied ({error.strerror or error})") from error
        return digest.hexdigest()

    def _fault(self, sha256: str) -> str | None:
        size = self.transfer.held()
        if self.entry.size not in (None, size):
            return f"{size} bytes instead of {self.entry.size}"
        if self.entry.sha256 not in (None, sha256):
            return f"sha256 {sha256[:8]}... instead of {str(self.entry.sha256)[:8]}..."
        return None

    def _accept(self, sha256: str) -> None:
        """Give the partial file its final name where it is right; _Wrong, and nothing is kept, where it is not."""
        fault = self._fault(sha256)
        if fault is not None:
            self.transfer.discard()
            shutil.rmtree(self.staging, ignore_errors=True)  # the hub's own copy would be taken again
            raise _Wrong(fault)
        try:
            os.replace(self.part, self.target)
        except OSError as error:
            raise PackError(f"{self.target} cannot be written: {error.strerror or error}") from error
        self.transfer.discard()
        shutil.rmtree(self.staging, ignore_errors=True)


class _Wrong(Exception):
    """The mirror gave a whole file, but not the one that was meant."""


def _is_right(target: Path, entry: FileEntry) -> bool:
    """Whether what bears the final name is what the entry says. Nothing unverified is ever given that name."""
    if not target.is_file() or entry.size not in (None, target.stat().st_size):
        return False
    return entry.sha256 in (None, file_sha256(target))


@contextmanager
def locked(target: Path) -> Iterator[None]:
    """Hold the place of a file or folder: a second process that wants it waits, and says so."""
    lock = FileLock(target.with_name(f".{target.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        warnings.warn(f"another process is fetching {target.name}: waiting for it", stacklevel=3)
        lock.acquire()
    except OSError as error:
        raise PackError(f"{target.parent} cannot be written in: {error.strerror or error}") from error
    try:
        yield
    finally:
        lock.release()


def _host(mirror: str) -> str:
    """What a mirror is called in a message: its host, or the file itself."""
    parts = urlsplit(mirror)
    if parts.scheme == "hf":
        return f"Hugging Face {'/'.join([parts.netloc, *parts.path.split('/')[1:2]])}"
    return parts.hostname or unquote(mirror)
