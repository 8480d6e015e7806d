"""Reads a folder of pictures with its captions, or the tables or shards in it, as one table."""

import posixpath
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from codebrush.data.decoding.picture_formats import EXTENSIONS, READ, is_picture_file, kind_of_file, remedies
from codebrush.data.sources.caption_files import ENDINGS, CaptionFiles, captions_in
from codebrush.data.sources.file_names import escaped
from codebrush.data.sources.folder_files import files_in
from codebrush.data.sources.metadata import METADATA_NAMES, read_metadata, tables_about
from codebrush.data.sources.picture_names import PictureNames
from codebrush.data.sources.tables import BUILDERS, load_files
from codebrush.data.sources.text_files import is_tabbed
from codebrush.data.sources.unread import Unread, amount, enumeration
from codebrush.errors import DataError

if TYPE_CHECKING:
    from datasets import Dataset

CURATION_REPORT = "dropped.jsonl"  # in every folder that `curate` wrote
DOWNLOAD_REPORT = "failures.jsonl"  # in every folder that `data gather` wrote
CURATION_FILES = (CURATION_REPORT, "report.json", "report.md", "kept.png", "dropped.png")
SPLIT_FOLDERS = frozenset(("train", "val", "valid", "validation", "test"))


class NoPicturesError(DataError):
    """A folder holds no picture, table of pictures or shard. `unread` counts what is in it."""

    def __init__(self, message: str, unread: Unread) -> None:
        super().__init__(message)
        self.unread = unread


@dataclass(frozen=True)
class _Files:
    """The files of a folder by what they can be, relative to it."""

    pictures: list[str]
    metadata: list[str]
    parquet: list[str]
    shards: list[str]
    tables: list[str]
    others: list[str]


def load_folder(
    source: str, folder: Path, unread: Unread, exclude: Sequence[str] = (), image_column: str | None = None
) -> "Dataset":
    """Load the pictures of a folder, or if there are none (or only illustrations) its Parquet files or shards.

    Every file that is not read goes into `unread`. `image_column` may be that of file names in tables beside pictures.

    Raises:
        DataError: if there are none of these, or they cannot be loaded; begins with `source`.
    """
    names = files_in(folder, unread, exclude)
    reports = _own_reports(names)
    unread.count("report of codebrush", len(reports))
    files = _sorted_out(folder, [name for name in names if name not in reports])
    illustrated = not files.metadata and _is_dataset_card(folder / "README.md")
    kinds = [files.parquet, files.shards, files.pictures]
    if not illustrated:
        kinds = [files.pictures, *kinds[:2]]
    if files.shards and not any(_holds_pictures(folder / name) for name in files.parquet[:1]):
        kinds.remove(files.parquet)  # tables of addresses beside shards, as img2dataset writes them
        kinds.append(files.parquet)
    chosen = next((kind for kind in kinds if kind), files.pictures)
    if not chosen:
        _count(folder, [*files.others, *files.metadata, *files.tables], unread)
        found = [amount(kind, number) for kind, number in sorted(unread.counted.items())]
        held = f"there are {enumeration(found)}" if found else f"looked for {', '.join(READ)}"
        said = "; ".join([f"{source}: no picture in this folder", held, *remedies(unread.counted)])
        raise NoPicturesError(said, unread)
    left_out = [name for kind in kinds if kind is not chosen for name in kind]
    if left_out:
        _note_left_out(chosen, left_out, unread)
    if chosen is not files.pictures:
        _count(folder, [*files.metadata, *files.tables, *files.others], unread)
        return load_files(source, folder, chosen, unread)
    return _with_folders(folder, _pictures(source, folder, files, unread, image_column))


def _sorted_out(folder: Path, names: Sequence[str]) -> _Files:
    kinds: dict[str, list[str]] = {name: [] for name in _Files.__annotations__}
    for name in names:
        base, ending = posixpath.basename(name).lower(), posixpath.splitext(name)[1].lower()
        if base in METADATA_NAMES:
            kind = "metadata"
        elif ending in EXTENSIONS:
            kind = "pictures"
        elif ending in (".parquet", ".tar"):
            kind = "parquet" if ending == ".parquet" else "shards"
        elif ending in BUILDERS:
            kind = "tables"
        else:
            kind = "pictures" if ending not in ENDINGS and is_picture_file(folder / name) else "others"
        kinds[kind].append(name)
    return _Files(**kinds)


