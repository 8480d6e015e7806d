"""Two network namespaces as two hosts with a cable between them."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import pytest


@dataclass(frozen=True)
class Host:
    """A namespace, its network interface, and its address."""

    name: str
    interface: str
    address: str

    @property
    def within(self) -> list[str]:
        """What stands before a command that is to run there."""
        return ["ip", "netns", "exec", self.name]

    def received(self) -> int:
        """Bytes that have come by the cable."""
        place = f"/sys/class/net/{self.interface}/statistics/rx_bytes"
        return int(subprocess.run([*self.within, "cat", place], capture_output=True, check=True).stdout)

    def processes(self) -> list[int]:
        """Those that run there."""
        found = subprocess.run(["ip", "netns", "pids", self.name], capture_output=True, text=True, check=True)
        return [int(line) for line in found.stdout.split()]


@contextmanager
def two_hosts() -> Iterator[tuple[Host, Host]]:
    """The hosts; skips the test where this user may not make them."""
    if os.geteuid() or shutil.which("ip") is None:
        pytest.skip("network namespaces need root and iproute2")
    own = os.getpid()
    first, second = (Host(f"cb{own}-{end}", f"cb{own % 100_000}{end}", f"10.78.0.{end}") for end in (1, 2))
    with ExitStack() as stack:
        for host in (first, second):
            try:
                _ip("netns", "add", host.name)
            except subprocess.CalledProcessError as error:
                pytest.skip(f"no network namespaces here: {error.stderr.strip()}")
            stack.callback(_ip, "netns", "delete", host.name)
        ends = ("netns", first.name, "type", "veth", "peer", "name", second.interface, "netns", second.name)
        _ip("link", "add", first.interface, *ends)
        for host in (first, second):
            _ip("-n", host.name, "addr", "add", f"{host.address}/24", "dev", host.interface)
            for link in ("lo", host.interface):
                _ip("-n", host.name, "link", "set", link, "up")
        yield first, second


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)
