"""Puts what an edited picture was made with into the form of the tab Edit."""

import operator
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gradio as gr

from codebrush.data.decoding.images import decode_image
from codebrush.data.masks import white_where_clear
from codebrush.errors import CodebrushError
from codebrush.generation.manifest import by_flow, by_translator, damage_reported
from codebrush.generation.sources import pixels_sha256
from codebrush.generation.transparent_ground import is_transparent
from codebrush.pack.pack import Pack
from codebrush.serving.api.context import Context
from codebrush.serving.api.schemas.images import EditRequest
from codebrush.serving.job import Job
from codebrush.serving.studio.edit.form import (
    EXTEND,
    INTERPOLATE,
    MASK,
    MOST_FRAMES,
    REDRAW,
    TRANSLATE,
    TRANSLATOR,
    UPSCALE,
    VARY,
    EditForm,
    checksum,
)
from codebrush.serving.studio.edit.mask_painter import CLEAR
from codebrush.serving.studio.parts import Values, cached
from codebrush.serving.studio.restoring import (
    drawn_options,
    enlarged_again,
    enlargement,
    pack_of,
    shown_values,
    unplaced,
    within_limits,
    words_of,
)

METHODS = ("edit", "inpaint", "vary", "translate", "upscale", "interpolate")
LOOKED_AT = 300  # of the caller's latest jobs
NO_SOURCE = "Give the picture that it was made from again, which is not part of it"
NO_MASK = "Paint the mask again"


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
            found = _enlarged(context, manifest, lost)
        elif method == "interpolate":
            found = _interpolated(context, manifest, lost)
        else:
            found = _edited(context, manifest, lost)
            found |= _sources(context, manifest, owner, lost)
        found = within_limits(found, EditRequest, context, lost)
    if "source" not in found:
        lost.append(NO_SOURCE)
    if found["task"] == MASK and "mask_file" not in found:
        lost.append(NO_MASK)
    model = found.get("model", form.empty["model"])
    values = shown_values(form, context.engine.brush(model).pack, found, lost)
    by, drawn_by = found.get("by", form.empty["by"]), found.get("method", form.empty["method"])
    groups = form.visible(found["task"], by, model, drawn_by)
    values |= {form.groups[name]: gr.update(visible=visible) for name, visible in groups.items()}
    values |= {form.mask_box: gr.Accordion(open="mask_file" in found), form.mask_of: checksum(found.get("source"))}
    return values, lost


def _enlarged(context: Context, manifest: Mapping[str, Any], lost: list[str]) -> dict[str, Any]:
    """A picture of others that was enlarged."""
    steps = [dict(step) for step in manifest["upscaled"]]
    enlarged_again([step["scale"] for step in steps], lost)
    for name in list(context.engine.packs):
        pack: Pack = context.engine.brush(name).pack
        if pack.has("upscaler") and pack.hash_of("upscaler") == steps[0].get("upscaler"):
            return {"task": UPSCALE, "scale": steps[0]["scale"], "model": name}
    lost.append(f"The upscaler of the pack '{steps[0].get('pack')}', which enlarged it, is not served here")
    return {"task": UPSCALE, "scale": steps[0]["scale"]}


def _interpolated(context: Context, manifest: Mapping[str, Any], lost: list[str]) -> dict[str, Any]:
    """Frames between two pictures, or more."""
    keys = [Path(str(key)).name for key in manifest["keys"]]
    if len(keys) > 2:
        lost.append(f"It goes through {len(keys)} pictures or prompts, and the form through two: {', '.join(keys)}")
    elif not all(key.startswith("picture_") for key in keys):
        lost.append(f"It goes from {keys[0]} to {keys[1]}")
    frames = operator.index(manifest["frames"])
    if frames > MOST_FRAMES:
        lost.append(f"It had {frames:,} frames; the form takes {MOST_FRAMES} at most")
    found = {"task": INTERPOLATE, "frames": min(frames, MOST_FRAMES), "through": manifest["through"]}
    if "pack" in manifest:  # which earlier versions did not say
        found["model"], _ = pack_of(context, manifest, lost)
    return found | {"seed": operator.index(manifest["seed"]), "random": False}


def _edited(context: Context, manifest: Mapping[str, Any], lost: list[str]) -> dict[str, Any]:
    """What was drawn from a picture."""
    details = dict(manifest["edit"])
    name, pack = pack_of(context, manifest, lost)
    words = str(details.get("prompt", ""))
    found: dict[str, Any] = {"model": name, **(words_of(pack, words) if words.strip() else {})}
    found |= enlargement(manifest, pack, lost)
    if by_translator(manifest):
        return found | {"task": TRANSLATE, "to": details["style"], "by": TRANSLATOR}
    found |= {"seed": operator.index(manifest["seed"]), "random": False, **drawn_options(manifest)}
    kind, flows = manifest["method"], by_flow(manifest)
    placed = {*found, "style", "strength", "box", *details.get("extend", ())}
    lost += unplaced(manifest, placed)
    if kind == "translate":
        return found | {"task": TRANSLATE, "to": details["style"], "by": "flow" if flows else "codes"}
    found["method"] = "flow" if flows else "sample"
    if kind == "vary":
        return found | {"task": VARY, "varied": float(details.get("strength", 1))}
    if kind == "edit":
        return found | {"task": REDRAW, "strength": float(details["strength"])}
    if "strength" in details:
        found["fill"] = float(details["strength"])
    if "extend" in details:
        return found | {"task": EXTEND, **{side: operator.index(count) for side, count in details["extend"].items()}}
    if "box" in details:
        lost.append(f"The part was the box {', '.join(map(str, details['box']))}: paint it again")
    return found | {"task": MASK}


def _sources(context: Context, manifest: Mapping[str, Any], owner: str, lost: list[str]) -> dict[str, Any]:
    """The picture and the mask of an edit, if they lie in a job of the caller, as files of the form."""
    details = dict(manifest["edit"])
    entries = {name: dict(details.get(name) or {}).get("sha256") for name in ("picture", "mask")}
    found: dict[str, Any] = {}
    for job in context.engine.jobs_of(owner, LOOKED_AT):
        names = job.request.get("pictures", ())
        if job.kind not in ("edit", "vary", "translate") or job.request.get("seed", 0) != manifest["seed"]:
            continue
        source = next((name for name in names if _is(job, name, entries["picture"])), None)
        if source is None:
            continue
        content = (job.folder / source).read_bytes()
        found["source"] = cached(content, "source.png")
        if entries["mask"] and _is(job, "mask", entries["mask"]):
            found |= {"mask_file": cached((job.folder / "mask").read_bytes(), "mask.png"), "mask_reads": CLEAR}
        if "transparency" not in details and is_transparent(decode_image(content, keep_mode=True)):
            lost.append("Its transparent ground was painted over then, and is kept now")
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