def _pictures(source: str, folder: Path, files: _Files, unread: Unread, image_column: str | None) -> "Dataset":
    """The rows of a folder's pictures, with the metadata or else the caption files beside them."""
    names, texts = PictureNames(folder, files.pictures), CaptionFiles(files.others)
    tables, broken = files.metadata, list[str]()
    if not tables:
        beside = {name for picture in files.pictures if (name := texts.beside(picture)) is not None}
        options = {"wanted": image_column, "alone": not beside}
        tables, broken = tables_about(source, folder, files.tables, names, unread, **options)
        if not tables:
            tabbed = [name for name in files.others if name not in beside and is_tabbed(folder / name)]
            tables, more = tables_about(source, folder, tabbed, names, unread, **options)
            broken += more
    dataset = read_metadata(source, folder, files.pictures, names, tables, unread, image_column)
    used = set(tables)
    if dataset is None:
        dataset, used = _folder_with_texts(folder, files.pictures, texts, unread)
    _count(folder, (name for name in [*files.tables, *files.others] if name not in used and name not in broken), unread)
    return dataset


def _folder_with_texts(
    folder: Path, pictures: list[str], texts: CaptionFiles, unread: Unread
) -> "tuple[Dataset, set[str]]":
    """The pictures with the captions of the files beside them, and these files."""
    from datasets import Dataset, Features, Sequence, Value

    captions: list[list[str]] = []
    cache: dict[str, list[str]] = {}
    for picture in pictures:
        beside = texts.beside(picture)
        if beside is not None and beside not in cache:
            cache[beside] = captions_in(folder / beside, unread)
        captions.append(cache.get(beside or "", []))
    features = Features({"file_name": Value("string"), "captions": Sequence(Value("string"))})
    rows = {"file_name": [escaped(name) for name in pictures], "captions": captions}
    return Dataset.from_dict(rows, features=features), set(cache)


def _count(folder: Path, names: Iterable[str], unread: Unread) -> None:
    """Count files that were not read by their kind."""
    for name in names:
        unread.count(kind_of_file(folder / name))


def _own_reports(names: Sequence[str]) -> set[str]:
    """The reports and the contact sheets that a curation or a download wrote beside its shards."""
    folders = {name.removesuffix(CURATION_REPORT) for name in names if Path(name).name == CURATION_REPORT}
    written = {place + file for place in folders for file in CURATION_FILES}
    return {name for name in names if name in written or Path(name).name == DOWNLOAD_REPORT}


def _is_dataset_card(path: Path) -> bool:
    """Whether a file begins like a dataset card on the hub; pictures beside one are illustrations."""
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            return file.readline(16).strip() == "---"
    except OSError:
        return False


def _holds_pictures(path: Path) -> bool:
    """Whether a Parquet file has a column of bytes; True if it cannot be read, so that this is said."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return any("binary" in str(field.type) for field in pq.read_schema(path))
    except (OSError, pa.ArrowInvalid):
        return True


def _note_left_out(read: Sequence[str], left_out: Sequence[str], unread: Unread) -> None:
    suffix = Path(read[0]).suffix.lower()
    kind = suffix if suffix in BUILDERS else "picture"
    names = ", ".join([*left_out[:3], *(["..."] if len(left_out) > 3 else [])])
    unread.note(
        f"reads the {len(read)} {kind} files in it, but not {len(left_out)} of another kind ({names}); "
        "to read those, name them"
    )


def _with_folders(folder: Path, dataset: "Dataset") -> "Dataset":
    """Add the column `folder` with the folder of each picture, and `split` if all folders are named like splits."""
    names = list(dataset["file_name"])
    tops = [name.split("/", 1)[0] for name in names]
    if "split" not in dataset.column_names and SPLIT_FOLDERS.issuperset(tops):
        dataset = dataset.add_column("split", tops)  # pyright: ignore[reportCallIssue]
    if "folder" not in dataset.column_names:
        dataset = dataset.add_column(  # pyright: ignore[reportCallIssue]
            "folder", [escaped((folder / name).absolute().parent.name) for name in names]
        )
    return dataset
