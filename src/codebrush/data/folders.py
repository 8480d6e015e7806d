"""A folder that is made whole or not at all."""

import os
import shutil
from pathlib import Path
from types import TracebackType

from codebrush.errors import CodebrushError, DataError


class FolderInTheMaking:
    """`with FolderInTheMaking(folder) as part`: fill `part`; it becomes `folder` at the end, or goes away.

    Raises DataError when `folder` holds something already, CodebrushError when it cannot be written.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self.part = self.folder.with_name(self.folder.name + ".part")

    def __enter__(self) -> Path:
        try:
            if self.folder.is_file() or (self.folder.is_dir() and any(self.folder.iterdir())):
                raise DataError(f"{self.folder}: there is something there already; name a new folder")
            shutil.rmtree(self.part, ignore_errors=True)  # what an interrupted run has left
            self.part.mkdir(parents=True)
        except OSError as error:
            raise self._unwritable(error) from error
        return self.part

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None:
                os.replace(self.part, self.folder)
        except OSError as failure:
            raise self._unwritable(failure) from failure
        finally:
            shutil.rmtree(self.part, ignore_errors=True)
        if isinstance(error, OSError):
            raise self._unwritable(error) from error

    def _unwritable(self, error: OSError) -> CodebrushError:
        reason = error.strerror or str(error)
        return CodebrushError(f"cannot write {self.folder}: {reason}; free space there or name another folder")
