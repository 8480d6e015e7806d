"""A path to published weights in; their tensors and what stands beside them in the origin's own vocabulary out.

A path is a checkpoint, or a folder with one and its config. The checkpoint's layout is told by its keys, never by its
name; a name only decides what is looked at in a folder.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from codebrush.conversion.checkpoints import read_checkpoint
from codebrush.conversion.huggingface import PICTURES
from codebrush.conversion.tables import Tensors
from codebrush.errors import PackError

WEIGHTS = (".safetensors", ".pt", ".pth", ".ckpt", ".bin")
INDEX = ".index.json"
CONFIGS = ("config.json", "open_clip_config.json")

Settings = Mapping[str, Any] | str | Path | None


@dataclass(frozen=True)
class Source:
    """Published weights: `settings` is their config, `pictures` says how pictures are prepared; None: not at hand."""

    place: str
    tensors: Tensors
    settings: Mapping[str, Any] | None
    pictures: Mapping[str, Any] | None
    extras: Mapping[str, Any]


def open_source(path: str | Path, config: Settings = None) -> Source:
    """Read the checkpoint at `path`, a file or a folder. `config` is a mapping, or a YAML or JSON file.

    Without one, a folder's config.json or open_clip_config.json or its only YAML counts, and beside a file a YAML
    of the same name. What cannot be read is a PackError.
    """
    path = Path(path)
    if not path.exists():
        raise PackError(
            f"there is no file or folder '{path}': check its path, or fetch it with codebrush packs download"
        )
    file = weights_file(path) if path.is_dir() else path
    if config is None:
        settings = _settings_beside(path)
    else:
        settings = config if isinstance(config, Mapping) else read_settings(Path(config))
    pictures = path / PICTURES
    checkpoint = read_checkpoint(file)
    return Source(
        str(path),
        checkpoint.tensors,
        settings,
        read_settings(pictures) if path.is_dir() and pictures.is_file() else None,
        checkpoint.extras,
    )


def weights_file(folder: Path) -> Path:
    """The checkpoint in `folder`; none, or several that are not parts of one, are a PackError."""
    indices = sorted(folder.glob(f"*{INDEX}"))
    found = [file for file in sorted(folder.iterdir()) if file.suffix in WEIGHTS and file.is_file()]
    if indices:
        return indices[0]
    best = [file for file in found if file.suffix == ".safetensors"] or found  # the same weights may be there twice
    if len(best) == 1:
        return best[0]
    if not best:
        raise PackError(f"{folder} holds no weights ({', '.join(WEIGHTS)}): name the folder or file that does")
    raise PackError(f"{folder} holds several checkpoints ({', '.join(file.name for file in best)}): name one of them")


def read_settings(path: Path) -> Mapping[str, Any]:
    """A config file, YAML or JSON, as plain values."""
    try:
        text = path.read_text(encoding="utf-8")
        values = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except (OSError, ValueError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())[:200]
        raise PackError(f"the config {path} cannot be read ({reason})") from error
    if not isinstance(values, Mapping):
        raise PackError(f"the config {path} holds no settings: it should be a mapping of names to values")
    return values


def _settings_beside(path: Path) -> Mapping[str, Any] | None:
    if path.is_file():
        twins = [path.with_suffix(suffix) for suffix in (".yaml", ".yml")]
        return next((read_settings(twin) for twin in twins if twin.is_file()), None)
    named = [path / name for name in reversed(CONFIGS) if (path / name).is_file()]
    files = named or sorted([*path.glob("*.yaml"), *path.glob("*.yml")])
    return read_settings(files[0]) if len(files) == 1 or named else None
