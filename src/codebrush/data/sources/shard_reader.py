"""Reads WebDataset tar shards into a table with one row a sample, pictures undecoded.

In a shard the files of a sample are adjacent and share their name up to a dot: 0001.jpg, 0001.txt, 0001.json. Samples
may have pictures of different kinds, and not all of these files. A shard that is cut off gives its whole samples. They
are copied from the tar to the Arrow cache on disk, with a bounded number in memory.
"""

import json
import posixpath
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from codebrush.data.decoding.picture_formats import EXTENSIONS, HEAD, readable_format
from codebrush.data.sources.cached_rows import cached_rows, count, problem
from codebrush.data.sources.column_names import CAPTION_COLUMNS, usual_columns
from codebrush.data.sources.file_names import escaped
from codebrush.data.sources.filters import is_empty
from codebrush.data.sources.json_columns import described, read_object
from codebrush.data.sources.tar_files import DAMAGED, LARGEST_SAMPLE, is_damage, open_tar
from codebrush.data.sources.text_files import decode_text
from codebrush.data.sources.unread import Unread, amount
from codebrush.errors import DataError

if TYPE_CHECKING:
    from datasets import Dataset

PICTURES = frozenset((*(extension[1:] for extension in EXTENSIONS), "img", "image"))
TEXTS = {"txt": "txt", "text": "txt", "caption": "caption", "captions": "caption", "cap": "caption", "cls": "cls"}
COLUMNS = ("txt", "caption", "cls")
OWN_FIELDS = ("image", "__key__")  # keys of JSON files do not replace these


def read_shards(files: Sequence[tuple[Path, str]], unread: Unread, cache: Path | None = None) -> "Dataset":
    """Read the samples of `files`, each a shard with the name of its split ("" for none).

    Columns: `image`, `__key__`, and as far as they occur `txt`, `caption`, `cls`, `split` and the keys of the JSON
    files. What cannot be read goes into `unread`. `cache` is the folder of the copy on disk; None is the usual one.

    Raises:
        DataError: if no shard holds a picture or a text; names the fields that they do hold.
    """
    from datasets import Image, Value, concatenate_datasets

    names = ("__key__", "split", "json", *COLUMNS)
    columns = {"image": Image(decode=False), **dict.fromkeys(names, Value("string"))}
    before = unread.counted.copy()
    dataset = cached_rows(_samples, files, columns, unread, cache)
    if not len(dataset):
        fields = [kind.removeprefix("member of the kind ") for kind in unread.counted - before]
        held = f"; they hold {', '.join(fields)}" if fields else ""
        said = "".join(f"; {line}" for line in unread.lines)
        raise DataError(f"{unread.origin}: no sample in {_numbered(len(files))}{held}{said}")
    texts = [one if one is not None else other for one, other in zip(dataset["caption"], dataset["txt"], strict=True)]
    empty = {name for name in (*COLUMNS, "split", "json") if dataset.data.column(name).null_count == len(dataset.data)}
    objects = None if "json" in empty else described(dataset.select_columns(["json"]), OWN_FIELDS)
    replaced = set() if objects is None else set(objects.column_names)
    dataset = dataset.remove_columns([name for name in names if name in {*empty, *replaced, "json"}])
    dataset = dataset if objects is None else concatenate_datasets([dataset, objects], axis=1)
    return _with_every_caption(dataset, texts)


def _with_every_caption(dataset: "Dataset", texts: Sequence[str | None]) -> "Dataset":
    """The samples with `texts`, of their files, where the column that is read for captions is empty.

    Some samples may have a .txt, others a .caption or a key of their .json.
    """
    column = next(iter(usual_columns(CAPTION_COLUMNS, dataset.column_names)), None)
    if column is None:
        return dataset
    kind = str(dataset.features.arrow_schema.field(column).type)
    if "string" not in kind or kind.startswith("struct"):
        return dataset
    cells = list(dataset[column])
    wanted = [text if kind == "string" or text is None else [text] for text in texts]
    filled = [text if is_empty(cell) else cell for cell, text in zip(cells, wanted, strict=True)]
    if filled == cells:
        return dataset
    order, feature = dataset.column_names, dataset.features[column]
    dataset = dataset.remove_columns(column).add_column(column, filled, feature=feature)  # pyright: ignore
    return dataset.select_columns(order)


def _numbered(shards: int) -> str:
    return "this shard" if shards == 1 else f"these {shards} shards"


def _samples(shards: Iterable[tuple[str, str]]) -> Iterator[dict[str, Any]]:
    for path, split in shards:
        whole, cut = 0, False
        rows: list[dict[str, Any]] = []  # of the sample before the one that is looked at
        for _, group in groupby(_members(path), key=lambda member: first_key(member[0])):
            files = list(group)
            cut = any(data is None for _, data in files)
            if files == [("", None)] and not any("image" in row for row in rows):
                rows = []  # its picture was cut off
            for row in rows:
                whole += "__key__" in row
                yield {"split": split or None, **row}
            rows = []
            if not cut:
                rows += [problem(f"{path}: {name}", data) for name, data in files if isinstance(data, str)]
                read = [(name, data) for name, data in files if isinstance(data, bytes)]
                rows += _rows_of(path, read) if read else ()
        for row in rows:
            yield {"split": split or None, **row}
        if cut:
            reason = f"cut off or damaged after {amount('whole sample', whole)}" if whole else "not a whole tar file"
            yield problem(path, reason)


