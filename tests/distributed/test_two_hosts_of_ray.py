"""Indexing on a Ray cluster of two hosts."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest
from ray_helpers import rows_of
from two_hosts import Host, two_hosts

from codebrush.data.synthetic.scene_folder import write_shapes
from codebrush.search.database import open_database

pytest.importorskip("ray", reason="Ray is not installed")
pytest.importorskip("lance", reason="pylance is not installed")
pytestmark = pytest.mark.slow
PORT, SECONDS, PICTURES = 6391, 240, 2048
FRAGMENT = 100_000  # bytes; that of a batch has some 580,000, and all else that a worker writes 5,000
ENVIRONMENT = os.environ | {"RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1", "RAY_AUTH_MODE": "disabled"}


@pytest.fixture
def hosts() -> Iterator[tuple[Host, Host]]:
    """Two hosts of one processor each, joined to a cluster."""
    with two_hosts() as both, ExitStack() as stack:
        for number, host in enumerate(both):
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True))
            joins = ["--address", f"{both[0].address}:{PORT}"] if number else ["--head", "--port", str(PORT)]
            if not number:
                joins += ["--temp-dir", folder, "--include-dashboard", "false"]
            command = ["-m", "ray.scripts.scripts", "start", *joins, "--num-cpus", "1", "--block"]
            command += ["--node-ip-address", host.address, "--object-store-memory", "200000000"]
            said = stack.enter_context((Path(folder) / "said").open("w"))
            subprocess.Popen([*host.within, sys.executable, *command], env=ENVIRONMENT, stdout=said, stderr=said)
            stack.callback(_end, host)
            if not number:
                _until(lambda host=host: _answers(host), "the head of the cluster")
        yield both


def _end(host: Host) -> None:
    for process in host.processes():
        with suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)


def _answers(host: Host) -> bool:
    ask = [sys.executable, "-c", f"import socket; socket.create_connection(('{host.address}', {PORT}), 2)"]
    return subprocess.run([*host.within, *ask], capture_output=True).returncode == 0


def _until(is_so: Callable[[], bool], what: str, running: subprocess.Popen[str] | None = None) -> None:
    until = time.monotonic() + SECONDS
    while not is_so():
        assert time.monotonic() < until, f"{what} did not come"
        assert running is None or running.poll() is None, f"{what} did not come before the end"
        time.sleep(0.1)


def _written(host: Host) -> int:
    """Bytes that the workers of a host have written; 0 without any."""
    import psutil

    found = 0
    for number in host.processes():
        try:
            process = psutil.Process(number)
            if "ray::Worker" in " ".join(process.cmdline()):
                found += process.io_counters().write_chars
        except psutil.NoSuchProcess:
            continue
    return found


def _index(host: Host, pictures: Path, database: Path) -> subprocess.Popen[str]:
    """A command on a host that indexes with the workers of both."""
    words = ["index", str(pictures), "--db", str(database), "--engine", "ray", "--workers", "2", "--json"]
    command = [sys.executable, "-m", "codebrush", *words, "--address", f"{host.address}:{PORT}"]
    return subprocess.Popen(
        [*host.within, *command], env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def test_both_hosts_work_and_one_may_be_lost(hosts: tuple[Host, Host], tmp_path: Path) -> None:
    pictures, alone = tmp_path / "shapes", tmp_path / "alone"
    write_shapes(pictures, PICTURES)
    local = [sys.executable, "-m", "codebrush", "index", str(pictures), "--db", str(alone), "--json"]
    subprocess.run(local, env=ENVIRONMENT, check=True, timeout=SECONDS)

    running = _index(hosts[0], pictures, tmp_path / "both")
    _until(lambda: min(map(_written, hosts)) > FRAGMENT, "work of both hosts", running)
    _, err = running.communicate(timeout=SECONDS)
    assert running.returncode == 0, err
    assert rows_of(open_database(tmp_path / "both")) == rows_of(open_database(alone))

    _until(lambda: not any(map(_written, hosts)), "the end of the first run's workers")
    running = _index(hosts[0], pictures, tmp_path / "lost")
    _until(lambda: _written(hosts[1]) > FRAGMENT, "work of the second host", running)
    _end(hosts[1])
    _, err = running.communicate(timeout=SECONDS)
    assert running.returncode == 0
    assert "a worker died" in err
    assert rows_of(open_database(tmp_path / "lost")) == rows_of(open_database(alone))
