"""Installs a model or pack of the catalogue: downloads its files and converts them to the layout of this package.

home/downloads/NAME/   the published files, until they are converted
home/models/NAME/      config.json, model.safetensors, the tokenizer's files, and origin.json: where it all came from
home/packs/NAME/       pack.json, whose members point into home/models
"""

import json
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from codebrush.errors import UsageError
from codebrush.files import file_sha256, new_folder, write_json
from codebrush.hub.catalogue import Catalogue, FileEntry, ModelEntry, PackEntry
from codebrush.hub.download import CONVERSION_ROOM, check_room, fetch_file, locked, size_text, unwritable
from codebrush.pack.pack import PACK_FILE, built_in_packs
from codebrush.pack.writing import pack_info
from codebrush.progress import Progress
from codebrush.version import __version__

ORIGIN_FILE = "origin.json"
Convert = Callable[..., dict[str, Any]]
Say = Callable[[str], None]


def install(
    name: str,
    catalogue: Catalogue,
    home: Path,
    *,
    progress: Progress | None = None,
    say: Say | None = None,
    keep: bool = False,
    convert: Convert | None = None,
) -> dict[str, Any]:
    """Download and convert the model or pack called `name` into the folder `home`; what is already installed is kept.

    `progress` is called with the bytes of the current file, `say` with a line for each stage. `keep` leaves the
    published files in home/downloads. `convert` (source, out, config, kind) is `conversion.convert.convert` if None.
    Returns name, kind, title, licence, path and state ("installed", or "ready" if it was there before), and for a pack
    also a report for each of its models.

    Raises:
        UsageError: if there is no such name, or the pack is built in.
        PackError: if a file cannot be downloaded, converted or written.
    """
    if name in built_in_packs():
        raise UsageError(f"the pack '{name}' is built in: there is nothing to download")
    entry = catalogue.entry(name)
    installation = _Installation(Path(home), progress, say or (lambda _: None), keep, convert or _convert)
    models = [entry] if isinstance(entry, ModelEntry) else list(catalogue.pack_models(entry).values())
    installation.check_room(name, models)
    reports = [installation.model(model) for model in models]
    if isinstance(entry, ModelEntry):
        return reports[0]
    return installation.pack(entry, catalogue, reports)


def model_folder(home: Path, name: str) -> Path:
    """The folder of the model called `name`, whether or not it is installed."""
    return home / "models" / name


def pack_folder(home: Path, name: str) -> Path:
    """The folder of the pack called `name`, whether or not it is installed."""
    return home / "packs" / name


def installed(home: Path) -> list[dict[str, Any]]:
    """The packs and models in `home`: name, kind, title, licence, size in bytes and path of each."""
    found = []
    for file in sorted(home.glob(f"packs/*/{PACK_FILE}")):
        info = _read_json(file)
        if info is not None:
            provenance = info.get("provenance") or {}
            found.append(_row(file.parent, "pack", provenance.get("title", ""), info.get("licence", "")))
    for file in sorted(home.glob(f"models/*/{ORIGIN_FILE}")):
        origin = _read_json(file)
        if origin is not None:
            found.append(_row(file.parent, origin.get("kind", ""), origin.get("title", ""), origin.get("licence", "")))
    return [row for row in found if not row["name"].startswith(".")]


