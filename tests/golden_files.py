"""Checkpoints in published layouts with the outputs that the original code gave for them.

Small ones lie in tests/golden; the others are looked for in ../shared/golden, and what needs them is skipped where
they are missing.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = (ROOT / "tests" / "golden", ROOT.parent / "shared" / "golden")
TOLERANCE = 1e-4


@dataclass(frozen=True)
class Golden:
    """One checkpoint: `weights` is its file or folder, `io` its inputs and outputs, `config` in the origin's words."""

    weights: Path
    io: dict[str, Tensor]
    config: dict[str, Any]

    def acts(self) -> dict[str, Tensor]:
        """The stored intermediate results, by the name of the module that gave them."""
        return {name.removeprefix("act."): value for name, value in self.io.items() if name.startswith("act.")}


def golden(name: str) -> Golden:
    """The checkpoint called `name`; the test is skipped where it is not at hand."""
    for folder in FOLDERS:
        if (folder / f"{name}.json").is_file():
            weights = folder / name if (folder / name).is_dir() else folder / f"{name}.safetensors"
            meta = json.loads((folder / f"{name}.json").read_text())
            assert meta["tolerance"] <= TOLERANCE
            return Golden(weights, load_file(folder / f"{name}.io.safetensors"), meta["config"])
    pytest.skip(f"needs shared/golden/{name} beside the checkout")


def close(found: Tensor, expected: Tensor, what: str = "") -> None:
    """Equal shapes, and values within the tolerance."""
    assert found.shape == expected.shape, f"{what}: {tuple(found.shape)} and not {tuple(expected.shape)}"
    worst = (found.double() - expected.double()).abs().max().item()
    assert worst <= TOLERANCE, f"{what}: off by {worst:.2e}"


@contextmanager
def recorded(model: nn.Module, names: Mapping[str, str]) -> Iterator[dict[str, Tensor]]:
    """What the modules of `names` (published name -> ours) put out while the block runs, the last call counting."""
    found: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[..., None]:
        return lambda _, __, output: found.__setitem__(name, output.detach())

    modules = {name: model.get_submodule(ours) for name, ours in names.items()}
    handles = [module.register_forward_hook(keep(name)) for name, module in modules.items()]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def check_acts(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Each stored result against ours. Stored are batch item 0 and often the first channels alone; ours leaves out
    what nobody reads, like tokens after the end."""
    assert found.keys() == expected.keys(), f"never ran: {sorted(expected.keys() - found.keys())}"
    for name, value in expected.items():
        ours = found[name]
        if ours.ndim == 3 and value.ndim == 3 and value.shape[1] == 1 != value.shape[0]:
            value = value.transpose(0, 1)  # the original puts tokens before the batch
        if ours.ndim == 2 and value.ndim == 3:
            value = value[:, 0]  # of all tokens ours has normed the class token alone
        assert ours.ndim == value.ndim, name
        part = tuple(slice(0, min(pair)) for pair in zip(ours.shape, value.shape, strict=True))
        close(ours[part], value[part], name)


def both_batches(run: Callable[[slice], None]) -> None:
    """`run` for the whole batch and for its first row alone."""
    with torch.no_grad():
        run(slice(None))
        run(slice(0, 1))
