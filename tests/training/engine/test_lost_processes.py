"""What is said when another process does not take part any more: only what is known of it."""

import time
from datetime import timedelta
from multiprocessing.context import ForkServerContext
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from gloo import run_together

from codebrush.errors import TrainingError
from codebrush.training.engine.fabric import lost_processes_named


def wait(rank: int, folder: str) -> None:
    """The second process is late by more than the others wait."""
    group = dist.new_group(timeout=timedelta(seconds=1))
    if rank == 1:
        time.sleep(4)
        return
    with pytest.raises(TrainingError) as caught, lost_processes_named():
        dist.all_reduce(torch.ones(1), group=group)
    (Path(folder) / "said").write_text(str(caught.value))


def leave(rank: int, folder: str) -> None:
    """The second process ends while the first waits for it."""
    if rank == 1:
        return
    with pytest.raises(TrainingError) as caught, lost_processes_named():
        dist.recv(torch.ones(1), src=1)
    (Path(folder) / "said").write_text(str(caught.value))


@pytest.mark.parametrize(
    ("work", "said"), [(wait, "did not answer in time: it has ended, hangs, or waits"), (leave, "no longer be reached")]
)
def test_a_late_process_is_not_called_ended(work, said: str, tmp_path: Path, processes: ForkServerContext):
    run_together(processes, 2, work, str(tmp_path))
    line = (tmp_path / "said").read_text()
    assert said in line
    assert line.endswith("look for its message, then run the same command with --resume")
    assert "\n" not in line


def test_other_errors_stay_what_they_are():
    with pytest.raises(RuntimeError, match="no such thing"), lost_processes_named():
        raise RuntimeError("no such thing")
