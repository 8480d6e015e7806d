"""A folder that is made whole or not at all, by one run at a time."""

import os
import shutil
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType

from filelock import FileLock, Timeout

from codebrush.errors import CodebrushError, DataError


class FolderInTheMaking:
    """`with FolderInTheMaking(folder) as part`: fill `part`; it becomes `folder` at the end, or goes away.

    Both `part` and the lock are hidden, lie beside `folder` and bear a name that nobody else gives. Raises DataError
    when `folder` holds something already, CodebrushError when another run makes it or it cannot be written.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self._place = Path(os.path.realpath(folder))  # one lock and one file system, however it was named
        self.part = self._place.with_name(f".{self._place.name}.codebrush-part")
        self._lock = FileLock(self._place.with_name(f".{self._place.name}.codebrush-lock"), timeout=0)
        self._held = ExitStack()

    def __enter__(self) -> Path:
        try:
            with ExitStack() as held:
                self._take(held)
                if self._place.is_file() or (self._place.is_dir() and any(self._place.iterdir())):
                    raise DataError(f"{self.folder}: there is something there already; name a new folder")
                shutil.rmtree(self.part, ignore_errors=True)  # what an interrupted run has left
                self.part.mkdir()
                self._held = held.pop_all()
        except OSError as error:
            raise self._unwritable(error) from error
        return self.part

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._held:
            try:
                if error is None:
                    os.replace(self.part, self._place)
            except OSError as failure:
                raise self._unwritable(failure) from failure
            finally:
                shutil.rmtree(self.part, ignore_errors=True)
        if isinstance(error, OSError):
            raise self._unwritable(error) from error

    def _take(self, held: ExitStack) -> None:
        self._place.parent.mkdir(parents=True, exist_ok=True)
        try:
            held.enter_context(self._lock)
        except Timeout:
            raise CodebrushError(
                f"{self.folder}: another run is writing there; wait for it or name another folder"
            ) from None
        held.callback(self._remove_lock)

    def _remove_lock(self) -> None:
        """While it is held, so that it is nobody else's; where an open file cannot be removed, the release does it."""
        with suppress(OSError):
            os.unlink(self._lock.lock_file)

    def _unwritable(self, error: OSError) -> CodebrushError:
        reason = error.strerror or str(error)
        return CodebrushError(f"cannot write {self.folder}: {reason}; free space there or name another folder")
