"""Several processes use one database, and one of them is killed."""

import subprocess
import sys
import time
from pathlib import Path

import torch
from search_helpers import write_scenes

from codebrush.pack.pack import open_clip
from codebrush.search.database import Mark, create_database, open_database
from codebrush.search.indexing import index_pictures
from codebrush.search.pictures import open_pictures
from codebrush.search.queries import search

MARK = Mark("micro", "a" * 64)
# Indexes in many small batches and prints a line after each.
SCRIPT = """
import sys
import torch
from codebrush.pack.pack import open_clip
from codebrush.search import indexing
from codebrush.search.database import Mark, create_database
from codebrush.search.pictures import open_pictures

pack, db, *places = sys.argv[1:]
torch.set_num_threads(1)
indexing.BATCH = 16
clip = open_clip(pack)[0]
database = create_database(db, Mark("micro", "a" * 64), clip.embed_dim)
print("ready", flush=True)
sys.stdin.readline()
report = indexing.index_pictures(
    database, [open_pictures(place) for place in places], clip, lambda done, total: print(done, flush=True)
)
print("end", report.added, report.updated, report.unchanged, flush=True)
"""


def _start(pack: Path, db: Path, *places: Path) -> subprocess.Popen[str]:
    arguments = [sys.executable, "-c", SCRIPT, str(pack), str(db), *map(str, places)]
    return subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def _ready(process: subprocess.Popen[str]) -> None:
    assert _line(process) == "ready"


def _go(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


def _line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def _last_line(process: subprocess.Popen[str]) -> str:
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0
    return output.splitlines()[-1]


def test_a_run_that_is_killed_loses_no_finished_batch(micro_pack: Path, tmp_path: Path) -> None:
    write_scenes(tmp_path / "pictures", 96)
    process = _start(micro_pack, tmp_path / "db", tmp_path / "pictures")
    _ready(process)
    _go(process)
    while _line(process) != "48":
        assert process.poll() is None
    process.kill()  # SIGKILL, somewhere in the batches after the third
    process.communicate()
    assert process.returncode == -9
    clip = open_clip(micro_pack)[0]
    database = open_database(tmp_path / "db", MARK)
    left = database.count()
    assert 48 <= left < 96
    assert left % 16 == 0
    assert database.count("embedding IS NULL OR thumbnail IS NULL OR hash IS NULL") == 0
    assert len(search(database, torch.eye(clip.embed_dim)[0], k=96)) == left
    shapes = ("circle", "square", "triangle", "star")
    rows = [row for batch in database.rows(["path", "caption"]) for row in batch.to_pylist()]
    expected = {row["path"] for row in rows if any(shape in row["caption"] for shape in shapes)}
    assert {hit.path for hit in search(database, None, " ".join(shapes), mode="text", k=96)} == expected
    report = index_pictures(database, [open_pictures(str(tmp_path / "pictures"))], clip)
    assert (report.added, report.updated, report.removed, report.unchanged) == (96 - left, 0, 0, left)


def test_two_index_while_a_third_searches(micro_pack: Path, tmp_path: Path) -> None:
    """Both processes get the same pictures first, and then different ones."""
    for number, place in enumerate(("both", "first", "second")):
        write_scenes(tmp_path / place, 32, first=32 * number)
    database = create_database(tmp_path / "db", MARK, open_clip(micro_pack)[0].embed_dim)
    processes = [_start(micro_pack, tmp_path / "db", tmp_path / "both", tmp_path / own) for own in ("first", "second")]
    for process in processes:
        _ready(process)
    for process in processes:
        _go(process)
    counts = [0]
    while any(process.poll() is None for process in processes) and counts[-1] < 96:
        hits = search(database, torch.eye(database.embed_dim)[0], "circle", mode="hybrid", k=200)
        assert len({hit.path for hit in hits}) == len(hits)
        counts.append(len(hits))
        time.sleep(0.02)
    assert counts == sorted(counts)
    ends = [[int(number) for number in _last_line(process).split()[1:]] for process in processes]
    assert sum(added for added, _, _ in ends) == 96  # each picture once, whichever process came first
    assert all(sum(end) == 64 for end in ends)
    paths = [path for batch in database.rows(["path"]) for path in batch["path"].to_pylist()]
    assert len(paths) == len(set(paths)) == 96
