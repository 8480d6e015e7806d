"""Blends two models of one kind: writes a model whose weights lie on the line between theirs."""

from pathlib import Path
from typing import Any

from codebrush.conversion.convert import open_model
from codebrush.conversion.load import own_kind
from codebrush.conversion.tokenizers import tokenizer_of
from codebrush.errors import PackError, UsageError
from codebrush.files import new_folder
from codebrush.models.clip import CLIP
from codebrush.models.pretrained import CONFIG_FILE, PretrainedModel, config_to_dict
from codebrush.pack.members import MEMBERS
from codebrush.pack.pack import PACK_FILE, clip_folder
from codebrush.text.tokenizer import Tokenizer
from codebrush.training.fine_tuning import blend
from codebrush.training.flattening import leaves
from codebrush.training.run_folder import MODEL_FOLDER


def blend_folders(a: str, b: str, alpha: float, out: Path) -> dict[str, Any]:
    """Write (1 - alpha) `a` + alpha `b` into the new folder `out`, float32; returns its path, kind and size.

    Each is a pack (whose CLIP is taken), a run, a model folder, or a published CLIP. Two CLIPs, or two captioners, must
    read the same tokens; their tokenizer is written beside the blend.

    Raises:
        PackError: if the two do not fit together; it names the first difference.
        UsageError: if `alpha` is outside [0, 1], or `out` exists.
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
    if MEMBERS[kind].tokenizer_misfits is not None:
        tokenizer = _shared_tokenizer(_tokenizer(first, places[0]), _tokenizer(second, places[1]), a, b)
    first.load_state_dict(blend(first.state_dict(), second.state_dict(), alpha))
    with new_folder(out) as part:
        first.save_pretrained(part)
        if tokenizer is not None:
            tokenizer.save(part)
    parameters = sum(parameter.numel() for parameter in first.parameters())
    return {"model": str(out), "kind": kind, "alpha": alpha, "parameters": parameters}


def model_place(name: str) -> Path:
    """The folder of the model that `name` stands for: a pack's CLIP, a run's model, or a model folder itself."""
    place = Path(name)
    if (place / MODEL_FOLDER / CONFIG_FILE).is_file():
        return place / MODEL_FOLDER
    return place if place.exists() and not (place / PACK_FILE).exists() else clip_folder(name)


def check_same_config(a: PretrainedModel, b: PretrainedModel, a_name: str, b_name: str) -> None:
    """Raises PackError for the first size or setting in which two models differ."""
    ours, theirs = (leaves(config_to_dict(model.config)) for model in (a, b))
    for name in [*ours, *theirs]:
        one, other = ours.get(name, "missing"), theirs.get(name, "missing")
        if one != other:
            raise PackError(
                f"{a_name} and {b_name} do not fit together: {name} is {one} in one and {other} in the other"
            )


def _tokenizer(model: PretrainedModel, place: Path) -> Tokenizer:
    """The tokenizer beside the weights of `model`. Raises PackError if there is none."""
    return tokenizer_of(model, place) if isinstance(model, CLIP) else Tokenizer.from_pretrained(place)


def _shared_tokenizer(ours: Tokenizer, theirs: Tokenizer, a: str, b: str) -> Tokenizer:
    """The tokenizer of two models. Raises PackError if they have different ones."""
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
