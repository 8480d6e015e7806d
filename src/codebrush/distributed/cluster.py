"""Joins a Ray cluster, or starts one on this machine that ends with the command."""

import os
import secrets
import socket
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache

from codebrush.data.decoding.large_pictures import LIMIT_VARIABLE
from codebrush.errors import CodebrushError, UsageError
from codebrush.optional import require

ADDRESS_VARIABLE = "RAY_ADDRESS"
STORAGE = ("AWS_", "GOOGLE_", "AZURE_")  # how variables with keys and addresses of object storage begin
NOT_STORAGE = "API_KEY"  # how keys end that open other services of the same companies
PORTS = range(1, 65_536)


@dataclass(frozen=True)
class Cluster:
    """An open connection to a cluster. `workers` are to be started, each with a processor and this share of a GPU."""

    workers: int
    gpus: float

    @property
    def lack(self) -> str:
        """What is said if no worker starts."""
        return f"the cluster may have no free {'GPU and processor' if self.gpus else 'processor'}, and is waited for"


@contextmanager
def joined(address: str | None = None, workers: int | None = None) -> Iterator[Cluster]:
    """The cluster at `address`, or that of RAY_ADDRESS, else a new one on this machine for the time of the block.

    `workers` is how many share the work; None is one for each GPU of the cluster, or each processor without any.

    Raises:
        CodebrushError: if Ray is not installed, or the cluster cannot be joined or started.
    """
    if workers is not None and workers < 1:
        raise UsageError("--workers must be 1 or more")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is reported to Ray's makers
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # Ray announces this change in a warning
    require("ray", "--engine ray needs")
    import logging

    import ray

    logging.getLogger("ray").setLevel(logging.ERROR)
    address = address or os.environ.get(ADDRESS_VARIABLE) or "local"
    _check_that_it_answers(address)
    try:
        own = {"num_cpus": workers, "include_dashboard": False} if address == "local" else {}
        with warnings.catch_warnings(), _own_token() if own else nullcontext():
            # of the forks that become Ray's processes at once and use nothing of Lance
            warnings.filterwarnings("ignore", message="lancedb fork support|lance is not fork-safe")
            ray.init(address, log_to_driver=False, logging_level=logging.ERROR, **own)
    except (OSError, RuntimeError, ValueError) as error:
        what = "start Ray here" if address == "local" else f"join the Ray cluster at {address}"
        is_open = address == "local" or "RAY_AUTH_MODE" in os.environ
        remedy = "" if is_open else "; if it asks for a token, set RAY_AUTH_MODE=token"
        raise CodebrushError(f"cannot {what}: {_one_line(error)}{remedy}") from error
    try:
        yield sized(ray.cluster_resources(), workers)
    finally:
        ray.shutdown()


def sized(resources: Mapping[str, float], workers: int | None) -> Cluster:
    """How many workers the processors and GPUs of a cluster are for. One that grows may have none yet: there `workers`
    must be given.

    Raises:
        CodebrushError: if there is no processor.
    """
    gpus, processors = int(resources.get("GPU", 0)), int(resources.get("CPU", 0))
    if not processors and workers is None:
        remedy = "join a machine to it with ray start --address HOST:PORT, or name --workers if it grows by itself"
        raise CodebrushError(f"the Ray cluster has no processor for workers: {remedy}")
    count = workers or gpus or processors
    return Cluster(count, min(1.0, gpus / count))


@contextmanager
def _own_token() -> Iterator[None]:
    """Let only this process and those that it starts use its cluster, by a token that is nowhere on disk."""
    if "RAY_AUTH_MODE" in os.environ or "RAY_AUTH_TOKEN" in os.environ:
        yield
        return
    os.environ["RAY_AUTH_TOKEN"] = _token()
    try:
        yield
    finally:
        for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_MODE"):  # Ray sets the mode
            os.environ.pop(name, None)


@cache
def _token() -> str:
    """The token of this process, which Ray reads once."""
    return secrets.token_hex(32)


def _check_that_it_answers(address: str) -> None:
    """Raise CodebrushError if nothing listens at an address with a port, which Ray would wait minutes for."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdecimal():
        return
    if len(port) > 5 or int(port) not in PORTS:
        raise UsageError(f"{address} has no port from 1 to {PORTS[-1]}: give the cluster as HOST:6379")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
    except (OSError, UnicodeError) as error:
        odd = "a part of the host's name is empty or too long"
        reason = odd if isinstance(error, UnicodeError) else (error.strerror or str(error)).lower()
        raise CodebrushError(
            f"no Ray cluster answers at {address} ({reason}): start one with ray start --head, or leave out --address"
        ) from error


def passed_on() -> dict[str, str]:
    """The variables of the environment that workers on other machines need too: object storage, limits for pictures."""
    of_storage = (each for each in os.environ if each.startswith(STORAGE) and not each.endswith(NOT_STORAGE))
    return {name: os.environ[name] for name in (*of_storage, LIMIT_VARIABLE) if name in os.environ}


def _one_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__).rstrip(".")[:300]
