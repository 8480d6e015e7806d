"""What the pixels of a picture depend on beside the request: the pack, the versions, the device and the threads.

Every manifest holds it, and a replay checks it.
"""

import platform
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from codebrush.errors import PackError
from codebrush.pack.pack import Pack
from codebrush.version import __version__
from codebrush.warned import warn

NOT_PROMISED = {"device": "machines"}  # else "versions of" what the manifest names; docs/determinism.md says so


def origin(pack: Pack, device: torch.device) -> dict[str, Any]:
    """Everything beside the request that the pixels depend on."""
    return {
        "pack": {"name": pack.name, "source": pack.source, "hash": pack.hash},
        "versions": versions(),
        "device": device_name(device),
        "threads": torch.get_num_threads(),
    }


def device_name(device: torch.device) -> str:
    """The device as far as its rounding depends on it."""
    if device.type == "cuda":
        return f"cuda ({torch.cuda.get_device_name(device)})"
    return f"{device.type} ({torch.backends.cpu.get_cpu_capability()})"


def versions() -> dict[str, str]:
    """The versions of what computes the pixels."""
    return {
        "codebrush": __version__,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
    }


def check_origin(manifest: Mapping[str, Any], pack: Pack, device: torch.device) -> None:
    """Raises PackError if a manifest names another pack; warns if the device or a version differs."""
    theirs = manifest["pack"]
    if theirs.get("hash") != pack.hash:
        made_with = f"'{theirs.get('name')}' ({str(theirs.get('hash'))[:12]})"
        here = f"'{pack.name}' ({pack.hash[:12]})"
        raise PackError(f"made with the pack {made_with}, but this is {here}: open the one it was made with")
    now = {**versions(), "device": device_name(device)}
    then = {**manifest["versions"], "device": manifest.get("device")}
    changed = [name for name in now if then.get(name) != now[name]]
    if changed:
        made = "; ".join(f"{name} {then.get(name)}, now {now[name]}" for name in changed)
        over = " and ".join(NOT_PROMISED.get(name, f"versions of {name}") for name in changed)
        warn(
            f"the pixels may differ; it was made with {made}: the same pixels are not promised over {over} "
            "(docs/determinism.md)"
        )


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Let PyTorch use `count` CPU threads inside the block: the order in which it adds, and rounds, depends on them."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
