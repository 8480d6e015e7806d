"""What the forms of pictures share when they take up what a picture was made with, so that nothing of it is dropped
without a word."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Protocol

import gradio as gr

from codebrush.generation.manifest import FACTS, FACTS_WITHIN, damaged, read_clip_guidance
from codebrush.generation.options import FLOAT32, SAMPLING, DrawOptions, FlowSettings, parse_size
from codebrush.pack.pack import Pack
from codebrush.serving.api.context import Context
from codebrush.serving.api.schemas.images import EditRequest, GenerationRequest
from codebrush.serving.studio.fields import first_of, values_of
from codebrush.serving.studio.parts import Values
from codebrush.text.pasted import typed
from codebrush.text.prompt_writing import without_style

_AS_USUAL = {
    "cfg_interval": FlowSettings().cfg_interval,
    "bank": "",
}  # what options without a place are if nothing is said of them
LARGER = {"n": "It was one of {value} pictures", "rerank": "It was the best of {value}"}


class Form(Protocol):
    """A form of pictures: its components, their first values, and what those that depend on the pack look like."""

    fields: dict[str, Any]
    empty: dict[str, Any]

    def of_pack(self, pack: Pack) -> dict[str, dict[str, Any]]:
        """The updates of the fields that depend on the pack."""
        ...


def shown_values(form: Form, pack: Pack, found: Mapping[str, Any], lost: list[str]) -> Values:
    """The values that show what was `found` in a form, as its components take them: of a number no digit is lost. What
    the pack does not offer is said.

    Raises:
        ImageError: if one of them is no text and no number.
    """
    about, shown = form.of_pack(pack), {}
    for name, empty in form.empty.items():
        component, value = form.fields[name], found.get(name, empty)
        if not isinstance(value, str | int | float | None):  # Gradio would take an object for a file, or an update
            raise damaged(TypeError(f"{name} is {type(value).__name__}"))
        looks = about.get(name, {})
        offered = looks.get("choices")
        own = getattr(component, "allow_custom_value", False)  # what is not offered may be typed
        if offered is not None and not own and value not in values_of(offered):
            if name in found:
                lost.append(f"This pack has no {name} '{value}'")
            value = first_of(offered)
        if isinstance(component, gr.Textbox) and value is not None:
            value = str(value)
        shown[component] = gr.update(**looks, value=value) if looks else value
    return shown


def words_of(pack: Pack, prompt: str, story: Collection[str] = ()) -> dict[str, Any]:
    """What was typed, or means the same: the prompt, and those of a `story`, without the words of a style, and the
    style."""
    wording, styles = pack.styles
    for style in styles:
        plain = [without_style(text, wording.replace("{style}", style)) for text in (prompt, *story)]
        if all(text is not None for text in plain):
            first, *others = [typed(text) for text in plain if text is not None]
            return {"prompt": first, "style": style, **({"story": "\n".join(others)} if others else {})}
    return {"prompt": typed(prompt), **({"story": "\n".join(map(typed, story))} if story else {})}


def pack_of(context: Context, manifest: Mapping[str, Any], lost: list[str]) -> tuple[str, Pack]:
    """The served pack that made a picture, by its name here; else the first, which is said. So is that it draws with
    weights of other bits here."""
    name, pack = _served_pack(context, manifest, lost)
    brush, options = context.engine.brush(name), manifest.get("options", manifest.get("sampling"))
    if options:
        theirs, ours = options.get("weights", FLOAT32), brush.weights_of("flow" if "flow" in options else "sample")
        if theirs != ours:
            lost.append(f"It was drawn with weights in {theirs}; this server draws with {ours}")
    return name, pack


def _served_pack(context: Context, manifest: Mapping[str, Any], lost: list[str]) -> tuple[str, Pack]:
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


def drawn_options(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """What a painter drew with."""
    options = manifest["options"]
    drawn = DrawOptions(seed=manifest["seed"], **options)
    found = {name: getattr(drawn, name) for name in SAMPLING if name in options} | {"n": drawn.n}
    if drawn.size:
        found["size"] = drawn.size
    if drawn.steps is not None:  # of a masked transformer
        found["steps"] = drawn.steps
    if drawn.flow is not None:
        found |= {"steps": drawn.flow.steps, "sampler": drawn.flow.sampler}
        if drawn.flow.cfg_interval != FlowSettings().cfg_interval:
            found["cfg_interval"] = ",".join(map(repr, drawn.flow.cfg_interval))
    if (guidance := read_clip_guidance(manifest)) is not None:
        found["clip_guidance"] = float(guidance["scale"])
    if "retrieval" in manifest:
        found |= {name: manifest["retrieval"][name] for name in ("prior", "neighbours")}
    return found


def enlargement(manifest: Mapping[str, Any], pack: Pack, lost: list[str]) -> dict[str, Any]:
    """The field `upscale` of a picture that was enlarged after it was made."""
    steps = [(step["scale"], step.get("upscaler"), step.get("pack")) for step in manifest.get("upscaled", [])]
    if not steps:
        return {}
    if enlarged_again([scale for scale, _, _ in steps], lost):
        return {}
    ((scale, digest, theirs),) = steps
    if not pack.has("upscaler"):
        lost.append(f"It was enlarged {scale} times by the pack '{theirs}': this one has no upscaler")
        return {}
    if digest != pack.hash_of("upscaler"):
        lost.append(f"It was enlarged by another upscaler, of the pack '{theirs}'")
    return {"upscale": scale}


def enlarged_again(scales: Sequence[int], lost: list[str]) -> bool:
    """Whether a picture was enlarged several times, for which no form has a place; that is said."""
    if len(scales) > 1:
        said = ", then ".join(f"{scale} times" for scale in scales)
        lost.append(f"It was enlarged more than once, {said}: use Upscale once for each")
    return len(scales) > 1


def within_limits(
    found: Mapping[str, Any], kind: type[GenerationRequest] | type[EditRequest], context: Context, lost: list[str]
) -> dict[str, Any]:
    """The values of a form, none larger than what the server takes; what was larger is said."""
    limited = dict(found)
    for name, value in found.items():
        field = kind.model_fields.get(name)
        limits = [each.le for each in (field.metadata if field else ()) if hasattr(each, "le")]
        if limits and isinstance(value, int | float) and value > limits[0]:
            said = LARGER.get(name, f"Its {name.replace('_', ' ')} was {{value}}").format(value=value)
            lost.append(f"{said}; this server takes {limits[0]} at most")
            limited[name] = limits[0]
    if found.get("size", "auto") != "auto":
        width, height = parse_size(found["size"])
        if width * height > context.settings.max_pixels:
            lost.append(
                f"Its size was {found['size']}; this server takes {context.settings.max_pixels:,} pixels at most"
            )
            del limited["size"]
    return limited


def unplaced(manifest: Mapping[str, Any], placed: Collection[str]) -> list[str]:
    """Lines about the options of a manifest that have no place among those of the form."""
    lines = []
    held = {name: value for name, value in manifest.items() if name not in FACTS | {"clip_guidance"}}
    names = [name for name in _names(held) if name not in placed]
    if "bank" in names:
        names.remove("bank")
        lines.append("It was drawn with a database of pictures (bank) that the form has no place for")
    return [*lines, f"The form has no place for {', '.join(names)}"] if names else lines


def _names(held: Mapping[str, Any]) -> list[str]:
    """The names of the options in a part of a manifest that are not as they are without a word."""
    names = dict[str, None]()
    for name, value in held.items():
        if isinstance(value, Mapping):
            names |= dict.fromkeys(_names({key: each for key, each in value.items() if key not in FACTS_WITHIN}))
        elif (tuple(value) if isinstance(value, list) else value) != _AS_USUAL.get(name):
            names[name] = None
    return list(names)
