"""Saves a model with its config to a folder (config.json + model.safetensors), and loads it again."""

import dataclasses
import itertools
import json
import re
import shutil
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from codebrush.errors import PackError
from codebrush.files import atomic_file

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
TABLE_DTYPE = torch.float8_e4m3fn
SCALE = ".scale"  # behind the name of a matrix in 8 bits: the scales of its rows
RANDOM_FILLS = frozenset(
    (Tensor.normal_, Tensor.uniform_, nn.init.normal_, nn.init.uniform_, nn.init.kaiming_uniform_)
)  # by which layers give their weights random values
LEAST_SCALE = 1e-3  # of a row's largest number: divided by 127, float16 still holds it precisely
T = TypeVar("T")


def stored_as(name: str) -> dict[str, str]:
    """Metadata of a config's field that is called `name` in config.json.

    Names in files stay as they are when an identifier changes: hashes of packs are made over these files.
    """
    return {"stored_as": name}


def config_to_dict(config: Any) -> dict[str, Any]:
    """A frozen dataclass as plain JSON values, with the names of its class and of nested ones under "type"."""
    values: dict[str, Any] = {"type": type(config).__name__}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        values[_stored_name(field)] = config_to_dict(value) if dataclasses.is_dataclass(value) else value
    return values


def _stored_name(field: "dataclasses.Field[Any]") -> str:
    return field.metadata.get("stored_as", field.name)


def config_from_dict(kind: type[T], values: dict[str, Any]) -> T:
    """The inverse of `config_to_dict`, for a config of class `kind`.

    Raises:
        PackError: if a field is unknown or missing, or has a value that the class does not take.
    """
    values = dict(values)
    values.pop("type", None)
    hints = typing.get_type_hints(kind)
    known = {_stored_name(field): field.name for field in dataclasses.fields(kind)}  # pyright: ignore
    fields: dict[str, Any] = {}
    for name, value in values.items():
        if name not in known:
            raise PackError(f"{kind.__name__} has no field '{name}': the folder was written by another version")
        fields[known[name]] = _field_from_json(hints[known[name]], value, name)
    try:
        return kind(**fields)
    except (TypeError, ValueError) as error:
        raise PackError(f"{kind.__name__} cannot be read from its config: {error}") from error


def _field_from_json(hint: Any, value: Any, name: str) -> Any:
    if isinstance(value, dict):
        options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
        for option in options:
            if isinstance(option, type) and option.__name__ == value.get("type", option.__name__):
                return config_from_dict(option, value)
        raise PackError(f"config field '{name}' has the unknown type '{value.get('type')}'")
    if typing.get_origin(hint) is typing.Literal and value not in typing.get_args(hint):
        known = ", ".join(map(str, typing.get_args(hint)))
        raise PackError(f"config field '{name}' has the unknown value '{value}'; known are {known}")
    if not _takes(hint, value):
        raise PackError(f"config field '{name}' is {value!r}, which is of the wrong kind")
    return tuple(value) if isinstance(value, list) else value


