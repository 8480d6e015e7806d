"""Two real processes run one command: one folder, one report, and a run that is killed goes on at the same bits."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from datasets import config as datasets_config
from safetensors.torch import load_file
from torch.optim.optimizer import register_optimizer_step_post_hook

from codebrush.cli.main import run as command
from codebrush.errors import TrainingError
from codebrush.training.engine import fabric
from codebrush.training.engine.checkpoints import CHECKPOINT
from codebrush.training.engine.fabric import is_first
from codebrush.training.engine.loop_config import LoopConfig

LOOP = {
    "batch_size": 4, "warmup": 2, "log_every": 2, "checkpoint_every": 3, "preview_every": 0, "threads": 1,
    "accelerator": "cpu", "devices": 2,
}  # fmt: skip
RECIPES: dict[str, dict[str, Any]] = {
    "clip": {
        "recipe": {"image_size": 16, "patch_size": 8, "width": 16, "layers": 1, "heads": 2, "token_table": False},
        "loop": {"steps": 3, **LOOP},
    },
    # 512 latents for k-means, 64 a step of both: collected until step 8; the discriminator joins in after step 8
    "vqgan": {
        "recipe": {
            "image_size": 16, "channels": 8, "channel_multipliers": [1, 1, 2], "norm_groups": 4, "latent_channels": 8,
            "code_dim": 4, "codebook_size": 64, "perceptual": 0, "adversarial_from": 0.7, "discriminator_channels": 8,
            "discriminator_layers": 1,
        },
        "loop": {"steps": 12, **LOOP},
    },
    # rows with a source and those without go through the network one after the other, before one step
    # back; of the parts of one row each the last has none
    "transformer": {
        "recipe": {
            "width": 16, "layers": 1, "heads": 2, "image_share": 0.25, "hole_share": 0.25, "pair_share": 0.25,
            "pair_captions": ["on {background}"],
        },
        "loop": {"steps": 3, **LOOP, "batch_size": 8, "accumulate": 4},
    },
    "prior": {"recipe": {"width": 16, "layers": 1}, "loop": {"steps": 3, **LOOP}},
}  # fmt: skip


def work(rank: int, port: int, arguments: list[str], cache: str, folder: str, updates: int) -> None:
    """One of two processes as torchrun starts them; with `updates` the second is killed at its n-th."""
    values = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": 2, "RANK": rank, "LOCAL_RANK": rank}
    more = {"LOCAL_WORLD_SIZE": 2, "GROUP_RANK": 0, "TORCHELASTIC_RUN_ID": "none"}
    os.environ.update({name: str(value) for name, value in {**values, **more}.items()})
    torch.set_num_threads(1)
    datasets_config.HF_DATASETS_CACHE = Path(cache)
    done = 0

    def count(*_: Any) -> None:
        nonlocal done
        done += 1
        if done == updates and rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)

    register_optimizer_step_post_hook(count)
    sys.stdout = open(Path(folder) / f"stdout-{rank}", "w")  # noqa: SIM115
    sys.stderr = open(Path(folder) / f"stderr-{rank}", "w")  # noqa: SIM115
    sys.exit(command(arguments))


class Pair:
    """Runs a command in two processes."""

    def __init__(self, folder: Path, processes: ForkServerContext, cache: Path):
        self.folder, self.processes, self.cache = folder, processes, cache
        for stage, recipe in RECIPES.items():
            (folder / f"{stage}.yaml").write_text(yaml.safe_dump({"stage": stage, **recipe}))

    def run(self, *arguments: str, updates: int = 0) -> list[int | None]:
        """The exit status of both."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        given = (port, ["train", *arguments], str(self.cache), str(self.folder), updates)
        pair = [self.processes.Process(target=work, args=(rank, *given)) for rank in range(2)]
        for process in pair:
            process.start()
        for process in pair:
            process.join(300)
            process.kill()
        return [process.exitcode for process in pair]

    def said(self) -> list[str]:
        return [(self.folder / f"stdout-{rank}").read_text() for rank in range(2)]


@pytest.fixture
def pair(tmp_path: Path, processes: ForkServerContext, datasets_cache: Path) -> Pair:
    return Pair(tmp_path, processes, datasets_cache)


