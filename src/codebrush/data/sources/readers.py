"""A folder, Parquet files, WebDataset shards, a list or a hub id in; rows with undecoded pictures out.

Everything is read through Hugging Face `datasets`, whose Arrow cache is mapped, not loaded: a collection
larger than memory opens as fast as a small one.
"""

import csv
import errno
import glob
import logging
import os
import re
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from codebrush.data.images import EXTENSIONS
from codebrush.data.sources.shard_reader import read_shards
from codebrush.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Dataset

BUILDERS = {
    ".parquet": "parquet",
    ".tar": "webdataset",
    ".csv": "csv",
    ".jsonl": "json",
}
METADATA_NAMES = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
CURATION_REPORT = "dropped.jsonl"  # lies in every folder that `curate` has written
CURATION_SHEETS = ("kept.png", "dropped.png")
SPLIT_FOLDERS = frozenset(("train", "val", "valid", "validation", "test"))
PATH_COLUMNS = ("file_name", "image", "image_path", "path", "file", "filename", "filepath", "img")
SPLIT_WORD = re.compile(r"(?:^|[/_.-])(train|val|valid|validation|test)(?=[/_.-]|\d|$)")
HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")  # owner/name
UNWRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.ENOTDIR)


@dataclass(frozen=True)
class Rows:
    """What a source holds, before any filter.

    `text` is an Arrow table of every column but those with file contents; `images` has the one column
    `image_column`, whose cells are {"bytes", "path"}, bytes or paths relative to `base`. Row i of one is
    row i of the other.
    """

    origin: str
    text: "pa.Table"
    images: "Dataset"
    image_column: str
    base: Path


def load_rows(source: str, image_column: str | None = None) -> Rows:
    """Open a source: a folder, a file, a glob of files or a hub id (owner/name). Raises DataError otherwise.

    A data set with several splits comes out as one table with the column `split`.
    """
    path = Path(source).expanduser().absolute()  # so that a later change of folder does not lose the pictures
    if path.is_dir():
        dataset, base = _load_folder(source, path), path
    elif path.is_file():
        dataset, base = _load_files(source, path.parent, [path.name]), path.parent
    elif glob.has_magic(source):
        files = [name for name in sorted(glob.glob(str(path), recursive=True)) if os.path.isfile(name)]
        if not files:
            raise DataError(f"{source}: no file matches")
        base = Path(os.path.commonpath([os.path.dirname(os.path.abspath(name)) for name in files]))
        dataset = _load_files(source, base, [os.path.relpath(name, base) for name in files])
    elif HUB_ID.fullmatch(source) and path.suffix.lower() not in BUILDERS:
        dataset, base = _load_from_hub(source), Path()
    else:
        raise DataError(f"{source}: no such file or folder")
    return _separate(source, dataset, base, image_column)


def _load_files(source: str, base: Path, names: Sequence[str]) -> "Dataset":
    """One table of files of one kind; files named like splits ("train-0001.tar") are the splits."""
    builders = {BUILDERS.get(Path(name).suffix.lower()) for name in names}
    builder = builders.pop()
    if builder is None or builders:
        raise DataError(f"{source}: no data set; give {', '.join(BUILDERS)} files of one kind, or a folder")
    found = [SPLIT_WORD.search(name) for name in names]
    splits = [match[1] if match else "" for match in found]
    if "" in splits or len(names) == 1:
        splits = [""] * len(names)
    files = [base / name for name in names]
    with _one_line(source):
        if builder == "webdataset":
            return read_shards(list(zip(files, splits, strict=True)))
        by_split: dict[str, list[str]] = {}
        for file, split in zip(files, splits, strict=True):
            by_split.setdefault(split or "train", []).append(glob.escape(str(file)))
        return _load(builder, data_files=by_split, **(_csv_options(files[0]) if builder == "csv" else {}))


