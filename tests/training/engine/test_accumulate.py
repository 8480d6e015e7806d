"""`loop.accumulate`: a step in parts has the loss and the gradients of one in a piece, in one process and in two."""

import copy
import json
from collections.abc import Iterator
from dataclasses import replace
from multiprocessing.context import ForkServerContext
from pathlib import Path

import numpy as np
import pytest
import torch
from gloo import run_together
from torch import Tensor, nn

from codebrush.errors import TrainingError
from codebrush.training.dataset import SourceConfig, load_captioned
from codebrush.training.engine.loop import Loop
from codebrush.training.engine.loop_config import LoopConfig
from codebrush.training.engine.recompute import InPieces, keep_all, recompute_blocks
from codebrush.training.engine.rows import ShuffledRows
from codebrush.training.engine.task import Objective
from codebrush.training.recipes import plan_from_dict
from codebrush.training.run_stage import make_network, make_task
from codebrush.training.stage import Materials, StagePlan
from codebrush.training.tasks.augmentation import Augmentation
from codebrush.training.tasks.clip import CLIPRecipe
from packs import micro_tokenizer

LOOP = LoopConfig(
    steps=2, batch_size=8, warmup=1, clip_norm=0.0, ema_decay=0.5, precision="32-true", threads=1, log_every=1,
    checkpoint_every=2, preview_every=0, accelerator="cpu",
)  # fmt: skip
CLIP_RECIPE = CLIPRecipe(
    image_size=16, patch_size=8, width=16, layers=1, heads=2, text_width=16, text_layers=1, text_heads=2, embed_dim=8,
    token_table=False, augmentation=Augmentation(),
)  # fmt: skip
ONE_CAPTION = ("{caption} on {background}",)  # of several, each process would draw another
CLOSE = {"rtol": 1e-5, "atol": 1e-6}


class Squares:
    """Two networks that learn in turn, the second from what the first made; with noise in the rows and dropout if
    asked."""

    def __init__(self, noise: float = 0.0, dropout: float = 0.0):
        torch.manual_seed(0)
        self.noise = noise
        self.networks: dict[str, nn.Module] = {
            "first": nn.Sequential(nn.Linear(1, 8), nn.Tanh(), nn.Dropout(dropout), nn.Linear(8, 1)),
            "second": nn.Linear(1, 1),
        }
        self.optimizers: dict[str, torch.optim.Optimizer] = {
            name: torch.optim.SGD(network.parameters(), lr=0.1) for name, network in self.networks.items()
        }
        self.frozen: list[nn.Module] = []
        self.examples = 24
        self.seen: list[list[int]] = []

    def batch(self, rows: np.ndarray, rng: np.random.Generator) -> dict[str, Tensor]:
        x = torch.from_numpy(rows / 10 + self.noise * rng.standard_normal(len(rows))).float().unsqueeze(1)
        return {"x": x, "rows": torch.from_numpy(rows)}

    def objectives(self, batch: dict[str, Tensor], step: int) -> Iterator[Objective]:
        self.seen.append(sorted(batch["rows"].tolist()))
        made = self.networks["first"](batch["x"])
        yield Objective("first", (made - batch["x"].square()).square().mean(), {"made": made.detach().mean()})
        again = self.networks["second"](made.detach())
        yield Objective("second", (again - batch["x"]).square().mean(), {})

    def preview(self, network: nn.Module) -> None:
        return None


