"""Many callers at once for a minute: is nothing lost or mixed up, does the queue stay bounded, and the memory flat?

    python benchmarks/serve_load.py [--callers 64] [--seconds 60] [--queue 24] [--threads 1] [--pack emoji] [--tiny]

`--tiny` draws with the untrained pack of the tests, so that many batches are done: memory is printed against them.

A real server on this machine; the callers have eight keys among them. Half of their requests draw a picture of a given
seed, which must be, pixel by pixel, the one that this process has drawn alone before; others want embeddings, which are
compared as well, or go away before they are answered. What the queue has no place for is answered 429 and waits as
`Retry-After` says. Fails if anything is lost, is another's, or is answered with any other error.
"""

import argparse
import asyncio
import base64
import io
import os
import random
import sqlite3
import statistics
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import httpx
import torch
from PIL import Image
from server_process import ServerProcess

from codebrush import Codebrush

PROMPTS = ("a red apple", "a blue car", "a dog", "a yellow flower", "a house", "a green tree")
TEXTS = ("a red apple", "a dog on the grass", "something blue", "a house by the sea")
KEYS = [f"key-{number}" for number in range(8)]
DRAWN = {"generate"}  # kinds of the queue that is looked at
LOST = 0.3  # share of callers that go away among those that draw


class Load:
    """The callers, what they expect, and what they got."""

    def __init__(self, server: ServerProcess, expected: dict[str, bytes], seconds: float) -> None:
        self.server, self.expected, self.until = server, expected, time.monotonic() + seconds
        self.got: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.vectors: dict[str, str] = {}

    async def caller(self, number: int) -> None:
        """Ask for one thing after the other until the time is over."""
        chance = random.Random(number)
        headers = {"Authorization": f"Bearer {KEYS[number % len(KEYS)]}"}
        async with httpx.AsyncClient(base_url=self.server.url, headers=headers, timeout=900) as client:
            while time.monotonic() < self.until:
                reply = await (self.draw(client, chance) if chance.random() < 0.7 else self.embed(client, chance))
                if reply is not None and reply.status_code == 429:
                    self.got["refused, 429"] += 1
                    await asyncio.sleep(int(reply.headers["Retry-After"]) * chance.random())
                elif reply is not None and reply.status_code != 200:
                    self.wrong.append(f"{reply.status_code}: {reply.text}")

    async def draw(self, client: httpx.AsyncClient, chance: random.Random) -> httpx.Response | None:
        prompt = chance.choice(list(self.expected))
        body = {"prompt": prompt, "seed": PROMPTS.index(prompt), "quality": "low"}
        leaves = chance.random() < LOST
        timeout = httpx.Timeout(chance.uniform(0.2, 2) if leaves else 900)
        try:
            reply = await client.post("/v1/images/generations", json=body, timeout=timeout)
        except httpx.TimeoutException:
            self.got["went away"] += 1
            return None
        if reply.status_code == 200:
            content = base64.b64decode(reply.json()["data"][0]["b64_json"])
            same = Image.open(io.BytesIO(content)).tobytes() == self.expected[prompt]
            self.got["pictures"] += 1
            if not same:
                self.wrong.append(f"another picture of '{prompt}'")
        return reply

    async def embed(self, client: httpx.AsyncClient, chance: random.Random) -> httpx.Response:
        text = chance.choice(TEXTS)
        reply = await client.post("/v1/embeddings", json={"input": text, "encoding_format": "base64"})
        if reply.status_code == 200:
            vector = reply.json()["data"][0]["embedding"]
            self.got["embeddings"] += 1
            if self.vectors.setdefault(text, vector) != vector:
                self.wrong.append(f"another embedding of '{text}'")
        return reply

    async def watch(self, memory: list[tuple[int, float]], waiting: list[int]) -> None:
        """Note the memory, with the batches done by then, and the length of the queue twice a second."""
        headers = {"Authorization": f"Bearer {KEYS[0]}"}
        async with httpx.AsyncClient(base_url=self.server.url, headers=headers, timeout=900) as client:
            while time.monotonic() < self.until:
                lines = (await client.get("/metrics")).text.splitlines()
                batches = next(line for line in lines if line.startswith("codebrush_batch_jobs_count "))
                memory.append((round(float(batches.split()[1])), self.server.resident_mb()))
                waiting.append(count_of(self.server, "queued"))
                await asyncio.sleep(0.5)


