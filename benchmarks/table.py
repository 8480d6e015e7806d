"""Runs the benchmarks one after the other and writes benchmarks/results.md; `make bench` calls it.

    python benchmarks/table.py [--threads 2] [--only WORD ...] [--out benchmarks/results.md]

Each benchmark is a process of its own, which times this package and its peers in turn. The table has a row for each
pair: median seconds, how many times as fast this package is (median of the rounds' ratios, and their range), and what
share of the machine's measured ceiling it reaches: of products of matrices, or of reading memory. What the file says
below the heading "Notes" is kept. Close other programs first.
"""

import argparse
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from alternation import ROWS, bandwidth

from codebrush import __version__
from codebrush.files import atomic_file
from codebrush.models.precision import has_bf16

HERE = Path(__file__).parent
NOTES = "## Notes"
RUNS = (
    ("guided_step.py",),
    ("code_decoding.py", "--pictures", "1", "--codes", "64"),
    ("code_decoding.py", "--pictures", "4", "--codes", "32"),
    ("clip_embedding.py",),
    ("training_step.py",),
    ("flow_steps.py",),
    ("search_100k.py", "--rows", "200000", "--width", "512"),
    ("cold_start.py",),
    ("cost_growth.py",),
)
NO_THREADS = ("cold_start.py", "cost_growth.py")  # commands choose their threads themselves; growth takes one
GROWTH = (
    "CPU seconds of one thread at four sizes, and megabytes beside what was held before. The exponents are slopes",
    "through the three larger sizes: 1 is linear. None of seconds is to be above that of operations.",
)
PACKAGES = ("torch", "transformers", "faiss-cpu", "lancedb")
SIDE = 2048  # of the matrices that measure the ceiling


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--only", nargs="+", default=(), help="run the benchmarks whose file has one of these words")
    parser.add_argument("--out", type=Path, default=HERE / "results.md")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    started, ceilings = time.monotonic(), measure_ceilings()
    rows: list[dict[str, Any]] = []
    failed: list[str] = []
    for name, *flags in RUNS:
        if given.only and not any(word in name for word in given.only):
            continue
        print(f"== {name} {' '.join(flags)}", flush=True)
        threads = [] if name in NO_THREADS else ["--threads", str(given.threads)]
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "rows.jsonl"
            run = subprocess.run([sys.executable, HERE / name, *flags, *threads], env={**os.environ, ROWS: str(file)})
            if run.returncode:
                failed.append(" ".join((name, *flags)))
            elif file.exists():
                rows += [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    after = measure_ceilings()
    minutes = (time.monotonic() - started) / 60
    lines = [*heading(given.threads, minutes, ceilings, after), "", *table(rows, ceilings), *growth(rows)]
    lines += [f"- {each} failed and is not in the table" for each in failed]
    before = given.out.read_text(encoding="utf-8") if given.out.exists() else ""
    notes = before[before.index(NOTES) :] if NOTES in before else f"{NOTES}\n"
    with atomic_file(given.out) as part:
        part.write_text("\n".join([*lines, "", notes]), encoding="utf-8")
    print(f"{given.out}: {len(lines)} lines in {minutes:.0f} minutes")
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


def measure_ceilings() -> dict[str, float]:
    """Operations a second of products of matrices in float32 and bf16, and bytes a second read."""
    found = {"memory": bandwidth()}
    for name, dtype in (("float32", torch.float32), ("bf16", torch.bfloat16)):
        if name == "bf16" and not has_bf16(torch.device("cpu")):
            continue
        a, b, seconds = torch.randn(SIDE, SIDE).to(dtype), torch.randn(SIDE, SIDE).to(dtype), []
        for _ in range(8):
            started = time.perf_counter()
            torch.mm(a, b)
            seconds.append(time.perf_counter() - started)
        found[name] = 2 * SIDE**3 / min(seconds)
    return found


def heading(threads: int, minutes: float, before: dict[str, float], after: dict[str, float]) -> list[str]:
    """What was measured where."""
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in PACKAGES)
    reached = ", ".join(f"{name} {speed(name, before)} ({speed(name, after)} at the end)" for name in before)
    return [
        "# Speed",
        "",
        f"Written by `make bench` on {datetime.now(UTC):%Y-%m-%d}, {minutes:.0f} minutes: codebrush {__version__} on "
        f"{processor()}, {os.cpu_count()} cores, {threads} threads, Python {platform.python_version()}, {versions}.",
        f"What this machine can do, by products of {SIDE} x {SIDE} matrices and a sum over a gigabyte: {reached}.",
        'Seconds are medians; "times as fast" is the median of the rounds\' ratios, with their range.',
    ]


