"""Reads the plain objects and tensors in files of torch.save and in TorchScript archives, without executing anything.

Files of torch.save go through torch.load(weights_only=True) after their pickle was checked. torch has no reader of
TorchScript archives that does not also load their code, so here their tensors are put together from the checked pickle
and the stored bytes.
"""

import io
import re
import struct
import threading
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import IO, Any

import torch
from torch import Tensor

from codebrush.conversion.pickles import KNOWN_CLASSES, StandIn, Storage, StoredTensor, Survey, check_pickle
from codebrush.errors import PackError

LEGACY_MAGIC = b"\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19\x2e"  # the pickled number before torch 1.6

_MAX_PICKLE = 256 << 20  # bytes; a checkpoint of thousands of tensors has a pickle of a few hundred kilobytes
_MAX_SOURCE = 16 << 20  # bytes of one TorchScript source file
_MAX_EXPANSION = 20  # times the file's size
_MAX_MODULES = 100_000  # in a TorchScript program; a module that is used twice counts twice
_CHUNK = 4 << 20
_DOS_FOLDER = 0x10  # the bit of an entry's attributes by which zip marks a folder
_REGISTERED = re.compile(
    r"^class (?P<name>\w+)\(Module\):\n"
    r" +__parameters__ = \[(?P<parameters>[^\]]*)\]\n"
    r" +__buffers__ = \[(?P<buffers>[^\]]*)\]",
    re.MULTILINE,
)
_one_load_at_a_time = threading.Lock()  # torch's allow-list belongs to the whole process


class Archive:
    """A zip archive as torch writes it, checked on opening: safe names, no zip bomb, every entry stored as torch does.

    Raises:
        PackError: if the archive must not be read, or torch did not write it.
        zipfile.BadZipFile: if it is damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._zip = zipfile.ZipFile(path)
        self._file: IO[bytes] = path.open("rb")
        try:
            self.records = self._checked_records()
        except BaseException:
            self.__exit__(None, None, None)
            raise

    def __enter__(self) -> "Archive":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self._zip.close()
        self._file.close()

    @property
    def is_script(self) -> bool:
        """Whether this is a TorchScript program and not a file of torch.save."""
        return "constants.pkl" in self.records or any(name.startswith("code/") for name in self.records)

    def _checked_records(self) -> dict[str, zipfile.ZipInfo]:
        """The entries, by their names inside the archive's one top folder."""
        entries = self._zip.infolist()
        names = [entry.orig_filename for entry in entries]
        for name in names:
            if name.startswith(("/", "\\")) or "\\" in name or ":" in name or ".." in PurePosixPath(name).parts:
                raise PackError(
                    f"{self.path} holds an entry named {name!r}, which leads out of the archive; it is not read"
                )
        if len(set(names)) != len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise PackError(f"{self.path} holds two entries named {twice!r}; it is not read, fetch it again")
        size = self.path.stat().st_size
        stored = sum(entry.compress_size for entry in entries)
        if stored > size or sum(entry.file_size for entry in entries) > _MAX_EXPANSION * size:
            raise PackError(f"{self.path} would unpack to far more than it holds (a zip bomb); it is not read")
        if any(entry.flag_bits & 1 for entry in entries):
            raise PackError(f"{self.path} is encrypted; decrypt it and save it again without a password")
        roots = {name.partition("/")[0] for name in names if name.endswith("/data.pkl") and name.count("/") == 1}
        if len(roots) != 1:
            raise PackError(
                f"{self.path} is a zip archive but not one of torch.save; unpack it and name the file in it"
            )
        (root,) = roots
        records = {
            entry.orig_filename[len(root) + 1 :]: entry
            for entry in entries
            if entry.orig_filename.startswith(f"{root}/")
        }
        for name, entry in records.items():
            packed = entry.compress_type != zipfile.ZIP_STORED or entry.compress_size != entry.file_size
            if packed and not name.startswith("code/"):  # TorchScript compresses its source, and only that
                raise PackError(f"{self.path}: its entry {name!r} is compressed, as torch never does; it is not read")
            # torch reads nothing of a folder, and returns whatever its memory holds as the entry's contents
            if entry.file_size and (entry.is_dir() or entry.external_attr & _DOS_FOLDER):
                raise PackError(f"{self.path}: its entry {name!r} is marked as a folder; it is damaged, fetch it again")
        return records

    def _chunks(self, name: str) -> Iterator[bytes]:
        """Yield the bytes of a stored entry and check its checksum; torch can leave that out and then writes 0."""
        entry = self.records[name]
        self._file.seek(entry.header_offset)
        header = self._file.read(30)
        if len(header) < 30 or header[:4] != b"PK\x03\x04":
            raise zipfile.BadZipFile(f"its entry {name!r} has no header")
        name_length, extra_length = struct.unpack("<HH", header[26:])
        self._file.seek(name_length + extra_length, 1)
        left, checksum = entry.file_size, 0
        while left:
            chunk = self._file.read(min(left, _CHUNK))
            if not chunk:
                raise zipfile.BadZipFile(f"its entry {name!r} is cut off")
            left, checksum = left - len(chunk), zlib.crc32(chunk, checksum)
            yield chunk
        if entry.CRC and checksum != entry.CRC:
            raise zipfile.BadZipFile(f"its entry {name!r} is not what its checksum says")

    def read(self, name: str, limit: int | None = None) -> bytearray:
        """The contents of an entry; a PackError if it has more than `limit` bytes."""
        if limit is not None and self.records[name].file_size > limit:
            raise PackError(f"{self.path}: its entry {name!r} has more than {limit >> 20} MB; it is not read")
        content = bytearray()
        for chunk in self._chunks(name):
            content += chunk
        return content

    def verify(self, name: str) -> None:
        """Raise zipfile.BadZipFile if the contents of an entry do not match its checksum."""
        for _ in self._chunks(name):
            pass

    def source(self, name: str) -> str:
        """The text of a TorchScript source file; empty if there is no such file."""
        if name not in self.records:
            return ""
        with self._zip.open(self.records[name]) as file:
            return file.read(_MAX_SOURCE).decode()

    def size_of(self, key: str) -> int | None:
        """How many bytes the archive holds for the storage `key`; None if it has none."""
        entry = self.records.get(f"data/{key}")
        return None if entry is None else entry.file_size


