"""Keeps jobs in SQLite, so that a server that was killed still knows them, and their files in a folder beside it.

DATA/jobs.sqlite        one row a job
DATA/jobs/ID/           what was uploaded for it, what it made, the run folder of a guided run
"""

import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from sqlalchemy import JSON, Column, Float, Integer, MetaData, String, Table, create_engine, event, select
from sqlalchemy.engine import Engine as Connections

from codebrush.errors import CodebrushError
from codebrush.files import folder_size, write_errors
from codebrush.serving.job import CANCELLING

UNFINISHED = ("queued", "running", CANCELLING)
JUST_ENDED = 60.0  # seconds for which a result is kept whatever the limits say
META = MetaData()
JOBS = Table(
    "jobs",
    META,
    Column("id", String, primary_key=True),
    Column("kind", String, nullable=False),
    Column("pack", String, nullable=False),
    Column("owner", String, nullable=False),
    Column("request", JSON, nullable=False),
    Column("state", String, nullable=False, index=True),
    Column("created", Float, nullable=False),
    Column("started", Float),
    Column("finished", Float, index=True),
    Column("attempts", Integer, nullable=False, default=0),
    Column("error", JSON),
    Column("result", JSON),
    Column("size", Integer, nullable=False, default=0),  # bytes of its files when it was finished
)


class Store:
    """The jobs of one server, kept in the folder `data`. Its methods may be called from any thread.

    Raises:
        CodebrushError: if another server is at work there, or the folder cannot be written.
    """

    def __init__(self, data: Path) -> None:
        self.data = data.absolute()
        with write_errors(f"jobs in {self.data}"):
            (self.data / "jobs").mkdir(parents=True, exist_ok=True)
            self._lock = FileLock(self.data / ".lock", timeout=0, thread_local=False)
            try:
                self._lock.acquire()
            except Timeout:
                raise CodebrushError(f"another server keeps its jobs in {self.data}: name another --data") from None
        self._connections = _connect(self.data / "jobs.sqlite")
        META.create_all(self._connections)

    def close(self) -> None:
        """Let another server work here."""
        self._connections.dispose()
        self._lock.release()

    def folder(self, job: str) -> Path:
        """Where the files of a job lie."""
        return self.data / "jobs" / job

    def add(self, row: Mapping[str, Any]) -> None:
        """Keep a new job."""
        with self._connections.begin() as connection:
            connection.execute(JOBS.insert().values(**row))

    def change(self, job: str, **values: Any) -> None:
        """Keep what has changed of a job."""
        with self._connections.begin() as connection:
            connection.execute(JOBS.update().where(JOBS.c.id == job).values(**values))

    def find(self, job: str) -> dict[str, Any] | None:
        """The row of a job; None if there is none, or no longer."""
        with self._connections.connect() as connection:
            row = connection.execute(select(JOBS).where(JOBS.c.id == job)).mappings().first()
        return None if row is None else dict(row)

    def unfinished(self) -> list[dict[str, Any]]:
        """The rows of jobs that a server left behind, oldest first."""
        query = select(JOBS).where(JOBS.c.state.in_(UNFINISHED)).order_by(JOBS.c.created)
        with self._connections.connect() as connection:
            return [dict(row) for row in connection.execute(query).mappings()]

    def of_owner(self, owner: str, most: int) -> list[dict[str, Any]]:
        """The rows of a caller's jobs, latest first, and at most so many."""
        query = select(JOBS).where(JOBS.c.owner == owner).order_by(JOBS.c.created.desc()).limit(most)
        with self._connections.connect() as connection:
            return [dict(row) for row in connection.execute(query).mappings()]

    def finish(self, job: str, state: str, finished: float, size: int, **values: Any) -> None:
        """Keep how a job ended, when, and how many bytes its files take."""
        self.change(job, state=state, finished=finished, size=size, **values)

    def size(self, job: str) -> int:
        """Bytes that the files of a job take."""
        return folder_size(self.folder(job))

    def remove(self, job: str) -> None:
        """Forget a job and its files: these first, as on a full disk the row can only be removed then."""
        shutil.rmtree(self.folder(job), ignore_errors=True)
        with self._connections.begin() as connection:
            connection.execute(JOBS.delete().where(JOBS.c.id == job))

    def prune(self, seconds: float, size: int) -> list[str]:
        """Forget jobs that ended more than `seconds` ago, and the oldest until the others' files take `size` bytes; but
        none that ended a moment ago, whose caller may still read it. Returns the ids of what is forgotten.
        """
        query = select(JOBS.c.id, JOBS.c.finished, JOBS.c.size).where(JOBS.c.finished.is_not(None))
        with self._connections.connect() as connection:
            rows = connection.execute(query.order_by(JOBS.c.finished.desc())).all()
        kept, gone, now = 0, [], time.time()
        for row in rows:
            kept += row.size
            if now - row.finished > max(seconds, JUST_ENDED) or (kept > size and now - row.finished > JUST_ENDED):
                gone.append(row.id)
        for job in gone:
            self.remove(job)
        return gone

    def sweep(self) -> None:
        """Remove the folders of jobs that a killed server never kept."""
        with self._connections.connect() as connection:
            known = set(connection.execute(select(JOBS.c.id)).scalars())
        for folder in (self.data / "jobs").iterdir():
            if folder.name not in known:
                shutil.rmtree(folder, ignore_errors=True)


def _connect(file: Path) -> Connections:
    connections = create_engine(f"sqlite:///{file}")

    @event.listens_for(connections, "connect")
    def prepare(connection: Any, _: Any) -> None:
        connection.execute("PRAGMA journal_mode=WAL")  # readers do not wait; a killed process loses nothing
        connection.execute("PRAGMA synchronous=NORMAL")

    return connections
