"""Downloads the pictures of a list of URLs and stores them with their captions as WebDataset shards.

The list is processed in slices of `shard_rows` rows, each of which becomes a shard. Pictures wait in the hidden folder
`.gather` until their slice is complete, so that a run that is stopped loses none. Another run fetches what is missing:
the rows that were not reached, and those whose failure may have passed (or that --allow-local allows). The latter go
into a further shard, 00012-1.tar beside 00012.tar.
"""

import hashlib
import io
import json
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from PIL import Image

from codebrush.data.crawl.fetcher import PRIVATE, Fetcher, FetchError, checked_url, site_of
from codebrush.data.crawl.gather_state import STATE_FOLDER, Slice
from codebrush.data.crawl.options import GatherOptions
from codebrush.data.crawl.polite_queue import PoliteQueue
from codebrush.data.crawl.url_lists import UrlRow
from codebrush.data.decoding.images import decode_image
from codebrush.data.sources.shard_writer import storable
from codebrush.errors import CodebrushError, DataError, ImageError
from codebrush.files import atomic_file, cannot_write
from codebrush.progress import Progress

MAX_WAIT = 30.0  # seconds that a server may ask for before a retry; beyond it the row is left to another run
JPEG_QUALITY, JPEG_SIDE = 95, 65_535  # of pictures that are made smaller; JPEG allows no longer side


@dataclass
class _Job:
    """One row to fetch."""

    row: int
    entry: UrlRow
    tries: int = 0


def gather(
    rows: Iterable[UrlRow], count: int, out: str | Path, options: GatherOptions, progress: Progress | None = None
) -> dict[str, Any]:
    """Fetch the pictures of the `count` rows of a list into the folder `out` and return a report.

    `out` may hold what earlier runs of the same list have fetched. It holds the shards, and failures.jsonl with every
    row without a picture and the reason.

    Raises:
        DataError: if `out` holds another list, other settings or other files, or no picture could be fetched.
        CodebrushError: if `out` cannot be written, or another run is writing there.
    """
    out = Path(out)
    start = time.perf_counter()
    try:
        if out.is_dir() and any(out.iterdir()) and not (out / STATE_FOLDER).is_dir():
            raise DataError(f"{out}: is not empty and not of an earlier run; name a new folder")
        (out / STATE_FOLDER).mkdir(parents=True, exist_ok=True)
        with FileLock(out / STATE_FOLDER / "lock", timeout=0):
            _check_settings(out, options)
            new = _process(rows, count, out, options, progress)
            report = _report(out)
    except Timeout:
        raise CodebrushError(f"{out}: another run is writing there; wait for it or name another folder") from None
    except OSError as error:
        raise cannot_write(out, error.strerror or str(error)) from error
    if not report["fetched"]:
        reasons = ", ".join(f"{number} {with_remedy(reason)}" for reason, number in report["failed"].items())
        raise DataError(f"none of {count} pictures could be fetched ({reasons}); see {out / 'failures.jsonl'}")
    return {"path": str(out), "rows": count, "new": new, **report, "seconds": round(time.perf_counter() - start, 3)}


def with_remedy(reason: str) -> str:
    """A reason for a failure, with the flag that avoids it if there is one."""
    return f"{reason}: give --allow-local to allow it" if reason == PRIVATE else reason


def _check_settings(out: Path, options: GatherOptions) -> None:
    """Raises DataError if an earlier run had other settings that shape the shards."""
    path = out / STATE_FOLDER / "settings.json"
    wanted = {"shard_rows": options.shard_rows, "resize": options.resize}
    if not path.exists():
        with atomic_file(path) as part:
            part.write_text(json.dumps(wanted))
    for name, value in json.loads(path.read_text()).items():
        if value != wanted.get(name):
            flag = f"--{name.replace('_', '-')}"
            was = "none" if value is None else value
            raise DataError(f"{out}: was started with {flag} {was}; continue with the same, or name a new folder")


def _process(rows: Iterable[UrlRow], count: int, out: Path, options: GatherOptions, progress: Progress | None) -> int:
    """Process every slice of the list; how many pictures are new."""
    fetcher = Fetcher(options.limits, options.contact)
    retried = (PRIVATE,) if options.limits.allow_local else ()
    new = done = 0
    try:
        for number, entries in enumerate(_slices(rows, options.shard_rows)):
            part = Slice(out, number, number * options.shard_rows, entries, retried)
            missing = part.missing()
            done += len(entries) - len(missing)

            def report(fetched: int, before: int = done) -> None:
                if progress is not None:
                    progress(before + fetched, count)

            report(0)
            if missing:
                jobs = [_Job(row, entries[row - part.start]) for row in missing]
                new += part.finish(_fetch_all(jobs, part, fetcher, options, report))
            done += len(missing)
    finally:
        _write_failures(out)
    return new


def _slices(rows: Iterable[UrlRow], size: int) -> Iterator[list[UrlRow]]:
    rest = iter(rows)
    while part := list(islice(rest, size)):
        yield part


