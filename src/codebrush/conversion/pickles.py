"""Checks that the pickle of a checkpoint holds nothing but tensors and known classes, and lists its storages.

Nothing here imports or calls what a pickle names. `check_pickle` reads the instructions as text and refuses every
name that is not listed below. `Survey` then follows them with stand-ins in place of the classes, so that each tensor's
place in the file is checked before a byte of it is used.
"""

import pickle
import pickletools
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch

from codebrush.errors import PackError

# The instructions that torch.save and TorchScript write; torch's own weights_only reader knows no others.
_INSTRUCTIONS = frozenset(
    [
        "APPEND",
        "APPENDS",
        "BINFLOAT",
        "BINGET",
        "BININT",
        "BININT1",
        "BININT2",
        "BINPERSID",
        "BINPUT",
        "BINUNICODE",
        "BUILD",
        "EMPTY_DICT",
        "EMPTY_LIST",
        "EMPTY_SET",
        "EMPTY_TUPLE",
        "GLOBAL",
        "LONG1",
        "LONG_BINGET",
        "LONG_BINPUT",
        "MARK",
        "NEWFALSE",
        "NEWOBJ",
        "NEWTRUE",
        "NONE",
        "PROTO",
        "REDUCE",
        "SETITEM",
        "SETITEMS",
        "SHORT_BINSTRING",
        "STOP",
        "TUPLE",
        "TUPLE1",
        "TUPLE2",
        "TUPLE3",
    ]
)

_STORAGE_DTYPES = {
    "torch.DoubleStorage": torch.float64,
    "torch.FloatStorage": torch.float32,
    "torch.HalfStorage": torch.float16,
    "torch.BFloat16Storage": torch.bfloat16,
    "torch.LongStorage": torch.int64,
    "torch.IntStorage": torch.int32,
    "torch.ShortStorage": torch.int16,
    "torch.CharStorage": torch.int8,
    "torch.ByteStorage": torch.uint8,
    "torch.BoolStorage": torch.bool,
    "torch.ComplexFloatStorage": torch.complex64,
    "torch.ComplexDoubleStorage": torch.complex128,
}

SCRIPT_CLASS = "__torch__."  # TorchScript's namespace: classes whose code is in the archive


