"""The catalogue, the built-in packs and the user's home in; a row for each pack and model, or one's facts, out."""

import json
from pathlib import Path
from typing import Any

from codebrush.hub.catalogue import Catalogue, ModelEntry, load_catalogue
from codebrush.hub.install import installed
from codebrush.pack.pack import BUILT_IN, PACK_FILE, built_in_packs


def rows(home: Path, catalogue: Catalogue | None = None) -> list[dict[str, Any]]:
    """Name, kind, title, licence, size in bytes, state (built-in, installed, available) and path of each.

    Of what is installed the size is that on the disk, else that of the files to fetch: `size_is_whole` is False where
    the catalogue does not know it of all of them. What is installed but no longer in the catalogue is listed too.
    """
    catalogue = catalogue or load_catalogue()
    there = {row["name"]: {**row, "size_is_whole": True, "state": "installed"} for row in installed(home)}
    every = {name: _built_in_row(name) for name in built_in_packs()}
    for pack in catalogue.packs.values():
        models = catalogue.pack_models(pack).values()
        size, whole = sum(model.size or 0 for model in models) or None, all(model.size_is_whole for model in models)
        licence = "; ".join(dict.fromkeys(model.licence for model in models))
        every.setdefault(pack.name, _row(pack.name, "pack", pack.title, licence, size, whole))
    for model in catalogue.models.values():
        size, whole = model.size, model.size_is_whole
        every.setdefault(model.name, _row(model.name, model.kind, model.title, model.licence, size, whole))
    return list({**every, **there}.values())


def facts(name: str, home: Path, catalogue: Catalogue | None = None) -> dict[str, Any]:
    """All that is known of the pack or model called `name`: its row, and what stands in the catalogue or pack.json.

    Raises UsageError, with the names most like it, where there is none.
    """
    catalogue = catalogue or load_catalogue()
    row = next((row for row in rows(home, catalogue) if row["name"] == name), None)
    if row is not None and row["state"] == "built-in":
        info = _built_in_info(name)
        return {**row, "image_size": info["image_size"], "members": info["members"], "version": info.get("version")}
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


def _built_in_info(name: str) -> dict[str, Any]:
    return json.loads((BUILT_IN / name / PACK_FILE).read_text(encoding="utf-8"))


def _built_in_row(name: str) -> dict[str, Any]:
    folder = BUILT_IN / name
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    row = _row(name, "pack", None, _built_in_info(name).get("licence", ""), size)
    return {**row, "state": "built-in", "path": str(folder)}
