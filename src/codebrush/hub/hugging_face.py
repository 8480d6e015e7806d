"""Fetches a file hf://owner/name/file@revision with huggingface_hub."""

import inspect
import io
import os
from pathlib import Path
from typing import Any

from codebrush.errors import first_line
from codebrush.hub.catalogue import HUB_MIRROR
from codebrush.hub.http_range import Refused
from codebrush.progress import Progress

CONNECT_SECONDS = 10
TRUE_VALUES = ("1", "ON", "YES", "TRUE")  # as huggingface_hub reads them


def is_offline() -> bool:
    """Whether the environment forbids the network: HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE is set."""
    value = os.environ.get("HF_HUB_OFFLINE") or os.environ.get("TRANSFORMERS_OFFLINE") or ""
    return value.upper() in TRUE_VALUES


def fetch_from_hub(mirror: str, staging: Path, progress: Progress | None) -> Path:
    """The path of the file in huggingface_hub's local cache, or fetched (and resumed) in the folder `staging`.

    Raises:
        Refused: if it cannot be fetched, with the reason.
    """
    import huggingface_hub

    match = HUB_MIRROR.fullmatch(mirror)
    if match is None:
        raise Refused("is not of the form hf://owner/name/file@revision")
    repo, name, revision = match["repo"], match["file"], match["revision"]
    try:
        cached = huggingface_hub.try_to_load_from_cache(repo, name, revision=revision)
        if isinstance(cached, str):
            return Path(cached)
        if is_offline():
            raise Refused("offline, as HF_HUB_OFFLINE says, and not in huggingface_hub's local cache")
        _check_reachable(huggingface_hub.constants.ENDPOINT)
        download = huggingface_hub.hf_hub_download
        bar = {"tqdm_class": _quiet_bar(progress)} if "tqdm_class" in inspect.signature(download).parameters else {}
        return Path(download(repo, name, revision=revision, local_dir=staging, **bar))
    except Refused:
        raise
    except Exception as error:  # its HTTP client, cache and validation all raise different exceptions
        raise Refused(first_line(error)[:150]) from error


def _check_reachable(endpoint: str) -> None:
    """Try once without huggingface_hub's retries, which take a minute to find that there is no network."""
    from huggingface_hub.utils import get_session

    try:
        get_session().head(endpoint, timeout=CONNECT_SECONDS)
    except Exception as error:  # depends on the HTTP client that it uses
        raise Refused(f"{endpoint} cannot be reached") from error


def _quiet_bar(progress: Progress | None) -> Any:
    """A progress bar for huggingface_hub that prints nothing and calls `progress`."""
    from huggingface_hub.utils import tqdm

    class QuietBar(tqdm):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **{**options, "file": io.StringIO(), "disable": False})

        def update(self, n: float | None = 1) -> bool | None:
            shown = super().update(n)
            if progress is not None:
                progress(int(self.n), int(self.total or self.n))
            return shown

    return QuietBar
