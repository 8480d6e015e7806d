"""The work of jobs in the server's own process, each lane in its own thread."""

from collections.abc import Callable, Mapping, Sequence

from codebrush.pipeline import Codebrush
from codebrush.progress import Progress
from codebrush.serving.job import Job
from codebrush.serving.work.kinds import Kind
from codebrush.serving.workers.task import Results
from codebrush.warned import Listener, heard


class Here:
    """The one worker of a server that has no others; see `Workers`."""

    names: Sequence[str] = ("server",)

    def __init__(self, kinds: Mapping[str, Kind]) -> None:
        self._kinds = kinds

    def start(self, changed: Callable[[int, bool], None]) -> None:
        """It is ready at once."""
        changed(0, True)

    def is_ready(self, number: int) -> bool:
        """It always is."""
        return True

    def run(
        self, number: int, lane: str, brush: Codebrush, batch: Sequence[Job], progress: Progress, tell: Listener
    ) -> Results:
        """Work on a batch."""
        with heard(tell):
            return self._kinds[batch[0].kind].run(brush, batch, progress)

    def close(self, pack: str) -> None:
        """It works with the packs of the engine, which forgets them itself."""

    def stop(self) -> None:
        """It ends with the server."""
