"""`loop.strategy` fsdp: weights spread over processes, with the losses of one process, and checkpoints in parts."""

import os
import pickle
import shutil
import signal
import sys
from dataclasses import replace
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from gloo import run_together
from small_stages import LOOP, RECIPES, VQGAN, parts_of, small_materials, train
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from codebrush.errors import TrainingError
from codebrush.training.engine.checkpoints import CHECKPOINT, Checkpoints
from codebrush.training.engine.ema import EMA
from codebrush.training.engine.fabric import Fabric, launch, lost_processes_named
from codebrush.training.engine.sharded_files import contents, read_parts
from codebrush.training.engine.sharding import shard
from codebrush.training.stage import Materials

CLOSE = {"rtol": 1e-4, "atol": 1e-6}
USUAL = {"vqgan": 3, "transformer": 3}  # the stages of the usual suite, with their steps
Found = dict[str, dict[str, Tensor]]


class Place:
    """A folder of runs, what they are trained with, and runs of a single process to compare with."""

    def __init__(self, folder: Path, data: Path, cache: Path, processes: ForkServerContext):
        self.folder, self.processes = folder, processes
        self.given = (str(folder), str(data), str(cache))
        self.materials = small_materials(data, folder / "cache")
        self.single: Found = {}

    def run(self, count: int, work: Any, *given: Any) -> list[int | None]:
        """How each of `count` processes ends that call `work` with a `Runs`."""
        return run_together(self.processes, count, start, self.given, count, work, given, seconds=600)

    def alone(self, stage: str, parts: int, **more: Any) -> dict[str, Tensor]:
        """What a single process comes to that cuts each step into as many parts."""
        name = f"alone-{stage}-{parts}-{more.get('steps', 4)}"
        if name not in self.single:
            self.single[name] = train(stage, self.materials, self.folder / name, accumulate=parts, **more)
        return self.single[name]

    def found(self, name: str) -> Found:
        return torch.load(self.folder / name)


class Runs:
    """What a process of several trains with."""

    def __init__(self, rank: int, folder: Path, count: int, materials: Materials):
        self.rank, self.folder, self.count, self.materials = rank, folder, count, materials
        self.found: Found = {}

    def train(self, stage: str, name: str = "", strategy: str = "fsdp", **given: Any) -> dict[str, Tensor]:
        folder = self.folder / (name or stage)
        return train(stage, self.materials, folder, strategy=strategy, devices=self.count, **given)

    def keep(self, name: str) -> None:
        if self.rank == 0:
            torch.save(self.found, self.folder / name)

    def copy(self, name: str, *others: str) -> None:
        """Copy a run, once it is there."""
        torch.distributed.barrier()
        if self.rank == 0:
            for other in others:
                shutil.copytree(self.folder / name, self.folder / other)
        torch.distributed.barrier()


def start(rank: int, given: tuple[str, str, str], count: int, work: Any, more: tuple[Any, ...]) -> None:
    folder, data, cache = map(Path, given)
    datasets.config.HF_DATASETS_CACHE = cache
    work(Runs(rank, folder, count, small_materials(data, folder / "cache")), *more)


@pytest.fixture(scope="module")
def place(
    tmp_path_factory: pytest.TempPathFactory, shapes: Path, processes: ForkServerContext, datasets_cache: Path
) -> Place:
    return Place(tmp_path_factory.mktemp("sharded"), shapes, datasets_cache, processes)


def each_stage(runs: Runs) -> None:
    for stage in RECIPES:
        runs.found[stage] = runs.train(stage, f"{stage}-{runs.count}")
    runs.keep(f"stages-{runs.count}.pt")


def begin_and_go_on(runs: Runs, stage: str, steps: int = 4) -> None:
    """A run that is stopped and goes on, with copies of what was there when it was stopped."""
    runs.train(stage, f"{stage}-begun", stop_after=2, steps=steps)
    runs.copy(f"{stage}-begun", *(f"{stage}-{after}" for after in ("alone", "three", "ddp")))
    runs.found[stage] = runs.train(stage, f"{stage}-begun", steps=steps)


def with_two(runs: Runs) -> None:
    """Runs of two processes that are stopped and go on, and that are left alone; and hosts that share no folder."""
    for stage, steps in USUAL.items():
        begin_and_go_on(runs, stage, steps)
        runs.found[f"{stage} whole"] = runs.train(stage, steps=steps)
    runs.keep("two.pt")
    on_hosts_without_a_shared_folder(runs)