def test_a_vqgan_that_is_killed_while_it_collects_ends_at_the_same_bits(pair: Pair, shapes: Path, tmp_path: Path):
    stage = ["vqgan", str(tmp_path / "vqgan.yaml"), "--source", str(shapes), "--tokenizer", "bpe", "--json"]
    assert pair.run(*stage, "--out", str(tmp_path / "whole")) == [0, 0]
    first, second = pair.said()
    assert json.loads(first)["stages"]["vqgan"]["steps"] == 12
    assert second == ""
    steps = [json.loads(line)["step"] for line in (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()]
    assert steps == [2, 3, 4, 6, 8, 9, 10, 12]

    began = time.monotonic()
    assert pair.run(*stage, "--out", str(tmp_path / "broken"), updates=5) == [1, -signal.SIGKILL]
    assert time.monotonic() - began < 60
    *_, last = (tmp_path / "stderr-0").read_text().splitlines()
    assert last.endswith("look for its message, then run the same command with --resume")
    state = torch.load(tmp_path / "broken" / CHECKPOINT, weights_only=True)
    assert state["step"] == 3
    ((_, collected),) = state["own.vqgan"].items()
    assert collected.shape == (2, 3 * 2 * 16, 4)
    assert not torch.equal(*collected)
    shutil.copytree(tmp_path / "broken", tmp_path / "alone")
    assert pair.run(*stage, "--out", str(tmp_path / "broken"), "--resume") == [0, 0]
    ours, theirs = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("broken", "whole"))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)

    assert pair.run(*stage, "--out", str(tmp_path / "broken"), "--resume") == [0, 0]  # there is nothing left to train
    again, second = pair.said()
    assert json.loads(again)["stages"]["vqgan"]["steps"] == 12
    assert second == ""

    # alone it has what both have collected, so that the codebook is filled after the same step
    (tmp_path / "vqgan.yaml").write_text((tmp_path / "vqgan.yaml").read_text().replace("devices: 2", "devices: 1"))
    assert command(["train", *stage, "--out", str(tmp_path / "alone"), "--resume"]) == 0
    filled = []
    for name in ("whole", "alone"):
        lines = [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        filled.append([line["step"] for line in lines if line["code_distance"] > 0])
    assert filled == [[8, 9, 10, 12]] * 2


def test_two_processes_make_one_pack(pair: Pair, shapes: Path, tmp_path: Path):
    given = [str(shapes), "--recipes", str(tmp_path), "--out", str(tmp_path / "pack"), "--tokenizer", "bpe", "--json"]
    assert pair.run(*given) == [0, 0]
    first, second = pair.said()
    assert [figures["steps"] for figures in json.loads(first)["stages"].values()] == [3, 12, 3, 3]
    assert second == ""
    assert (tmp_path / "pack" / "pack.json").is_file()
    assert [path for path in tmp_path.rglob("*") if path.suffix == ".part"] == []


@pytest.mark.parametrize(
    ("strategy", "saved"),
    [pytest.param("auto", CHECKPOINT, marks=pytest.mark.slow), ("fsdp", "checkpoint-0000003/.metadata")],
)
def test_the_command_starts_its_second_process_itself_and_the_first_checks_for_both(
    strategy: str, saved: str, shapes: Path, tmp_path: Path, datasets_cache: Path
):
    gate = {"source": {"source": str(shapes)}, "every": 2, "action": "warn"}  # each caption is a class
    recipe = {"stage": "clip", **RECIPES["clip"], "gate": gate}
    recipe["loop"] = {**recipe["loop"], "strategy": strategy}
    (tmp_path / "clip.yaml").write_text(yaml.safe_dump(recipe))
    stage = ["clip", str(tmp_path / "clip.yaml"), "--source", str(shapes), "--tokenizer", "bpe", "--json"]
    arguments = [sys.executable, "-m", "codebrush", "train", *stage, "--out", str(tmp_path / "run")]
    environment = {**os.environ, "HF_DATASETS_CACHE": str(datasets_cache), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(arguments, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["model"] == str(tmp_path / "run" / "model")
    assert [step for step, _ in report["stages"]["clip"]["gate"]["measured"]] == [0, 2, 3]
    assert [str(path.relative_to(tmp_path / "run")) for path in (tmp_path / "run").glob(saved)] == [saved]


@pytest.mark.parametrize(
    ("environment", "first"),
    [
        ({}, True),
        ({"LOCAL_RANK": "0", "RANK": "0", "SLURM_PROCID": "1"}, True),  # torchrun within a job of Slurm
        ({"LOCAL_RANK": "0", "RANK": "2", "SLURM_PROCID": "1"}, False),
        ({"SLURM_PROCID": "0"}, True),
        ({"SLURM_PROCID": "1"}, False),
    ],
)
def test_processes_that_have_not_met_know_the_first(
    environment: dict[str, str], first: bool, monkeypatch: pytest.MonkeyPatch
):
    for name in ("LOCAL_RANK", "RANK", "SLURM_PROCID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert is_first() is first


def test_hosts_that_do_not_reach_each_other_are_told_which_variable_helps(monkeypatch: pytest.MonkeyPatch):
    def lost(**_: Any) -> None:
        raise RuntimeError("Gloo connectFullMesh failed with timed out connecting: Connection refused")

    monkeypatch.setattr(fabric, "Fabric", lost)
    config = LoopConfig(steps=1, batch_size=2, nodes=2)
    with pytest.raises(TrainingError, match="set GLOO_SOCKET_IFNAME on each to the network interface that leads"):
        fabric.launch(config)
    with pytest.raises(TrainingError, match=r"loop.devices 2 are not available here: Gloo connectFullMesh"):
        fabric.launch(replace(config, nodes=1, devices=2))


def test_training_starts_without_packages_that_it_does_not_use():
    """Half of the time that a training took to start went into them."""
    code = """
import sys
import codebrush.cli.train, codebrush.training.single_stage, codebrush.previews, codebrush.pipeline
import codebrush.cli.generate, codebrush.cli.curate, codebrush.cli.upscale, datasets, torch.utils.tensorboard
print([name for name in ("torchmetrics", "scipy", "transformers") if name in sys.modules])
print("lightning_fabric" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=True)
    assert done.stdout.split() == ["[]", "True"]