def _takes(hint: Any, value: Any) -> bool:
    """Whether a value of JSON is of the kind of a field. Whole numbers may be written as floats."""
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        return any(_takes(part, value) for part in parts)
    if hint in (bool, str, type(None)):
        return isinstance(value, hint)
    if hint in (int, float):
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        return is_number and (hint is float or value == value // 1)
    if origin is tuple:
        if not isinstance(value, list | tuple) or (parts[1:] != (...,) and len(parts) != len(value)):
            return False
        return all(map(_takes, itertools.repeat(parts[0]) if parts[1:] == (...,) else parts, value))
    return True


class PretrainedModel(nn.Module):
    """Base class of networks with a frozen dataclass `config`, saved and loaded in the Hugging Face folder layout."""

    config_class: ClassVar[type]
    tables: ClassVar[frozenset[str]] = frozenset()  # names of large tensors that may be stored in float8
    compact: ClassVar[str] = (
        ""  # pattern of the matrices and convolutions that may be stored as int8 with a scale a row
    )
    stored_names: ClassVar[Mapping[str, str]] = {}  # submodules whose tensors have another name in files
    config: Any

    @classmethod
    def from_config(cls, config: Any) -> Self:
        """A freshly initialised network of the sizes in `config`."""
        return cls(config)  # pyright: ignore[reportCallIssue]

    def save_pretrained(self, folder: str | Path, dtype: torch.dtype | Literal["exact"] | None = None) -> None:
        """Write config.json and model.safetensors into `folder`, which is made if need be.

        With a 16-bit `dtype` the tensors named in `tables` take 8 bits a number (float8 e4m3, with three bits of
        mantissa: each number is within 6 %, and the direction of a long vector within well under 1 %), and matrices
        that match `compact` take int8 and a scale a row (off by at most 0.4 % of the row's largest number, or of 0.001
        if that is smaller).

        Args:
            folder: where to write. Files of these names are replaced only once both are written.
            dtype: the type that floating-point weights become; None keeps theirs, and "exact" takes 16 bits for tensors
                that lose nothing by it, such as those of a model that was published in 16 bits.

        Raises:
            PackError: if the weights cannot be written.
        """
        folder = Path(folder)
        small = isinstance(dtype, torch.dtype) and dtype.itemsize == 2
        tensors: dict[str, Tensor] = {}
        for name, tensor in self._stored_state().items():
            if small and tensor.ndim >= 2 and re.fullmatch(self.compact, name):
                tensors |= _in_rows(name, tensor)
            else:
                tensors[name] = _stored(tensor, TABLE_DTYPE if small and name in self.tables else dtype)
        weights, config = folder / WEIGHTS_FILE, folder / CONFIG_FILE
        text = json.dumps(config_to_dict(self.config), indent=2)
        with atomic_file(config) as config_part, atomic_file(weights) as weights_part:
            config_part.write_text(text + "\n", encoding="utf-8")
            try:
                save_file(tensors, weights_part)
            except SafetensorError as error:
                raise PackError(f"{weights} cannot be written ({error}): check its folder and free space") from error
            shutil.copymode(config_part, weights_part)  # safetensors makes files that only their owner may read

    def _stored_state(self) -> Mapping[str, Tensor]:
        """`state_dict` with the names that files use."""
        return _renamed(self.state_dict(), self.stored_names)

    def present_names(self, state: Mapping[str, T]) -> Mapping[str, T]:
        """`state`, whose keys are names of tensors, with the names of this version instead of stored ones."""
        return _renamed(state, {stored: present for present, stored in self.stored_names.items()})

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """As in `nn.Module`; tensors may also have the names that files use."""
        return super().load_state_dict(self.present_names(state_dict), strict, assign)

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> Self:
        """The network in `folder`, float32, in eval mode.

        Raises:
            PackError: if a file is missing or damaged, or config and weights do not fit together.
        """
        folder = Path(folder)
        config = read_config(cls.config_class, folder)
        try:
            with Unfilled():
                model = cls.from_config(config)
        except (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError) as error:
            detail = " ".join(str(error).split())[:200]
            raise PackError(f"{folder / CONFIG_FILE} describes no network: {detail}") from error
        state = read_weights(folder)
        try:
            model.load_state_dict(state)
        except RuntimeError as error:
            detail = " ".join(str(error).split())[:200]
            raise PackError(f"{folder / WEIGHTS_FILE} does not fit its config.json: {detail}") from error
        return model.eval()


class Unfilled(TorchFunctionMode):
    """In this block the weights of new networks are not filled with random values, for those whose weights are read
    from a file: filling takes ten times as long as all else there is to making one. Other threads still fill theirs.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in RANDOM_FILLS:
            return args[0] if args else kwargs["tensor"]
        return func(*args, **(kwargs or {}))


def read_config(kind: type[T], folder: Path) -> T:
    """The config in `folder`/config.json as the dataclass `kind`.

    Raises:
        PackError: if the file is missing or damaged, or describes another class.
    """
    path = folder / CONFIG_FILE
    if not path.is_file():
        raise PackError(f"{path} is missing: {folder} is not the folder of a saved model")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise PackError(f"{path} is damaged ({error}): fetch or train the pack again") from error
    if not isinstance(values, dict):
        raise PackError(f"{path} is damaged (not a JSON object): fetch or train the pack again")
    try:
        return config_from_dict(kind, values)
    except PackError as error:
        raise PackError(f"{path} describes no network: {error}") from error


def read_weights(folder: Path) -> dict[str, Tensor]:
    """The tensors in `folder`/model.safetensors by name, with those in int8 multiplied by their scales.

    Raises:
        PackError: if the file is missing or damaged.
    """
    path = folder / WEIGHTS_FILE
    if not path.is_file():
        raise PackError(f"{path} is missing: {folder} is not the folder of a saved model")
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise PackError(f"{path} is damaged ({error}): fetch or train the pack again") from error
    scales = {name: tensors.pop(name) for name in list(tensors) if name.endswith(SCALE)}
    for name, scale in scales.items():
        matrix = name.removesuffix(SCALE)
        if matrix not in tensors or len(tensors[matrix]) != len(scale):
            raise PackError(f"{path} is damaged ('{name}' belongs to no matrix): fetch or train the pack again")
        rows = tensors[matrix].float()
        tensors[matrix] = rows * scale.float().view(-1, *[1] * (rows.ndim - 1))
    return tensors


def _renamed(state: Mapping[str, T], names: Mapping[str, str]) -> Mapping[str, T]:
    """`state` with the submodules in front of its keys renamed by `names`, old to new."""
    if not names:
        return state
    parts = ((name.partition("."), value) for name, value in state.items())
    return {names.get(first, first) + dot + rest: value for (first, dot, rest), value in parts}


def _in_rows(name: str, matrix: Tensor) -> dict[str, Tensor]:
    """A matrix (R, C), or a convolution's weight (R, ...), as int8 and a float16 scale for each of the R rows.

    What was stored so before is stored as the same numbers again.
    """
    rows = matrix.detach().float().cpu().flatten(1)
    exact = rows.abs().amax(1).clamp(min=LEAST_SCALE) / 127  # (R,)
    # Never rounded down to float16, so that no number of a row is larger than 127 scales.
    scale = torch.where(exact.half().float() >= exact, exact.half(), (exact * (1 + 2**-10)).half())
    whole = (rows / scale.float()[:, None]).round().clamp(-127, 127).to(torch.int8)
    return {name: whole.view(matrix.shape), f"{name}{SCALE}": scale}


def _stored(tensor: Tensor, dtype: torch.dtype | Literal["exact"] | None) -> Tensor:
    if dtype == "exact":
        halves = (tensor.to(half) for half in (torch.float16, torch.bfloat16))
        dtype = next((half.dtype for half in halves if torch.equal(half.to(tensor.dtype), tensor)), None)
    if dtype is not None and tensor.is_floating_point():
        tensor = tensor.to(dtype)
    return tensor.detach().cpu().contiguous().clone()  # shared storage would be refused by safetensors