def with_two_more(runs: Runs) -> None:
    """The other stages; runs of two processes that go on with another strategy; in parts; with a codebook in use."""
    for stage in sorted(RECIPES.keys() - USUAL.keys()):
        begin_and_go_on(runs, stage)
    runs.found["to ddp"] = runs.train("clip", "clip-ddp", "ddp")
    runs.train("clip", "clip-fsdp", "ddp", stop_after=2)
    runs.found["to fsdp"] = runs.train("clip", "clip-fsdp")
    for stage in ("clip", "transformer"):
        saving = {"accumulate": 2, "checkpoint_activations": True}
        runs.found[f"{stage} in parts"] = runs.train(stage, f"{stage}-parts", **saving)
    for strategy in ("ddp", "fsdp"):
        recipe = replace(VQGAN, codebook_size=64)
        runs.found[f"codes {strategy}"] = runs.train("vqgan", f"codes-{strategy}", strategy, recipe=recipe)
    runs.keep("more.pt")


@pytest.fixture(scope="module")
def two(place: Place) -> Found:
    assert place.run(2, with_two) == [0, 0]
    return place.found("two.pt")


@pytest.fixture(scope="module")
def more(place: Place) -> Found:
    assert place.run(2, with_two_more) == [0, 0]
    return place.found("more.pt")


def come_to_what_one_comes_to(stage: str, place: Place, found: Found, steps: int = 4) -> None:
    alone = place.alone(stage, parts_of(stage, 2), steps=steps)
    torch.testing.assert_close(found[stage], alone, **CLOSE)
    # begun with two, and gone on with alone, where nothing is spread
    given = {"accumulate": parts_of(stage, 2), "strategy": "fsdp", "steps": steps}
    resumed = train(stage, place.materials, place.folder / f"{stage}-alone", **given)
    assert (place.folder / f"{stage}-alone" / CHECKPOINT).is_file()
    torch.testing.assert_close(resumed, alone, **CLOSE)


@pytest.mark.parametrize("stage", sorted(USUAL))
def test_two_processes_with_sharded_weights_come_to_what_one_comes_to(stage: str, place: Place, two: Found):
    come_to_what_one_comes_to(stage, place, two, USUAL[stage])


@pytest.mark.long
@pytest.mark.parametrize("stage", sorted(RECIPES.keys() - USUAL.keys()))
def test_the_other_stages_come_to_what_one_process_comes_to(stage: str, place: Place, more: Found):
    come_to_what_one_comes_to(stage, place, more)


@pytest.mark.parametrize("stage", sorted(USUAL))
def test_a_run_that_was_stopped_ends_at_the_same_bits(stage: str, two: Found):
    whole = two[f"{stage} whole"]
    assert [name for name, value in two[stage].items() if not value.equal(whole[name])] == []
    assert whole


class OtherHost:
    """The fabric of a process for which the folder `first` of the first one lies at `here`, as on a host that does not
    share it."""

    def __init__(self, fabric: Fabric, first: Path, here: Path):
        self.fabric, self.first, self.here = fabric, str(first), str(here)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.fabric, name)

    def broadcast(self, value: Any) -> Any:
        value = self.fabric.broadcast(value)
        return value.replace(self.first, self.here) if isinstance(value, str) else value


def on_hosts_without_a_shared_folder(runs: Runs) -> None:
    """Nothing is written or read there, and the checkpoint that was whole stays."""
    first, here = runs.folder / "hosts-0", runs.folder / f"hosts-{runs.rank}"
    here.mkdir()
    fabric: Any = launch(replace(LOOP, strategy="fsdp", devices=runs.count))
    for sharded in (True, False):
        network = nn.Linear(4, 4)
        optimizer = torch.optim.SGD(network.parameters())
        order = shard(network, optimizer, fabric.device) if sharded else []
        given = ({"net": network}, {"net": optimizer}, {"net": order}, EMA(network, 0.5))
        shared = Checkpoints(first, fabric, *given)
        shared.save(1, [])
        apart = Checkpoints(here, OtherHost(fabric, first, here), *given)  # pyright: ignore[reportArgumentType]
        if sharded:
            apart.save(1, [])  # of this very step: nothing to write, whatever the others see
            with pytest.raises(TrainingError, match=r"do not see the same folder: let .*/hosts-\d lie in one that all"):
                apart.save(2, [])
        with pytest.raises(TrainingError, match="do not see the same folder"):
            apart.load()
        assert shared.load() == (1, [])
        fabric.barrier()
        left = [["checkpoint-0000001" if sharded else CHECKPOINT], []]
        assert os.listdir(here) == left[runs.rank]


@pytest.mark.long
def test_a_codebook_in_use_is_that_of_processes_with_whole_weights(place: Place, more: Found):
    assert more["codes fsdp"]["step 2 code_distance"] > 0
    torch.testing.assert_close(more["codes fsdp"], more["codes ddp"], **CLOSE)
    assert len([*(place.folder / "codes-fsdp").glob("previews/*.png")]) == 1


@pytest.mark.long
def test_steps_in_parts_and_blocks_that_are_computed_again_change_nothing(place: Place, more: Found):
    torch.testing.assert_close(more["clip in parts"], place.alone("clip", 1), **CLOSE)
    torch.testing.assert_close(more["transformer in parts"], place.alone("transformer", 4), **CLOSE)


