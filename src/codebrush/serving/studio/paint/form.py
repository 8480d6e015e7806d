"""The form of the tab Paint: its components by the names of the API's parameters, and the job that it asks for."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import gradio as gr

from codebrush.generation.guided.guide_options import INITS, GuideOptions
from codebrush.generation.guided.option_help import help_of, shown_value, usual_value
from codebrush.generation.guided.presets import PRESETS
from codebrush.generation.options import CANDIDATES_PER_PICTURE, SAMPLING
from codebrush.generation.sampling.painters import is_masked, usual_painter
from codebrush.pack.members import PAINTERS
from codebrush.pack.pack import Pack
from codebrush.serving.api.context import Context
from codebrush.serving.api.images import job_request
from codebrush.serving.api.problems import Problem
from codebrush.serving.api.schemas.images import GUIDANCE, MOST_PICTURES, GenerationRequest
from codebrush.serving.api.schemas.values import FROM_FORM
from codebrush.serving.studio.fields import (
    FLOW_FIELDS,
    USUAL,
    choice_field,
    first_of,
    flow_fields,
    label_of,
    seed_fields,
    seed_of,
    styles_of,
    upscale_field,
    usual_sampling,
    values_of,
)
from codebrush.serving.studio.parts import TAKES_PICTURES, Values
from codebrush.serving.wording import with_fields

START = "start.png"  # the start picture in a job's folder
PREVIEWS, GUIDED_PREVIEWS = 6, 200  # half-drawn pictures
PICTURES = {"guide": 1}  # by method; else
USUAL_PICTURES = 4
KEPT = ("style", "method", "size")  # what is chosen in them stays so with another pack that offers it
# What each method needs of a pack.
NEEDS = {
    **{name: (member,) for name, member in PAINTERS.items()},
    "retrieve": ("transformer",),
    "guide": ("clip", "vqgan"),
}
METHOD_LABELS = {**{name: name for name in NEEDS}, "guide": "guide (VQGAN-CLIP)"}


class PaintForm:
    """Built where it is made. `fields` are the components, `empty` their first values, `go` is the button."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self.fields: dict[str, Any] = {}
        self.pack = context.engine.brush(context.settings.packs[0]).pack
        self._words()
        self.go = gr.Button("Paint", variant="primary", elem_classes="cb-go", elem_id="paint-go")
        self._usual()
        with gr.Accordion("Sampling", open=False):
            self._sampling()
        with gr.Accordion("Guidance", open=False) as self.guidance:
            self._guidance()
        self.empty = {name: component.value for name, component in self.fields.items()}
        self._react()

    def _words(self) -> None:
        self.fields["prompt"] = gr.Textbox(
            label="Prompt", lines=2, max_lines=8, autofocus=True, elem_id="prompt", placeholder="a red apple",
            info="Weights: a dog:1.2 | blurry:-0.5. Ctrl+Enter paints.",
        )  # fmt: skip
        self.fields["negative_prompt"] = gr.Textbox(label="Negative prompt", lines=1, max_lines=4)

    def _usual(self) -> None:
        packs = list(self.context.engine.packs)
        own = self.fields
        own["model"] = gr.Dropdown(packs, value=packs[0], label="Pack", visible=len(packs) > 1, min_width=120)
        with gr.Row():
            own["style"] = gr.Dropdown(styles_of(self.pack), value=USUAL, label="Style", min_width=120)
            own["method"] = gr.Dropdown(
                _methods(self.pack), value=_methods(self.pack)[0][1], label="Method", min_width=120
            )
        with gr.Row():
            own["n"] = gr.Slider(1, MOST_PICTURES, USUAL_PICTURES, step=1, label="Pictures", min_width=120)
            own["size"] = gr.Dropdown(
                _sizes(self.pack), value="auto", label="Size", allow_custom_value=True, min_width=120
            )
            own["steps"] = _number("steps", "", "usual")
            own["steps"].visible = in_steps(self.pack, own["method"].value)
        seed_fields(own)

    def _sampling(self) -> None:
        own = self.fields
        numbers = {
            "cfg": "Classifier-free guidance: how strictly the prompt is followed; 1 is none.",
            "temperature": "0 takes the likeliest code each time.",
            "top_k": "Draw among so many codes; 0 is all.",
            "top_p": "Draw among the likeliest codes of this probability in all.",
            "min_p": "Drop codes less likely than this times the likeliest one.",
            "retouch": "Rounds in which the least likely codes are drawn again.",
        }
        pack = self.pack
        usual, shown = usual_sampling(pack), has_of(pack)
        with gr.Row():
            for name, about in numbers.items():
                own[name] = _number(name, about, usual[name])
            candidates = f"{CANDIDATES_PER_PICTURE[usual_painter(pack)]} for each"
            own["rerank"] = _number("rerank", "Pictures drawn, of which the best are kept.", candidates)
            own["upscale"] = upscale_field(shown["upscale"])
            flow_fields(own, pack.has("flow"))
            own["prior"] = choice_field("prior", "retrieve, flow: source of the image embedding.", priors_of(pack)[1:])
            own["neighbours"] = _number("neighbours", "retrieve, flow: similar pictures to blend.", "4")
            for name in ("prior", "neighbours"):
                own[name].visible = shown[name]

    def _guidance(self) -> None:
        own = self.fields
        gr.Markdown(
            "For the method *guide*; texts, cutouts and penalties also for *CLIP guidance* of a flow. What is left "
            "empty is as usual, or as the preset says."
        )
        with gr.Row():
            own["preset"] = choice_field("preset", "A set of values for the options below.", tuple(PRESETS))
            own["init"] = choice_field("init", "Where to begin.", INITS)
        own["start"] = gr.Image(
            label="Start from a picture", type="filepath", sources=["upload", "clipboard"], height=180,
            elem_classes=TAKES_PICTURES, buttons=[], image_mode=None,
        )  # fmt: skip
        shown = {option.name for option in GUIDANCE}
        topics: dict[str, list[Any]] = {}
        for option in fields(GuideOptions):
            if option.name in shown:
                topics.setdefault(option.metadata["topic"], []).append(option)
        for topic, options in topics.items():
            with gr.Accordion(topic.capitalize(), open=False, elem_classes="cb-topic"), gr.Row():
                for option in options:
                    own[option.name] = _option(option, self.pack)

    def _react(self) -> None:
        """One choice changes what others offer."""
        own = self.fields
        self.touched = gr.State(False)  # whether the number of pictures is the user's own choice
        own["n"].input(lambda: True, None, self.touched, show_progress="hidden", trigger_mode="once")
        changed = [own[name] for name in self.of_pack(self.pack)]
        asked = [own[name] for name in ("model", *KEPT)]
        # Without preprocessing: a value that was sent before the list of choices changed would be an error of Gradio's.
        own["model"].input(self._pack_changed, asked, changed, show_progress="hidden", preprocess=False)
        for name in ("method", "model"):
            asks = [own["model"], own["method"]]
            own[name].change(self._in_steps, asks, own["steps"], show_progress="hidden", preprocess=False)
        own["method"].input(self._of_method, [own["method"], self.touched], own["n"], show_progress="hidden")
        own["start"].change(
            self._started, [own["start"], own["method"], self.touched], [own["method"], own["n"]],
            show_progress="hidden",
        )  # fmt: skip
        drawing = [own[name] for name in SAMPLING]
        own["start"].change(self._without_drawing, own["start"], drawing, show_progress="hidden")

    def _in_steps(self, model: str, method: str) -> Any:
        """The number of steps is seen where there are any, and forgotten where there are none."""
        if in_steps(self.context.engine.brush(model).pack, method):
            return gr.update(visible=True)
        return gr.update(visible=False, value=self.empty["steps"])

    def _of_method(self, method: str, touched: bool) -> Any:
        """How many pictures a method usually makes, unless the user said how many."""
        return gr.skip() if touched else PICTURES.get(method, USUAL_PICTURES)

    def _started(self, path: str | None, method: str, touched: bool) -> list[Any]:
        if not path or method == "guide":
            return [gr.skip(), gr.skip()]
        return ["guide", gr.skip() if touched else PICTURES["guide"]]

    def _without_drawing(self, path: str | None) -> list[Any]:
        """Nothing is drawn before a start picture is guided: what is for drawing would be refused."""
        return [self.empty[name] if path else gr.skip() for name in SAMPLING]

    def _pack_changed(self, name: str, *kept: Any) -> list[Any]:
        return list(self.pack_chosen(name, dict(zip(KEPT, kept, strict=True))).values())

    def pack_chosen(self, name: str, before: Mapping[str, Any] | None = None) -> Values:
        """The updates of the fields that depend on the pack. What was chosen `before` in those of KEPT stays chosen if
        this pack offers it, too."""
        updates = {}
        for field, about in self.of_pack(self.context.engine.brush(name).pack).items():
            value = (before or {}).get(field)
            if field in KEPT and value not in values_of(about["choices"]):
                value = first_of(about["choices"])
            elif field not in KEPT:
                value = self.empty[field]
            given = field in KEPT or field == "prior" or about.get("visible") is False
            updates[self.fields[field]] = gr.update(**about, **({"value": value} if given else {}))
        return updates

    def of_pack(self, pack: Pack) -> dict[str, dict[str, Any]]:
        """What the fields that depend on the pack look like for one: what they offer, and what is usual."""
        found: dict[str, dict[str, Any]] = {name: {"choices": offered} for name, offered in choices_of(pack).items()}
        found |= {name: {"visible": visible} for name, visible in has_of(pack).items()}
        found["prior"]["choices"] = priors_of(pack)
        found |= {name: {"placeholder": text} for name, text in usual_sampling(pack).items()}
        for option in GUIDANCE:
            usual = usual_of(option, pack)
            if isinstance(self.fields[option.name], gr.Dropdown):
                found[option.name] = {"choices": option_choices(option, usual)}
            elif option.metadata["kind"] is not tuple:
                found[option.name] = {"placeholder": usual or "none"}
        return found

    def job(self, values: Values) -> tuple[str, dict[str, Any], str | None]:
        """The pack, the request of the job that the form's values ask for, and its start picture, a file.

        Raises:
            Problem, ValidationError, CodebrushError: if there is no such job.
        """
        given = {name: values[component] for name, component in self.fields.items()}
        start, given["seed"] = given.pop("start"), seed_of(given.pop("random"), given["seed"])
        for name in ("include", "exclude", "extra", "noise_prompt", "story"):
            given[name] = [line.strip() for line in (given[name] or "").splitlines() if line.strip()]
        given = {name: value for name, value in given.items() if value not in (None, USUAL, [])}
        pack = str(given.get("model") or self.context.settings.packs[0])
        if not in_steps(self.context.engine.brush(pack).pack, str(given.get("method", ""))):
            given.pop("steps", None)  # typed for another method
        if not str(given.get("prompt", "")).strip():
            raise Problem(400, "the prompt is empty: describe what the picture should show")
        if start and given.get("method") != "guide":
            raise Problem(400, "a start picture is for the method guide: choose it, or take the picture away")
        if given.get("method") == "guide" and start:
            given.pop("init", None)
        else:
            start = None
        asked = GenerationRequest.model_validate(given, context=FROM_FORM)
        found = job_request(asked, self.context.settings)
        found["previews"] = GUIDED_PREVIEWS if asked.method == "guide" else PREVIEWS
        if start:
            found["start"] = START
        return asked.model or self.context.settings.packs[0], found, start