def count_of(server: ServerProcess, *states: str) -> int:
    """How many jobs that draw are in one of these states."""
    with sqlite3.connect(f"file:{server.data / 'jobs.sqlite'}?mode=ro", uri=True) as connection:
        found = connection.execute("SELECT kind, state FROM jobs").fetchall()
    return sum(kind in DRAWN and state in states for kind, state in found)


def tiny_pack(folder: Path) -> str:
    """The untrained pack of the tests, as a folder."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
    from packs import write_micro_pack  # pyright: ignore[reportMissingImports]

    return str(write_micro_pack(folder / "tiny"))


def by_batches(memory: list[tuple[int, float]], parts: int = 8) -> str:
    """The memory when some numbers of batches, evenly spaced, had been done."""
    last = memory[-1][0]
    marks = [round(last * part / parts) for part in range(parts + 1)]
    return ", ".join(f"{mark}: {next(mb for done, mb in memory if done >= mark):.0f}" for mark in marks)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--callers", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--queue", type=int, default=24)
    parser.add_argument("--threads", type=int, default=1, help="of this process and of the server")
    parser.add_argument("--pack", default="emoji")
    parser.add_argument("--tiny", action="store_true", help="draw with the untrained pack of the tests")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    os.environ |= {"OMP_NUM_THREADS": str(options.threads), "CODEBRUSH_API_KEY": ",".join(KEYS)}
    made = tempfile.TemporaryDirectory()
    pack = tiny_pack(Path(made.name)) if options.tiny else options.pack
    brush = Codebrush.from_pretrained(pack, device="cpu")
    alone = {text: brush.generate(text, n=1, rerank=1, seed=seed)[0] for seed, text in enumerate(PROMPTS)}
    expected = {text: result.image.tobytes() for text, result in alone.items()}
    with tempfile.TemporaryDirectory() as folder:
        server = ServerProcess(Path(folder), "--pack", pack, "--queue", str(options.queue))
        memory: list[tuple[int, float]] = []
        waiting: list[int] = []
        began, load = time.monotonic(), Load(server, expected, options.seconds)

        async def everything() -> None:
            await asyncio.gather(load.watch(memory, waiting), *map(load.caller, range(options.callers)))

        asyncio.run(everything())
        took, cpu = time.monotonic() - began, server.cpu_seconds()
        left = count_of(server, "queued", "running")
        failed, done, cancelled = (count_of(server, state) for state in ("failed", "done", "cancelled"))
        status = server.end()
    print(f"{options.callers} callers, {took:.0f} s, {cpu:.0f} processor seconds of the server")
    print(", ".join(f"{name}: {count}" for name, count in sorted(load.got.items())))
    print(f"jobs that draw: {done} done, {cancelled} cancelled, {failed} failed, {left} left; exit status {status}")
    print(f"waiting: at most {max(waiting)} of {options.queue}")
    print(f"memory, MB, after so many batches: {by_batches(memory)}; the most was {max(mb for _, mb in memory):.0f}")
    half = [(done, mb) for done, mb in memory if 2 * done >= memory[-1][0]]
    if len({done for done, _ in half}) > 1:
        slope = statistics.linear_regression([done for done, _ in half], [mb for _, mb in half]).slope
        print(f"in the second half of the batches: {100 * slope:+.1f} MB for each 100 batches")
    print("load of the machine: " + " ".join(f"{value:.1f}" for value in os.getloadavg()))
    assert not load.wrong, load.wrong[:5]
    assert not left, f"{left} jobs are forgotten"
    assert not failed, f"{failed} jobs failed"
    assert max(waiting) <= options.queue, "the queue is too long"


if __name__ == "__main__":
    main()
