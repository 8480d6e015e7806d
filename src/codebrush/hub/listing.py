"""Lists the packs and models that are built in, installed, or in the catalogue, and describes one of them."""

import json
from pathlib import Path
from typing import Any

from codebrush.hub.catalogue import Catalogue, ModelEntry, load_catalogue
from codebrush.hub.install import installed
from codebrush.pack.pack import BUILT_IN, PACK_FILE, Pack, built_in_packs


def rows(home: Path, catalogue: Catalogue | None = None) -> list[dict[str, Any]]:
    """Name, kind, title, licence, size in bytes, state (built-in, installed, available) and path of packs and models.

    The size is that on disk, or for what is not installed that of the files to download; `size_is_whole` is False if
    the catalogue does not know the size of all of them. Installed models that have left the catalogue are listed too.
    """
    catalogue = catalogue or load_catalogue()
    on_disk = {row["name"]: {**row, "size_is_whole": True, "state": "installed"} for row in installed(home)}
    every = {name: _built_in_row(name) for name in built_in_packs()}
    for pack in catalogue.packs.values():
        models = catalogue.pack_models(pack).values()
        size, whole = sum(model.size or 0 for model in models) or None, all(model.size_is_whole for model in models)
        licence = "; ".join(dict.fromkeys(model.licence for model in models))
        every.setdefault(pack.name, _row(pack.name, "pack", pack.title, licence, size, whole))
    for model in catalogue.models.values():
        size, whole = model.size, model.size_is_whole
        every.setdefault(model.name, _row(model.name, model.kind, model.title, model.licence, size, whole))
    return list({**every, **on_disk}.values())


def facts(name: str, home: Path, catalogue: Catalogue | None = None) -> dict[str, Any]:
    """All that is known about the pack or model called `name`, or the pack in the folder of that name, from its row and
    its catalogue entry or pack.json.

    Raises:
        UsageError: if there is none, with suggestions of similar names.
    """
    catalogue = catalogue or load_catalogue()
    row = next((row for row in rows(home, catalogue) if row["name"] == name), None)
    if row is not None and row["state"] == "built-in":
        return {**row, **_pack_facts(BUILT_IN / name)}
    if row is None and (Path(name) / PACK_FILE).is_file():
        return {**_folder_row(name, Path(name)), "state": "a folder", **_pack_facts(Path(name))}
    if row is not None and name not in catalogue.models and name not in catalogue.packs:
        return row
    entry = catalogue.entry(name)
    if isinstance(entry, ModelEntry):
        return {**(row or {}), **entry.model_dump(mode="json", include={"paper", "config", "files"})}
    models = catalogue.pack_models(entry)
    return {
        **(row or {}),
        "image_size": entry.image_size,
        "defaults": entry.defaults or None,
        "members": {member: facts(model.name, home, catalogue) for member, model in models.items()},
    }


def _row(name: str, kind: str, title: str | None, licence: str, size: int | None, whole: bool = True) -> dict[str, Any]:
    shown = {"name": name, "kind": kind, "title": title, "licence": licence, "size": size, "size_is_whole": whole}
    return {**shown, "state": "available", "path": None}


def _built_in_row(name: str) -> dict[str, Any]:
    return {**_folder_row(name, BUILT_IN / name), "state": "built-in"}


def _folder_row(name: str, folder: Path) -> dict[str, Any]:
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    licence = json.loads((folder / PACK_FILE).read_text(encoding="utf-8")).get("licence", "")
    return {**_row(name, "pack", None, licence, size), "path": str(folder)}


def _pack_facts(folder: Path) -> dict[str, Any]:
    """What pack.json says beside the row of the list, and the styles that it can draw in."""
    pack = Pack(folder)
    about = {"version": pack.info.get("version"), "image_size": pack.image_size, "styles": pack.styles[1] or None}
    return {**about, "members": pack.info["members"]}
