"""Embeds pictures on a cluster; the file is written in this process, in the order of the pictures."""

from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy

from codebrush.data.picture_fitting import Fit
from codebrush.distributed.cluster import Cluster
from codebrush.distributed.workers import spread
from codebrush.models.clip import CLIP
from codebrush.models.precision import usable_device
from codebrush.search.embedding import EmbedBatch, Embedded, EmbedEngine, embed_batch
from codebrush.search.examining import THREADS


class EmbedWorker:
    """Embeds numbered batches."""

    def __init__(self, clip: CLIP, fit: Fit | None) -> None:
        self.clip = clip.to(usable_device(None))
        self.fit: Fit | None = fit
        self.threads = ThreadPoolExecutor(THREADS)

    def work(self, item: tuple[int, EmbedBatch]) -> Embedded:
        """Embed a batch."""
        return embed_batch(self.clip, self.fit, item[1], self.threads)


def embed_engine(cluster: Cluster) -> EmbedEngine:
    """The engine of `embed_pictures` that works on a cluster."""

    def run(clip: CLIP, fit: Fit | None, batches: Iterator[EmbedBatch]) -> Generator[Embedded, None, None]:
        import ray

        early: dict[int, Embedded] = {}  # those that wait for one before them
        arguments, following = (ray.put(deepcopy(clip).to("cpu")), fit), 0
        light = (batch._replace(unread=batch.unread.empty()) for batch in batches)
        for (number, _), part in spread(cluster, EmbedWorker, arguments, enumerate(light), _name):
            early[number] = part
            while following in early:
                yield early.pop(following)
                following += 1

    return run


def _name(item: tuple[int, EmbedBatch]) -> str:
    candidates = item[1].candidates
    return f"the pictures from {candidates[0].path} to {candidates[-1].path}"
