"""Puts what a picture was made with into the form of the tab Paint."""

import hashlib
import operator
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import fields
from typing import Any

from codebrush.generation.guided.flow_guidance import FlowGuidance
from codebrush.generation.guided.guide_options import (
    INITS,
    WORDS,
    GuideOptions,
    guide_options,
    under_present_names,
    usual_preset,
)
from codebrush.generation.manifest import damage_reported, read_clip_guidance
from codebrush.generation.options import SAMPLING, FlowSettings
from codebrush.generation.sampling.painters import draws
from codebrush.pack.pack import Pack
from codebrush.serving.api.context import Context
from codebrush.serving.api.schemas.images import GUIDANCE, GenerationRequest
from codebrush.serving.studio.paint.form import START, PaintForm
from codebrush.serving.studio.parts import Values, cached
from codebrush.serving.studio.restoring import (
    drawn_options,
    enlargement,
    pack_of,
    shown_values,
    unplaced,
    within_limits,
    words_of,
)
from codebrush.text.pasted import typed_text

LOOKED_AT = 500  # jobs of the caller, latest first
NO_START = "Give its start picture again, which is not part of it"


def restored_form(
    form: PaintForm, context: Context, manifest: Mapping[str, Any], owner: str
) -> tuple[Values, list[str]]:
    """The values of the form for a manifest, and a line for each thing that it cannot say.

    Raises:
        ImageError: if the manifest is damaged.
    """
    lost: list[str] = []
    with damage_reported():
        name, pack = pack_of(context, manifest, lost)
        found = {"model": name, "method": manifest["method"], "random": False}
        if manifest["method"] == "guide":
            found |= _guided(manifest, pack, lost)
            if (start := _start(context, manifest, owner)) is not None:
                found["start"] = start
                lost.remove(NO_START)
        else:
            found |= words_of(pack, manifest["prompt"]) | drawn_options(manifest)
            leading, others = _leading(manifest, pack)
            found |= leading
            lost += unplaced({**manifest, "leading": others}, {*found, "seed"})
        found["seed"] = operator.index(manifest["seed"])
        found |= enlargement(manifest, pack, lost)
        found = within_limits(found, GenerationRequest, context, lost)
    return {form.touched: True, **shown_values(form, pack, found, lost)}, lost


def _leading(manifest: Mapping[str, Any], pack: Pack) -> tuple[dict[str, Any], dict[str, Any]]:
    """By what CLIP led a flow, if it did: the options that are not as usual, for the form, and those it has no place
    for."""
    entry = read_clip_guidance(manifest)
    if entry is None:
        return {}, {}
    options = GuideOptions(**under_present_names(entry["options"]))
    usual = FlowGuidance.of(0, {}, pack.info.get("guidance", {})).options
    changed = _changed(options, usual)
    shown = {name: value for name, value in changed.items() if name in {option.name for option in GUIDANCE}}
    return _typed(shown), {name: True for name in changed if name not in shown}


def _changed(options: GuideOptions, usual: GuideOptions) -> dict[str, Any]:
    """Those of the options that are not as usual."""
    own = {option.name: getattr(options, option.name) for option in fields(GuideOptions)}
    return {name: value for name, value in own.items() if value != getattr(usual, name)}


def _typed(found: Mapping[str, Any]) -> dict[str, Any]:
    """Options of guidance as the fields have them: texts one a line, as they are typed."""
    words = {name: "\n".join(map(typed_text, value)) for name, value in found.items() if name in WORDS}
    lists = {name: "\n".join(map(str, value)) for name, value in found.items() if isinstance(value, tuple)}
    return {**found, **lists, **words}


def _guided(manifest: Mapping[str, Any], pack: Pack, lost: list[str]) -> dict[str, Any]:
    """What CLIP led it by: the options that are not what they are when they are left out."""
    options = GuideOptions(**under_present_names(manifest["options"]))
    own = pack.info.get("guidance", {})
    usual = guide_options({}, None, {**usual_preset(options.init, draws=draws(pack)), **own})
    changed = _changed(options, usual)
    found = {option.name: changed[option.name] for option in GUIDANCE if option.name in changed}
    words = words_of(pack, manifest["prompt"], found.pop("story", ()))
    found = {**_typed(found), **words}
    found |= {"n": manifest["n"], "steps": options.steps, "size": options.size or "auto"}
    if options.init in INITS:
        found["init"] = options.init
    else:
        lost.append(NO_START)
    if options.init == "sample":
        found |= {name: value for name, value in manifest["sampling"].items() if name in SAMPLING}
    # How often a picture is stored on the way changes none.
    elsewhere = dict.fromkeys(sorted(changed.keys() - {"init", "show_every"}), True)
    if FlowSettings(**manifest["sampling"].get("flow") or {}) != FlowSettings():
        elsewhere["how the flow was followed that drew the start"] = True
    lost += unplaced({"options": elsewhere}, found)
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
