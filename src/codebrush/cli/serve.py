"""`codebrush serve` answers to programs over HTTP, and shows its page."""

import os
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from codebrush.cli.flags.cluster import AddressOption, EngineName, EngineOption, cluster_of
from codebrush.cli.flags.common import PACK_HELP
from codebrush.cli.flags.sampling import WEIGHTS_HELP, Weights
from codebrush.errors import UsageError
from codebrush.optional import require
from codebrush.serving import KEY_VARIABLE

if TYPE_CHECKING:
    from codebrush.serving.settings import Settings

MB = 1024**2
DATA = Path("outputs/serve")
LibraryOption = Annotated[
    list[Path] | None,
    typer.Option(help="Folder of pictures that may be searched and trained on; may be repeated.  [none]"),
]
WORKERS_HELP = (
    "Processes that draw and read, each with a GPU or a share of the cores.  [1; of a cluster one for each GPU, or "
    "processor if there is none]"
)
WeightsOption = Annotated[Weights, typer.Option(help=WEIGHTS_HELP)]
NoKeyOption = Annotated[
    bool, typer.Option("--no-key", help=f"Listen beyond this machine although {KEY_VARIABLE} sets no key.")
]
PageOption = Annotated[
    bool | None, typer.Option("--page/--no-page", help="Also serve the page, Studio.  [if Gradio is installed]")
]


def serve(
    context: typer.Context,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on; 0: any free one.", min=0, max=65535)] = 7860,
    pack: Annotated[list[str] | None, typer.Option(help=f"{PACK_HELP} May be repeated.  [emoji]")] = None,
    library: LibraryOption = None,
    weights: WeightsOption = Weights.AUTO,
    workers: Annotated[int | None, typer.Option(help=WORKERS_HELP, min=1)] = None,
    engine: EngineOption = EngineName.LOCAL,
    address: AddressOption = None,
    data: Annotated[Path, typer.Option(help="Folder for jobs, results, indexes, trained packs.")] = DATA,
    no_key: NoKeyOption = False,
    allow_host: Annotated[
        list[str] | None, typer.Option(help="Name under which the server may be called; may be repeated.")
    ] = None,
    queue: Annotated[int, typer.Option(help="Jobs that may wait.", min=1, max=100_000)] = 64,
    time_limit: Annotated[float, typer.Option(help="Seconds that a job may run.", min=1)] = 900,
    train_limit: Annotated[str, typer.Option(help="Longest budget of a training, with a unit: 90s, 60m or 8h.")] = "8h",
    train_threads: Annotated[int, typer.Option(help="CPU threads of a training; 0: half of the cores.", min=0)] = 0,
    keep_hours: Annotated[float, typer.Option(help="Hours for which results are kept.", min=0)] = 24,
    keep_mb: Annotated[int, typer.Option(help="Megabytes of results that are kept at most.", min=1)] = 2048,
    max_body_mb: Annotated[int, typer.Option(help="Megabytes that a request may have.", min=1)] = 32,
    page: PageOption = None,
    open_page: Annotated[bool, typer.Option("--open", help="Open the page in the browser.")] = False,
) -> None:
    """Serve Studio, a page to paint on, and OpenAI's images and embeddings API, on the models of packs.

    The environment variable CODEBRUSH_API_KEY sets a key that callers must give, or several with commas between.
    """
    _check_extras(bool(page or open_page))
    from codebrush.serving.jobs.limits import Limits
    from codebrush.serving.settings import Settings
    from codebrush.training.packs.budget import parse_budget

    limits = Limits(
        queue=queue,
        seconds=time_limit,
        keep_seconds=keep_hours * 3600,
        keep_bytes=keep_mb * MB,
        budget=parse_budget(train_limit, "--train-limit"),
        train_threads=train_threads,
    )
    settings = Settings(
        packs=tuple(dict.fromkeys(pack or ["emoji"])),
        data=data,
        weights=str(weights),
        workers=workers or 1,
        libraries=tuple(library or ()),
        host=host,
        port=port,
        keys=_keys(),
        no_key=no_key,
        allowed_hosts=tuple(allow_host or ()),
        limits=limits,
        max_body=max_body_mb * MB,
        page=find_spec("gradio") is not None if page is None else page,
        open_page=open_page and page is not False,
    )
    _run(context, settings)


def _run(context: typer.Context, settings: "Settings") -> None:
    from codebrush.serving.server import serve as run

    with cluster_of(context, ("address",)) as cluster:
        if cluster is None:
            run(settings)
        else:
            from codebrush.distributed.serving import RayWorkers

            run(settings, partial(RayWorkers, cluster))


def _check_extras(page: bool) -> None:
    for package in ("fastapi", "uvicorn", "multipart", "sqlalchemy", "prometheus_client"):
        require(package, "codebrush serve needs", error=UsageError)
    if page:
        require("gradio", "the page needs", error=UsageError)


def _keys() -> tuple[str, ...]:
    """The keys that the environment sets."""
    return tuple(key.strip() for key in os.environ.get(KEY_VARIABLE, "").split(",") if key.strip())