def _csv_options(file: Path) -> dict[str, Any]:
    """Every column as text: "007" and "NA" are captions, not a number and a gap."""
    from datasets import Features, Value

    with file.open(newline="", encoding="utf-8-sig") as lines:
        header = next(csv.reader(lines), [])
    features = Features({name: Value("string") for name in header})
    return {"features": features, "keep_default_na": False, "na_values": [""], "encoding": "utf-8-sig"}


def _load_from_hub(source: str) -> "Dataset":
    from datasets import config
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RepositoryNotFoundError

    if config.HF_HUB_OFFLINE:
        with _one_line(f"{source}: no such file or folder, and HF_HUB_OFFLINE is set"):
            return _load(source)
    try:  # one question first, because `datasets` asks an unreachable hub six times over half a minute
        HfApi().dataset_info(source, timeout=10)
    except Exception as error:
        unknown = isinstance(error, RepositoryNotFoundError)
        reason = "none of this name there, or a private one" if unknown else _first_line(error)
        raise DataError(
            f"{source}: no such file or folder, and the hub does not give it as a data set ({reason}); "
            "mend the name, or set HF_HUB_OFFLINE=1 to use what was fetched before"
        ) from error
    with _one_line(source):
        return _load(source)


def _load_folder(source: str, folder: Path) -> "Dataset":
    """The pictures of a folder; its Parquet files or its shards where there are none, or only illustrations."""
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
        _tell_left_out(source, chosen, [name for kind in left_out for name in kind])
    if chosen is not pictures:
        return _load_files(source, folder, chosen)
    if metadata:
        return _with_places(folder, _folder_with_metadata(source, folder, pictures, metadata))
    return _with_places(folder, _folder_with_texts(folder, pictures, names))


def _curation_sheets(names: Sequence[str]) -> set[str]:
    """The contact sheets that a curation has drawn beside its shards."""
    there = set(names)
    folders = {name.removesuffix(CURATION_REPORT) for name in names if Path(name).name == CURATION_REPORT}
    return {place + sheet for place in folders for sheet in CURATION_SHEETS} & there


def _is_dataset_card(path: Path) -> bool:
    """Whether a file begins as the cards of data sets on the hub do; pictures beside these are illustrations."""
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            return file.readline(16).strip() == "---"
    except OSError:
        return False


def _tell_left_out(source: str, read: Sequence[str], left_out: Sequence[str]) -> None:
    suffix = Path(read[0]).suffix.lower()
    kind = suffix if suffix in BUILDERS else "picture"
    names = ", ".join([*left_out[:3], *(["..."] if len(left_out) > 3 else [])])
    warnings.warn(
        f"{source}: reads the {len(read)} {kind} files in it, but not {len(left_out)} of another kind ({names}); "
        "to read those, name them",
        stacklevel=2,
    )


def _walk(folder: Path) -> Iterable[str]:
    """Every file below `folder`, relative to it, without hidden ones and what macOS adds to archives."""
    for place, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name != "__MACOSX")
        for name in files:
            if not name.startswith("."):
                yield os.path.relpath(os.path.join(place, name), folder).replace(os.sep, "/")


