"""Checkpoints of a run: a file where each process has all weights, a folder with a file of each process where they are
sharded. Each kind can be read whatever the strategy and the number of processes."""

import re
import shutil
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from codebrush.errors import TrainingError, first_line, lacks_memory
from codebrush.files import atomic_file, new_folder, set_aside
from codebrush.models.pretrained import PretrainedModel
from codebrush.training.engine.ema import EMA
from codebrush.training.engine.fabric import Fabric, gathered, tells_of_a_lost_process
from codebrush.training.engine.sharded_files import contents, missing_parts, read_parts, write_parts
from codebrush.training.engine.sharding import fill, is_sharded

CHECKPOINT = "checkpoint.pt"
PARTS = re.compile(r"checkpoint-(\d{7,})")  # the folder of a sharded one, with its step
ELSEWHERE = "the processes do not see the same folder: let {folder} lie in one that all hosts share"


class Checkpoints:
    """Saves and restores networks, optimizers and the average of the first network, in `folder`.

    Of the checkpoints there the one of the latest step counts; the others are removed once it is complete.
    """

    def __init__(
        self,
        folder: Path,
        fabric: Fabric,
        networks: Mapping[str, nn.Module],
        optimizers: Mapping[str, Any],
        orders: Mapping[str, list[str]],
        ema: EMA,
    ):
        """`orders` are the names of the weights as optimizers with whole weights number them."""
        self.folder, self.fabric, self.ema = folder, fabric, ema
        self.networks, self.optimizers, self.orders = networks, optimizers, orders
        self.sharded = any(is_sharded(weight) for network in networks.values() for weight in network.parameters())

    @property
    def latest(self) -> Path:
        """The checkpoint that a run would go on from; CHECKPOINT if there is none yet. Raises TrainingError if the file
        beside a folder cannot be read."""
        path, folders = self.folder / CHECKPOINT, self._folders()
        if not folders:
            return path
        step, newest = max(folders)
        try:
            both = path.is_file() and torch.load(path, map_location="cpu", weights_only=True, mmap=True)["step"] >= step
        except Exception as error:  # a truncated archive can raise nearly anything
            raise TrainingError(
                f"{path} cannot be read ({first_line(error)}): delete it to go on from {newest.name}"
            ) from error
        return path if both else newest

    def save(self, step: int, left_out: list[int]) -> None:
        """Write a checkpoint, which then takes the place of the old one; all processes must call this, and the path of
        the first counts. Raises TrainingError if it cannot be written."""
        path = self.folder / (f"checkpoint-{step:07d}" if self.sharded else CHECKPOINT)
        try:
            if self.sharded:
                self._save_parts(path, step, left_out)
            else:
                self._save_whole(path, step, left_out)
            if self.fabric.is_global_zero:
                self._remove_others(path)
        except (OSError, RuntimeError) as error:  # the archive writer reports a full disk as a RuntimeError
            if tells_of_a_lost_process(error):
                raise
            raise TrainingError(
                f"{path} cannot be written ({first_line(error)}): free space there, then resume"
            ) from error

    def load(self) -> tuple[int, list[int]] | None:
        """Go on from the latest checkpoint of the first process: its step and the steps left out; None if there is
        none. Raises TrainingError, in every process, if one does not see it; and if it cannot be read."""
        if self.sharded:
            self._check_one_folder()
        first = self.latest if self.fabric.is_global_zero else Path()
        name, found = self.fabric.broadcast((first.name, first.exists()))
        if not found:
            return None
        path = self.folder / name
        if not all(gathered(path.exists())):
            raise TrainingError(ELSEWHERE.format(folder=self.folder))
        try:
            return self._load_parts(path) if path.is_dir() else self._load_whole(path)
        except Exception as error:  # a truncated archive can raise nearly anything
            if lacks_memory(error) or tells_of_a_lost_process(error):
                raise
            raise TrainingError(
                f"{path} cannot be read ({first_line(error)}): delete it to start the stage again"
            ) from error

    def _folders(self) -> list[tuple[int, Path]]:
        found = ((PARTS.fullmatch(path.name), path) for path in self.folder.glob("checkpoint-*"))
        return [(int(match[1]), path) for match, path in found if match]

    def _check_one_folder(self) -> None:
        """Raises TrainingError, in every process, if one does not see what the first writes into its folder."""
        with ExitStack() as held:
            path = None
            if self.fabric.is_global_zero and self.folder.is_dir():
                path = held.enter_context(tempfile.NamedTemporaryFile(dir=self.folder.absolute(), prefix=".seen.")).name
            path = self.fabric.broadcast(path)
            if path is not None and not all(gathered(Path(path).exists())):
                raise TrainingError(ELSEWHERE.format(folder=Path(path).parent))

    def _remove_others(self, path: Path) -> None:
        for _, other in self._folders():
            if other != path:
                shutil.rmtree(set_aside(other), ignore_errors=True)
        if self.sharded:
            (self.folder / CHECKPOINT).unlink(missing_ok=True)

    def _save_whole(self, path: Path, step: int, left_out: list[int]) -> None:
        state: dict[str, Any] = {"step": step, "ema": self.ema.values, "left_out": left_out}
        for name in self.networks:
            state[f"network.{name}"] = self.networks[name]
            state[f"optimizer.{name}"] = self.optimizers[name]
            if self.fabric.world_size > 1:
                state[f"own.{name}"] = self._own_of_all(name)
        with atomic_file(path) if self.fabric.is_global_zero else nullcontext(path) as part:
            self.fabric.save(part, state)

    def _load_whole(self, path: Path) -> tuple[int, list[int]]:
        if self.sharded:
            rest = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            for name in self.networks:
                self._spread(name, rest[f"network.{name}"], rest[f"optimizer.{name}"]["state"])
        else:
            state: dict[str, Any] = {}
            for name in self.networks:
                state[f"network.{name}"] = self.networks[name]
                state[f"optimizer.{name}"] = self.optimizers[name]
            rest = self.fabric.load(path, state, weights_only=True)
        first = next(iter(self.networks.values()))
        self.ema.load(first.present_names(rest["ema"]) if isinstance(first, PretrainedModel) else rest["ema"])
        for name in self.networks:
            alone = {key: value[None] for key, value in self._own(name).items()}  # saved by a single process
            self._take_own(name, rest.get(f"own.{name}", alone))
        return int(rest["step"]), list(rest.get("left_out", ()))

    def _spread(self, name: str, values: Mapping[str, Tensor], moments: Mapping[int, Mapping[str, Any]]) -> None:
        """Take this process's parts of what a network and its optimizer were when they were whole."""
        network = self.networks[name]
        values = network.present_names(values) if isinstance(network, PretrainedModel) else values
        shared, weights, order = self._shared(name), dict(network.named_parameters()), self.orders[name]
        for key, value in shared.items():
            fill(value, values[key])
        network.load_state_dict({key: value for key, value in values.items() if key not in shared}, strict=False)
        found: dict[str, dict[str, Any]] = {}
        for number, each in moments.items():
            found[order[number]] = dict(each)
            for what, value in each.items():
                if isinstance(value, Tensor):
                    made = _made(weights[order[number]], value.shape, value.dtype)
                    fill(made, value)
                    found[order[number]][what] = made
        self._take_moments(name, found)

    def _save_parts(self, path: Path, step: int, left_out: list[int]) -> None:
        if self.fabric.broadcast(path.is_dir()):
            return  # this very state, saved a moment ago
        state = {"step": torch.tensor(step), "left_out": torch.tensor(left_out, dtype=torch.int64)}
        state |= {f"ema.{key}": value for key, value in self.ema.values.items()}
        for name in self.networks:
            state |= {f"network.{name}.{key}": value for key, value in self._shared(name).items()}
            state |= {f"own.{name}.{key}": value for key, value in self._own_of_all(name).items()}
            order = self._order(name)
            for number, moments in self.optimizers[name].state_dict()["state"].items():
                for what, value in moments.items():
                    if isinstance(value, Tensor):
                        state[f"optimizer.{name}.{order[number]}.{what}"] = value
        with new_folder(path) if self.fabric.is_global_zero else nullcontext(path) as part:
            part = Path(self.fabric.broadcast(str(part)))
            write_parts(part, state)
            if self.fabric.broadcast(self.fabric.is_global_zero and missing_parts(part)):
                shutil.rmtree(part, ignore_errors=True)  # each process what it wrote
                raise TrainingError(ELSEWHERE.format(folder=path.parent))

    def _load_parts(self, path: Path) -> tuple[int, list[int]]:
        known = contents(path)
        state = {name: torch.empty(known[name].size, dtype=known[name].dtype) for name in ("step", "left_out")}
        state |= {f"ema.{key}": value for key, value in self.ema.values.items()}
        own: dict[str, dict[str, Tensor]] = {name: {} for name in self.networks}
        moments: dict[str, dict[str, dict[str, Tensor]]] = {name: {} for name in self.networks}
        for name, network in self.networks.items():
            state |= {f"network.{name}.{key}": value for key, value in self._shared(name).items()}
            weights = dict(network.named_parameters())
            for full, (size, dtype) in known.items():
                if full.startswith(f"own.{name}."):
                    key = full.removeprefix(f"own.{name}.")
                    state[full] = own[name][key] = torch.empty(size, dtype=dtype)
                elif full.startswith(f"optimizer.{name}."):
                    key, _, what = full.removeprefix(f"optimizer.{name}.").rpartition(".")
                    state[full] = moments[name].setdefault(key, {})[what] = _made(weights[key], size, dtype)
        read_parts(path, state)
        for name in self.networks:
            self._take_moments(name, moments[name])
            self._take_own(name, own[name])
        return int(state["step"]), state["left_out"].tolist()

    def _shared(self, name: str) -> dict[str, Tensor]:
        """The parameters and buffers in a network's state, which are the same in each process."""
        own = self._own(name)
        return {key: value for key, value in self.networks[name].state_dict().items() if key not in own}

    def _own(self, name: str) -> dict[str, Tensor]:
        """What a network's state holds beside parameters and buffers: rows (n, ...), other ones in each process."""
        network = self.networks[name]
        weights = (network.named_parameters, network.named_buffers)
        shared = {key for named in weights for key, _ in named(remove_duplicate=False)}
        return {key: value for key, value in network.state_dict().items() if key not in shared}

    def _own_of_all(self, name: str) -> dict[str, Tensor]:
        """The rows of all processes, (processes, n, ...) each."""
        return {key: self.fabric.all_gather(value) for key, value in self._own(name).items()}  # pyright: ignore

    def _take_own(self, name: str, rows: Mapping[str, Tensor]) -> None:
        own = {key: self._share(value) for key, value in rows.items()}
        if own:
            self.networks[name].load_state_dict(own, strict=False)

    def _share(self, rows: Tensor) -> Tensor:
        """This process's part of rows (processes, n, ...) that were saved by as many processes, or by others."""
        rank, world = self.fabric.global_rank, self.fabric.world_size
        if len(rows) == world:
            return rows[rank]
        joined = rows.flatten(0, 1)
        each = len(joined) // world  # as many in every process, which leaves out fewer than there are processes
        return joined[rank * each : (rank + 1) * each]

    def _order(self, name: str) -> list[str]:
        """The names of a network's weights as its optimizer numbers them now."""
        names = {id(weight): key for key, weight in self.networks[name].named_parameters()}
        return [names[id(weight)] for group in self.optimizers[name].param_groups for weight in group["params"]]

    def _take_moments(self, name: str, moments: Mapping[str, Mapping[str, Any]]) -> None:
        """Let an optimizer go on from what it knew about each weight; its settings stay those of the plan."""
        numbers = {key: number for number, key in enumerate(self._order(name))}
        state = self.optimizers[name].state_dict()
        state["state"] = {numbers[key]: dict(each) for key, each in moments.items()}
        self.optimizers[name].load_state_dict(state)


def _made(weight: Tensor, size: torch.Size, dtype: torch.dtype) -> Tensor:
    """An empty tensor, sharded as `weight` is if it has a number for each of its."""
    return torch.empty_like(weight.detach(), dtype=dtype) if size == weight.shape else torch.empty(size, dtype=dtype)