def read_archive(path: Path) -> Any:
    """The object in a zip archive of torch.save, or {"state_dict": tensors, attribute: number ...} of TorchScript.

    Raises:
        PackError: if it must not be read, or names a class or function that is not on the allow-list.
        Exception: of many kinds, if it is damaged.
    """
    with Archive(path) as archive:
        if "byteorder" in archive.records and archive.read("byteorder", _CHUNK) != b"little":
            raise PackError(f"{path} was written by a big-endian machine; save it again on a little-endian one")
        content = bytes(archive.read("data.pkl", _MAX_PICKLE))
        survey, root = _survey(content, archive)
        if archive.is_script:
            return _script_module(root, survey.storages, archive)
        for key in survey.storages:
            archive.verify(f"data/{key}")
    return _load(path, mmap=True)


def read_legacy(path: Path) -> Any:
    """Read a file that torch.save wrote before torch 1.6: a few pickles, then the bytes of the storages.

    Raises:
        PackError: if it names a class or function that is not on the allow-list.
        Exception: of many kinds, if it is damaged.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        for _ in range(3):  # magic number, version, machine
            check_pickle(file, path)
        start = file.tell()
        check_pickle(file, path)
        file.seek(start)
        survey = Survey(file, path)
        survey.load()
        start = file.tell()
        check_pickle(file, path)
        file.seek(start)
        keys = Survey(file, path).load()
        if sorted(keys) != sorted(survey.storages):
            raise ValueError("its tensors do not match its storages")
        if file.tell() + sum(storage.nbytes for storage in survey.storages.values()) > size:
            raise ValueError("it is shorter than its tensors")
    return _load(path, mmap=False)


def _load(path: Path, mmap: bool) -> Any:
    known: list[Any] = [(stand_in, name) for name, stand_in in KNOWN_CLASSES.items()]
    # torch maps a file only by its path, and takes every path that ends in .safetensors for a safetensors file
    mapped = mmap and path.suffix != ".safetensors"
    with _one_load_at_a_time, torch.serialization.safe_globals(known), path.open("rb") as file:
        return torch.load(str(path) if mapped else file, map_location="cpu", weights_only=True, mmap=mapped)


def _survey(content: bytes, archive: Archive) -> tuple[Survey, Any]:
    check_pickle(io.BytesIO(content), archive.path, script=archive.is_script)
    survey = Survey(io.BytesIO(content), archive.path, archive.size_of)
    return survey, survey.load()


def _script_module(root: object, storages: dict[str, Storage], archive: Archive) -> dict[str, Any]:
    """{"state_dict": parameters and buffers of `root` and its submodules}, and the plain numbers on `root` itself."""
    if not isinstance(root, StandIn):
        raise PackError(f"{archive.path} is a TorchScript archive without a module; it holds no weights")
    places = dict(_parameters(root, "", archive, {}, iter(range(_MAX_MODULES))))
    used = {place.storage.key for place in places.values()}
    raw = {key: torch.frombuffer(archive.read(f"data/{key}") or bytearray(1), dtype=torch.uint8) for key in used}
    tensors: dict[str, Tensor] = {}
    for name, place in places.items():
        numbers = raw[place.storage.key][: place.storage.nbytes].view(place.storage.dtype)
        tensors[name] = numbers.as_strided(place.size, place.stride, place.offset)
    numbers = {name: value for name, value in root.state.items() if type(value) in (int, float)}
    return {**numbers, "state_dict": tensors}


def _parameters(
    module: StandIn, prefix: str, archive: Archive, sources: dict[str, dict[str, set[str]]], room: Iterator[int]
) -> Iterator[tuple[str, StoredTensor]]:
    """The tensors of a module and its submodules, by their names in its state dict.

    Tensors that are plain attributes are stored the same way; only a module's source says which are parameters and
    buffers. Sources from before torch 1.7 do not say it, and then every tensor counts.
    """
    if next(room, None) is None:
        raise ValueError(f"it has more than {_MAX_MODULES} modules")
    home = type(module).__module__
    if home not in sources:
        text = archive.source(f"code/{home.replace('.', '/')}.py")
        sources[home] = {
            found["name"]: set(re.findall(r'"([^"]*)"', found["parameters"] + found["buffers"]))
            for found in _REGISTERED.finditer(text)
        }
    registered = sources[home].get(type(module).__name__)
    for name, value in module.state.items():
        if isinstance(value, StandIn):
            yield from _parameters(value, f"{prefix}{name}.", archive, sources, room)
        elif isinstance(value, StoredTensor) and (registered is None or name in registered):
            yield f"{prefix}{name}", value
