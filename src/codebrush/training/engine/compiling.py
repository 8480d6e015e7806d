"""Compiling networks with `torch.compile` for the training loop."""

import os
import shutil
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn

from codebrush.errors import TrainingError, first_line

ELF = b"\x7fELF"
SECTIONS = struct.Struct(
    "<Q10xHH"
)  # of an ELF header, from byte 40: where its list of sections is, and their size and number


def has_compiler() -> bool:
    """Whether the C++ compiler that `torch.compile` calls on a CPU is there."""
    return shutil.which(os.environ.get("CXX", "g++")) is not None


def check_compiler(device: torch.device) -> None:
    """Raises TrainingError if networks on this device need a C++ compiler to be compiled and there is none."""
    if device.type == "cpu" and not has_compiler():
        raise TrainingError("loop.compile needs a C++ compiler and there is none: install g++, or set it to false")


def compile_network(network: nn.Module) -> None:
    """Let the network's forward pass be compiled at its first call."""
    remove_half_written()
    network.compile(dynamic=False)


def remove_half_written() -> None:
    """Remove libraries from PyTorch's cache of compiled code whose writing was cut short.

    PyTorch links a library right under its final name, so one that a killed process left behind would be an error in
    every later training. Those that another process is writing are locked, and stay.
    """
    from filelock import FileLock, Timeout
    from torch._inductor.codecache import get_lock_dir
    from torch._inductor.runtime.cache_dir_utils import cache_dir

    for library in Path(cache_dir()).glob("*/*.main.so"):
        if is_whole(library):
            continue
        try:
            with FileLock(Path(get_lock_dir()) / f"{library.name.split('.')[0]}.lock", timeout=0):
                library.unlink(missing_ok=True)
        except (Timeout, OSError):
            continue


def is_whole(library: Path) -> bool:
    """Whether a file is an ELF library of 64 bits as long as its header says; other kinds of library pass as whole."""
    try:
        with library.open("rb") as file:
            header = file.read(64)
        size = library.stat().st_size
    except FileNotFoundError:
        return True
    if header[:4] != ELF:
        return bool(header.strip(b"\0"))
    if len(header) < 64:
        return False
    start, each, count = SECTIONS.unpack_from(header, 40)
    return bool(start) and size >= start + each * count


@contextmanager
def compile_errors(compiled: bool) -> Iterator[None]:
    """Raises TrainingError if PyTorch cannot compile a network; `compiled` says whether any is to be."""
    if not compiled:
        yield
        return
    from torch._dynamo.exc import TorchDynamoException

    try:
        yield
    except TorchDynamoException as error:
        cache = os.environ.get("TORCHINDUCTOR_CACHE_DIR", "its cache")
        raise TrainingError(
            f"torch.compile failed ({first_line(error)}): set loop.compile to false, or delete what it compiled before,"
            f" in {cache}"
        ) from error
