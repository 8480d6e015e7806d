"""Changed and made-up inputs for the readers: each gives a value, or one of the package's own errors in one line,
within five seconds and without taking much memory.

An input follows from the target, the seed and its number, so that a find can be made again:
    python tests/faults/fuzzing.py --only prompt --first 1234 --count 1
    python tests/faults/fuzzing.py --minutes 25        all targets, each for its share of the time
"""

import argparse
import multiprocessing
import os
import random
import resource
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import Any

import torch

LONGEST = 5.0  # seconds of processor time that an input may take
STANDSTILL = 60.0  # seconds of the clock after which a process that gives no sign is ended: the machine may be busy
MOST_MEMORY = 400 * 1024**2  # bytes by which one input may raise the peak of the process
ROOM = 3 * 1024**3  # bytes that the process may take beyond what it has; what asks for more gets a MemoryError
MEMORY = Path("/dev/shm")  # noqa: S108 - thousands of small files a second
NUMBERS = (b"0", b"-1", b"1e999", b"NaN", b"99999999999999999999", b"0.0000001", b"4294967295", b"-0", b"1_0")
TEXTS = (b"\0", b"\xff\xfe", b"\xef\xbb\xbf", b"\xed\xa0\x80", b"\r", b"\n\n", "\u2028\u202e\U0001f34e".encode(), b'"')


@dataclass(frozen=True)
class Target:
    """A reader: `make` gives inputs to begin with and a function that reads one; it may use the folder.

    `share` is its part of the time beside others. `words` are put into inputs.
    """

    name: str
    kind: str
    make: Callable[[Path], tuple[Sequence[bytes], Callable[[bytes], object]]]
    words: Sequence[bytes] = ()
    share: float = 1.0


@dataclass(frozen=True)
class Find:
    """An input that was not read as it should be, and why."""

    target: str
    number: int
    reason: str


def mutated(draw: random.Random, seeds: Sequence[bytes], words: Sequence[bytes]) -> bytes:
    """One of the seeds with a few changes; now and then whole, or made of words alone."""
    if words and draw.random() < 0.1:
        return b"".join(draw.choice(words) for _ in range(draw.randrange(1, 30)))
    data = bytearray(draw.choice(seeds))
    for _ in range(draw.choice((0, 1, 1, 1, 2, 2, 3, 5, 9))):
        place = draw.randrange(len(data) + 1)
        if draw.random() < 0.5:  # headers decide most
            place = min(place, draw.randrange(64))
        match draw.randrange(9):
            case 0 if data:
                data[min(place, len(data) - 1)] ^= 1 << draw.randrange(8)
            case 1 if data:
                data[min(place, len(data) - 1)] = draw.choice((0, 1, 127, 128, 254, 255, draw.randrange(256)))
            case 2:
                del data[place:]
            case 3:
                del data[place : place + draw.choice((1, 2, 4, 16, 300))]
            case 4:
                data[place:place] = draw.choice((*words, *TEXTS))
            case 5:
                data[place:place] = bytes(data[place : place + draw.choice((1, 4, 30, 300))]) * draw.choice((1, 2, 40))
            case 6:
                data[place : place + draw.choice((1, 2, 4, 8))] = draw.choice(NUMBERS)
            case 7:
                width = draw.choice((2, 4, 8))
                value = draw.choice((0, 1, 2**31 - 1, 2 ** (8 * width) - 1)).to_bytes(8, "little")[:width]
                data[place : place + width] = value[:: draw.choice((1, -1))]
            case _:
                other = draw.choice(seeds)
                data[place:] = other[draw.randrange(len(other) + 1) :]
    return bytes(data)


def input_of(target: Target, seeds: Sequence[bytes], seed: int, number: int) -> bytes:
    """The input of a number."""
    return mutated(random.Random(f"{target.name}/{seed}/{number}"), seeds, target.words)


def fault(read: Callable[[bytes], object], data: bytes) -> str | None:
    """Why an input is not read as it should be; None if it is."""
    import codebrush
    from codebrush.errors import CodebrushError

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        read(data)
    except CodebrushError as error:
        line = str(error)
        if not line or "\n" in line:
            return f"an error that is not one line: {line[:300]!r}"
    except Exception as error:
        package, calls = Path(codebrush.__file__).parent, traceback.extract_tb(error.__traceback__)
        frames = [each for each in calls if Path(each.filename).is_relative_to(package)]
        where = f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "no line of the package"
        return f"{type(error).__name__} at {where}: {' '.join(str(error).split())[:200]}"
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    return f"takes {grown // 1024**2} MB" if grown > MOST_MEMORY else None


@dataclass(frozen=True)
class Part:
    """What is to be done of one target: so many inputs from the number `first` on, or as many as the time allows."""

    target: str
    count: int
    seconds: float
    first: int = 0


