"""Training and indexing over two hosts."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from two_hosts import Host, two_hosts

from codebrush.data.synthetic.scene_folder import write_shapes

pytestmark = pytest.mark.slow
PORT = 29511
SECONDS = 240
RECIPE = {
    "stage": "clip",
    "recipe": {"image_size": 32, "patch_size": 8, "width": 32, "layers": 2, "heads": 2},
    "loop": {"steps": 8, "batch_size": 16, "log_every": 1, "checkpoint_every": 3, "accelerator": "cpu", "threads": 1},
}


@pytest.fixture
def hosts() -> Iterator[tuple[Host, Host]]:
    with two_hosts() as both:
        yield both


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    write_shapes(tmp_path / "shapes", 64)
    return write_recipe(tmp_path, "hosts", {"devices": 1, "nodes": 2})


def write_recipe(folder: Path, name: str, places: dict[str, int]) -> Path:
    written = {**RECIPE, "source": {"source": str(folder / "shapes")}, "loop": {**RECIPE["loop"], **places}}
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(written))
    return folder / f"{name}.yaml"


def train(recipe: Path, *launch: str) -> list[str]:
    """A command of torchrun that trains beside the recipe."""
    out = str(recipe.with_suffix(""))
    command = ["-m", "codebrush", "train", "clip", str(recipe), "--out", out]
    return [sys.executable, "-m", "torch.distributed.run", *launch, *command]


def start(hosts: tuple[Host, Host], recipe: Path, *more: str) -> list[subprocess.Popen[str]]:
    """The same command on both hosts."""
    running = []
    for rank, host in enumerate(hosts):
        meeting = ("--master-addr", hosts[0].address, "--master-port", str(PORT))
        command = train(recipe, "--nnodes", "2", "--node-rank", str(rank), "--nproc-per-node", "1", *meeting)
        environment = os.environ | {"GLOO_SOCKET_IFNAME": host.interface}
        said = (recipe.parent / f"said-{rank}").open("w")
        running.append(subprocess.Popen([*host.within, *command, *more], env=environment, stdout=said, stderr=said))
    return running


def ended(running: list[subprocess.Popen[str]]) -> list[int]:
    return [process.wait(SECONDS) for process in running]


def losses(run: Path) -> list[float]:
    return [json.loads(line)["clip_loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_two_hosts_train_as_two_processes_of_one_do(hosts: tuple[Host, Host], recipe: Path, tmp_path: Path) -> None:
    assert ended(start(hosts, recipe)) == [0, 0]
    weights = (tmp_path / "hosts" / "model" / "model.safetensors").stat().st_size
    assert min(host.received() for host in hosts) > weights  # gradients of eight steps, the table of tokens is frozen
    alone = write_recipe(tmp_path, "alone", {"devices": 2, "nodes": 1})
    subprocess.run(train(alone, "--standalone", "--nproc-per-node", "2"), check=True, timeout=SECONDS)
    assert losses(tmp_path / "hosts") == losses(tmp_path / "alone")
    models = [(tmp_path / name / "model" / "model.safetensors").read_bytes() for name in ("hosts", "alone")]
    assert models[0] == models[1]


def test_a_host_that_is_lost_ends_the_training_which_goes_on(
    hosts: tuple[Host, Host], recipe: Path, tmp_path: Path
) -> None:
    unbroken = recipe.rename(tmp_path / "unbroken.yaml")
    assert ended(start(hosts, unbroken)) == [0, 0]
    recipe.write_text(unbroken.read_text())
    running = start(hosts, recipe)
    until = time.monotonic() + SECONDS
    while not list((tmp_path / "hosts").glob("checkpoint*")) and time.monotonic() < until:
        time.sleep(0.05)
    for process in hosts[1].processes():
        os.kill(process, signal.SIGKILL)
    began = time.monotonic()
    assert ended(running)[0]
    assert time.monotonic() - began < 60
    assert "another process of this training can no longer be reached" in (tmp_path / "said-0").read_text()
    assert ended(start(hosts, recipe, "--resume")) == [0, 0]
    assert losses(tmp_path / "hosts") == losses(tmp_path / "unbroken")
