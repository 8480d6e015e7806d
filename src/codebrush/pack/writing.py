"""Models that belong together in; a pack's folder, checked and whole, out."""

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from codebrush.errors import PackError
from codebrush.models.captioner import Captioner
from codebrush.models.clip import CLIP
from codebrush.models.code_transformer import CodeTransformer
from codebrush.models.pretrained import PretrainedModel
from codebrush.models.prior import Bank, Prior
from codebrush.models.translator import Translator
from codebrush.models.upscaler import Upscaler
from codebrush.models.vqgan import VQGAN
from codebrush.pack.pack import FORMAT, PACK_FILE, Pack
from codebrush.text.tokenizer import Tokenizer


def write_pack(
    folder: str | Path,
    *,
    name: str,
    clip: CLIP,
    tokenizer: Tokenizer,
    vqgan: VQGAN,
    transformer: CodeTransformer,
    captioner: Captioner | None = None,
    words: Tokenizer | None = None,
    upscaler: Upscaler | None = None,
    bank: Bank | None = None,
    prior: Prior | None = None,
    translator: Translator | None = None,
    version: str,
    licence: str,
    provenance: Mapping[str, Any],
    defaults: Mapping[str, Any] | None = None,
    temperature: float | None = None,
    translation: Mapping[str, Any] | None = None,
    dtype: torch.dtype = torch.float16,
) -> Pack:
    """Write a pack and return it opened. `defaults` are options of `generate` (cfg, temperature, ...), `words` the
    vocabulary of the captioner, if there is one, `temperature` what zero-shot logits are divided by to be calibrated,
    `translation` the "text" with {style} and the "styles" that the code transformer translates to.

    All is written and checked in a folder beside, which then takes the place of `folder`: a pack that stood
    there is replaced whole or not at all, and anything else in it is kept. Raises PackError where the members
    do not fit together, weights do not fit into `dtype`, or the folder cannot be written.
    """
    folder = Path(os.path.abspath(folder))
    members: dict[str, PretrainedModel | None] = {"clip": clip, "vqgan": vqgan, "transformer": transformer}
    members |= {"captioner": captioner, "upscaler": upscaler, "bank": bank, "prior": prior, "translator": translator}
    models = {member: model for member, model in members.items() if model is not None}
    for member, model in models.items():
        _check_weights(member, model, dtype)
    info: dict[str, Any] = {
        "format": FORMAT,
        "name": name,
        "version": version,
        "licence": licence,
        "image_size": transformer.config.grid[0] * vqgan.factor,
        "provenance": dict(provenance),
        "members": {member: member for member in models},
    }
    calibrated = None if temperature is None else {"temperature": temperature}
    extras = {"defaults": defaults, "classification": calibrated, "translation": translation}
    info |= {field: dict(values) for field, values in extras.items() if values}
    with _written_beside(folder) as part:
        _check_room(folder, info)
        for member, model in models.items():
            model.save_pretrained(part / member, dtype)
        tokenizer.save(part / "clip")
        if words is not None:
            words.save(part / "captioner")
        (part / PACK_FILE).write_text(json.dumps(info, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        made = Pack(part)
        _ = made.tokenizer, made.words if made.has("captioner") else None  # a misfit must not replace what fits
        _take_place(part, folder)
    return Pack(folder)


@contextmanager
def _written_beside(folder: Path) -> Iterator[Path]:
    """A folder to write in beside `folder`, gone in the end; what fails there is a PackError that names `folder`."""
    part = folder.with_name(f".{folder.name}.part")
    try:
        shutil.rmtree(part, ignore_errors=True)
        yield part
    except PackError as error:
        raise PackError(str(error).replace(str(part), str(folder))) from None
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise PackError(f"the pack {folder} cannot be written: {reason}") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _check_weights(member: str, model: PretrainedModel, dtype: torch.dtype) -> None:
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not bool(tensor.to(dtype).isfinite().all()):
            raise PackError(f"the {member}'s '{name}' is not finite as {dtype}: the pack is not written")


def _check_room(folder: Path, info: dict[str, Any]) -> None:
    """Only a pack may be replaced, never other folders that happen to be called clip or vqgan."""
    if folder.exists() and not folder.is_dir():
        raise PackError(f"{folder} is a file: name a folder for the pack")
    if folder.is_dir() and not (folder / PACK_FILE).exists():
        for member in info["members"].values():
            if (folder / member).exists():
                raise PackError(f"{folder / member} is in the way and no part of a pack: name another folder")


def _take_place(part: Path, folder: Path) -> None:
    old = folder.with_name(f".{folder.name}.old")
    if old.exists() and not folder.exists():
        os.replace(old, folder)  # a writer died between its two renames
    shutil.rmtree(old, ignore_errors=True)
    if not folder.exists():
        os.replace(part, folder)
        return
    os.replace(folder, old)
    try:
        os.replace(part, folder)
    except OSError:
        os.replace(old, folder)
        raise
    for entry in old.iterdir():
        if not (folder / entry.name).exists():
            os.replace(entry, folder / entry.name)
    shutil.rmtree(old, ignore_errors=True)
