"""The form of the tab Edit: a picture, what is done to it, and the job that this asks for."""

import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import ImageChops

from codebrush.data.decoding.images import decode_image
from codebrush.generation.options import SAMPLING
from codebrush.models.translator import TranslatorConfig
from codebrush.pack.pack import Pack
from codebrush.serving.context import Context
from codebrush.serving.edits import PASSED
from codebrush.serving.images import drawing_options
from codebrush.serving.problems import Problem
from codebrush.serving.schemas import MOST_PICTURES, EditRequest
from codebrush.serving.studio.mask_painter import (
    CLEAR,
    WHITE,
    MaskPainter,
    begun,
    clear_where_white,
    mask_of_file,
    painted_mask,
)
from codebrush.serving.studio.paint_form import LARGEST_SEED, USUAL, first_of, styles_of
from codebrush.serving.studio.parts import TAKES_PICTURES, Values, told

MASK, EXTEND, REDRAW, VARY = "mask", "extend", "redraw", "vary"
TRANSLATE, UPSCALE, INTERPOLATE = "translate", "upscale", "interpolate"
TASKS = {
    MASK: "Paint a part", EXTEND: "Extend", REDRAW: "Redraw", VARY: "Vary", TRANSLATE: "Translate",
    UPSCALE: "Upscale", INTERPOLATE: "Interpolate",
}  # fmt: skip
SIDES = ("left", "top", "right", "bottom")
MOST_ADDED = 4096  # pixels a side
MOST_FRAMES = 60
PROMPTED = (MASK, EXTEND, REDRAW)  # tasks that are drawn under a prompt
DRAWN = (*PROMPTED, VARY)  # by a painter
UNPROMPTED = "-"  # in place of a prompt where none is needed


