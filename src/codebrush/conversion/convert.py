"""Converts published weights to a folder of ours, and a CLIP of ours to a published layout."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from codebrush.conversion.export import LAYOUTS, export_clip
from codebrush.conversion.layouts import layout_of
from codebrush.conversion.load import READERS, own_kind, own_model
from codebrush.conversion.sources import Settings, Source, open_source
from codebrush.conversion.text_towers import join_m_clip
from codebrush.conversion.tokenizers import VOCABULARY, fitting_tokenizer, sentencepiece_alone, tokenizer_file
from codebrush.errors import PackError, UsageError
from codebrush.files import new_folder
from codebrush.models.clip import CLIP
from codebrush.models.pretrained import PretrainedModel
from codebrush.pack.members import MEMBERS
from codebrush.text.tokenizer import Tokenizer
from codebrush.warned import warn

OUR_LAYOUT = "codebrush"


def open_model(kind: str, path: str | Path, config: Settings = None) -> PretrainedModel:
    """The model of `kind`, a name in `MEMBERS`, in a folder of ours or, for those of READERS, in a published layout.

    Raises:
        PackError: if there is no such model at `path`, or it is damaged.
    """
    own = own_model(path, kind)
    if own is None and kind not in READERS:
        raise PackError(f"{path} holds no {kind} of ours: name the folder of one")
    return own or READERS[kind](open_source(path, config))


def convert(
    source: str | Path,
    out: str | Path,
    config: Settings = None,
    *,
    to: str = OUR_LAYOUT,
    kind: str | None = None,
    tokenizer: str | Path | None = None,
    text_tower: str | Path | None = None,
) -> dict[str, Any]:
    """Write the weights at `source` into the new folder `out` in the layout `to`; returns what was found and written.

    A checkpoint that holds several models (a second stage with its VQGAN) is read as the `kind` asked for. The
    tokenizer of a CLIP is the file or folder `tokenizer`, or looked for beside the weights. `text_tower` is a text
    encoder of M-CLIP for a CLIP in place of its own, with its tokenizer beside it. Weights stored in 16 bits stay so.

    Raises:
        UsageError: if `out` exists, or the model cannot be written in the layout `to`.
        PackError: if the weights are in no known layout or damaged, or `out` cannot be written.
    """
    out = Path(out)
    if out.exists():
        raise UsageError(f"{out} is already there: name another folder with --out, or remove it")
    if to not in (OUR_LAYOUT, *LAYOUTS):
        raise UsageError(f"there is no layout '{to}': it is one of {', '.join((OUR_LAYOUT, *LAYOUTS))}")
    found, layout, model = _open(Path(source), config, kind)
    if layout == to == OUR_LAYOUT:
        raise UsageError(f"{source} is in this layout already: name the one to write with --to ({', '.join(LAYOUTS)})")
    if to != OUR_LAYOUT and not isinstance(model, CLIP):
        label = MEMBERS[found].label
        raise UsageError(f"only a CLIP can be written in the layout '{to}', and {source} holds a {label}")
    if text_tower is not None:
        if not isinstance(model, CLIP):
            raise UsageError(f"only a CLIP has a text encoder, and {source} holds a {MEMBERS[found].label}")
        joined = open_source(text_tower)
        model = join_m_clip(model, joined.tensors, joined.place)
    beside = Path(source if text_tower is None else text_tower)
    vocabulary = _tokenizer(beside, model, tokenizer) if isinstance(model, CLIP) else None

    def write(part: Path) -> None:
        if to == OUR_LAYOUT:
            model.save_pretrained(part, "exact")
        else:
            assert isinstance(model, CLIP)
            export_clip(model, part, to)
        if vocabulary is not None and to != "openai":  # whose code brings its own vocabulary
            vocabulary.save(part)

    _write_whole(out, write)
    return {
        "kind": found,
        "layout": layout,
        "written": to,
        "out": str(out),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "tokenizer": vocabulary is not None,
        "files": {file.name: file.stat().st_size for file in sorted(out.iterdir())},
    }


def _open(source: Path, config: Settings, kind: str | None) -> tuple[str, str, PretrainedModel]:
    own = own_kind(source)
    if own is not None:
        model = own_model(source, kind or own)
        assert model is not None
        return own, OUR_LAYOUT, model
    opened: Source = open_source(source, config)
    layout, found = layout_of(opened.tensors, opened.place)
    if kind is not None and kind != found and not (kind == "vqgan" and found == "transformer"):
        raise UsageError(f"{source} holds a {MEMBERS[found].label}, not a {MEMBERS[kind].label}")
    return kind or found, layout, READERS[kind or found](opened)


def _tokenizer(source: Path, clip: CLIP, asked: str | Path | None) -> Tokenizer | None:
    """The tokenizer that was asked for, or the one beside the weights; None, with a warning, if there is none."""
    file = Path(asked) if asked is not None else tokenizer_file(source)
    if file is not None:
        return fitting_tokenizer(clip, file)
    missing = f"there is no tokenizer beside {source}: name one with --tokenizer, like OpenAI's {VOCABULARY}"
    warn(sentencepiece_alone(source) or missing)
    return None


def _write_whole(out: Path, write: Callable[[Path], None]) -> None:
    try:
        with new_folder(out) as part:
            write(part)
    except (OSError, SafetensorError, RuntimeError) as error:  # torch.save reports a full disk as a RuntimeError
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())[:200]
        raise PackError(f"{out} cannot be written: {reason}") from error
