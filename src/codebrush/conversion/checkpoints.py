"""Reads the tensors of any published checkpoint file, and the numbers beside them, without executing anything.

The format is recognised by the content, never by the file's name: safetensors, shards with an index, torch.save (zip
or legacy), TorchScript. `archives` and `pickles` read torch's own formats.
"""

import json
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from codebrush.conversion.archives import LEGACY_MAGIC, read_archive, read_legacy
from codebrush.errors import PackError, lacks_memory

# Keys under which a state dict may be stored; the first that holds tensors counts. Averaged (EMA) weights come
# before the raw ones, because they are what made the published results.
AVERAGED = ("ema", "ema_state_dict", "state_dict_ema", "model_ema", "ema_model")
WRAPPERS = (*AVERAGED, "state_dict", "model_state_dict", "model", "module")
_PREFIXES = ("module.", "_orig_mod.")  # added by DistributedDataParallel and torch.compile

UNKNOWN = "is not a checkpoint of a known format (safetensors, torch.save, TorchScript); fetch the right file"
_MAX_HEADER = 100_000_000  # bytes, safetensors' own bound
_MAX_INDEX = 64 << 20
_PLAIN = (int, float, str)


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint's contents. `tensors` is the flat state dict, on the CPU and in the stored dtypes; `extras` are the
    numbers and strings beside it, like epoch, global_step or input_resolution.
    """

    tensors: dict[str, Tensor]
    extras: dict[str, Any]


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Read a checkpoint of any published kind: safetensors (or an *.index.json with its shards beside it), torch.save's
    zip and legacy files, TorchScript archives.

    The state dict may be the whole file or stored under one of WRAPPERS. Nested dicts are flattened with dots, and a
    prefix `module.` or `_orig_mod.` that all names share is removed.

    Raises:
        PackError: if the file is missing, damaged, no checkpoint, without tensors, or holds a class that is not on the
            allow-list.
    """
    path = Path(path)
    if path.is_dir():
        raise PackError(f"{path} is a folder; name the checkpoint file in it")
    if not path.is_file():
        raise PackError(f"there is no checkpoint at {path}; check the path")
    with _failures_named(path):
        found = _separate(_read(path))
    if not found.tensors:
        raise PackError(f"{path} holds no named tensors; name a checkpoint file with weights")
    return found


@contextmanager
def _failures_named(path: Path) -> Iterator[None]:
    """Turn whatever goes wrong while `path` is read into a PackError that names it."""
    try:
        yield
    except PackError:
        raise
    except (RecursionError, MemoryError) as error:
        raise PackError(f"{path} is nested too deeply or needs too much memory; it is not read") from error
    except OSError as error:
        raise PackError(f"{path} cannot be read ({error.strerror or error}); check the file") from error
    except Exception as error:  # damaged bytes can make the readers fail in any way at all
        if lacks_memory(error):
            raise PackError(f"{path} needs more memory than there is; it is not read") from error
        # torch puts advice to load without weights_only before the cause
        cause = " ".join(str(error).rpartition("WeightsUnpickler error:")[2].split())[:200] or type(error).__name__
        raise PackError(f"{path} is damaged ({cause}); fetch it again") from error


def _read(path: Path) -> Any:
    """The object in the file, or in the shards of an index: a state dict, by itself or under a key of WRAPPERS."""
    head = _head(path)
    is_index = head.lstrip().startswith(b"{") and not _is_safetensors(head)
    return _read_shards(path) if is_index else _read_one(path)


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(512)


def _read_one(path: Path) -> Any:
    head = _head(path)
    if _is_safetensors(head):
        return _read_safetensors(path)
    if head.startswith(b"PK\x03\x04"):
        return read_archive(path)
    if head.startswith(b"\x80") and LEGACY_MAGIC in head[:32]:
        return read_legacy(path)
    raise PackError(f"{path} {_what_else(head)}")


def _is_safetensors(head: bytes) -> bool:
    return head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= _MAX_HEADER


def is_weight_file(path: Path) -> bool:
    """Whether the content of a file is that of a checkpoint, as far as its first bytes tell."""
    head = _head(path)
    if head.startswith(b"PK\x03\x04"):
        try:
            with zipfile.ZipFile(path) as archive:
                return any(name.endswith("/data.pkl") for name in archive.namelist())
        except zipfile.BadZipFile:
            return True  # perhaps a damaged one, which reading it says
    return _is_safetensors(head) or (head.startswith(b"\x80") and LEGACY_MAGIC in head[:32])


def what_else(path: Path) -> str | None:
    """What a file that others would take for weights is instead, with the remedy; None if that is not known."""
    said = _what_else(_head(path))
    return None if said == UNKNOWN else said


