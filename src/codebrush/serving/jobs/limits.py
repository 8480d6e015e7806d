"""What a server takes and keeps."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """What the engine takes and keeps. Times are in seconds."""

    queue: int = 64  # jobs that wait, in each lane
    batch: int = 16  # jobs that are drawn together
    seconds: float = 900.0  # that a job may run
    keep_seconds: float = 24 * 3600.0  # after which what came of a job is forgotten
    keep_bytes: int = 2 * 1024**3  # of all results; the oldest go first
    budget: float = 8 * 3600.0  # of a training
    train_threads: int = 0  # CPU threads of a training; 0: half of the cores

    @property
    def reserve(self) -> int:
        """Places of the queue for callers who have no job in it."""
        return self.queue // 8