@pytest.mark.long
def test_a_run_goes_on_with_another_strategy(place: Place, more: Found):
    for name, kept in (("to ddp", CHECKPOINT), ("to fsdp", "checkpoint-0000004")):
        torch.testing.assert_close(more[name], place.alone("clip", 1), **CLOSE)
        assert [path.name for path in (place.folder / name.replace("to ", "clip-")).glob("check*")] == [kept]


@pytest.mark.parametrize("file", [".metadata", "__1_0.distcp"])
def test_a_damaged_checkpoint_is_one_line_and_nothing_of_it_is_executed(
    file: str, place: Place, two: Found, tmp_path: Path
):
    run = tmp_path / "run"
    shutil.copytree(place.folder / "transformer-three", run)
    path = run / "checkpoint-0000002" / file
    assert len(contents(path.parent)) > 50
    path.write_bytes(pickle.dumps(Runner(tmp_path / "ran")) if file == ".metadata" else path.read_bytes()[:100])
    with pytest.raises(
        TrainingError, match=r"checkpoint-0000002 cannot be read \(.*delete it to start the stage"
    ) as caught:
        train("transformer", place.materials, run)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "ran").exists()


def test_a_damaged_file_beside_a_whole_folder_is_named(place: Place, two: Found, tmp_path: Path):
    run = tmp_path / "run"
    shutil.copytree(place.folder / "transformer-three", run)
    (run / CHECKPOINT).write_bytes(b"PK")
    with pytest.raises(
        TrainingError, match=r"checkpoint\.pt cannot be read \(.*delete it to go on from checkpoint-0000002$"
    ):
        train("transformer", place.materials, run)


class Runner:
    """Makes a folder when it is read by pickle."""

    def __init__(self, folder: Path):
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.folder),)


def go_on_with_three(runs: Runs) -> None:
    for stage in RECIPES:
        runs.found[stage] = runs.train(stage, f"{stage}-three")
    runs.keep("three.pt")


@pytest.mark.long
def test_a_run_of_two_processes_goes_on_with_three(place: Place, two: Found, more: Found):
    """Of their two first steps the random numbers are those of two parts, so only losses without any are compared."""
    assert place.run(3, go_on_with_three) == [0, 0, 0]
    found = place.found("three.pt")
    torch.testing.assert_close(found["clip"], place.alone("clip", 1), **CLOSE)
    for stage, values in found.items():
        assert values["step 4 " + f"{stage}_loss"].isfinite()


@pytest.mark.long
def test_four_processes_come_to_what_one_comes_to(place: Place):
    assert place.run(4, each_stage) == [0] * 4
    for stage, values in place.found("stages-4.pt").items():
        torch.testing.assert_close(values, place.alone(stage, parts_of(stage, 4)), **CLOSE)


KILLED = {"update": 1, "write": 0, "rename": 0}  # the moment, and which process is killed then


def killed(runs: Runs, moment: str) -> None:
    """A process that is killed: the second at the fourth update, when two steps are saved; or the first while it
    writes its part of the second checkpoint; or when all parts are written, and about to get their name."""
    happened = 0

    def count(*_: Any) -> None:
        nonlocal happened
        happened += 1
        if happened == (4 if moment == "update" else 2):
            os.kill(os.getpid(), signal.SIGKILL)

    if moment == "update" and runs.rank == 1:
        register_optimizer_step_post_hook(count)
    event, path = {"update": ("", ""), "write": ("open", "/__0_0."), "rename": ("os.rename", "/checkpoint-")}[moment]
    if event and runs.rank == 0:
        sys.addaudithook(lambda name, given: count() if name == event and path in " ".join(map(str, given)) else None)
    # whatever the one that lives does just then, also when it saves: no full disk, no damaged checkpoint
    with pytest.raises(TrainingError, match="another process of this training"), lost_processes_named():
        runs.train("clip", f"killed-{moment}", checkpoint_every=2, steps=6)


def go_on(runs: Runs) -> None:
    for moment in (*KILLED, "never"):
        runs.found[moment] = runs.train("clip", f"killed-{moment}", checkpoint_every=2, steps=6)
    runs.keep("killed.pt")


@pytest.mark.long
def test_a_killed_run_goes_on_from_a_whole_checkpoint_and_ends_at_the_same_bits(place: Place):
    for moment, who in KILLED.items():
        assert place.run(2, killed, moment) == [-signal.SIGKILL if rank == who else 0 for rank in range(2)]
        (saved,) = (place.folder / f"killed-{moment}").glob("checkpoint*")
        assert saved.name == "checkpoint-0000002"
        step = {"step": torch.tensor(0)}
        read_parts(saved, step)
        assert step["step"] == 2
    assert place.run(2, go_on) == [0, 0]
    found = place.found("killed.pt")
    for moment in KILLED:
        assert all(torch.equal(value, found["never"][name]) for name, value in found[moment].items())
        assert [path.name for path in (place.folder / f"killed-{moment}").glob("check*")] == ["checkpoint-0000006"]