def choices_of(pack: Pack) -> dict[str, list[Any]]:
    """What the lists whose entries depend on the pack offer, the usual one first."""
    return {"style": styles_of(pack), "method": _methods(pack), "size": _sizes(pack)}


def has_of(pack: Pack) -> dict[str, bool]:
    """Which of the options that need a member of the pack have it."""
    looks = pack.has("bank") or pack.has("prior")
    return {
        "upscale": pack.has("upscaler"), "prior": looks, "neighbours": pack.has("bank"),
        **dict.fromkeys(FLOW_FIELDS, pack.has("flow")),
    }  # fmt: skip


def in_steps(pack: Pack, method: str) -> bool:
    """Whether a method makes its pictures in steps that can be counted."""
    return method in ("guide", "flow") or is_masked(pack)


def priors_of(pack: Pack) -> list[tuple[str, str]]:
    """The sources of an image embedding that a pack has, as choices."""
    members = {"retrieval": pack.has("bank"), "mlp": pack.has("prior"), "none": True}
    return [("usual", USUAL), *((name, name) for name, there in members.items() if there)]


def usual_of(option: Any, pack: Pack) -> str:
    """What an option of guidance is for a pack unless it is given."""
    own = pack.info.get("guidance", {})
    return shown_value(own[option.name]) if option.name in own else usual_value(option)


