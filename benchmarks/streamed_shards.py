"""Memory and speed of streamed shards over many samples, and their order after a resume, with 0, 1 and 4 workers.

    python benchmarks/streamed_shards.py [--samples 100000] [--shard 2000] [--size 16] [--workers 0 1 4]

Writes shards of tiny pictures into a temporary folder, streams one epoch of them as training does, without a model, and
prints the resident memory at each tenth of the way, samples a second, and a digest of all rows and pixels. Then the
second half is streamed again by a stream that begins there, as after --resume; its digest must be the same.
"""

import argparse
import hashlib
import io
import os
import resource
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from codebrush.data.sources.shard_writer import TarShard
from codebrush.training.dataset import SourceConfig
from codebrush.training.engine.loop_config import LoopConfig
from codebrush.training.engine.task import Hooks
from codebrush.training.streamed import Streamed

BATCH = 250


def write(folder: Path, samples: int, rows: int, size: int) -> None:
    rng = np.random.default_rng(0)
    for number in range(-(-samples // rows)):
        shard = TarShard(folder / f"{number:05d}.tar")
        for row in range(number * rows, min((number + 1) * rows, samples)):
            file = io.BytesIO()
            Image.fromarray(rng.integers(0, 255, (size, size, 3), np.uint8)).save(file, "JPEG")
            shard.add(f"{row:09d}", file.getvalue(), [f"picture {row}"], {"row": row})
        shard.close()


def memory() -> float:
    """Resident memory of this process in MB, without pages of files that are mapped."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(fields["RssAnon"].split()[0]) / 1024


def stream(folder: Path, size: int, workers: int, first: int, last: int, loud: bool) -> tuple[str, str]:
    """Digests of what steps `first` to `last` - 1 see, and of the second half of them."""
    source = SourceConfig(str(folder), stream=True, open_shards=8, workers=workers)
    began = time.perf_counter()
    data = Streamed([source], size, folder / "cache")
    rows_of = data.hooks(Hooks(), LoopConfig(steps=last, batch_size=BATCH)).rows
    assert rows_of is not None
    counted, curve = time.perf_counter() - began, []
    whole, half = hashlib.sha256(), hashlib.sha256()
    began, used = time.perf_counter(), time.process_time()
    for step in range(first, last):
        rows = data.ready(rows_of(step))
        texts = [data.captions(row)[0] for row in rows.tolist()]
        seen = data.images(rows).numpy().tobytes() + "".join(texts).encode()
        whole.update(seen)
        if step >= last // 2:
            half.update(seen)
        if (step + 1) % max(1, (last - first) // 10) == 0:
            curve.append(round(memory()))
    seconds, used = time.perf_counter() - began, time.process_time() - used
    data.close()
    if loud:
        speed, each = (last - first) * BATCH / seconds, (last - first) * BATCH / used
        print(f"{workers} workers: {speed:.0f} samples/s ({each:.0f} a second of processor time)")
        print(f"  counted in {counted:.1f} s, memory in MB at each tenth: {' '.join(map(str, curve))}")
    return whole.hexdigest()[:16], half.hexdigest()[:16]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=100_000)
    parser.add_argument("--shard", type=int, default=2000)
    parser.add_argument("--size", type=int, default=16)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 4])
    options = parser.parse_args()
    steps = options.samples // BATCH
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        write(folder, options.samples, options.shard, options.size)
        found = [stream(folder, options.size, workers, 0, steps, True) for workers in options.workers]
        again = stream(folder, options.size, options.workers[-1], steps // 2, steps, False)
    print(f"digests of {steps * BATCH} samples: {' '.join(whole for whole, _ in found)}")
    print(f"of the second half: {' '.join(half for _, half in found)}; after a resume: {again[0]}")
    assert len(set(found)) == 1
    assert again[0] == found[0][1]
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"at most {most:.0f} MB with mapped files, {os.cpu_count()} processors")


if __name__ == "__main__":
    main()
