"""Checkpoint files for the tests to read: state dicts, a module as TorchScript, archives with other entries."""

import zipfile
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from codebrush.conversion.checkpoints import read_checkpoint
from codebrush.errors import PackError


def state_dict() -> dict[str, Tensor]:
    torch.manual_seed(0)
    return {
        "stem.weight": torch.randn(4, 3),
        "stem.bias": torch.randn(4).half(),
        "head.weight": torch.randn(2, 4).bfloat16(),
        "head.steps": torch.tensor(7),
        "empty": torch.empty(0, 4),
    }


def assert_equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert list(found) == list(expected)
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        assert not found[name].requires_grad
        assert torch.equal(found[name], tensor), name


def refusal(path: Path) -> str:
    """The one line with which a file is refused; it always names the file."""
    with pytest.raises(PackError) as caught:
        read_checkpoint(path)
    line = str(caught.value)
    assert "\n" not in line
    assert str(path) in line or str(path.parent) in line
    return line


class Tower(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(3, width)
        self.layers = nn.ModuleList([nn.Linear(width, width), nn.BatchNorm1d(width)])
        self.register_buffer("scale", torch.full((width,), 0.5))
        self.mask = torch.zeros(width)  # neither a parameter nor a buffer: no part of the state dict

    def forward(self, x: Tensor) -> Tensor:
        x = self.linear(x) * self.scale + self.mask.to(x.dtype)
        for layer in self.layers:
            x = layer(x)
        return x


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.visual = Tower(4)
        self.text = Tower(4).half()
        self.logit_scale = nn.Parameter(torch.tensor(4.6))
        self.register_buffer("context_length", torch.tensor(77))
        self.turned = nn.Parameter(torch.arange(12.0).reshape(3, 4).T)
        self.input_resolution = 224
        self.names = ["a", "b"]

    def forward(self, x: Tensor) -> Tensor:
        y = self.visual(x) + self.text(x.half()).float() + self.turned.sum() + self.context_length
        return y * self.logit_scale.exp() * self.input_resolution


def pair() -> Pair:
    torch.manual_seed(0)
    return Pair().eval()


def save_script(path: Path, how: str = "script") -> Path:
    module = pair()
    script = torch.jit.script(module) if how == "script" else torch.jit.trace(module, torch.ones(2, 3))
    torch.jit.save(script, str(path))
    return path


def rewrite(path: Path, changes: Mapping[str, bytes | None], compress: bool = False) -> None:
    """Replace entries (by their names below the root), take those out that are None, add those that are new."""
    with zipfile.ZipFile(path) as archive:
        entries = {entry.filename: (archive.read(entry), entry.compress_type) for entry in archive.infolist()}
    root = next(iter(entries)).partition("/")[0]
    for name, content in changes.items():
        if content is None:
            del entries[f"{root}/{name}"]
        else:
            entries[f"{root}/{name}"] = (content, zipfile.ZIP_STORED)
    with zipfile.ZipFile(path, "w") as archive:
        for name, (content, kind) in entries.items():
            archive.writestr(name, content, zipfile.ZIP_DEFLATED if compress else kind)


def mark_as_folder(path: Path, name: str) -> None:
    """Set the bit of an entry's attributes that says it is a folder; its contents stay."""
    content = bytearray(path.read_bytes())
    place = -1
    while (place := content.find(b"PK\x01\x02", place + 1)) >= 0:
        length = int.from_bytes(content[place + 28 : place + 30], "little")
        if content[place + 46 : place + 46 + length].endswith(f"/{name}".encode()):
            content[place + 38] |= 0x10
    path.write_bytes(content)
