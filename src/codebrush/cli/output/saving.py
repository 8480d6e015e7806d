"""How commands save pictures: under names that overwrite nothing, with a contact sheet."""

import glob
import re
import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from codebrush.generation.result import Result

SLUG_LENGTH = 40  # characters; even of four bytes each they stay under the 255 bytes that a file name may have


def slug(text: str) -> str:
    """`text` as part of a file name: lower-case letters and digits, joined by hyphens."""
    words = re.findall(r"\w+", unicodedata.normalize("NFKC", text).lower().replace("_", " "))
    return "-".join(words)[:SLUG_LENGTH].strip("-") or "picture"


def free_run_name(folder: Path, name: str) -> str:
    """`name`, or `name` with a number if `folder` already has files of a run of that name."""
    return _free(name, "-run", lambda free: any(folder.glob(f"{glob.escape(free)}_*")))


def free_folder(folder: Path) -> Path:
    """`folder`, or `folder` with a number after its name if it already exists."""
    return folder.with_name(_free(folder.name, "-run", lambda name: folder.with_name(name).exists()))


def free_file(path: Path) -> Path:
    """`path`, or `path` with a number before its suffix if it already exists."""
    return path.with_stem(_free(path.stem, "-", lambda stem: path.with_stem(stem).exists()))


def _free(name: str, joint: str, is_taken: Callable[[str], bool]) -> str:
    """`name`, or the first of `name`, `joint`, 2 and so on that is not taken."""
    number, free = 1, name
    while is_taken(free):
        number += 1
        free = f"{name}{joint}{number}"
    return free


def save_run(results: Sequence["Result"], folder: Path, name: str) -> dict[str, Any]:
    """Write a run's pictures, and the contact sheet of several, into a folder; returns the report of them."""
    from codebrush.data.decoding.images import save_png
    from codebrush.generation.result import sheet_of

    paths = [folder / f"{name}_{result.manifest['index']:02d}.png" for result in results]
    for result, path in zip(results, paths, strict=True):
        save_png(result.image, path, result.manifest)
    report: dict[str, Any] = {"images": list(map(picture_entry, paths, results))}
    if len(results) > 1:
        report["sheet"] = str(folder / f"{name}_sheet.png")
        save_png(sheet_of(results), report["sheet"])
    return report


def save_enlarged(results: Sequence["Result"], folder: Path, ending: str) -> list[dict[str, Any]]:
    """Write the enlarged pictures of a guided run beside the others; returns the report of them."""
    from codebrush.data.decoding.images import save_png

    paths = [folder / f"picture_{result.manifest['index']:02d}_{ending}.png" for result in results]
    for result, path in zip(results, paths, strict=True):
        save_png(result.image, path, result.manifest)
    return [picture_entry(path, result) for path, result in zip(paths, results, strict=True)]


def picture_entry(path: Path, result: "Result") -> dict[str, Any]:
    """What a report says of a picture."""
    seed, index = result.manifest["seed"], result.manifest["index"]
    entry = {"path": str(path), "seed": seed, "index": index, "clip_score": result.score}
    if result.judged is not None:
        entry |= {"scorer_score": result.judged, "verdict": result.verdict}
    return entry