class EditForm:
    """Built where it is made. `fields` are the components, `empty` their first values, `go` is the button."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self.fields: dict[str, Any] = {}
        self.pack = context.engine.brush(context.settings.packs[0]).pack
        own = self.fields
        own["source"] = _picture("Picture", "edit-source")
        own["task"] = gr.Radio(tasks_of(self.pack), value=MASK, label="What to do", elem_id="edit-task")
        self.groups: dict[str, Any] = {}
        self._mask()
        self._words()
        self._others()
        self.go = gr.Button("Edit", variant="primary", elem_classes="cb-go", elem_id="edit-go")
        self._usual()
        self.empty = {name: component.value for name, component in self.fields.items()}
        self._react()

    def _mask(self) -> None:
        with gr.Column(elem_id="edit-mask") as self.groups["mask"]:
            self.painter = MaskPainter()
            self.fields["painted"] = self.painter.painted
            with gr.Accordion("Mask from a file", open=False) as self.mask_box:
                self.fields["mask_file"] = _picture("Mask, of the picture's size", "edit-mask-file", 140)
                self.fields["mask_reads"] = gr.Radio(
                    [("its white part", WHITE), ("its transparent part", CLEAR)], value=WHITE, label="What changes"
                )

    def _words(self) -> None:
        own = self.fields
        with gr.Column() as self.groups["words"]:
            own["prompt"] = gr.Textbox(
                label="Prompt", lines=2, max_lines=8, elem_id="edit-prompt",
                info="What the changed part is to show. Without one a part is filled with what fits the rest.",
            )  # fmt: skip
            own["negative_prompt"] = gr.Textbox(label="Negative prompt", lines=1, max_lines=4)
            own["style"] = gr.Dropdown(styles_of(self.pack), value=USUAL, label="Style")

    def _others(self) -> None:
        own, pack = self.fields, self.pack
        with gr.Row(visible=False) as self.groups["extend"]:
            for side in SIDES:
                own[side] = gr.Number(
                    0, label=side.capitalize(), precision=0, minimum=0, maximum=MOST_ADDED, min_width=90
                )
        with gr.Column(visible=False) as self.groups["strength"]:
            own["strength"] = gr.Slider(0.05, 1, 0.6, step=0.05, label="Strength", info="The share that is redrawn.")
        with gr.Row(visible=False) as self.groups["translate"]:
            own["to"] = gr.Dropdown(targets_of(pack), value=first_of(targets_of(pack)), label="Into the style")
            own["by"] = gr.Dropdown(_ways(pack), value=_ways(pack)[0][1], label="By")
        with gr.Column(visible=False) as self.groups["upscale"]:
            own["scale"] = gr.Radio([("2x", 2), ("4x", 4)], value=2, label="How many times as large")
        with gr.Column(visible=False) as self.groups["interpolate"]:
            own["second"] = _picture("To this picture", "edit-second", 180)
            own["frames"] = gr.Slider(2, MOST_FRAMES, 12, step=1, label="Frames")

    def _usual(self) -> None:
        own, packs = self.fields, list(self.context.engine.packs)
        with gr.Column() as self.groups["drawn"]:
            own["n"] = gr.Slider(1, MOST_PICTURES, 2, step=1, label="Pictures")
            with gr.Row(equal_height=True):
                own["seed"] = gr.Number(0, label="Seed", precision=0, min_width=120)
                own["random"] = gr.Checkbox(True, label="Random seed", min_width=120)
        own["model"] = gr.Dropdown(packs, value=packs[0], label="Pack", visible=len(packs) > 1)
        with gr.Accordion("Sampling", open=False) as self.groups["sampling"], gr.Row():
            own["method"] = gr.Dropdown(_painters(self.pack), value=USUAL, label="Method", min_width=140)
            for name in SAMPLING:
                own[name] = gr.Textbox(label=name.replace("_", " ").capitalize(), placeholder="usual", min_width=120)

    def _react(self) -> None:
        """One choice changes what others offer."""
        own = self.fields
        own["task"].change(self._task_changed, own["task"], list(self.groups.values()), show_progress="hidden")
        own["source"].change(
            self._source_changed, own["source"], [self.painter.canvas, self.painter.painted], show_progress="hidden"
        )
        changed = [own[name] for name in choices_of(self.pack)]
        own["model"].input(self._pack_changed, own["model"], changed, show_progress="hidden")

    def _task_changed(self, task: str) -> list[Any]:
        shown = {
            "mask": task == MASK, "words": task in PROMPTED, "extend": task == EXTEND, "strength": task == REDRAW,
            "translate": task == TRANSLATE, "upscale": task == UPSCALE, "interpolate": task == INTERPOLATE,
            "drawn": task in (*DRAWN, TRANSLATE), "sampling": task in DRAWN,
        }  # fmt: skip
        return [gr.update(visible=shown[name]) for name in self.groups]

    def _source_changed(self, path: str | None) -> list[Any]:
        with told():
            return [begun(None if path is None else self._read(path)), ""]

    def _pack_changed(self, name: str) -> list[Any]:
        choices = choices_of(self.context.engine.brush(name).pack)
        return [gr.update(choices=found, value=first_of(found)) for found in choices.values()]

    def _read(self, path: str) -> Any:
        most = self.context.settings.max_input_pixels
        return decode_image(Path(path).read_bytes(), keep_mode=True, max_pixels=most)

    def job(self, values: Values) -> tuple[str, str, dict[str, Any], dict[str, bytes]]:
        """The kind, pack, request and files of the job that the form's values ask for.

        Raises:
            Problem, ValidationError, CodebrushError: if there is no such job.
        """
        given = {name: values[component] for name, component in self.fields.items()}
        if not given["source"]:
            raise Problem(400, "choose a picture first")
        picture = self._read(given["source"])  # refuses what is no picture
        files = {"picture_00": Path(given["source"]).read_bytes()}
        found: dict[str, Any] = {"pictures": ["picture_00"], "max_pixels": self.context.settings.max_input_pixels}
        task, pack = given["task"], given["model"]
        if task == UPSCALE:
            return "upscale", pack, found | {"scale": given["scale"]}, files
        if task == INTERPOLATE:
            if not given["second"]:
                raise Problem(400, "choose the picture that it becomes")
            files["picture_01"] = Path(given["second"]).read_bytes()
            return "interpolate", pack, found | {"pictures": list(files), "frames": given["frames"], "seed": 0}, files
        found["mask"] = task == MASK
        if task == TRANSLATE:
            return "translate", pack, found | self._translation(given), files
        found |= self._drawing(given)
        if task == VARY:
            return "vary", pack, {name: value for name, value in found.items() if name != "prompt"}, files
        if task == MASK:
            mask = painted_mask(given["painted"], picture.size)
            if given["mask_file"]:
                most = self.context.settings.max_input_pixels
                read = mask_of_file(given["mask_file"], given["mask_reads"], picture.size, most)
                mask = read if mask is None else ImageChops.lighter(mask, read)
            if mask is None:
                raise Problem(400, "paint over the part that is to change, or choose a mask's file")
            files["mask"] = clear_where_white(mask)
        elif task == EXTEND:
            found["extend"] = {side: int(given[side]) for side in SIDES if given[side]}
            if not found["extend"]:
                raise Problem(400, "say by how many pixels the picture is extended, on one side at least")
        else:
            found["strength"] = given["strength"]
        return "edit", pack, found, files

    def _seed(self, given: dict[str, Any]) -> int:
        return secrets.randbelow(LARGEST_SEED) if given["random"] or given["seed"] is None else given["seed"]

    def _translation(self, given: dict[str, Any]) -> dict[str, Any]:
        if given["to"] is None:
            raise Problem(400, "this pack has no style to translate into")
        found = {"style": given["to"], "by": given["by"]}
        if given["by"] != "translator":  # which gives one picture, without any seed
            found |= {"n": given["n"], "seed": self._seed(given)}
        return found

    def _drawing(self, given: dict[str, Any]) -> dict[str, Any]:
        """What is drawn under the prompt, and how."""
        words = (given["prompt"] or "").strip() if given["task"] in PROMPTED else ""
        if not words and given["task"] == REDRAW:
            raise Problem(400, "say what the picture is to show: a redrawn picture needs a prompt")
        names = ("method", *SAMPLING, *(("negative_prompt", "style") if given["task"] in PROMPTED else ()))
        options = {name: given[name] for name in names if given[name] not in (None, USUAL)}
        asked = EditRequest.model_validate({"prompt": words or UNPROMPTED, "n": given["n"], **options})
        asked.seed = self._seed(given)
        return {**drawing_options(asked, PASSED), "prompt": words}


def _picture(label: str, name: str, height: int = 240) -> Any:
    return gr.Image(
        label=label, type="filepath", image_mode=None, sources=["upload", "clipboard"], height=height, elem_id=name,
        elem_classes=TAKES_PICTURES, buttons=[],
    )  # fmt: skip


def choices_of(pack: Pack) -> dict[str, Sequence[Any]]:
    """What the lists whose entries depend on the pack offer, the usual one first."""
    return {
        "task": tasks_of(pack), "style": styles_of(pack), "to": targets_of(pack), "by": _ways(pack),
        "method": _painters(pack),
    }  # fmt: skip


def tasks_of(pack: Pack) -> list[tuple[str, str]]:
    """What can be done with a pack, as choices."""
    lacks = {TRANSLATE: not targets_of(pack), UPSCALE: not pack.has("upscaler")}
    return [(label, task) for task, label in TASKS.items() if not lacks.get(task)]


def targets_of(pack: Pack) -> Sequence[str]:
    """The styles that a pack translates into."""
    if pack.has("translator"):
        return pack.config(TranslatorConfig).styles
    return pack.info.get("translation", {}).get("styles", ())


def _painters(pack: Pack) -> list[tuple[str, str]]:
    names = [name for name, member in (("sample", "transformer"), ("flow", "flow")) if pack.has(member)]
    return [("usual", USUAL), *((name, name) for name in names)]


def _ways(pack: Pack) -> list[tuple[str, str]]:
    drawn = pack.info.get("translation", {}).get("styles")
    ways = [("the translator", "translator")] if pack.has("translator") else []
    ways += [("drawing codes", "codes")] if drawn and pack.has("transformer") else []
    ways += [("a flow", "flow")] if drawn and pack.has("flow") else []
    return ways or [("the translator", "translator")]
