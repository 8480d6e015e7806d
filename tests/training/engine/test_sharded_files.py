"""Sharded checkpoints that somebody else wrote: nothing of them is executed, and nothing outside of them is read."""

import io
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import BytesStorageMetadata, Metadata, MetadataIndex

from codebrush.training.engine.sharded_files import contents, missing_parts, read_parts, write_parts


class Runner:
    """Makes a folder when it is read by pickle."""

    def __init__(self, folder: Path):
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.folder),)


def object_in_bytes(metadata: Metadata, folder: Path) -> None:
    """What looks like a tensor in the table of contents, and what torch reads as a pickle."""
    content = io.BytesIO()
    torch.save(Runner(folder / "ran"), content)
    (folder / "parts/object.distcp").write_bytes(content.getvalue())
    entry, tensor = BytesStorageMetadata(), metadata.state_dict_metadata["step"]
    vars(entry).update(vars(tensor))
    metadata.state_dict_metadata["step"] = entry
    metadata.storage_data[MetadataIndex("step")] = _StorageInfo("object.distcp", 0, len(content.getvalue()))


def object_for_a_tensor(metadata: Metadata, folder: Path) -> None:
    metadata.state_dict_metadata["step"] = Runner(folder / "ran")  # pyright: ignore[reportArgumentType]


def object_for_a_tensors_size(metadata: Metadata, folder: Path) -> None:
    metadata.state_dict_metadata["step"].size = Runner(folder / "ran")  # pyright: ignore


def part_for_a_tensor(metadata: Metadata, folder: Path) -> None:
    """A class that the table of contents may hold, in a place where it has none."""
    metadata.state_dict_metadata["step"] = next(iter(metadata.storage_data.values()))


def file_outside(metadata: Metadata, folder: Path) -> None:
    (folder / "parts/__0_0.distcp").rename(folder / "outside.distcp")
    for index, info in metadata.storage_data.items():
        metadata.storage_data[index] = _StorageInfo("../outside.distcp", info.offset, info.length)


@pytest.mark.parametrize(
    "change", [object_in_bytes, object_for_a_tensor, object_for_a_tensors_size, part_for_a_tensor, file_outside]
)
def test_nothing_of_a_checkpoint_is_executed(change: Callable[[Metadata, Path], None], tmp_path: Path):
    folder = tmp_path / "parts"
    folder.mkdir()
    write_parts(folder, {"step": torch.tensor([3, 4]), "left_out": torch.tensor([1])})
    read = {"step": torch.tensor([0, 0])}
    read_parts(folder, read)
    assert read["step"].tolist() == [3, 4]
    metadata = pickle.loads((folder / ".metadata").read_bytes())
    change(metadata, tmp_path)
    (folder / ".metadata").write_bytes(pickle.dumps(metadata))
    for look in (contents, missing_parts, lambda folder: read_parts(folder, read)):
        with pytest.raises(pickle.UnpicklingError, match=r"has no place in a checkpoint|is no tensor|lies outside"):
            look(folder)
    assert not (tmp_path / "ran").exists()
    assert read["step"].tolist() == [3, 4]


def test_files_that_are_missing_are_named(tmp_path: Path):
    write_parts(tmp_path, {"step": torch.tensor(3)})
    assert missing_parts(tmp_path) == []
    (tmp_path / "__0_0.distcp").unlink()
    assert missing_parts(tmp_path) == ["__0_0.distcp"]