class StandIn:
    """Replaces a class that a pickle names: accepts any arguments and any state, and does nothing."""

    state: Mapping[str, Any] = {}

    def __new__(cls, *_args: object, **_kwargs: object) -> "StandIn":
        return object.__new__(cls)

    def __init__(self, *_args: object, **_kwargs: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        if isinstance(state, dict):
            self.state = state


class _Sealed:
    """An object whose state a pickle must not set."""

    def __setstate__(self, state: object) -> None:
        raise ValueError("it sets the state of something that has none")


class _Builder(_Sealed):
    """A function that a pickle may call; on the function itself a pickle could set attributes."""

    __slots__ = ("_function",)

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    def __call__(self, *args: Any) -> Any:
        return self._function(*args)


def _stand_in(name: str) -> type[StandIn]:
    # One class for each name: as keys of a dict, two callbacks must stay two.
    return type(name.rpartition(".")[2], (StandIn,), {"__module__": __name__})


_EMPTY_DICT = _Builder(lambda *_: {})
_FIRST = _Builder(lambda value, *_: value)

_LIGHTNING = ("pytorch_lightning", "lightning.pytorch")
_OMEGACONF_NODES = ("AnyNode", "StringNode", "IntegerNode", "FloatNode", "BooleanNode", "BytesNode", "PathNode")
_STAND_INS = (
    *(f"{home}.callbacks.model_checkpoint.ModelCheckpoint" for home in _LIGHTNING),
    *(f"{home}.callbacks.early_stopping.EarlyStopping" for home in _LIGHTNING),
    *(f"{home}.callbacks.lr_monitor.LearningRateMonitor" for home in _LIGHTNING),
    "argparse.Namespace",
    *(f"pathlib.{name}" for name in ("Path", "PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath")),
    *(f"pathlib._local.{name}" for name in ("Path", "PosixPath", "WindowsPath")),
    "omegaconf.dictconfig.DictConfig",
    "omegaconf.listconfig.ListConfig",
    "omegaconf.base.ContainerMetadata",
    "omegaconf.base.Metadata",
    *(f"omegaconf.nodes.{name}" for name in _OMEGACONF_NODES),
    "typing.Any",
    *(f"builtins.{name}" for name in ("dict", "list", "str", "int", "float", "bool", "tuple", "object")),
    "numpy.dtype",
    "numpy.ndarray",
    *(f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("scalar", "_reconstruct")),
)
_DICTS = (  # subclasses of dict; a pickle fills them item by item
    "pytorch_lightning.utilities.parsing.AttributeDict",
    "lightning_fabric.utilities.data.AttributeDict",
    "lightning.fabric.utilities.data.AttributeDict",
)
# The allow-list: classes that published files hold beside their tensors. None of them is imported.
KNOWN_CLASSES: dict[str, Any] = {
    **{name: _stand_in(name) for name in _STAND_INS},
    **dict.fromkeys(_DICTS, OrderedDict),
    "collections.defaultdict": _EMPTY_DICT,
}


@dataclass(frozen=True)
class Storage(_Sealed):
    """`numel` numbers in a row, stored in the file under `key`."""

    key: str
    dtype: torch.dtype
    numel: int

    @property
    def nbytes(self) -> int:
        """Its size in bytes."""
        return self.numel * self.dtype.itemsize


@dataclass(frozen=True)
class StoredTensor(_Sealed):
    """A tensor as the pickle describes it: a strided view of a storage, checked to lie inside it; units are numbers."""

    storage: Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


def _stored_tensor(storage: object, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: object):
    """What torch._utils._rebuild_tensor_v2 would build; a ValueError if it reaches outside its storage."""
    if not isinstance(storage, Storage) or len(size) != len(stride) or min((offset, *size, *stride)) < 0:
        raise ValueError("the description of a tensor is wrong")
    numel = 1
    for length in size:
        numel *= length
    end = offset + 1 + sum((length - 1) * step for length, step in zip(size, stride, strict=True)) if numel else 0
    # numel counts too: a stride of zero would make a tensor of any size of a small storage
    if max(end, numel) > storage.numel:
        raise ValueError(f"a tensor of shape {tuple(size)} reaches outside its storage of {storage.numel} numbers")
    return StoredTensor(storage, offset, tuple(size), tuple(stride))


_TENSOR_PARTS: dict[str, Any] = {
    **_STORAGE_DTYPES,
    "torch._utils._rebuild_tensor": _Builder(_stored_tensor),
    "torch._utils._rebuild_tensor_v2": _Builder(_stored_tensor),
    "torch._utils._rebuild_parameter": _FIRST,
    "torch.Size": tuple,
    "torch.device": _stand_in("torch.device"),
    **{str(dtype): _stand_in(str(dtype)) for dtype in _STORAGE_DTYPES.values()},
    "collections.OrderedDict": OrderedDict,
    "collections.Counter": _EMPTY_DICT,
    "_codecs.encode": _EMPTY_DICT,  # how protocol 2 writes bytes; no value that is kept is of bytes
    "builtins.set": set,
}
_SCRIPT_PARTS = {
    f"torch.jit._pickle.{name}": _FIRST
    for name in ("build_intlist", "build_tensorlist", "build_doublelist", "build_boollist", "restore_type_tag")
}


def _name(module_name: str, global_name: str) -> str:
    """The dotted Python 3 name of a global; pickle protocol 2 writes the names of Python 2."""
    pair = module_name, global_name
    return ".".join(NAME_MAPPING.get(pair, (IMPORT_MAPPING.get(module_name, module_name), global_name)))


def _foreign_name(path: Path, name: str) -> PackError:
    return PackError(
        f"{path} holds {name!r}, which is neither a tensor nor one of the known classes; it is not read. "
        "Ask its author for a safetensors file"
    )


def check_pickle(file: IO[bytes], path: Path, script: bool = False) -> None:
    """Read the instructions of one pickle, up to its end, without following any of them.

    `script` also allows TorchScript's own classes, which `Survey` replaces by stand-ins.

    Raises:
        PackError: if it names a class or function that is not on the allow-list, or uses an instruction that
            torch.save does not write.
        ValueError, UnicodeError: if it is damaged.
    """
    allowed = KNOWN_CLASSES.keys() | _TENSOR_PARTS.keys() | (_SCRIPT_PARTS.keys() if script else set())
    unknown, last_texts = "", ["", ""]  # the last two strings: module and name of a STACK_GLOBAL
    memo: list[str] = []
    for count, (instruction, value, _) in enumerate(pickletools.genops(file)):
        name = ""
        if instruction.name in ("GLOBAL", "INST"):
            name = _name(*str(value).split(" ", 1))
        elif instruction.name == "STACK_GLOBAL":
            name = ".".join(last_texts)
        elif "UNICODE" in instruction.name:
            last_texts = [last_texts[1], str(value)]
        elif instruction.name == "MEMOIZE":
            memo.append(last_texts[1])
        elif instruction.name == "BINGET" and int(value or 0) < len(memo):
            last_texts = [last_texts[1], memo[int(value or 0)]]
        elif instruction.name in ("BINPUT", "LONG_BINPUT") and int(value or 0) > count:
            # Memo slots are numbered from 0 up; for a far higher one Python would allocate memory for all below it.
            raise ValueError("a memo slot is out of order")
        if name and name not in allowed and not (script and name.startswith(SCRIPT_CLASS)):
            raise _foreign_name(path, name)
        if instruction.name not in _INSTRUCTIONS:
            unknown = instruction.name
    if unknown:
        raise PackError(
            f"{path} holds the pickle instruction {unknown}, which torch.save does not write by default; "
            "save it again without choosing a pickle protocol"
        )


class Survey(pickle.Unpickler):
    """Follows a checked pickle with stand-ins: tensors become StoredTensor, script modules become StandIn.

    `size_of` gives the number of bytes that the file holds under a storage's key, None if it has no such key.
    `storages` collects the storages that the pickle refers to. `load` raises ValueError if a storage or a tensor
    reaches outside what the file holds.
    """

    def __init__(self, file: IO[bytes], path: Path, size_of: Callable[[str], int | None] | None = None) -> None:
        super().__init__(file, encoding="utf-8")
        self.path = path
        self.size_of = size_of
        self.storages: dict[str, Storage] = {}
        self._script_classes: dict[str, type[StandIn]] = {}

    def find_class(self, module_name: str, global_name: str) -> Any:
        """What takes the place of a global; a PackError if it is not on the allow-list."""
        name = _name(module_name, global_name)
        if name.startswith(SCRIPT_CLASS):
            known = self._script_classes.setdefault(name, type(global_name, (StandIn,), {"__module__": module_name}))
        else:
            known = _TENSOR_PARTS.get(name, KNOWN_CLASSES.get(name, _SCRIPT_PARTS.get(name)))
        if known is None:
            raise _foreign_name(self.path, name)
        return known

    def persistent_load(self, pid: Any) -> Storage:
        """The storage that a persistent id describes; a ValueError if the file does not hold all of it."""
        if not isinstance(pid, tuple) or len(pid) not in (5, 6) or pid[0] != "storage":
            raise ValueError("it refers to something other than a storage of numbers")
        _, dtype, key, _, numel = pid[:5]
        if not isinstance(dtype, torch.dtype) or not isinstance(key, str) or not isinstance(numel, int) or numel < 0:
            raise ValueError("the description of a storage is wrong")
        storage = Storage(key, dtype, numel)
        held = self.size_of(key) if self.size_of else storage.nbytes
        if held is None:
            raise ValueError(f"the numbers of storage {key!r} are missing")
        if storage.nbytes > held:
            raise ValueError(f"storage {key!r} should have {storage.nbytes} bytes but has {held}")
        self.storages.setdefault(key, storage)
        return storage