def _fetch_all(
    jobs: list[_Job], part: Slice, fetcher: Fetcher, options: GatherOptions, report: Callable[[int], None]
) -> dict[int, FetchError]:
    """Fetch the pictures of `jobs` into `part` with threads; the rows that failed and why."""
    failed: dict[int, FetchError] = {}
    open_jobs = []
    for job in jobs:
        if (error := _check_entry(job.entry)) is not None:
            failed[job.row] = error
        elif not part.has(job.row):
            open_jobs.append(job)
    queue = PoliteQueue(open_jobs, lambda job: site_of(job.entry.url), options.at_once, options.delay)
    decoders = threading.Semaphore(os.cpu_count() or 1)  # each may need half a gigabyte
    broken: list[BaseException] = []
    ended = len(jobs) - len(open_jobs)
    lock = threading.Lock()

    def work() -> None:
        nonlocal ended
        try:
            while (job := queue.take()) is not None:
                error = _attempt(job, part, fetcher, options, decoders)
                wait = _wait(job, error, options)
                queue.done(job, fetcher.delay(job.entry.url), wait)
                if wait is None:
                    with lock:
                        ended += 1
                        if error is not None:
                            failed[job.row] = error
                        report(ended)
        except BaseException as error:  # a full disk or a bug: raised in the main thread
            broken.append(error)
            queue.close()

    threads = [threading.Thread(target=work, daemon=True) for _ in range(min(options.workers, len(open_jobs)))]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        queue.close()
    if broken:
        raise broken[0]
    return failed


def _check_entry(entry: UrlRow) -> FetchError | None:
    """What is wrong with a row, before any request."""
    if not entry.url:
        return FetchError("no URL")
    if not entry.caption:
        return FetchError("no caption")
    try:
        checked_url(entry.url)
    except FetchError as error:
        return error
    return None


def _wait(job: _Job, error: FetchError | None, options: GatherOptions) -> float | None:
    """The seconds until a row is tried again; None if it is not."""
    if error is None or not error.again or job.tries > options.retries or error.wait > MAX_WAIT:
        return None
    return max(error.wait, options.pause * 2 ** (job.tries - 1))


def _attempt(
    job: _Job, part: Slice, fetcher: Fetcher, options: GatherOptions, decoders: threading.Semaphore
) -> FetchError | None:
    """Fetch and store one picture; the error if that fails."""
    job.tries += 1
    try:
        data = fetcher.fetch(job.entry.url)
        sha256 = hashlib.sha256(data).hexdigest()
        with decoders:
            ending, data, (width, height) = _stored(data, options.resize)
    except FetchError as error:
        return error
    columns = {
        "url": job.entry.url,
        "caption": job.entry.caption,
        "width": width,
        "height": height,
        "sha256": sha256,
    }
    part.put(job.row, ending, data, columns)
    return None


def _stored(data: bytes, side: int | None) -> tuple[str, bytes, tuple[int, int]]:
    """The ending, bytes and size to store a picture file with.

    Raises FetchError if it cannot be decoded, or if memory is short.
    """
    try:
        image, data = _fitted(decode_image(data), data, side)
        ending, data = storable(data)
    except ImageError as error:
        reason = "too many pixels" if "over the limit" in str(error) else "not a picture"
        raise FetchError(reason, str(error)) from error
    except MemoryError as error:
        raise FetchError("out of memory", "no memory to decode it; try fewer --workers", again=True) from error
    return ending, data, image.size


def _fitted(image: Image.Image, data: bytes, side: int | None) -> tuple[Image.Image, bytes]:
    """The picture scaled down to a shorter side of `side`, and its file; unchanged if smaller, or too long a strip."""
    if side is None or min(image.size) <= side:
        return image, data
    scale = side / min(image.size)
    size = (max(round(image.width * scale), side), max(round(image.height * scale), side))
    if max(size) > JPEG_SIDE:
        return image, data
    image = image.resize(size, Image.Resampling.BICUBIC, reducing_gap=3)
    file = io.BytesIO()
    image.save(file, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    return image, file.getvalue()


def _write_failures(out: Path) -> None:
    """Write failures.jsonl from the states of the slices."""
    with atomic_file(out / "failures.jsonl") as part, part.open("w", encoding="utf-8") as file:
        for state in Slice.states(out):
            for failure in state["failed"]:
                file.write(json.dumps(failure, ensure_ascii=False) + "\n")


def _report(out: Path) -> dict[str, Any]:
    """The numbers of pictures and of shards, and the failures by reason, most frequent first."""
    fetched, failed, shards = 0, Counter[str](), 0
    for state in Slice.states(out):
        fetched += state["rows"] - len(state["failed"])
        failed.update(failure["reason"] for failure in state["failed"])
        shards += state["shards"]
    return {"fetched": fetched, "failed": dict(failed.most_common()), "shards": shards}
