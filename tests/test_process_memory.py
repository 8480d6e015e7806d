"""Freed memory is kept for what is asked for next, or returned, as a process wants it."""

import subprocess
import sys

import pytest

from codebrush.process_memory import MIB

CODE = """
import resource, sys
import torch
from codebrush import process_memory
getattr(process_memory, sys.argv[1])()
torch.set_num_threads(1)

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def step():
    parts = [torch.ones(2**22) for _ in range(8)]  # 16 MiB each
    return sum(float(part[0]) for part in parts)

for _ in range(3):
    step()
before = faults()
for _ in range(10):
    step()
print(faults() - before, end=" ")
process_memory.trim_memory()
print(process_memory.resident_memory())
"""


def measured(way: str) -> tuple[int, int]:
    """Page faults of ten steps, and the bytes that are resident once freed memory was asked to be returned."""
    found = subprocess.run([sys.executable, "-c", CODE, way], capture_output=True, text=True, check=True).stdout
    faults, resident = map(int, found.split())
    return faults, resident


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator alone is told")
def test_freed_memory_is_kept_for_the_next_step_and_returned_when_asked() -> None:
    kept, after = measured("keep_freed_memory")
    returned, least = measured("return_freed_memory")
    pages = 10 * 8 * 16 * MIB // 4096
    assert kept < pages / 20
    assert returned > 10 * kept  # with pages of 4 KiB each time all of them, with huge ones fewer
    assert after < least + 64 * MIB
