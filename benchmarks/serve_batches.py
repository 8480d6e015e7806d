"""What drawing requests together gives: 16 callers at once against one after the other, on a real server.

    python benchmarks/serve_batches.py [--pictures 16] [--rounds 2] [--qualities low,auto] [--threads 1] [--pack emoji]

The two take turns. Prints for each the pictures a second, and the processor seconds of the server for each picture,
which do not depend on what else the machine does, and the ratio of the two.
"""

import argparse
import asyncio
import os
import statistics
import tempfile
import time
from pathlib import Path

import httpx
from server_process import ServerProcess

PROMPTS = ("a red apple", "a blue car", "a dog", "a yellow flower", "a house", "a green tree", "a fish", "a cup")


async def draw(server: ServerProcess, quality: str, pictures: int, callers: int) -> None:
    """Draw so many pictures, by so many callers at once."""
    numbers = iter(range(pictures))

    async def caller(client: httpx.AsyncClient) -> None:
        for number in numbers:
            body = {"prompt": PROMPTS[number % len(PROMPTS)], "seed": number, "quality": quality}
            (await client.post("/v1/images/generations", json=body)).raise_for_status()

    async with httpx.AsyncClient(base_url=server.url, timeout=900) as client:
        await asyncio.gather(*(caller(client) for _ in range(callers)))


def measured(server: ServerProcess, quality: str, pictures: int, callers: int) -> tuple[float, float]:
    """Seconds and processor seconds for each picture."""
    began, before = time.perf_counter(), server.cpu_seconds()
    asyncio.run(draw(server, quality, pictures, callers))
    return (time.perf_counter() - began) / pictures, (server.cpu_seconds() - before) / pictures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--qualities", type=lambda text: text.split(","), default=["low", "auto"])
    parser.add_argument("--threads", type=int, default=1, help="of the server")
    parser.add_argument("--pack", default="emoji")
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        server = ServerProcess(Path(folder), "--pack", options.pack)
        print("| quality | callers | seconds a picture | processor seconds a picture |\n|---|---|---|---|")
        for quality in options.qualities:
            asyncio.run(draw(server, quality, 1, 1))  # opens what is opened at first use
            found: dict[int, list[tuple[float, float]]] = {1: [], 16: []}
            for _ in range(options.rounds):
                for callers, each in found.items():
                    each.append(measured(server, quality, options.pictures, callers))
            for callers, each in found.items():
                wall, cpu = (" ".join(f"{pair[which]:.2f}" for pair in each) for which in (0, 1))
                print(f"| {quality} | {callers} | {wall} | {cpu} |", flush=True)
            for which, name in enumerate(("time", "processor time")):
                pairs = zip(found[1], found[16], strict=True)
                ratios = [one[which] / many[which] for one, many in pairs]
                print(f"{quality}: {name} of one after the other / together: {statistics.median(ratios):.2f}")
        server.end()
    print("load of the machine: " + " ".join(f"{value:.1f}" for value in os.getloadavg()))


if __name__ == "__main__":
    main()
