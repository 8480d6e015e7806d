"""A pack and a device in; what a picture's manifest says of them out, and whether another machine's says the same."""

import operator
import platform
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from codebrush.errors import ImageError, PackError
from codebrush.pack.pack import Pack
from codebrush.version import __version__

MOST_THREADS = 1024
REPLAYED = ("sample", "retrieve", "guide", "vary", "edit", "inpaint", "translate")  # methods


def origin(pack: Pack, device: torch.device) -> dict[str, Any]:
    """All beside the request that the pixels depend on."""
    return {
        "pack": {"name": pack.name, "source": pack.source, "hash": pack.hash},
        "versions": versions(),
        "device": describe(device),
        "threads": torch.get_num_threads(),
    }


def check_method(manifest: Mapping[str, Any]) -> None:
    """Raises ImageError where a picture was made in a way that is not done again from its manifest."""
    if (method := manifest.get("method")) not in REPLAYED:
        raise ImageError(f"the picture was made by the method {method!r}, which cannot be replayed")


def check_origin(manifest: Mapping[str, Any], pack: Pack, device: torch.device) -> None:
    """Raises PackError where a manifest names another pack; warns where the machine or a version differs."""
    theirs = manifest["pack"]
    if theirs.get("hash") != pack.hash:
        made_with = f"'{theirs.get('name')}' ({str(theirs.get('hash'))[:12]})"
        here = f"'{pack.name}' ({pack.hash[:12]})"
        raise PackError(f"made with the pack {made_with}, and this is {here}: open the one it was made with")
    now = {**versions(), "device": describe(device)}
    then = {**manifest["versions"], "device": manifest.get("device")}
    changed = [f"{name} {then.get(name)}, now {now[name]}" for name in now if then.get(name) != now[name]]
    if changed:
        warnings.warn(f"the pixels may differ; it was made with {'; '.join(changed)}", stacklevel=4)


def read_origin(manifest: Mapping[str, Any], pictures: int) -> tuple[int, int]:
    """The index among `pictures` and the number of threads. Raises ImageError where a manifest is damaged."""
    try:
        index, threads = operator.index(manifest["index"]), operator.index(manifest["threads"])
        if index not in range(pictures) or threads not in range(1, MOST_THREADS + 1):
            raise ValueError(f"index {index}, threads {threads}")
        if not all(isinstance(manifest[name], kind) for name, kind in _KINDS.items()):
            raise TypeError("a field of the wrong kind")
    except (KeyError, TypeError, ValueError) as error:
        raise damaged(error) from error
    return index, threads


def damaged(error: Exception) -> ImageError:
    """The one line for a manifest that cannot be read."""
    return ImageError(f"the picture's manifest is damaged ({type(error).__name__}: {error})")


_KINDS = {"prompt": str, "pack": Mapping, "versions": Mapping}


def describe(device: torch.device) -> str:
    """The device as far as its rounding depends on it."""
    if device.type == "cuda":
        return f"cuda ({torch.cuda.get_device_name(device)})"
    return f"{device.type} ({torch.backends.cpu.get_cpu_capability()})"


def versions() -> dict[str, str]:
    """Of what computes the pixels."""
    return {
        "codebrush": __version__,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
    }


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """So many threads of PyTorch's on a CPU while it lasts: sums are rounded in an order that depends on them."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
