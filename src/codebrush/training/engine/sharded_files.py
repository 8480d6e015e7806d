"""A folder of tensors, to which each process writes the parts that it holds, and from which any number of processes
reads what it needs (torch.distributed.checkpoint)."""

import pickle
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

# What the table of contents, a pickle, may hold: nothing that runs when it is read. Without BytesStorageMetadata: torch
# unpickles the bytes that such an entry stands for.
CLASSES = {
    "torch.distributed.checkpoint.metadata": (
        "ChunkStorageMetadata",
        "Metadata",
        "MetadataIndex",
        "StorageMeta",
        "TensorProperties",
        "TensorStorageMetadata",
        "_MEM_FORMAT_ENCODING",
    ),
    "torch.distributed.checkpoint.filesystem": ("_StorageInfo",),
    "torch.serialization": ("_get_layout",),
    "torch": ("Size",),
    "pathlib": ("Path", "PosixPath", "PurePath", "PurePosixPath", "PureWindowsPath", "WindowsPath"),
    "pathlib._local": ("Path", "PosixPath", "PurePath", "PurePosixPath", "PureWindowsPath", "WindowsPath"),
}


class Entry(NamedTuple):
    """The size and type of a tensor in such a folder."""

    size: torch.Size
    dtype: torch.dtype


def write_parts(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors into an empty folder, the same one in every process; all must call this. Those that are not sharded
    the first process writes. Raises OSError or RuntimeError, in every process, if one of them cannot write."""
    from torch.distributed.checkpoint import FileSystemWriter, save
    from torch.distributed.checkpoint.default_planner import DefaultSavePlanner

    with _plain_errors():
        save(
            dict(tensors),
            storage_writer=FileSystemWriter(folder),
            planner=DefaultSavePlanner(dedup_save_to_lowest_rank=True),
        )


def contents(folder: Path) -> dict[str, Entry]:
    """The tensors in a folder, by name."""
    known = _metadata(folder).state_dict_metadata
    return {name: Entry(entry.size, entry.properties.dtype) for name, entry in known.items()}


def missing_parts(folder: Path) -> list[str]:
    """The names of the files that hold tensors of a folder and are not there."""
    names = {part.relative_path for part in _metadata(folder).storage_data.values()}
    return sorted(name for name in names if not (folder / name).is_file())


def read_parts(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    """Read tensors from a folder into those given, each process what it holds of them. Raises whatever reading a
    damaged file raises."""
    from torch.distributed.checkpoint import FileSystemReader, load
    from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner

    metadata = _metadata(folder)

    class Reader(FileSystemReader):
        """Takes the table of contents from where nothing of it is executed."""

        def read_metadata(self, *_: Any, **__: Any) -> Any:
            return metadata

    class TensorsAlone(DefaultLoadPlanner):
        """Reads tensors, which torch reads safely; objects it would unpickle."""

        def load_bytes(self, read_item: Any, value: Any) -> None:
            raise pickle.UnpicklingError(f"'{read_item.dest_index.fqn}' is no tensor")

    with _plain_errors(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")  # no process needs another to read
        load(dict(tensors), storage_reader=Reader(folder), planner=TensorsAlone(), no_dist=True)


class _Contents(pickle.Unpickler):
    def find_class(self, module_name: str, global_name: str) -> Any:
        allowed = global_name in CLASSES.get(module_name, ())
        if not (allowed or (module_name == "torch" and isinstance(getattr(torch, global_name, None), torch.dtype))):
            raise pickle.UnpicklingError(f"'{module_name}.{global_name}' has no place in a checkpoint")
        return super().find_class(module_name, global_name)


def _metadata(folder: Path) -> Any:
    from torch.distributed.checkpoint.metadata import Metadata, StorageMeta, TensorStorageMetadata

    with (folder / ".metadata").open("rb") as file:
        metadata = _Contents(file).load()
    if type(metadata) is not Metadata:
        raise pickle.UnpicklingError("its table of contents is none")
    for name, entry in metadata.state_dict_metadata.items():
        if type(entry) is not TensorStorageMetadata:
            raise pickle.UnpicklingError(f"'{name}' is no tensor")
    for part in metadata.storage_data.values():
        if Path(part.relative_path).name != part.relative_path:
            raise pickle.UnpicklingError(f"'{part.relative_path}' lies outside of it")
    if getattr(metadata, "storage_meta", None) is None:
        metadata.storage_meta = StorageMeta()
    return metadata


@contextmanager
def _plain_errors() -> Iterator[None]:
    """Raise the error of the first process that failed instead of that which holds those of all."""
    from torch.distributed.checkpoint.api import CheckpointException

    try:
        yield
    except CheckpointException as error:  # no subclass of Exception
        first = next(iter(error.failures.values()), (None,))[0]
        raise first if isinstance(first, Exception) else RuntimeError("another process failed") from error
