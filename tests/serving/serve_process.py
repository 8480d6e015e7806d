"""Runs `codebrush serve` in a process of its own, with what it logs in a file."""

import os
from pathlib import Path


def serve_command(arguments: list[str], log: Path) -> None:
    """Called in the new process."""
    from codebrush.cli.main import run

    with log.open("a") as file:
        os.dup2(file.fileno(), 2)
    os._exit(run(["serve", *arguments]))
