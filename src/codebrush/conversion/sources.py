"""Opens published weights: reads their tensors, and their config in the vocabulary of the project they come from.

A path is a checkpoint file, or a folder with one and its config. The layout is recognised by the names of the tensors,
and which file of a folder holds the weights by its content, never by its name.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from codebrush.conversion import huggingface, openai
from codebrush.conversion.checkpoints import is_weight_file, read_checkpoint, what_else
from codebrush.conversion.layouts import is_known, without_prefix
from codebrush.conversion.state_dict_rules import Tensors
from codebrush.errors import PackError

WEIGHTS = (".safetensors", ".pt", ".pth", ".ckpt", ".bin")
OTHER_WEIGHTS = (".gguf", ".h5", ".onnx")  # formats that are not read, and are named
INDEX = ".index.json"
CONFIG = "config.json"
OPEN_CLIP_CONFIG = "open_clip_config.json"
YAML = (".yaml", ".yml")

Settings = Mapping[str, Any] | str | Path | None


@dataclass(frozen=True)
class Source:
    """Published weights. `settings` is their config and `pictures` says how images are prepared; None if not found.
    `place` names the weights in error lines, `extras` are the numbers and strings stored beside the tensors.
    """

    place: str
    tensors: Tensors
    settings: Mapping[str, Any] | None
    pictures: Mapping[str, Any] | None
    extras: Mapping[str, Any]


def open_source(path: str | Path, config: Settings = None) -> Source:
    """Read the checkpoint at `path`, a file or a folder. `config` is a mapping, or a YAML or JSON file.

    Without `config`, the one beside the weights is read if it comes from the same project: a YAML with the checkpoint's
    name, config.json or open_clip_config.json, or the only YAML in a folder.

    Raises:
        PackError: if there is nothing at `path`, or the weights or the config cannot be read.
    """
    path = Path(path)
    if not path.exists():
        raise PackError(
            f"there is no file or folder '{path}': check its path, or fetch it with codebrush packs download"
        )
    file = weights_file(path) if path.is_dir() else path
    settings = read_settings(Path(config)) if isinstance(config, str | Path) else config
    checkpoint = read_checkpoint(file)
    tensors = without_prefix(checkpoint.tensors)
    if settings is None:
        settings = _settings_beside(path, tensors)
    pictures = file.with_name(huggingface.PICTURES)
    return Source(
        str(path),
        tensors,
        settings,
        read_settings(pictures) if huggingface.is_state_dict(tensors) and pictures.is_file() else None,
        checkpoint.extras,
    )


def weights_file(folder: Path) -> Path:
    """The checkpoint in `folder`: an index of shards, or the only file that holds a model.

    A file is one by its content: an optimizer's state or a trainer's arguments, saved in the same formats beside the
    weights, are not taken for them.

    Raises:
        PackError: if there is no such file, or more than one.
    """
    indices = sorted(folder.glob(f"*{INDEX}"))
    if indices:
        return indices[0]
    files = [file for file in sorted(folder.iterdir()) if file.is_file()]
    found = [file for file in files if is_weight_file(file)]
    if not found:
        likely = [file for file in files if file.suffix in WEIGHTS] + [
            file for file in files if file.suffix in OTHER_WEIGHTS
        ]
        for file in likely:
            if (said := what_else(file)) is not None:
                raise PackError(f"{file} {said}")
        if likely:
            return likely[0]  # reading it says what is wrong with it
        raise PackError(f"{folder} holds no weights ({', '.join(WEIGHTS)}): name the folder or file that does")
    safe = [file for file in found if file.suffix == ".safetensors"]
    best = safe or found  # the same weights are often there as a pickle too
    if len(best) > 1:
        best = [file for file in best if _holds_model(file)] or best
    if len(best) == 1:
        return best[0]
    raise PackError(f"{folder} holds several checkpoints ({', '.join(file.name for file in best)}): name one of them")


def _holds_model(file: Path) -> bool:
    try:
        return is_known(read_checkpoint(file).tensors)
    except PackError:  # a trainer's arguments are of classes that are not read
        return False


def read_settings(path: Path) -> Mapping[str, Any]:
    """Read a config file, YAML or JSON.

    Raises:
        PackError: if it cannot be read or is not a mapping.
    """
    try:
        text = path.read_text(encoding="utf-8")
        values = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except (OSError, RecursionError, ValueError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())[:200]
        raise PackError(f"the config {path} cannot be read ({reason})") from error
    if not isinstance(values, Mapping):
        raise PackError(f"the config {path} holds no settings: it must be a mapping of names to values")
    return values


def _settings_beside(path: Path, tensors: Tensors) -> Mapping[str, Any] | None:
    """The config beside the weights; in a folder with a model in two layouts, the one of these tensors' layout."""
    whole = path.is_dir()
    folder = path if whole else path.parent
    likely = [] if whole else [path.with_suffix(suffix) for suffix in YAML]
    if huggingface.is_state_dict(tensors):
        likely.append(folder / CONFIG)
    elif openai.is_state_dict(tensors):
        likely.append(folder / OPEN_CLIP_CONFIG)
    for file in likely:
        if file.is_file():
            return read_settings(file)
    if not whole:
        return None
    if (folder / CONFIG).is_file() and not huggingface.is_config(found := read_settings(folder / CONFIG)):
        return found
    files = sorted(file for suffix in YAML for file in folder.glob(f"*{suffix}"))
    return read_settings(files[0]) if len(files) == 1 else None
