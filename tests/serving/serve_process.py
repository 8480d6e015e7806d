"""Runs `codebrush serve` in a process of its own, with what it logs in a file."""

import os
import time
from pathlib import Path
from typing import Any


def serve_command(arguments: list[str], log: Path, until: Path | None = None) -> None:
    """Called in the new process. The first step of each job lasts until the file `until` is there."""
    from codebrush.cli.main import run
    from codebrush.serving.workers.here import Here

    work = Here.run

    def later(*given: Any) -> Any:
        while until is not None and not until.exists():
            time.sleep(0.02)
        return work(*given)

    Here.run = later  # pyright: ignore[reportAttributeAccessIssue]

    with log.open("a") as file:
        os.dup2(file.fileno(), 2)
    os._exit(run(["serve", *arguments]))
