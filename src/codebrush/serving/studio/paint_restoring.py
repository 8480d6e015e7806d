"""Puts what a picture was made with into the form of the tab Paint."""

import hashlib
import operator
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import fields
from typing import Any

import gradio as gr

from codebrush.generation.guided.guide_options import (
    INITS,
    GuideOptions,
    guide_options,
    under_present_names,
    usual_preset,
)
from codebrush.generation.manifest import damage_reported
from codebrush.generation.options import SAMPLING, DrawOptions
from codebrush.pack.pack import Pack
from codebrush.serving.context import Context
from codebrush.serving.schemas import GUIDANCE, MOST_PICTURES
from codebrush.serving.studio.paint_form import START, PaintForm, choices_of
from codebrush.serving.studio.parts import Values, cached
from codebrush.text.pasted import typed
from codebrush.text.prompt_writing import without_style

LOOKED_AT = 500  # jobs of the caller, latest first
METHODS = ("sample", "flow", "retrieve", "guide")
NO_START = "Give its start picture again, which is not part of it"
# Options of guidance that change pixels and that the form has no place for.
ELSEWHERE = {"image_prompt", "target", "other_clip", "own_clip_weight", "mask", "mask_side", "palette"}


def restored_form(
    form: PaintForm, context: Context, manifest: Mapping[str, Any], owner: str
) -> tuple[Values, list[str]]:
    """The values of the form for a manifest, and a line for each thing that it cannot say.

    Raises:
        ImageError: if the manifest is damaged.
    """
    lost: list[str] = []
    guided = manifest["method"] == "guide"
    with damage_reported():
        name, pack = pack_of(context, manifest, lost)
        found = {"model": name, "method": manifest["method"], "random": False, **words_of(pack, manifest["prompt"])}
        found["seed"] = operator.index(manifest["seed"])
        found |= (_guided if guided else drawn_options)(manifest, pack, lost)
        scales = [step["scale"] for step in manifest.get("upscaled", [])]
        start = _start(context, manifest, owner) if guided else None
        if start is not None:
            found["start"] = start
            lost.remove(NO_START)
    if len(scales) == 1:
        found["upscale"] = scales[0]
    elif scales:
        lost.append("It was enlarged more than once")
    if found["n"] > MOST_PICTURES:
        lost.append(f"It was one of {found['n']} pictures")
        found["n"] = MOST_PICTURES
    values = {name: found.get(name, empty) for name, empty in form.empty.items()}
    shown = {name: as_shown(form.fields[name], value) for name, value in values.items()}
    shown |= {name: gr.Dropdown(choices, value=values[name]) for name, choices in choices_of(pack).items()}
    return {form.fields[name]: value for name, value in shown.items()}, lost


def as_shown(component: Any, value: Any) -> Any:
    """A value as its component takes it; of a number no digit is lost."""
    return str(value) if isinstance(component, gr.Textbox) and value is not None else value


def words_of(pack: Pack, prompt: str) -> dict[str, Any]:
    """What was typed, or means the same: the prompt, without the words of a style, and the style."""
    wording, styles = pack.styles
    for style in styles:
        plain = without_style(prompt, wording.replace("{style}", style))
        if plain is not None:
            return {"prompt": typed(plain), "style": style}
    return {"prompt": typed(prompt)}


def pack_of(context: Context, manifest: Mapping[str, Any], lost: list[str]) -> tuple[str, Pack]:
    """The served pack that made a picture, by its name here; else the first, which is said."""
    made_with = dict(manifest["pack"])
    packs = {name: context.engine.brush(name).pack for name in list(context.engine.packs)}
    for name, pack in packs.items():
        if pack.hash == made_with.get("hash"):
            return name, pack
    theirs = made_with.get("name")
    for name, pack in packs.items():
        if pack.name == theirs:
            lost.append(f"The pack '{theirs}' has changed since, so the pixels will differ")
            return name, pack
    first = context.settings.packs[0]
    lost.append(f"The pack '{theirs}' is not served here: '{first}' will draw something else")
    return first, packs[first]


def drawn_options(manifest: Mapping[str, Any], pack: Pack, lost: list[str]) -> dict[str, Any]:
    """What a painter drew with."""
    options = manifest["options"]
    drawn = DrawOptions(seed=manifest["seed"], **options)
    found = {name: getattr(drawn, name) for name in SAMPLING if name in options} | {"n": drawn.n}
    if drawn.size:
        found["size"] = drawn.size
    if drawn.flow is not None:
        found |= {"steps": drawn.flow.steps, "sampler": drawn.flow.sampler}
        if drawn.flow.cfg_interval != (0, 1):
            lost.append("The form has no place for cfg_interval")
    if "retrieval" in manifest:
        found |= {name: manifest["retrieval"][name] for name in ("prior", "neighbours")}
        if manifest["retrieval"]["bank"]:
            lost.append("It was drawn with a database of pictures that the form has no place for")
    if "clip_guidance" in manifest:
        lost.append("The form has no place for CLIP's guidance of a flow")
    return found


def _guided(manifest: Mapping[str, Any], pack: Pack, lost: list[str]) -> dict[str, Any]:
    """What CLIP led it by: the options that are not what they are when they are left out."""
    options = GuideOptions(**under_present_names(manifest["options"]))
    own = pack.info.get("guidance", {})
    usual = guide_options({}, None, {**usual_preset(options.init, draws=pack.has("transformer")), **own})
    changed = {
        option.name for option in fields(GuideOptions) if getattr(options, option.name) != getattr(usual, option.name)
    }
    found = {option.name: getattr(options, option.name) for option in GUIDANCE if option.name in changed}
    found = {name: "\n".join(value) if isinstance(value, tuple) else value for name, value in found.items()}
    found |= {"n": manifest["n"], "steps": options.steps, "size": options.size or "auto"}
    if options.init in INITS:
        found["init"] = options.init
    else:
        lost.append(NO_START)
    if options.init == "sample":
        found |= {name: value for name, value in manifest["sampling"].items() if name in SAMPLING}
    absent = sorted(name for name in changed & ELSEWHERE if name != "init")
    if absent:
        lost.append(f"The form has no place for {', '.join(absent)}")
    return found


def _start(context: Context, manifest: Mapping[str, Any], owner: str) -> str | None:
    """The picture that a guided one began from, if it lies in a job of the caller; no other file is looked at."""
    digest = dict(manifest.get("files") or {}).get(manifest["options"].get("init"))
    for job in context.engine.jobs_of(owner, LOOKED_AT) if digest else ():
        if job.request.get("start") == START and job.request.get("seed") == manifest["seed"]:
            with suppress(OSError):
                content = (job.folder / START).read_bytes()
                if hashlib.sha256(content).hexdigest() == digest:
                    return cached(content, START)
    return None