def _members(path: str) -> Iterator[tuple[str, bytes | str | None]]:
    """Names and contents of the files in a shard, in place of the content the reason if it is not read; None for what
    is cut off, with no name if that is cut off too."""
    name, key, taken = "", "", 0
    try:
        with open_tar(path) as shard:
            while (member := shard.next()) is not None:
                shard.members.clear()  # pyright: ignore[reportAttributeAccessIssue]  # it keeps every member otherwise
                if member.isfile() and not is_hidden(member.name):
                    name = escaped(member.name)
                    taken = member.size + (taken if first_key(name) == key else 0)
                    key = first_key(name)
                    if taken > LARGEST_SAMPLE:
                        yield name, f"with it the sample is larger than {LARGEST_SAMPLE >> 30} GB"
                        name = ""
                        continue
                    data = shard.extractfile(member).read()  # pyright: ignore[reportOptionalMemberAccess]
                    if len(data) < member.size:
                        raise tarfile.ReadError("unexpected end of data")
                    yield name, data
                    name = ""
            # `tarfile` takes anything else but the header of a member for the end.
            shard.fileobj.seek(shard.offset)  # pyright: ignore[reportOptionalMemberAccess]
            if shard.fileobj.read(tarfile.BLOCKSIZE).strip(b"\0"):  # pyright: ignore[reportOptionalMemberAccess]
                raise tarfile.ReadError("damaged header")
    except (*DAMAGED, OSError) as error:
        if not is_damage(error):
            raise
        yield name, None


def is_hidden(name: str) -> bool:
    """Whether a member of a shard is a hidden file, or one that macOS added."""
    return any((part.startswith(".") and part != ".") or part == "__MACOSX" for part in name.split("/"))


def first_key(name: str) -> str:
    """The path up to the first dot of the file name, as WebDataset brings a sample together."""
    folder, base = posixpath.split(name)
    return posixpath.join(folder, base.partition(".")[0])


def _rows_of(path: str, files: list[tuple[str, bytes]]) -> Iterator[dict[str, Any]]:
    """The samples among adjacent files that share their name up to the first dot, and what of them cannot be read.

    Mostly one. Names with more dots make several, by the name up to the last one ("trip 22.05.png"); a single picture
    takes all other files (0.input.png, 0.outputs.txt), and of several each takes those of its name and the shared ones.
    A picture under another ending, or none, is one by its content where no other is.
    """
    by_content = not any(_parted(name)[1] in PICTURES for name, _ in files)
    parted = [(*_parted(name), data) for name, data in files]
    pictures = [each for each in parted if _is_picture(*each[1:], by_content)]
    texts: list[tuple[str, str, str]] = []
    for stem, ending, data in [each for each in parted if each not in pictures]:
        try:
            if ending in TEXTS or ending == "json":
                texts.append((stem, ending, _text(ending, data)))
            else:
                yield count(f"member of the kind .{ending}" if ending else "member without an ending")
        except UnicodeDecodeError:
            yield problem(f"{path}: {stem}.{ending}", "not UTF-8 text")
        except ValueError:
            yield problem(f"{path}: {stem}.{ending}", "not a JSON object")
    key = first_key(files[0][0])
    if len(pictures) < 2:
        own = pictures[0][0] if pictures and all(stem == pictures[0][0] for stem, _, _ in parted) else key
        yield from _sample(own, pictures[0] if pictures else None, texts)
        return
    same = len({stem for stem, _, _ in pictures}) < len(pictures)
    for stem, ending, data in pictures:
        own = f"{stem}.{ending}" if same else stem
        yield from _sample(own, (stem, ending, data), [each for each in texts if each[0] in (stem, key)])
    known = {stem for stem, _, _ in pictures} | {key}
    for stem, _, _ in [each for each in texts if each[0] not in known]:
        yield count(f"member called {posixpath.basename(stem)} without a picture of its name")


def _text(ending: str, data: bytes) -> str:
    """The text of a member. Raises ValueError if it is no text, or with the ending "json" no object or captions."""
    text = decode_text(data).strip()
    return _object_in(text) if ending == "json" else text


def _parted(name: str) -> tuple[str, str]:
    """The name up to its last dot, and its ending in lower case."""
    folder, base = posixpath.split(name)
    stem, dot, ending = base.rpartition(".")
    return posixpath.join(folder, stem if dot else base), ending.lower() if dot else ""


def _is_picture(ending: str, data: bytes, by_content: bool) -> bool:
    known = ending in PICTURES or ending in TEXTS or ending == "json"
    return ending in PICTURES or (by_content and not known and readable_format(data[:HEAD]) is not None)


def _object_in(text: str) -> str:
    """A .json file that holds a text, or a list of texts, as an object with these captions.

    Raises:
        ValueError: if it holds anything else.
    """
    try:
        value = json.loads(text) if text[:1] in ('"', "[") else None
    except RecursionError:
        raise ValueError("its lists are too deep") from None
    texts = [value] if isinstance(value, str) else value
    if isinstance(texts, list) and texts and all(isinstance(each, str) for each in texts):
        return json.dumps({"captions": texts})
    read_object(text)
    return text


def _sample(
    key: str, picture: tuple[str, str, bytes] | None, texts: Sequence[tuple[str, str, str]]
) -> Iterator[dict[str, Any]]:
    """The row of one sample, and rows that count the texts that it has no column for."""
    row: dict[str, Any] = {}
    if picture is not None:
        stem, ending, data = picture
        row["image"] = {"bytes": data, "path": f"{stem}.{ending}" if ending else stem}
    for _, ending, text in texts:
        column = TEXTS.get(ending, ending)
        if column in row:
            yield count(f"member of the kind .{ending} beside another caption")
        row.setdefault(column, text)
    if row:
        yield {**row, "__key__": key}
