"""Measures the memory of this process, and has freed memory returned to the system, or kept."""

import ctypes
import sys
from pathlib import Path

from codebrush.errors import UsageError

MMAP_THRESHOLD, TRIM_THRESHOLD = -3, -1  # glibc's parameters of `mallopt`
MIB = 2**20
NEAR = 16 * MIB
KEPT = 2**30  # bytes; parameters of `mallopt` are ints


def peak_memory() -> int:
    """The largest number of bytes that this process ever had resident.

    Raises:
        UsageError: if the system does not report it.
    """
    try:
        return _status("VmHWM")
    except (OSError, KeyError):  # not Linux
        pass
    try:
        import resource
    except ImportError:
        raise UsageError("max_memory cannot be kept on this system: it does not report a process's memory") from None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def resident_memory() -> int:
    """Bytes that are resident now; where the system does not report that, the peak."""
    trim_memory()
    try:
        return _status("VmRSS")
    except (OSError, KeyError):
        return peak_memory()


def trim_memory() -> None:
    """Return freed blocks to the system now, also those that glibc keeps for each thread that once used them."""
    if _GLIBC is not None:
        _GLIBC.malloc_trim(0)


def return_freed_memory() -> None:
    """Have glibc return freed blocks of a megabyte and more to the system: blocks that it kept would count as used."""
    if _GLIBC is not None:
        _GLIBC.mallopt(MMAP_THRESHOLD, MIB)
        _GLIBC.mallopt(TRIM_THRESHOLD, MIB)


def keep_freed_memory() -> None:
    """Have glibc keep freed blocks of any size for later ones, until `trim_memory`: a step of a training frees and asks
    for the same gigabytes, and each page that comes from the system anew is a fault and filled with zeros first."""
    if _GLIBC is not None:
        _GLIBC.mallopt(MMAP_THRESHOLD, KEPT)
        _GLIBC.mallopt(TRIM_THRESHOLD, KEPT)


def room_ran_out() -> bool:
    """Whether this process came near its limit of address space (`ulimit -v`), so that an error of any kind may come
    from that: libraries, and Python 3.11 itself where it gets no room for a frame, make others of a MemoryError."""
    try:
        import resource

        limit = resource.getrlimit(resource.RLIMIT_AS)[0]
        return limit != resource.RLIM_INFINITY and _status("VmPeak") > limit - NEAR
    except (ImportError, OSError, KeyError):  # not Linux
        return False


def _status(name: str) -> int:
    """Bytes under `name` in /proc/self/status. getrusage's figure may be that of the process that started this one."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(dict(line.split(":", 1) for line in lines)[name].split()[0]) * 1024


def _glibc() -> ctypes.CDLL | None:
    try:
        library = ctypes.CDLL(None)
    except (OSError, TypeError):
        return None
    return library if hasattr(library, "mallopt") and hasattr(library, "malloc_trim") else None


_GLIBC = _glibc()