def after(loop: Loop) -> dict[str, Tensor]:
    """The weights and the last gradients of a run, and the values of its log."""
    loop.run()
    if not loop.fabric.is_global_zero:
        return {}
    found = {}
    for name, network in loop.plain.items():
        for key, part in network.named_parameters():
            assert part.grad is not None or not part.requires_grad, key
            found |= {f"{name}.{key}": part.detach().clone()}
            found |= {f"{name}.{key} gradient": part.grad.clone()} if part.grad is not None else {}
    lines = [json.loads(line) for line in (loop.folder / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        del line["steps_per_second"], line["data_wait"]
        found |= {f"step {line['step']} {key}": torch.tensor(value) for key, value in line.items()}
    return found


def squares(folder: Path, noise: float = 0.0, dropout: float = 0.0, **changes) -> dict[str, Tensor]:
    folder.mkdir()
    return after(Loop(Squares(noise, dropout), replace(LOOP, **changes), folder))


def clip(folder: Path, data: Path, loss: str = "softmax", **changes) -> dict[str, Tensor]:
    """What training a CLIP comes to, with gradient descent: Adam divides rounding errors by themselves."""
    folder.mkdir()
    source = SourceConfig(str(data), captions=ONE_CAPTION)
    materials = Materials(load_captioned(source.open(), 16, folder / "cache"), {"clip": micro_tokenizer()})
    plan = StagePlan("clip", replace(CLIP_RECIPE, loss=loss), replace(LOOP, **changes))  # pyright: ignore
    task = make_task(plan, materials, make_network(plan, materials))
    task.optimizers["clip"] = torch.optim.SGD(task.networks["clip"].parameters(), lr=0.1)
    return after(Loop(task, plan.loop, folder))


def test_averages_over_the_parts_are_those_of_the_whole_batch(tmp_path: Path):
    """Also where the batch is drawn at random: the parts are cut of one."""
    whole = squares(tmp_path / "whole", noise=0.3)
    torch.testing.assert_close(squares(tmp_path / "parts", noise=0.3, accumulate=4), whole, **CLOSE)


def test_every_row_of_a_step_is_in_one_of_its_parts(tmp_path: Path):
    task = Squares()
    Loop(task, replace(LOOP, accumulate=4), tmp_path).run()
    assert [len(rows) for rows in task.seen] == [2] * len(task.seen)
    for step in range(2):
        seen = np.concatenate(task.seen[4 * step : 4 * step + 4])
        assert sorted(seen) == sorted(ShuffledRows(24, 8, 0).of_step(step))


@pytest.mark.parametrize("loss", ["softmax", "sigmoid"])
def test_a_clip_that_embeds_in_parts_learns_the_same(loss: str, shapes: Path, tmp_path: Path):
    whole = clip(tmp_path / "whole", shapes, loss)
    torch.testing.assert_close(clip(tmp_path / "parts", shapes, loss, accumulate=4), whole, **CLOSE)


def test_parts_run_again_with_the_same_random_numbers_and_count_once():
    def network() -> nn.Sequential:
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(3, 16), nn.BatchNorm1d(16), nn.Dropout(0.5), nn.Linear(16, 2))

    x, plain, cut = torch.randn(12, 3), network(), network()
    torch.manual_seed(5)
    expected = torch.cat([plain(part) for part in x.split(4)])
    torch.manual_seed(5)
    found = InPieces(cut, 3)(x)
    assert torch.equal(found, expected)
    for made in (found, expected):  # a loss that joins the rows
        torch.manual_seed(6)
        (made @ made.T).logsumexp(1).sum().backward()
    for (name, ours), theirs in zip(cut.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-5, atol=1e-6, msg=name)
    torch.testing.assert_close(dict(cut.named_buffers()), dict(plain.named_buffers()))


class Watched(nn.Module):
    """A network of two blocks that notes how many rows each reads."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(3, 3), nn.Tanh()) for _ in range(2))
        self.read: list[int] = []
        for block in self.blocks:
            block.register_forward_hook(lambda _, given, made: self.read.append(len(given[0])))
            block[0].register_forward_hook(lambda _, given, made: self.read.append(-len(given[0])))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x


def test_parts_and_blocks_are_run_twice():
    network = Watched()
    InPieces(network, 4)(torch.randn(8, 3)).square().sum().backward()
    assert network.read == [-2, 2, -2, 2] * 4 + [-2, 2, -2] * 4  # what comes last is not needed again

    network = Watched()
    recompute_blocks(network)
    network(torch.randn(8, 3)).square().sum().backward()
    assert network.read == [-8, 8, -8, 8, -8, -8]  # again from what goes into a block

    copied = keep_all(copy.deepcopy(network))
    copied(torch.randn(8, 3)).square().sum().backward()
    assert len(network.read) == 10  # the hooks are shared; nothing is run twice
    assert not torch.equal(next(copied.parameters()).grad, next(network.parameters()).grad)


def test_a_batch_that_cannot_be_cut_is_refused():
    loop = {"steps": 5, "batch_size": 8, "accumulate": 3}
    with pytest.raises(TrainingError, match=r"loop\.batch_size must divide by .* loop\.accumulate"):
        plan_from_dict({"stage": "clip", "loop": loop}, "clip.yaml")


def two(rank: int, folder: str, data: str) -> None:
    place = Path(folder)
    cases = {
        "noisy": squares(place / f"noisy-{rank}", dropout=0.5, devices=2),
        "squares": squares(place / f"squares-{rank}", devices=2, accumulate=2),
        "clip": clip(place / f"clip-{rank}", Path(data), devices=2, accumulate=2),
    }
    if rank == 0:
        torch.save(cases, place / "found.pt")


def test_two_processes_come_to_what_one_comes_to(shapes: Path, tmp_path: Path, processes: ForkServerContext):
    assert run_together(processes, 2, two, str(tmp_path), str(shapes)) == [0, 0]
    found = torch.load(tmp_path / "found.pt")
    # the networks of two parts draw the random numbers of those of two processes
    torch.testing.assert_close(found["noisy"], squares(tmp_path / "noisy", dropout=0.5, accumulate=2), **CLOSE)
    torch.testing.assert_close(found["squares"], squares(tmp_path / "squares"), **CLOSE)
    whole = clip(tmp_path / "clip", shapes)
    for line in (1, 2):  # among the texts of its own process
        del whole[f"step {line} accuracy"], found["clip"][f"step {line} accuracy"]
    torch.testing.assert_close(found["clip"], whole, **CLOSE)


def begin(rank: int, folder: str) -> None:
    loop = Loop(Squares(), replace(LOOP, batch_size=12, devices=2, stop_after=1), Path(folder))
    loop.run()


def end(rank: int, folder: str, processes: int) -> None:
    found = after(Loop(Squares(), replace(LOOP, batch_size=12, devices=processes), Path(folder)))
    if rank == 0:
        torch.save(found, f"{folder}/found.pt")


@pytest.mark.long
@pytest.mark.parametrize("count", [1, 3])
def test_a_run_of_two_processes_goes_on_with_others(count: int, tmp_path: Path, processes: ForkServerContext):
    (tmp_path / "run").mkdir()
    assert run_together(processes, 2, begin, str(tmp_path / "run")) == [0, 0]
    assert run_together(processes, count, end, str(tmp_path / "run"), count) == [0] * count
    whole = squares(tmp_path / "whole", batch_size=12)
    torch.testing.assert_close(torch.load(tmp_path / "run" / "found.pt"), whole, **CLOSE)