def _folder_with_metadata(source: str, folder: Path, pictures: list[str], metadata: list[str]) -> "Dataset":
    """The rows of the metadata; then one, empty but for its name, for each picture left out there."""
    from datasets import Dataset, concatenate_datasets

    parts: list[Dataset] = []
    for name in metadata:
        part = _load_files(f"{source}/{name}", folder, [name])
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
    """The captions of a text file: one a line."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise DataError(f"{path}: not UTF-8 text; save it as UTF-8") from None
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}") from error
    return [line.strip() for line in text.splitlines() if line.strip()]


def _with_places(folder: Path, dataset: "Dataset") -> "Dataset":
    """The folder a picture lies in as the column `folder`; as its split too, if all are named like splits."""
    names = list(dataset["file_name"])
    tops = [name.split("/", 1)[0] for name in names]
    if "split" not in dataset.column_names and SPLIT_FOLDERS.issuperset(tops):
        dataset = dataset.add_column("split", tops)  # pyright: ignore[reportCallIssue]
    if "folder" not in dataset.column_names:
        dataset = dataset.add_column(  # pyright: ignore[reportCallIssue]
            "folder", [(folder / name).absolute().parent.name for name in names]
        )
    return dataset


def _load(builder: str, **options: Any) -> "Dataset":
    """One table from `datasets`; splits, where there are any, joined under the column `split`."""
    import datasets

    splits = datasets.load_dataset(builder, **options)
    assert isinstance(splits, datasets.DatasetDict)
    parts = dict(splits)
    if list(parts) != ["train"] and not any("split" in part.column_names for part in parts.values()):
        for name, part in splits.items():
            parts[name] = part.add_column("split", [str(name)] * len(part))  # pyright: ignore[reportCallIssue]
    return datasets.concatenate_datasets(list(parts.values()))


@contextmanager
def _one_line(source: str) -> Iterator[None]:
    """Quiet, and with whatever `datasets` raises as one DataError that begins with `source`."""
    import datasets
    from datasets import config

    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(logging.CRITICAL)  # it logs as errors what it raises as well
    try:
        yield
    except DataError as error:
        raise DataError(f"{source}: {error}") from error
    except Exception as error:  # of many kinds, many of them wrapped in DatasetGenerationError
        root: BaseException = error
        while root.__cause__ is not None:
            root = root.__cause__
        if isinstance(root, OSError) and root.errno in UNWRITABLE:
            raise DataError(
                f"{source}: cannot write the data cache in {config.HF_DATASETS_CACHE} ({root.strerror}); "
                "set HF_DATASETS_CACHE to a folder with room that you can write"
            ) from error
        reason = _first_line(root)
        if "corresponds to no data" in reason:
            reason = "it holds no row"
        raise DataError(f"{source}: cannot be read: {reason}") from error


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _separate(source: str, dataset: "Dataset", base: Path, wanted: str | None) -> Rows:
    """The picture column, left undecoded, apart from the text columns; nested columns flattened."""
    import pyarrow as pa
    from datasets import Image

    if len(dataset) == 0:
        raise DataError(f"{source}: holds no row")
    column = _image_column(source, dataset, wanted)
    if isinstance(dataset.features[column], Image):
        dataset = dataset.cast_column(column, Image(decode=False))
    images = dataset.select_columns([column])
    schema = dataset.features.arrow_schema
    others = [field.name for field in schema if not _is_binary(field.type) and field.name != "__url__"]
    text = dataset.select_columns(others).flatten()
    table: pa.Table = text.with_format("arrow")[:]  # pyright: ignore[reportAssignmentType]
    bare = [name.rsplit(".", 1)[-1] for name in table.column_names]
    names = [short if bare.count(short) == 1 else name for short, name in zip(bare, table.column_names, strict=True)]
    return Rows(source, table.rename_columns(names), images, column, base)


def _image_column(source: str, dataset: "Dataset", wanted: str | None) -> str:
    from datasets import Image

    columns = dataset.column_names
    if wanted is not None:
        if wanted not in columns:
            raise DataError(f"{source}: no column {wanted}; there are {', '.join(columns)}")
        return wanted
    schema = dataset.features.arrow_schema
    pictures = [name for name in columns if isinstance(dataset.features[name], Image)]
    binary = [name for name in columns if _is_binary(schema.field(name).type)]
    paths = [name for name in PATH_COLUMNS if name in columns and _is_string(schema.field(name).type)]
    found = pictures or binary or paths[:1]
    if not found:
        raise DataError(f"{source}: no column holds pictures; there are {', '.join(columns)}")
    if len(found) > 1 and "image" not in found:
        raise DataError(f"{source}: several columns hold pictures ({', '.join(found)}); name one of them")
    return "image" if "image" in found else found[0]


def _is_binary(kind: "pa.DataType") -> bool:
    import pyarrow as pa

    if pa.types.is_struct(kind):
        return any(_is_binary(kind.field(index).type) for index in range(kind.num_fields))
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _is_string(kind: "pa.DataType") -> bool:
    import pyarrow as pa

    return pa.types.is_string(kind) or pa.types.is_large_string(kind)
