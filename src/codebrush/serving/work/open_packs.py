"""The packs of a server, opened at first use: each lane has its own models, which share the weights."""

import threading
from collections.abc import Callable, Mapping

from codebrush.pipeline import Codebrush
from codebrush.serving.job import JobError

UNUSED = ""  # the lane of the models that all lanes share the weights of, and none runs


class OpenPacks:
    """Opens those of `packs`: name -> a function that does it, called once. There may be more of them later, or fewer.

    Its methods may be called from any thread.
    """

    def __init__(self, packs: Mapping[str, Callable[[], Codebrush]]) -> None:
        self.packs = packs
        self._open: dict[tuple[str, str], Codebrush] = {}  # by pack and lane
        self._opening = threading.Lock()

    def brush(self, pack: str, lane: str) -> Codebrush:
        """A pack for a lane. Raises JobError for one that is not served."""
        with self._opening:
            opener = self.packs.get(pack)
            if opener is None:
                raise self.missing(pack)
            if (pack, UNUSED) not in self._open:
                self._open[pack, UNUSED] = opener()
            if (pack, lane) not in self._open:
                self._open[pack, lane] = self._open[pack, UNUSED].for_another_thread()
            return self._open[pack, lane]

    def missing(self, pack: str) -> JobError:
        """The error for a pack that is not served."""
        return JobError("model_not_found", f"there is no model '{pack}': there are {', '.join(list(self.packs))}")

    def close(self, pack: str) -> None:
        """Forget the models of a pack."""
        with self._opening:
            for key in [key for key in self._open if key[0] == pack]:
                del self._open[key]

    def without_paths(self, text: str) -> str:
        """A message with packs and their members by their names."""
        for (name, _), brush in list(self._open.items()):
            pack = brush.pack
            for member in pack.info["members"]:  # which may lie elsewhere
                text = text.replace(str(pack.member(member).absolute()), f"{name}/{member}")
            text = text.replace(str(pack.folder.absolute()), name)
        return text
