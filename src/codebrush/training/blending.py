"""Two folders of models of one kind -> a folder with their blend, a point on the line between their weights."""

import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from codebrush.conversion.convert import open_model
from codebrush.conversion.load import own_kind
from codebrush.conversion.tokenizers import tokenizer_of
from codebrush.errors import PackError, UsageError
from codebrush.models.clip import CLIP
from codebrush.models.pretrained import CONFIG_FILE, PretrainedModel, config_to_dict
from codebrush.pack.pack import PACK_FILE, clip_folder
from codebrush.text.tokenizer import Tokenizer
from codebrush.training.fine_tuning import blend
from codebrush.training.stages import MODEL_FOLDER


def blend_folders(a: str, b: str, alpha: float, out: Path) -> dict[str, Any]:
    """Write (1 - alpha) `a` + alpha `b` into the new folder `out`, float32; returns its path, kind and size.

    Each is a pack (its CLIP counts), a run, the folder of a CLIP, VQGAN or code transformer, or a published CLIP. Two
    CLIPs must read the same tokens, and their tokenizer comes along. Raises PackError where the two do not fit
    together, which names what differs first, and UsageError for an `alpha` outside [0, 1] or an `out` that is there.
    """
    if not 0 <= alpha <= 1:
        raise UsageError(f"--alpha is {alpha}: it must be between 0 (the first) and 1 (the second)")
    if out.exists():
        raise UsageError(f"--out {out} is there already: name a new folder")
    places = model_place(a), model_place(b)
    kind, other = (own_kind(place) or "clip" for place in places)
    if kind != other:
        raise PackError(f"{a} is a {kind} and {b} a {other}: blend two of a kind")
    first, second = (open_model(kind, place) for place in places)
    check_same_config(first, second, a, b)
    tokenizer = None
    if isinstance(first, CLIP) and isinstance(second, CLIP):
        tokenizer = _shared_tokenizer((first, second), places, a, b)
    first.load_state_dict(blend(first.state_dict(), second.state_dict(), alpha))
    part = out.with_name(f".{out.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    try:
        first.save_pretrained(part)
        if tokenizer is not None:
            tokenizer.save(part)
        os.replace(part, out)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    parameters = sum(parameter.numel() for parameter in first.parameters())
    return {"model": str(out), "kind": kind, "alpha": alpha, "parameters": parameters}


def model_place(name: str) -> Path:
    """Where the one model lies that `name` stands for: a pack's CLIP, a run's model, or what is of that name."""
    place = Path(name)
    if (place / MODEL_FOLDER / CONFIG_FILE).is_file():
        return place / MODEL_FOLDER
    return place if place.exists() and not (place / PACK_FILE).exists() else clip_folder(name)


def check_same_config(a: PretrainedModel, b: PretrainedModel, a_name: str, b_name: str) -> None:
    """PackError for the first size or setting in which two models differ."""
    ours, theirs = (dict(_leaves(config_to_dict(model.config))) for model in (a, b))
    for name in [*ours, *theirs]:
        one, other = ours.get(name, "missing"), theirs.get(name, "missing")
        if one != other:
            raise PackError(
                f"{a_name} and {b_name} do not fit together: {name} is {one} in one and {other} in the other"
            )


def _leaves(values: Mapping[str, Any], place: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{place}{name}.")
        else:
            yield f"{place}{name}", value


def _shared_tokenizer(clips: tuple[CLIP, CLIP], places: tuple[Path, Path], a: str, b: str) -> Tokenizer:
    """The tokenizer of two CLIPs. PackError where they have different ones, or one has none."""
    ours, theirs = (tokenizer_of(clip, place) for clip, place in zip(clips, places, strict=True))
    facts = [
        {
            "vocabulary": each.backend.to_str(),
            "context_length": each.context_length,
            "special tokens": (each.pad, each.start, each.end),
            "clean-up": each.cleanup,
        }
        for each in (ours, theirs)
    ]
    for name in facts[0]:
        if facts[0][name] != facts[1][name]:
            raise PackError(f"{a} and {b} do not read the same tokens: their tokenizers differ in the {name}")
    return ours
