"""Puts what an edited picture was made with into the form of the tab Edit."""

import operator
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gradio as gr

from codebrush.data.decoding.images import decode_image
from codebrush.data.masks import white_where_clear
from codebrush.errors import CodebrushError
from codebrush.generation.manifest import damage_reported
from codebrush.generation.sources import pixels_sha256
from codebrush.serving.context import Context
from codebrush.serving.jobs import Job
from codebrush.serving.schemas import MOST_PICTURES
from codebrush.serving.studio.edit_form import (
    EXTEND,
    INTERPOLATE,
    MASK,
    REDRAW,
    TRANSLATE,
    UPSCALE,
    VARY,
    EditForm,
    choices_of,
)
from codebrush.serving.studio.mask_painter import CLEAR
from codebrush.serving.studio.paint_restoring import as_shown, drawn_options, pack_of, words_of
from codebrush.serving.studio.parts import Values, cached

METHODS = ("edit", "inpaint", "vary", "translate", "upscale", "interpolate")
LOOKED_AT = 300  # of the caller's latest jobs
NO_SOURCE = "Give the picture that it was made from again, which is not part of it"


def restored_form(
    form: EditForm, context: Context, manifest: Mapping[str, Any], owner: str
) -> tuple[Values, list[str]]:
    """The values of the form for a manifest, and a line for each thing that it cannot say.

    Raises:
        ImageError: if the manifest is damaged.
    """
    lost: list[str] = []
    method = manifest["method"]
    with damage_reported():
        if method == "upscale":
            found = {"task": UPSCALE, "scale": manifest["upscaled"][-1]["scale"]}
        elif method == "interpolate":
            found = {"task": INTERPOLATE, "frames": operator.index(manifest["frames"])}
        else:
            found = _edited(context, manifest, lost)
    sources = {} if method in ("upscale", "interpolate") else _sources(context, manifest, owner)
    found |= sources
    if "source" not in sources:
        lost.append(NO_SOURCE)
    if found["task"] == MASK and "mask_file" not in sources:
        lost.append("Paint the mask again")
    values = {name: found.get(name, empty) for name, empty in form.empty.items()}
    shown = {name: as_shown(form.fields[name], value) for name, value in values.items()}
    pack = context.engine.brush(values["model"]).pack
    shown |= {name: gr.update(choices=found, value=values[name]) for name, found in choices_of(pack).items()}
    opened = {form.mask_box: gr.Accordion(open="mask_file" in sources)}
    return {**opened, **{form.fields[name]: value for name, value in shown.items()}}, lost


def _edited(context: Context, manifest: Mapping[str, Any], lost: list[str]) -> dict[str, Any]:
    """What was drawn from a picture."""
    details = dict(manifest["edit"])
    name, pack = pack_of(context, manifest, lost)
    words = str(details.get("prompt", ""))
    found: dict[str, Any] = {"model": name, **(words_of(pack, words) if words.strip() else {})}
    if "translator" in manifest:
        return found | {"task": TRANSLATE, "to": details["style"], "by": "translator"}
    found |= {"seed": operator.index(manifest["seed"]), "random": False, **drawn_options(manifest, pack, lost)}
    found["n"] = min(found["n"], MOST_PICTURES)
    kind = manifest["method"]
    if kind == "translate":
        way = "flow" if "flow" in manifest["options"] else "codes"
        return found | {"task": TRANSLATE, "to": details["style"], "by": way}
    found["method"] = "flow" if "flow" in manifest["options"] else "sample"
    if kind == "vary":
        return found | {"task": VARY}
    if kind == "edit":
        return found | {"task": REDRAW, "strength": float(details["strength"])}
    if "extend" in details:
        return found | {"task": EXTEND, **{side: operator.index(count) for side, count in details["extend"].items()}}
    if "box" in details:
        lost.append(f"The part was the box {', '.join(map(str, details['box']))}: paint it again")
    return found | {"task": MASK}


def _sources(context: Context, manifest: Mapping[str, Any], owner: str) -> dict[str, Any]:
    """The picture and the mask of an edit, if they lie in a job of the caller, as files of the form."""
    entries = {name: dict(manifest["edit"].get(name) or {}).get("sha256") for name in ("picture", "mask")}
    found: dict[str, Any] = {}
    for job in context.engine.jobs_of(owner, LOOKED_AT):
        names = job.request.get("pictures", ())
        if job.kind not in ("edit", "vary", "translate") or job.request.get("seed", 0) != manifest["seed"]:
            continue
        source = next((name for name in names if _is(job, name, entries["picture"])), None)
        if source is None:
            continue
        found["source"] = cached((job.folder / source).read_bytes(), "source.png")
        if entries["mask"] and _is(job, "mask", entries["mask"]):
            found |= {"mask_file": cached((job.folder / "mask").read_bytes(), "mask.png"), "mask_reads": CLEAR}
        return found
    return found


def _is(job: Job, name: str, digest: str | None) -> bool:
    """Whether a picture or mask that was sent for a job has this sha256."""
    path: Path = job.folder / name
    try:
        picture = decode_image(path.read_bytes(), keep_mode=True)
        return digest == pixels_sha256(white_where_clear(picture) if name == "mask" else picture)
    except (OSError, CodebrushError):
        return False