def read_all(parts: Sequence[Part], seed: int, at: Any, finds: Connection) -> None:
    """Read inputs in this process; `at` holds the number of the part and of the input that is read."""
    from fuzz_targets import TARGETS

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # native code writes there
    for index, part in enumerate(parts):
        at[:] = [index, part.first]
        target = TARGETS[part.target]
        with tempfile.TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else None) as place:
            seeds, read = target.make(Path(place))
            for each in seeds:  # whatever is imported or cached at first
                if reason := fault(read, each):
                    finds.send(Find(part.target, -1, f"unchanged: {reason}"))
            mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (mapped + ROOM, resource.RLIM_INFINITY))
            until = time.monotonic() + part.seconds
            for number in range(part.first, part.first + part.count):
                data = input_of(target, seeds, seed, number)
                at[1] = number
                signal.setitimer(signal.ITIMER_PROF, LONGEST)  # the process ends by its signal
                reason = fault(read, data)
                signal.setitimer(signal.ITIMER_PROF, 0)
                if reason:
                    finds.send(Find(part.target, number, reason))
                if time.monotonic() > until:
                    break
            resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        finds.send(at[1] + 1)
    finds.send(None)


def fuzz(processes: BaseContext, parts: Sequence[Part], seed: int = 0) -> tuple[dict[str, int], list[Find]]:
    """Read inputs in a process of their own, and go on in another where an input ended that one. The numbers of inputs
    by target, and what was found."""
    left, read, found = list(parts), dict.fromkeys((part.target for part in parts), 0), list[Find]()
    while left:
        at = processes.Array("q", [0, left[0].first], lock=False)
        here, there = processes.Pipe(duplex=False)
        process = processes.Process(target=read_all, args=(left, seed, at, there), daemon=True)
        process.start()
        there.close()
        ends, reason = _follow(process, at, here, found)
        for part, end in zip(left, ends, strict=False):
            read[part.target] += end - part.first
        left = left[len(ends) :]
        if reason:
            part, number = left[0], at[1]
            found.append(Find(part.target, number, reason))
            read[part.target] += number + 1 - part.first
            rest = part.count - (number + 1 - part.first)
            left[:1] = [replace(part, first=number + 1, count=rest, seconds=part.seconds / 2)] if rest > 0 else []
    return read, found


def _follow(process: Any, at: Any, finds: Connection, found: list[Find]) -> tuple[list[int], str]:
    """Take what a process finds until it ends: the numbers behind the last input of each part, and why it did not come
    to its end ("": it did)."""
    ends: list[int] = []
    last, since = [-1, -1], time.monotonic()
    while True:
        try:
            if finds.poll(0.2):
                said = finds.recv()
                if said is None:
                    process.join()
                    return ends, ""
                if isinstance(said, int):
                    ends.append(said)
                else:
                    found.append(said)
        except EOFError:
            process.join()
            is_late = process.exitcode == -signal.SIGPROF
            return ends, f"over {LONGEST:.0f} s" if is_late else f"the process ended with {process.exitcode}"
        if at[:] != last:
            last, since = at[:], time.monotonic()
        elif time.monotonic() - since > STANDSTILL:
            process.kill()
            process.join()
            return ends, f"stands still for {STANDSTILL:.0f} s"


def distinct(found: Sequence[Find]) -> dict[str, tuple[Find, int]]:
    """The finds by what they have in common, each with the first of its kind and how many there were."""
    kinds: dict[str, tuple[Find, int]] = {}
    for find in found:
        key = f"{find.target}: {find.reason.partition(': ')[0]}"
        kinds[key] = (kinds[key][0] if key in kinds else find, kinds.get(key, (find, 0))[1] + 1)
    return kinds


def main() -> None:
    """The long run: each target for its share of the time, and a line for each with what was found."""
    sys.path.append(str(Path(__file__).resolve().parents[1]))
    from fuzz_targets import TARGETS

    asked = argparse.ArgumentParser(description=__doc__)
    asked.add_argument("--minutes", type=float, default=25)
    asked.add_argument("--only", nargs="*", choices=list(TARGETS), default=list(TARGETS))
    asked.add_argument("--seed", type=int, default=0)
    asked.add_argument("--first", type=int, default=0)
    asked.add_argument("--count", type=int, default=1 << 60)
    asked.add_argument("--save", type=Path, help="a folder for the inputs that were found")
    options = asked.parse_args()
    processes = multiprocessing.get_context("forkserver")
    whole = sum(TARGETS[name].share for name in options.only)
    total = 0
    for name in options.only:
        began = time.monotonic()
        seconds = options.minutes * 60 * TARGETS[name].share / whole
        read, found = fuzz(processes, [Part(name, options.count, seconds, options.first)], options.seed)
        inputs = read[name]
        total += inputs
        print(f"| {name} | {inputs:,} | {time.monotonic() - began:.0f} s | {len(found)} |", flush=True)
        for find, times in distinct(found).values():
            print(f"    {times} x, first number {find.number}: {find.reason}", flush=True)
            if options.save and find.number >= 0:
                options.save.mkdir(parents=True, exist_ok=True)
                with tempfile.TemporaryDirectory() as place:
                    seeds, _ = TARGETS[name].make(Path(place))
                    data = input_of(TARGETS[name], seeds, options.seed, find.number)
                (options.save / f"{name.replace(' ', '-')}-{find.number}").write_bytes(data)
    print(f"{total:,} inputs")


if __name__ == "__main__":
    main()
