"""The form of the tab Paint: its components by the names of the API's parameters, and the job that it asks for."""

import secrets
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import gradio as gr

from codebrush.generation.guided.guide_options import INITS, GuideOptions
from codebrush.generation.guided.option_help import help_of, usual_value
from codebrush.generation.guided.presets import PRESETS
from codebrush.generation.options import DEFAULTS
from codebrush.pack.pack import Pack
from codebrush.serving.context import Context
from codebrush.serving.images import job_request
from codebrush.serving.problems import Problem
from codebrush.serving.schemas import GUIDANCE, MOST_PICTURES, GenerationRequest
from codebrush.serving.studio.parts import TAKES_PICTURES, Values

USUAL = ""  # in a list: not given
START = "start.png"  # the start picture in a job's folder
LARGEST_SEED = 2**31 - 1
PREVIEWS, GUIDED_PREVIEWS = 6, 200  # half-drawn pictures
PACK_FIELDS = ("style", "method", "size")  # whose choices depend on the pack
PICTURES = {"guide": 1}  # by method; else
USUAL_PICTURES = 4
# What each method needs of a pack.
NEEDS = {"sample": ("transformer",), "flow": ("flow",), "retrieve": ("transformer", "bank"), "guide": ("clip", "vqgan")}
METHOD_LABELS = {"sample": "sample", "flow": "flow", "retrieve": "retrieve", "guide": "guide (VQGAN-CLIP)"}


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
        with gr.Row():
            own["model"] = gr.Dropdown(packs, value=packs[0], label="Pack", visible=len(packs) > 1, min_width=120)
            own["style"] = gr.Dropdown(styles_of(self.pack), value=USUAL, label="Style", min_width=120)
            own["method"] = gr.Dropdown(
                _methods(self.pack), value=_methods(self.pack)[0][1], label="Method", min_width=120
            )
        with gr.Row():
            own["n"] = gr.Slider(1, MOST_PICTURES, USUAL_PICTURES, step=1, label="Pictures", min_width=120)
            own["size"] = gr.Dropdown(
                _sizes(self.pack), value="auto", label="Size", allow_custom_value=True, min_width=120
            )
        with gr.Row(equal_height=True):
            own["seed"] = gr.Number(0, label="Seed", precision=0, min_width=120)
            own["random"] = gr.Checkbox(True, label="Random seed", min_width=120)

    def _sampling(self) -> None:
        own, usual = self.fields, {**DEFAULTS, **self.pack.info.get("defaults", {})}
        numbers = {
            "cfg": "Classifier-free guidance: how strictly the prompt is followed; 1 is none.",
            "temperature": "0 takes the likeliest code each time.",
            "top_k": "Draw among so many codes; 0 is all.",
            "top_p": "Draw among the likeliest codes of this probability in all.",
            "min_p": "Drop codes less likely than this times the likeliest one.",
        }
        with gr.Row():
            for name, about in numbers.items():
                own[name] = _number(name, about, f"{usual[name]:g}")
            own["rerank"] = _number("rerank", "Pictures drawn, of which the best are kept.", "4 times as many")
            own["steps"] = _number("steps", "Of guidance, or of a flow.", "usual")
            own["upscale"] = gr.Dropdown(
                [("no", 1), ("2x", 2), ("4x", 4)], value=1, label="Upscale", min_width=140,
                visible=self.pack.has("upscaler"),
            )  # fmt: skip
        with gr.Row(visible=self.pack.has("flow")):
            own["sampler"] = _choice("sampler", "How a step of the flow is taken.", ("euler", "heun", "dpm"))
        with gr.Row(visible=self.pack.has("bank")):
            own["prior"] = _choice("prior", "retrieve: source of the image embedding.", ("retrieval", "mlp", "none"))
            own["neighbours"] = _number("neighbours", "retrieve: similar pictures to blend.", "4")

    def _guidance(self) -> None:
        own = self.fields
        gr.Markdown("For the method *guide*. What is left empty is as usual, or as the preset says.")
        with gr.Row():
            own["preset"] = _choice("preset", "A set of values for the options below.", tuple(PRESETS))
            own["init"] = _choice("init", "Where to begin.", INITS)
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
                    own[option.name] = _option(option)

    def _react(self) -> None:
        """One choice changes what others offer."""
        own = self.fields
        changed = [own[name] for name in PACK_FIELDS]
        own["model"].input(self._pack_changed, own["model"], changed)
        own["method"].input(lambda method: PICTURES.get(method, USUAL_PICTURES), own["method"], own["n"])
        guided = ["guide", PICTURES["guide"]]
        own["start"].change(
            lambda path, method: guided if path and method != "guide" else [gr.skip(), gr.skip()],
            [own["start"], own["method"]], [own["method"], own["n"]],
        )  # fmt: skip

    def _pack_changed(self, name: str) -> list[Any]:
        return list(self.pack_chosen(name).values())

    def pack_chosen(self, name: str) -> Values:
        """The values of the fields that depend on the pack."""
        choices = choices_of(self.context.engine.brush(name).pack)
        return {self.fields[field]: gr.Dropdown(each, value=first_of(each)) for field, each in choices.items()}

    def job(self, values: Values) -> tuple[str, dict[str, Any], str | None]:
        """The pack, the request of the job that the form's values ask for, and its start picture, a file.

        Raises:
            Problem, ValidationError, CodebrushError: if there is no such job.
        """
        given = {name: values[component] for name, component in self.fields.items()}
        start, random = given.pop("start"), given.pop("random")
        if random or given["seed"] is None:
            given["seed"] = secrets.randbelow(LARGEST_SEED)
        for name in ("include", "exclude", "extra", "noise_prompt", "story"):
            given[name] = [line.strip() for line in (given[name] or "").splitlines() if line.strip()]
        given = {name: value for name, value in given.items() if value not in (None, USUAL, [])}
        if start and given.get("method") != "guide":
            raise Problem(400, "a start picture is for the method guide: choose it, or take the picture away")
        if given.get("method") == "guide" and start:
            given.pop("init", None)
        else:
            start = None
        asked = GenerationRequest.model_validate(given)
        found = job_request(asked, self.context.settings)
        found["previews"] = GUIDED_PREVIEWS if asked.method == "guide" else PREVIEWS
        if start:
            found["start"] = START
        return asked.model or self.context.settings.packs[0], found, start


