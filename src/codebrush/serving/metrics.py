"""Figures for Prometheus: requests, jobs, the queue, the sizes of batches."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

BUCKETS = (0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000)  # seconds


class Metrics:
    """The figures of one server."""

    content_type = CONTENT_TYPE_LATEST

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        own = self._registry
        self.requests = Counter("codebrush_requests", "HTTP requests.", ["route", "status"], registry=own)
        self.jobs = Counter("codebrush_jobs", "Jobs that ended.", ["kind", "state"], registry=own)
        self.seconds = Histogram(
            "codebrush_job_seconds", "From request to end of a job.", ["kind"], buckets=BUCKETS, registry=own
        )
        self.refused = Counter("codebrush_refused", "Jobs refused because the queue was full.", registry=own)
        self.queue = Gauge("codebrush_queue", "Jobs that wait.", registry=own)
        self.batch = Histogram(
            "codebrush_batch_jobs", "Jobs that were drawn together.", buckets=(1, 2, 4, 8, 16, 32), registry=own
        )
        self.worker_jobs = Counter("codebrush_worker_jobs", "Jobs that a worker worked on.", ["worker"], registry=own)
        self.worker_ready = Gauge("codebrush_worker_ready", "1 for a worker that is ready.", ["worker"], registry=own)
        self.worker_deaths = Counter("codebrush_worker_deaths", "Workers that died.", ["worker"], registry=own)

    def finished(self, kind: str, state: str, seconds: float) -> None:
        """Count a job that ended."""
        self.jobs.labels(kind, state).inc()
        self.seconds.labels(kind).observe(seconds)

    def text(self) -> bytes:
        """All figures in Prometheus' text format."""
        return generate_latest(self._registry)
