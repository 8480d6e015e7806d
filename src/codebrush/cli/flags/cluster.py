"""The flags of commands that can share their work among the workers of a Ray cluster."""

import sys
from collections.abc import Collection, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, redirect_stdout
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from codebrush.cli.flags.common import given_flags, refuse

if TYPE_CHECKING:
    from codebrush.distributed.cluster import Cluster


class EngineName(StrEnum):
    """Who does the work."""

    LOCAL = "local"
    RAY = "ray"


EngineOption = Annotated[EngineName, typer.Option(help="Who works: this process, or workers of a Ray cluster.")]
AddressOption = Annotated[
    str | None, typer.Option(help="Ray cluster to join.  [$RAY_ADDRESS, or a new one on this machine]")
]
WorkersOption = Annotated[
    int | None, typer.Option(min=1, help="Number of Ray workers.  [one for each GPU, or processor if there is none]")
]


def cluster_of(
    context: typer.Context, of_clusters: Collection[str] = ("address", "workers")
) -> "AbstractContextManager[Cluster | None]":
    """The cluster that the flags ask for, to be joined and left as a context; of None for this process, where the flags
    `of_clusters` are refused."""
    given = context.params
    if given["engine"] is EngineName.LOCAL:
        refuse(given_flags(context), of_clusters, "is for a cluster: add --engine ray")
        return nullcontext()
    from codebrush.optional import require

    require("ray", "--engine ray needs")  # before a pack is loaded
    return _joined(given["address"], given["workers"])


@contextmanager
def _joined(address: str | None, workers: int | None) -> "Iterator[Cluster]":
    from codebrush.distributed.cluster import joined

    # What Ray prints on stdout, of workers that died, does not belong to the one JSON object there.
    with redirect_stdout(sys.stderr), joined(address, workers) as cluster:
        yield cluster