class _Installation:
    """One call of `install`."""

    def __init__(self, home: Path, progress: Progress | None, say: Say, keep: bool, convert: Convert) -> None:
        self.home, self.progress, self.say = home, progress, say
        self.keep, self.convert = keep, convert

    def check_room(self, name: str, models: list[ModelEntry]) -> None:
        """Raise a PackError if the disk has no room for everything; partial files count with their full size."""
        missing = [model for model in models if not self._is_ready(model.name)]
        sizes = [
            file.size or 0 for model in missing for file in model.files if not self._download(model, file).exists()
        ]
        largest = max((model.size or 0 for model in missing), default=0)
        if sizes:
            check_room(self.home, sum(sizes) + CONVERSION_ROOM * largest, name)

    def model(self, entry: ModelEntry) -> dict[str, Any]:
        """Download and convert one model; returns its report."""
        folder = model_folder(self.home, entry.name)
        with locked(folder):
            ready = self._is_ready(entry.name)
            if not ready:
                self._make(entry, folder)
        shown = {"name": entry.name, "kind": entry.kind, "title": entry.title, "licence": entry.licence}
        return {**shown, "path": str(folder), "state": "ready" if ready else "installed"}

    def pack(self, entry: PackEntry, catalogue: Catalogue, reports: list[dict[str, Any]]) -> dict[str, Any]:
        """Write the pack.json of a pack whose models are installed; returns its report."""
        folder = pack_folder(self.home, entry.name)
        models = catalogue.pack_models(entry)
        licence = "; ".join(dict.fromkeys(f"{member}: {model.licence}" for member, model in models.items()))
        origins = {member: _read_json(self._origin(model)) for member, model in models.items()}
        info = pack_info(
            {member: f"../../models/{model.name}" for member, model in models.items()},
            name=entry.name,
            version=__version__,
            licence=licence,
            image_size=entry.image_size,
            provenance={"kind": "published", "title": entry.title, "models": origins},
            more={"defaults": entry.defaults},
        )
        with locked(folder), _writing(folder):
            ready = _read_json(folder / PACK_FILE) == info
            if not ready:
                write_json(folder / PACK_FILE, info)
        shown = {"name": entry.name, "kind": "pack", "title": entry.title, "licence": licence, "path": str(folder)}
        return {**shown, "state": "ready" if ready else "installed", "models": reports}

    def _make(self, entry: ModelEntry, folder: Path) -> None:
        downloads = self.home / "downloads" / entry.name
        for file in entry.files:
            size = f" ({size_text(file.size)})" if file.size else ""
            self.say(f"fetching {entry.name}: {file.path}{size}")
            fetch_file(file, downloads, progress=self.progress)
        self.say(f"converting {entry.name}")
        shutil.rmtree(folder, ignore_errors=True)  # left by something else: an installed model has its origin.json
        with _writing(folder), new_folder(folder) as part:
            part.rmdir()  # converting creates its folder itself
            self.convert(downloads, part, entry.config, kind=entry.kind)
            write_json(part / ORIGIN_FILE, self._origin_of(entry))
        if not self.keep:
            shutil.rmtree(downloads, ignore_errors=True)

    def _origin_of(self, entry: ModelEntry) -> dict[str, Any]:
        """The content of a model's origin.json."""
        files = [
            {
                "path": file.path,
                "size": self._download(entry, file).stat().st_size,
                "sha256": file.sha256 or file_sha256(self._download(entry, file)),
                "mirrors": list(file.mirrors),
            }
            for file in entry.files
        ]
        shown = {"name": entry.name, "kind": entry.kind, "title": entry.title, "licence": entry.licence}
        made = {"converted_by": f"codebrush {__version__}", "converted_on": time.strftime("%Y-%m-%d")}
        return {**shown, "paper": entry.paper, "files": files, **made}

    def _download(self, entry: ModelEntry, file: FileEntry) -> Path:
        return self.home / "downloads" / entry.name / file.path

    def _origin(self, entry: ModelEntry) -> Path:
        return model_folder(self.home, entry.name) / ORIGIN_FILE

    def _is_ready(self, name: str) -> bool:
        """Whether the model is installed: its folder only gets its name when it is complete."""
        return (model_folder(self.home, name) / ORIGIN_FILE).is_file()


def _convert(source: Path, out: Path, config: dict[str, Any] | None, kind: str) -> dict[str, Any]:
    from codebrush.conversion.convert import convert  # slow to import, and only needed here

    return convert(source, out, config, kind=kind)


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """Turn a failure to write `folder` into a PackError."""
    try:
        yield
    except OSError as error:
        raise unwritable(folder, error) from error


def _row(folder: Path, kind: str, title: str, licence: str) -> dict[str, Any]:
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    return {"name": folder.name, "kind": kind, "title": title, "licence": licence, "size": size, "path": str(folder)}


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None