def _what_else(head: bytes) -> str:
    """What a file that is that is not a checkpoint, and what to do about it."""
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if not head:
        return "is empty; fetch it again"
    if start.startswith(b"gguf"):
        return "is a GGUF file (llama.cpp), which is not read; fetch the same model as safetensors or a PyTorch file"
    if head.startswith(b"\x89HDF"):
        return "is an HDF5 file (Keras, TensorFlow), which is not read; fetch the same model as safetensors"
    if head[:1] == b"\x08" and b"pytorch" in head[:64]:
        return "is an ONNX file, which is not read; fetch the same model as safetensors or a PyTorch file"
    if start.startswith(b"version https://git-lfs"):
        return "is a git-lfs pointer, not the file itself; fetch the file (git lfs pull)"
    if start.startswith((b"<!doctype", b"<html", b"<?xml", b"<!--", b"<head", b"<script")):
        return "is a web page, probably an error message that was saved as a file; fetch the file itself"
    if head[257:262] == b"ustar":
        return "is a tar archive; unpack it, or save it again with a newer torch if it is a file of torch 0.1"
    if head.startswith(b"\x1f\x8b"):
        return "is compressed with gzip; unpack it first"
    if head.startswith(b"\x80"):
        return "is a pickle, but not one of torch.save; it is not read. Ask its author for a safetensors file"
    return UNKNOWN


def _read_safetensors(path: Path) -> dict[str, Any]:
    with safe_open(str(path), framework="pt") as file:
        about = file.metadata() or {}
    return {**about, "state_dict": load_file(str(path))}


def _read_shards(path: Path) -> dict[str, Any]:
    """The tensors that an index lists, each from its shard beside the index."""
    if path.stat().st_size > _MAX_INDEX:
        raise PackError(f"{path} is too large for an index of shards; name the checkpoint file")
    index = json.loads(path.read_bytes())
    places = index.get("weight_map")
    if not isinstance(places, dict):
        raise PackError(f"{path} is JSON without a weight_map; name the checkpoint file, or the index of its shards")
    tensors: dict[str, Tensor] = {}
    for shard in sorted(set(places.values())):
        if not isinstance(shard, str) or shard in ("", ".", "..") or any(mark in shard for mark in "/\\:\0"):
            raise PackError(f"{path} names the shard {shard!r}, which is not a file beside it; it is not read")
        if not (path.parent / shard).is_file():
            raise PackError(f"{path} names the shard {shard!r}, which is missing; fetch it into {path.parent}")
        with _failures_named(path.parent / shard):
            held = _separate(_read_one(path.parent / shard)).tensors
        wanted = [name for name, place in places.items() if place == shard]
        missing = [name for name in wanted if name not in held]
        if missing:
            raise PackError(f"{path.parent / shard} lacks {missing[0]!r}, which {path.name} expects; fetch both again")
        tensors |= {name: held[name] for name in wanted}
    return {"state_dict": tensors}


def _separate(value: Any) -> Checkpoint:
    """The flattened state dict inside the object of a file, and the plain values stored beside it."""
    extras: dict[str, Any] = {}
    while isinstance(value, Mapping):
        inner = _wrapper(value)
        extras |= {key: item for key, item in value.items() if isinstance(key, str) and isinstance(item, _PLAIN)}
        if inner is None:
            named = list(_flatten(value, "", set()))
            tensors = dict(named)
            if len(tensors) < len(named):
                raise ValueError("two of its tensors have the same name")
            return Checkpoint(_without_prefix(tensors), extras)
        value = value[inner]
    return Checkpoint({}, extras)


def _wrapper(value: Mapping[Any, Any]) -> str | None:
    """The key under which the state dict is stored; None if `value` is the state dict itself."""
    # Single numbers, like a best loss, may be stored beside a state dict under a key; weights may not.
    if any(isinstance(item, Tensor) and item.ndim for item in value.values()):
        return None
    mappings = [(name, value[name]) for name in WRAPPERS if isinstance(value.get(name), Mapping)]
    held = {name: sum(1 for _ in _flatten(item, "", set())) for name, item in mappings}
    # An averaging may keep its weights as a list, with nothing but a counter beside it.
    fewest = max([number for name, number in held.items() if name not in AVERAGED], default=0)
    enough = {name: max(fewest if name in AVERAGED else 1, 1) for name in held}
    return next((name for name, number in held.items() if number >= enough[name]), None)


def _flatten(value: Mapping[Any, Any], prefix: str, met: set[int]) -> Iterator[tuple[str, Tensor]]:
    if id(value) in met:  # otherwise a few dicts, each twice in the next, would give an endless number of names
        raise ValueError("one of its dicts appears twice")
    met.add(id(value))
    for name, item in value.items():
        if not isinstance(name, str):  # the keys of an optimizer's state are numbers, those of a state dict names
            continue
        if isinstance(item, Tensor):
            yield f"{prefix}{name}", item.detach()
        elif isinstance(item, Mapping):
            yield from _flatten(item, f"{prefix}{name}.", met)


def _without_prefix(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    for prefix in _PREFIXES:
        if tensors and all(name.startswith(prefix) for name in tensors):
            return _without_prefix({name.removeprefix(prefix): tensor for name, tensor in tensors.items()})
    return tensors
