"""Measures the rows of a curation on a cluster; what is chosen by them is chosen in this process, as without one."""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from codebrush.data.curation.clip_scorer import ClipScorer
from codebrush.data.curation.curate import Measure
from codebrush.data.curation.measures import Measures, Scorer, chunks, measure_rows
from codebrush.data.curation.options import CurationOptions
from codebrush.data.sources.captioned_images import CaptionedImages
from codebrush.distributed.cluster import Cluster
from codebrush.distributed.workers import spread
from codebrush.models.precision import usable_device


class MeasureWorker:
    """Measures chunks of rows. It reads their pictures itself, so that the source must be in reach of every machine."""

    def __init__(self, source: CaptionedImages, options: CurationOptions, scorer: Scorer | None) -> None:
        self.source, self.options = source, options
        self.scorer = scorer.to(usable_device(None)) if isinstance(scorer, ClipScorer) else scorer
        self.pool = ThreadPoolExecutor(os.cpu_count())

    def work(self, rows: range) -> Measures:
        """Measure a chunk."""
        return measure_rows(self.source, rows, self.options, self.scorer, self.pool)


def measure_on(cluster: Cluster) -> Measure:
    """The function for `curate` that measures rows on a cluster."""

    def measure(
        source: CaptionedImages, options: CurationOptions, scorer: Scorer | None, on_progress: Callable[[int], None]
    ) -> Measures:
        import ray

        measures, done = Measures(len(source)), 0
        arguments = (ray.put(source), options, ray.put(scorer))
        for rows, part in spread(cluster, MeasureWorker, arguments, chunks(source), _name):
            measures.put(rows.start, part)
            done += len(rows)
            on_progress(done)
        return measures

    return measure


def _name(rows: range) -> str:
    return f"the rows {rows.start:,} to {rows.stop - 1:,}"