def speed(name: str, ceilings: dict[str, float]) -> str:
    """A ceiling with its unit."""
    return f"{ceilings[name] / 1e9:.0f} {'GB/s' if name == 'memory' else 'GFLOP/s'}"


def processor() -> str:
    """The name of the processor."""
    file = Path("/proc/cpuinfo")
    names = [line for line in file.read_text().splitlines() if line.startswith("model name")] if file.exists() else []
    return names[0].partition(":")[2].strip() if names else platform.processor() or platform.machine()


def growth(rows: Sequence[dict[str, Any]]) -> list[str]:
    """The Markdown table of how costs grow, if that was measured."""
    found = [row for row in rows if "growth" in row]
    if not found:
        return []
    lines = ["", "## How costs grow", "", *GROWTH, ""]
    lines.append("| work | sizes | seconds | MB | exponent of operations | of seconds | of memory |")
    return [*lines, "|---|---|---|---|---|---|---|", *(f"| {' | '.join(row['cells'])} |" for row in found)]


def table(rows: Sequence[dict[str, Any]], ceilings: dict[str, float]) -> list[str]:
    """The Markdown table of what the benchmarks noted."""
    lines = ["| work | peer | its seconds | codebrush, seconds | times as fast | of the ceiling | load |"]
    lines.append("|---|---|---|---|---|---|---|")
    for row in rows:
        if "times" not in row:
            continue
        own = [name for name in row["times"] if name.startswith("codebrush")]
        peers = [name for name in row["times"] if name not in own]
        for name in own:
            seconds = row["times"][name]
            how = name.removeprefix("codebrush").strip()
            ours = seconds_text(statistics.median(seconds)) + (f" ({how})" if how else "")
            reach = share(row, name, seconds, ceilings)
            for peer in peers or [""]:
                ratios = [a / b for a, b in zip(row["times"].get(peer, ()), seconds, strict=False)]
                theirs = seconds_text(statistics.median(row["times"][peer])) if peer else ""
                times = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})" if ratios else ""
                cells = (row["title"], peer, theirs, ours, times, reach, f"{row['load']:.1f}")
                lines.append("| " + " | ".join(cells) + " |")
    other = [row for row in rows if "recall" in row or "megabytes" in row]
    facts = [f"- {row['title']}{', ' + row['way'] if 'way' in row else ''}: {fact(row)}" for row in other]
    return [*lines, "", *facts] if facts else lines


def fact(row: dict[str, Any]) -> str:
    """A figure beside the times."""
    return f"recall at 10: {row['recall']:.3f}" if "recall" in row else f"at most {row['megabytes']:,} MB of memory"


def share(row: dict[str, Any], name: str, seconds: Sequence[float], ceilings: dict[str, float]) -> str:
    """How near a way is to what the machine can do; "" if that is not known."""
    median = statistics.median(seconds)
    if name in row["read"]:
        return f"{row['read'][name] / median / ceilings['memory']:.0%} of memory"
    if not row["flops"]:
        return ""
    kind = "float32" if "float32" in name or "bf16" not in ceilings else "bf16"
    return f"{row['flops'] / median / ceilings[kind]:.0%} of {kind}"


def seconds_text(seconds: float) -> str:
    """Seconds with three digits that count."""
    return f"{seconds * 1000:.3g} ms" if seconds < 0.1 else f"{seconds:.3g} s"


if __name__ == "__main__":
    main()
