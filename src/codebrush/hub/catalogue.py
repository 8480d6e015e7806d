"""The catalogue of published models and packs, read from a YAML file, checked, and looked up by name."""

import difflib
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from codebrush.errors import PackError, UsageError

PATH_PART = re.compile(r"\w[\w.@+-]*", re.ASCII)
CATALOGUE_FILE = Path(__file__).with_name("catalogue.yaml")
HUB_MIRROR = re.compile(r"hf://(?P<repo>[\w.-]+/[\w.-]+)/(?P<file>[^@?#]+)@(?P<revision>[\w.-]+)", re.ASCII)


def _check_path(path: str) -> str:
    """Refuse a path that is not relative or could leave its folder, on any system."""
    if not all(PATH_PART.fullmatch(part) for part in path.split("/")):
        raise ValueError(f"'{path}' is not a plain relative path")
    return path


def _check_mirror(mirror: str) -> str:
    """Accept an http(s) or file URL, a file of a Hugging Face repository with its revision, or an absolute path."""
    parts = urlsplit(mirror)
    if parts.scheme == "hf":
        good = HUB_MIRROR.fullmatch(mirror) is not None
    elif parts.scheme in ("http", "https"):
        good = bool(parts.hostname) and not any(letter.isspace() for letter in mirror)
    else:
        good = parts.scheme == "file" or Path(mirror).is_absolute()
    if not good:
        raise ValueError(f"'{mirror}' is not an http(s) URL, hf://owner/name/file@revision, file URL or absolute path")
    return mirror


Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]+([.-][a-z0-9]+)*$")]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Kind = Literal["clip", "vqgan", "transformer"]


class _Entry(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class FileEntry(_Entry):
    """One file: its `path` in the download folder, size in bytes and sha256 (None: not published), and mirrors."""

    path: Annotated[str, AfterValidator(_check_path)]
    size: Annotated[int, Field(gt=0)] | None
    sha256: Sha256 | None
    mirrors: Annotated[tuple[Annotated[str, AfterValidator(_check_mirror)], ...], Field(min_length=1, strict=False)]


class ModelEntry(_Entry):
    """One published model. `config` holds what its tensors do not say, in the vocabulary of the project it comes from;
    the first of `files` holds the weights; `paper` is an arXiv id.
    """

    name: Name
    kind: Kind
    title: str
    licence: str
    paper: Annotated[str, StringConstraints(pattern=r"^\d{4}\.\d{5}$")] | None
    config: dict[str, Any] | None = None
    files: Annotated[tuple[FileEntry, ...], Field(min_length=1, strict=False)]

    @property
    def size(self) -> int | None:
        """The total size in bytes of the files whose size is known; None if no size is known."""
        return sum(file.size or 0 for file in self.files) or None

    @property
    def size_is_whole(self) -> bool:
        """Whether the size of every file is known."""
        return all(file.size for file in self.files)

    @model_validator(mode="after")
    def _check_files(self) -> "ModelEntry":
        paths = [file.path.lower() for file in self.files]
        if len(set(paths)) < len(paths):
            raise ValueError("two of its files have the same path")
        return self


class Members(_Entry):
    """The names of the models in a pack."""

    clip: Name
    vqgan: Name
    transformer: Name | None = None

    def names(self) -> dict[Kind, str]:
        """The members that the pack has, with the names of their models."""
        every: dict[Kind, str | None] = {"clip": self.clip, "vqgan": self.vqgan, "transformer": self.transformer}
        return {member: name for member, name in every.items() if name}


class PackEntry(_Entry):
    """Models that are used together; `image_size` in pixels; `defaults` are options of `generate`."""

    name: Name
    title: str
    image_size: Annotated[int, Field(gt=0)]
    members: Members
    defaults: dict[str, Any] = {}


class Catalogue(_Entry):
    """What can be downloaded, by name. A model and a pack never have the same name."""

    models: dict[str, ModelEntry]
    packs: dict[str, PackEntry]

    def model(self, name: str) -> ModelEntry:
        """The model called `name`; a UsageError that suggests similar names if there is none."""
        return self.models[name] if name in self.models else self._unknown(name, "model", self.models)

    def pack(self, name: str) -> PackEntry:
        """The pack called `name`; a UsageError that suggests similar names if there is none."""
        return self.packs[name] if name in self.packs else self._unknown(name, "pack", self.packs)

    def entry(self, name: str) -> PackEntry | ModelEntry:
        """The pack or model called `name`; a UsageError that suggests similar names if there is neither."""
        every: dict[str, PackEntry | ModelEntry] = {**self.packs, **self.models}
        return every[name] if name in every else self._unknown(name, "pack or model", every)

    def pack_models(self, pack: PackEntry) -> dict[Kind, ModelEntry]:
        """The models of a pack, by member."""
        return {member: self.model(name) for member, name in pack.members.names().items()}

    def _unknown(self, name: str, kind: str, names: Mapping[str, Any]) -> Any:
        like = difflib.get_close_matches(name.lower(), names, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(like)}?" if like else "`codebrush packs list` lists them"
        raise UsageError(f"the catalogue has no {kind} '{name}': {hint}")

    @model_validator(mode="after")
    def _check_names(self) -> "Catalogue":
        both = sorted(self.models.keys() & self.packs.keys())
        if both:
            raise ValueError(f"'{both[0]}' is the name of both a model and a pack")
        for pack in self.packs.values():
            for member, name in pack.members.names().items():
                found = self.models.get(name)
                if found is None or found.kind != member:
                    raise ValueError(f"the {member} of pack '{pack.name}' is '{name}', but there is no such {member}")
        return self


def load_catalogue(path: str | Path | None = None) -> Catalogue:
    """Read a catalogue file, or without `path` the one in this package.

    Raises:
        PackError: if it cannot be read or is malformed.
    """
    return _packaged() if path is None else _read(Path(path))


@cache
def _packaged() -> Catalogue:
    return _read(CATALOGUE_FILE)


def _read(path: Path) -> Catalogue:
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
        sections = {}
        for section in ("models", "packs"):
            entries = found.pop(section, None) or {}
            sections[section] = {name: {"name": name, **entry} for name, entry in entries.items()}
        return Catalogue.model_validate({**found, **sections})
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise PackError(f"the catalogue {path} is malformed: {place or 'it'}: {first['msg']}") from error
    except (OSError, yaml.YAMLError, AttributeError, TypeError, ValueError) as error:
        raise PackError(f"the catalogue {path} cannot be read: {' '.join(str(error).split())[:200]}") from error
