"""Threads of OpenMP that wait for work sleep, whichever of torch and codebrush is imported first."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="needs Linux's list of threads")

# After a product on two threads the second spins without end (R), or sleeps (S).
WAITS = """
import os, sys, time
from pathlib import Path
import torch
torch.set_num_threads(2)
def states():
    stats = (Path(task, "stat").read_text() for task in Path("/proc/self/task").iterdir())
    return [stat.rpartition(")")[2].split()[0] for stat in stats]
torch.zeros(1 << 20).add_(1)
deadline, seen = time.monotonic() + 30, states()
while time.monotonic() < deadline and seen.count("S") < len(seen) - 1:  # all but this thread, which runs
    time.sleep(0.01)
    seen = states()
print(len(seen) > 1, seen.count("S") >= len(seen) - 1)
"""
SPIN = """
import os
os.environ["GOMP_SPINCOUNT"] = "infinite"
import torch
del os.environ["GOMP_SPINCOUNT"]
"""


def output(code: str, **environment: str) -> list[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_", "KMP_"))}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=clean | environment, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return (done.stdout + done.stderr).split()


def test_torch_imported_after_codebrush_starts_with_the_passive_policy():
    code = "import codebrush, torch"
    assert "GOMP_SPINCOUNT='0'" in "".join(output(code, OMP_DISPLAY_ENV="verbose"))


@pytest.mark.parametrize(("name", "value"), [("OMP_WAIT_POLICY", "ACTIVE"), ("GOMP_SPINCOUNT", "5")])
def test_what_the_environment_says_stays(name: str, value: str):
    code = f"import codebrush, os; print(os.environ.get('OMP_WAIT_POLICY'), os.environ['{name}'])"
    assert output(code, **{name: value}) == ["ACTIVE" if name == "OMP_WAIT_POLICY" else "None", value]


def test_threads_of_a_torch_imported_before_codebrush_stop_spinning():
    assert output(SPIN + "import codebrush\n" + WAITS) == ["True", "True"]
