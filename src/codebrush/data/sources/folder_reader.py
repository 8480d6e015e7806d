"""Reads a folder of pictures with its captions, or the tables or shards in it, as one table; writes the captions."""

import json
import os
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from codebrush.data.images import EXTENSIONS
from codebrush.data.sources.column_names import PATH_COLUMNS
from codebrush.data.sources.tables import BUILDERS, load_files
from codebrush.errors import DataError

if TYPE_CHECKING:
    from datasets import Dataset

METADATA_NAMES = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
CURATION_REPORT = "dropped.jsonl"  # in every folder that `curate` wrote
CURATION_SHEETS = ("kept.png", "dropped.png")
SPLIT_FOLDERS = frozenset(("train", "val", "valid", "validation", "test"))


def write_metadata(folder: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write metadata.jsonl, one JSON object a row, into a folder of pictures; a row's picture is its "file_name"."""
    lines = (json.dumps(row, ensure_ascii=False) for row in rows)
    (folder / METADATA_NAMES[0]).write_text("\n".join(lines) + "\n", encoding="utf-8")


def load_folder(source: str, folder: Path) -> "Dataset":
    """Load the pictures of a folder, or if there are none (or only illustrations) its Parquet files or shards.

    Raises:
        DataError: if there are none of these, or they cannot be loaded; begins with `source`.
    """
    names = sorted(_walk(folder))
    metadata = [name for name in names if Path(name).name in METADATA_NAMES]
    sheets = _curation_sheets(names)
    pictures = [name for name in names if Path(name).suffix.lower() in EXTENSIONS and name not in sheets]
    parquet, shards = (
        [name for name in names if name.lower().endswith(suffix) and name not in metadata]
        for suffix in (".parquet", ".tar")
    )
    illustrated = not metadata and _is_dataset_card(folder / "README.md")
    kinds = [parquet, shards, pictures] if illustrated else [pictures, parquet, shards]
    chosen, *left_out = [kind for kind in kinds if kind] or [pictures]
    if not chosen:
        raise DataError(f"{source}: no picture in this folder; looked for {' '.join(sorted(EXTENSIONS))}")
    if left_out:
        _warn_of_left_out(source, chosen, [name for kind in left_out for name in kind])
    if chosen is not pictures:
        return load_files(source, folder, chosen)
    if metadata:
        return _with_folders(folder, _folder_with_metadata(source, folder, pictures, metadata))
    return _with_folders(folder, _folder_with_texts(folder, pictures, names))


def _curation_sheets(names: Sequence[str]) -> set[str]:
    """The contact sheets that a curation wrote beside its shards."""
    folders = {name.removesuffix(CURATION_REPORT) for name in names if Path(name).name == CURATION_REPORT}
    return {place + sheet for place in folders for sheet in CURATION_SHEETS} & set(names)


def _is_dataset_card(path: Path) -> bool:
    """Whether a file begins like a dataset card on the hub; pictures beside one are illustrations."""
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            return file.readline(16).strip() == "---"
    except OSError:
        return False


def _warn_of_left_out(source: str, read: Sequence[str], left_out: Sequence[str]) -> None:
    suffix = Path(read[0]).suffix.lower()
    kind = suffix if suffix in BUILDERS else "picture"
    names = ", ".join([*left_out[:3], *(["..."] if len(left_out) > 3 else [])])
    warnings.warn(
        f"{source}: reads the {len(read)} {kind} files in it, but not {len(left_out)} of another kind ({names}); "
        "to read those, name them",
        stacklevel=2,
    )


def _walk(folder: Path) -> Iterable[str]:
    """Every file below `folder`, relative to it, except hidden ones and what macOS adds to archives."""
    for place, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name != "__MACOSX")
        for name in files:
            if not name.startswith("."):
                yield os.path.relpath(os.path.join(place, name), folder).replace(os.sep, "/")


def _folder_with_metadata(source: str, folder: Path, pictures: list[str], metadata: list[str]) -> "Dataset":
    """The rows of the metadata files, then a row with nothing but the name for each picture they leave out."""
    from datasets import Dataset, concatenate_datasets

    parts: list[Dataset] = []
    for name in metadata:
        part = load_files(f"{source}/{name}", folder, [name])
        column = next((each for each in PATH_COLUMNS if each in part.column_names), None)
        if column is None:
            raise DataError(f"{source}/{name}: no column file_name; there are {', '.join(part.column_names)}")
        place = os.path.dirname(name)
        paths = [os.path.normpath(os.path.join(place, str(cell))) for cell in part[column]]
        parts.append(part.remove_columns(column).add_column("file_name", paths))  # pyright: ignore[reportCallIssue]
    described = {name for part in parts for name in part["file_name"]}
    left_out = [name for name in pictures if name not in described]
    if left_out:
        parts.append(Dataset.from_dict({"file_name": left_out}))
    return concatenate_datasets(parts)


def _folder_with_texts(folder: Path, pictures: list[str], names: list[str]) -> "Dataset":
    from datasets import Dataset

    texts = {name for name in names if name.endswith(".txt")}
    beside = [Path(name).with_suffix(".txt").as_posix() for name in pictures]
    lines = [_caption_lines(folder / text) if text in texts else [] for text in beside]
    return Dataset.from_dict({"file_name": pictures, "captions": lines})


def _caption_lines(path: Path) -> list[str]:
    """The captions in a text file, one a line."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise DataError(f"{path}: not UTF-8 text; save it as UTF-8") from None
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}") from error
    return [line.strip() for line in text.splitlines() if line.strip()]


def _with_folders(folder: Path, dataset: "Dataset") -> "Dataset":
    """Add the column `folder` with the folder of each picture, and `split` if all folders are named like splits."""
    names = list(dataset["file_name"])
    tops = [name.split("/", 1)[0] for name in names]
    if "split" not in dataset.column_names and SPLIT_FOLDERS.issuperset(tops):
        dataset = dataset.add_column("split", tops)  # pyright: ignore[reportCallIssue]
    if "folder" not in dataset.column_names:
        dataset = dataset.add_column(  # pyright: ignore[reportCallIssue]
            "folder", [(folder / name).absolute().parent.name for name in names]
        )
    return dataset
