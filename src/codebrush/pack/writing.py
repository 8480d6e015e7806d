"""Writes a pack: its members, tokenizers and pack.json, checked to fit together before anything is replaced."""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from codebrush.errors import PackError, without_secrets
from codebrush.files import replaced_folder, write_json
from codebrush.models.pretrained import PretrainedModel
from codebrush.pack.members import MEMBERS, PAINTERS, usual_painter_of
from codebrush.pack.pack import FORMAT, PACK_FILE, Pack
from codebrush.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class PackMembers:
    """The models of a pack by member name (see `pack.members`), and the tokenizers by the member that reads them."""

    models: Mapping[str, PretrainedModel]
    tokenizers: Mapping[str, Tokenizer] = field(default_factory=dict)


def write_pack(
    folder: str | Path,
    members: PackMembers,
    *,
    name: str,
    version: str,
    licence: str,
    provenance: Mapping[str, Any],
    defaults: Mapping[str, Any] | None = None,
    temperature: float | None = None,
    painter: str | None = None,
    extras: Mapping[str, Any] | None = None,
    dtype: torch.dtype = torch.float16,
) -> Pack:
    """Write a pack into `folder` and return it opened; its weights are stored as `dtype`.

    `defaults` are options of `generate` (cfg, temperature, ...), `temperature` is what zero-shot logits are divided by
    to be calibrated. `painter`, "sample" or "flow", is what draws unless another is asked for; None is the code
    transformer, or the flow if there is that alone. `extras` are further entries of pack.json, like "translation": the
    "text" with {style} and the "styles" that the code transformer translates to.

    The pack is written and checked in a folder beside `folder`, which then takes its place: an earlier pack there is
    replaced completely or not at all, and any other files in it are kept.

    Raises:
        PackError: if a required member or that of the `painter` is missing, the members do not fit together, weights
            are not finite as `dtype`, or the folder cannot be written.
    """
    folder = Path(os.path.abspath(folder))
    models = {member: members.models[member] for member in sorted(members.models, key=list(MEMBERS).index)}
    for member in MEMBERS.values():
        if member.required and member.name not in models:
            raise PackError(f"a pack needs a {member.label}: it is not written")
    for member, model in models.items():
        _check_weights(member, model, dtype)
    calibrated = None if temperature is None else {"temperature": temperature}
    info = pack_info(
        {member: member for member in models},
        name=name,
        version=version,
        licence=licence,
        image_size=_image_size(models["vqgan"], models.get("transformer")),
        provenance=provenance,
        painter=painter,
        more={"defaults": defaults, "classification": calibrated, **(extras or {})},
    )
    with _written_beside(folder) as part:
        _check_room(folder, info)
        for member, model in models.items():
            model.save_pretrained(part / member, dtype)
        for member in models.keys() & members.tokenizers.keys():
            members.tokenizers[member].save(part / member)
        write_json(part / PACK_FILE, info)
        Pack(part).check_tokenizers()  # members that do not fit must not replace members that do
    return Pack(folder)


def add_entries(folder: str | Path, entries: Mapping[str, Any]) -> None:
    """Set `entries` of the pack.json in a pack's folder; the others stay as they are. Raises PackError if it is no
    pack."""
    folder = Path(folder)
    write_json(folder / PACK_FILE, Pack(folder).info | dict(entries))


def pack_info(
    members: Mapping[str, str],
    *,
    name: str,
    version: str,
    licence: str,
    image_size: int,
    provenance: Mapping[str, Any],
    painter: str | None = None,
    more: Mapping[str, Any],
) -> dict[str, Any]:
    """The content of pack.json. `members` are the folders of the models by member name, from the pack's own folder;
    `painter` is as in `write_pack`; of `more`, further entries, the empty ones are left out.

    Raises:
        PackError: if the painter is none, or its member is missing.
    """
    if painter is not None and PAINTERS.get(painter) not in members:
        needed = f"a {MEMBERS[PAINTERS[painter]].label}" if painter in PAINTERS else f"one of {', '.join(PAINTERS)}"
        raise PackError(f"the painter '{painter}' needs {needed} in the pack, which has none: it is not written")
    painter = painter or usual_painter_of(members)
    return {
        "format": FORMAT,
        "name": name,
        "version": version,
        "licence": licence,
        "image_size": image_size,
        "provenance": _masked(json.loads(json.dumps(provenance))),
        "members": dict(members),
        **({} if painter is None else {"painter": painter}),
        **{field: value for field, value in more.items() if value},
    }


def _masked(value: Any) -> Any:
    """A value of JSON, its texts `without_secrets`."""
    if isinstance(value, dict):
        return {name: _masked(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_masked(each) for each in value]
    return without_secrets(value) if isinstance(value, str) else value


def _image_size(vqgan: Any, transformer: Any) -> int:
    """Side of the pictures that these draw, in pixels."""
    return vqgan.config.image_size if transformer is None else transformer.config.grid[0] * vqgan.factor


@contextmanager
def _written_beside(folder: Path) -> Iterator[Path]:
    """`replaced_folder`, whose failures are a PackError that names `folder`."""
    part = folder
    try:
        with replaced_folder(folder) as part:
            yield part
    except PackError as error:
        raise PackError(str(error).replace(str(part), str(folder))) from None
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise PackError(f"the pack {folder} cannot be written: {reason}") from error


def _check_weights(member: str, model: PretrainedModel, dtype: torch.dtype) -> None:
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not bool(tensor.to(dtype).isfinite().all()):
            raise PackError(f"the {member}'s '{name}' is not finite as {dtype}: the pack is not written")


def _check_room(folder: Path, info: dict[str, Any]) -> None:
    """PackError if the folder is not a pack but holds other things called clip or vqgan: only packs are replaced."""
    if folder.exists() and not folder.is_dir():
        raise PackError(f"{folder} is a file: name a folder for the pack")
    if folder.is_dir() and not (folder / PACK_FILE).exists():
        for member in info["members"].values():
            if (folder / member).exists():
                raise PackError(f"{folder / member} is in the way and not part of a pack: name another folder")
