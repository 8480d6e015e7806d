"""What a step of training costs with 1, 2 and 4 processes of as many pictures each, and what it is spent on.

    python benchmarks/weak_scaling.py [--processes 1 2 4] [--rows 64] [--steps 40] [--rounds 3]

CLIP on drawn shapes, one thread a process, gradients and embeddings by gloo. Each round trains N processes apart from
each other at the same time, which share the machine and send nothing, and then N together under torchrun. So a step of
N together is a step of one alone, what sharing the machine adds, and what is then left: sending and waiting. The
waiting for data is what the log says of it. Prints the median step of each, with the range over the rounds.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import yaml

from codebrush.data.synthetic.scene_folder import write_shapes

RECIPE = {"image_size": 64, "patch_size": 8, "width": 256, "layers": 6, "heads": 4}
LOG_EVERY = 5
LAUNCHED = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node")


def started(folder: Path, name: str, devices: int, rows: int, steps: int) -> subprocess.Popen[bytes]:
    """A training of `devices` processes, of `rows` pictures each."""
    loop = {
        "steps": steps, "batch_size": rows * devices, "log_every": LOG_EVERY, "threads": 1, "accelerator": "cpu",
        "devices": devices, "checkpoint_every": steps,
    }  # fmt: skip
    plan = {"stage": "clip", "source": {"source": str(folder / "shapes")}, "recipe": RECIPE, "loop": loop}
    recipe = folder / f"{name}.yaml"
    recipe.write_text(yaml.safe_dump(plan))
    launch = (*LAUNCHED, str(devices), "-m", "codebrush") if devices > 1 else ("-m", "codebrush")
    command = [sys.executable, *launch, "train", "clip", str(recipe), "--out", str(folder / name)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def step_of(running: list[subprocess.Popen[bytes]], runs: list[Path]) -> tuple[float, float]:
    """Seconds of a step, and those of them that waited for data: the median of what the runs' logs say, without the
    first line."""
    for process in running:
        _, said = process.communicate()
        if process.returncode:
            raise SystemExit(said.decode())
    lines = [json.loads(line) for run in runs for line in (run / "metrics.jsonl").read_text().splitlines()[1:]]
    steps = [1 / line["steps_per_second"] for line in lines]
    return statistics.median(steps), statistics.median(line["data_wait"] / line["steps_per_second"] for line in lines)


def round_of(folder: Path, processes: int, rows: int, steps: int) -> tuple[float, float, float]:
    """Seconds of a step apart and together, and those that wait for data together."""
    names = [f"apart-{number}" for number in range(processes)]
    apart, data = step_of([started(folder, name, 1, rows, steps) for name in names], [folder / name for name in names])
    if processes == 1:
        return apart, apart, data
    return apart, *step_of([started(folder, "together", processes, rows, steps)], [folder / "together"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    found: dict[int, list[tuple[float, float, float]]] = {number: [] for number in sorted({1, *given.processes})}
    with tempfile.TemporaryDirectory() as place:
        write_shapes(Path(place) / "shapes", 512)
        for turn in range(given.rounds):
            for number in found:
                folder = Path(place) / f"{turn}-{number}"
                folder.mkdir()
                (folder / "shapes").symlink_to(Path(place) / "shapes")
                found[number].append(round_of(folder, number, given.rows, given.steps))
    alone = statistics.median(apart for apart, _, _ in found[1])
    print(f"{os.cpu_count()} cores, {given.rows} pictures a process, {given.rounds} rounds of {given.steps} steps")
    print("| processes | pictures/s | a step | range | computing | sharing the machine | sending and waiting | data |")
    print("|---|---|---|---|---|---|---|---|")
    for number, rounds in found.items():
        apart, step, data = (statistics.median(column) for column in zip(*rounds, strict=True))
        together = [joint for _, joint, _ in rounds]
        cells = [f"{number * given.rows / step:.0f}", f"{step:.3f} s", f"{min(together):.3f} to {max(together):.3f} s"]
        cells += [f"{alone:.3f} s", f"{apart - alone:.3f} s", f"{step - apart:.3f} s", f"{data:.3f} s"]
        print(f"| {number} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