def _methods(pack: Pack) -> list[tuple[str, str]]:
    able = {name for name, needed in NEEDS.items() if all(map(pack.has, needed))}
    if not has_of(pack)["prior"]:
        able.discard("retrieve")
    usual = usual_painter(pack)
    return [(METHOD_LABELS[name], name) for name in sorted(METHOD_LABELS, key=usual.__ne__) if name in able]


def _sizes(pack: Pack) -> list[str]:
    side = pack.image_size
    return ["auto", f"{side}x{side}", f"{side * 3 // 2}x{side}", f"{side}x{side * 3 // 2}", f"{2 * side}x{2 * side}"]


def _number(name: str, about: str, usual: str) -> Any:
    """A number that may be left out. (A gr.Number makes 0 of nothing.)"""
    return gr.Textbox(label=label_of(name), info=about or None, placeholder=usual or "none", max_lines=1, min_width=140)


def option_choices(option: Any, usual: str) -> list[tuple[str, Any]]:
    """What the list of an option of guidance offers."""
    first = f"usual: {usual}" if usual else "usual"
    if option.metadata["kind"] is bool:
        return [(first, USUAL), ("on", True), ("off", False)]
    return [(first, USUAL), *((str(each), each) for each in option.metadata["choices"])]


def _option(option: Any, pack: Pack) -> Any:
    """The component of an option of guidance, from the table that the command line's help is made of."""
    kind, usual = option.metadata["kind"], usual_of(option, pack)
    about = with_fields(help_of(option), label_of)
    if kind is bool or option.metadata.get("choices"):
        return gr.Dropdown(
            option_choices(option, usual), value=USUAL, label=label_of(option.name), info=about, min_width=140
        )
    if kind is tuple:
        return gr.Textbox(label=label_of(option.name), info=f"{about} One a line.", lines=2, min_width=220)
    return _number(option.name, about, usual)