def choices_of(pack: Pack) -> dict[str, list[Any]]:
    """What the lists whose entries depend on the pack offer, the usual one first."""
    return {"style": styles_of(pack), "method": _methods(pack), "size": _sizes(pack)}


def first_of(choices: Sequence[Any]) -> Any:
    """The value of the first of some choices; None if there are none."""
    first = choices[0] if choices else None
    return first[1] if isinstance(first, tuple) else first


def styles_of(pack: Pack) -> list[tuple[str, str]]:
    """The styles of a pack, as choices."""
    return [("any", USUAL), *((style, style) for style in pack.styles[1])]


def _methods(pack: Pack) -> list[tuple[str, str]]:
    return [(METHOD_LABELS[name], name) for name, needed in NEEDS.items() if all(map(pack.has, needed))]


def _sizes(pack: Pack) -> list[str]:
    side = pack.image_size
    return ["auto", f"{side}x{side}", f"{side * 3 // 2}x{side}", f"{side}x{side * 3 // 2}", f"{2 * side}x{2 * side}"]


def _number(name: str, about: str, usual: str) -> Any:
    """A number that may be left out. (A gr.Number makes 0 of nothing.)"""
    return gr.Textbox(label=_label(name), info=about, placeholder=usual or "none", max_lines=1, min_width=140)


def _choice(name: str, about: str, choices: Any, usual: str = "") -> Any:
    first = f"usual: {usual}" if usual else "usual"
    return gr.Dropdown(
        [(first, USUAL), *((str(each), each) for each in choices)], value=USUAL, label=_label(name), info=about,
        min_width=140,
    )  # fmt: skip


def _option(option: Any) -> Any:
    """The component of an option of guidance, from the table that the command line's help is made of."""
    kind, about, usual = option.metadata["kind"], help_of(option), usual_value(option)
    if kind is bool:
        return gr.Dropdown(
            [(f"usual: {usual}", USUAL), ("on", True), ("off", False)], value=USUAL, label=_label(option.name),
            info=about, min_width=140,
        )  # fmt: skip
    if option.metadata.get("choices"):
        return _choice(option.name, about, option.metadata["choices"], usual)
    if kind is tuple:
        return gr.Textbox(label=_label(option.name), info=f"{about} One a line.", lines=2, min_width=220)
    return _number(option.name, about, usual)


def _label(name: str) -> str:
    return {"cfg": "CFG", "n": "Pictures"}.get(name, name.replace("_", " ").capitalize())
