"""The form of the tab Edit: a picture, what is done to it, and the job that this asks for."""

import hashlib
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image, ImageChops

from codebrush.data.decoding.images import decode_image
from codebrush.generation.editing.editing import VARIED
from codebrush.generation.editing.interpolation import THROUGH
from codebrush.generation.options import SAMPLING
from codebrush.generation.sampling.painters import is_masked, usual_painter
from codebrush.models.translator import TranslatorConfig
from codebrush.pack.members import PAINTERS
from codebrush.pack.pack import Pack
from codebrush.serving.api.context import Context
from codebrush.serving.api.edits import PASSED
from codebrush.serving.api.images import drawing_options
from codebrush.serving.api.problems import Problem
from codebrush.serving.api.schemas.images import MOST_PICTURES, EditRequest
from codebrush.serving.api.schemas.values import FROM_FORM
from codebrush.serving.studio.edit.mask_painter import (
    CLEAR,
    UNSEEN,
    WHITE,
    MaskPainter,
    begun,
    clear_where_white,
    mask_of_file,
    painted_mask,
    url_of,
)
from codebrush.serving.studio.fields import (
    FLOW_FIELDS,
    USUAL,
    first_of,
    flow_fields,
    seed_fields,
    seed_of,
    styles_of,
    upscale_field,
    usual_sampling,
    values_of,
)
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
ANY = "any"  # in place of the checksum of a mask's picture: the next one
TRANSLATOR, FLOW = "translator", "flow"  # ways of a translation
SAVE = """url => {
  if (!url) return;
  const link = document.createElement("a");
  Object.assign(link, { href: url, download: "mask.png" });
  link.click();
}"""


class EditForm:
    """Built where it is made. `fields` are the components, `empty` their first values, `go` is the button."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self.fields: dict[str, Any] = {}
        self.pack = context.engine.brush(context.settings.packs[0]).pack
        own = self.fields
        own["source"] = _picture("Picture", "edit-source")
        own["task"] = gr.Radio(
            tasks_of(self.pack), value=first_of(tasks_of(self.pack)), label="What to do", elem_id="edit-task"
        )
        self.groups: dict[str, Any] = {}
        self._mask()
        self._words()
        self._others()
        self.go = gr.Button("Edit", variant="primary", elem_classes="cb-go", elem_id="edit-go")
        self._usual()
        self.empty = {name: component.value for name, component in self.fields.items()}
        shown = self.visible(*(self.empty[name] for name in ("task", "by", "model", "method")))
        for name, group in self.groups.items():
            group.visible = shown[name]
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
            self.mask_of = gr.State("")  # the checksum of the picture that the mask's file is of
            self.save = gr.Button("Save the mask", size="sm", elem_id="edit-save-mask")
            self.saved = gr.Textbox("", elem_classes=UNSEEN, label="Saved mask")

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
            own["strength"] = gr.Slider(0.01, 1, 0.6, step=0.01, label="Strength", info="The share that is redrawn.")
        with gr.Column(visible=False) as self.groups["varied"]:
            own["varied"] = gr.Slider(
                0.01, 1, VARIED, step=0.01, label="Strength of the variation",
                info="How far from the picture; 1 keeps only what CLIP sees of it.",
            )  # fmt: skip
        with gr.Column(visible=False) as self.groups["fill"]:
            own["fill"] = gr.Slider(
                0.01, 1, 1, step=0.01, label="Strength of the part",
                info="Below 1 a flow begins from what the picture shows there.",
            )  # fmt: skip
        with gr.Row(visible=False) as self.groups["translate"]:
            own["to"] = gr.Dropdown(targets_of(pack), value=first_of(targets_of(pack)), label="Into the style")
            own["by"] = gr.Dropdown(_ways(pack), value=_ways(pack)[0][1], label="By")
        with gr.Column(visible=False) as self.groups["upscale"]:
            own["scale"] = gr.Radio([("2x", 2), ("4x", 4)], value=2, label="How many times as large")
        with gr.Column(visible=False) as self.groups["interpolate"]:
            own["second"] = _picture("To this picture", "edit-second", 180)
            own["frames"] = gr.Slider(2, MOST_FRAMES, 12, step=1, label="Frames")
            own["through"] = gr.Dropdown(
                _throughs(pack), value=THROUGH[0], label="Through",
                info="Latents change smoothly; embeddings and noise are drawn anew at each step.",
            )  # fmt: skip

    def _usual(self) -> None:
        own, packs = self.fields, list(self.context.engine.packs)
        with gr.Row():
            with gr.Column(min_width=160) as self.groups["n"]:
                own["n"] = gr.Slider(1, MOST_PICTURES, 2, step=1, label="Pictures")
            with gr.Column(min_width=120, visible=self.pack.has("upscaler")) as self.groups["enlarge"]:
                own["upscale"] = upscale_field(True)
        with gr.Column() as self.groups["seed"]:
            seed_fields(own)
        own["model"] = gr.Dropdown(packs, value=packs[0], label="Pack", visible=len(packs) > 1)
        usual = usual_sampling(self.pack)
        with gr.Accordion("Sampling", open=False) as self.groups["sampling"]:
            with gr.Column() as self.groups["method"]:
                own["method"] = gr.Dropdown(_painters(self.pack), value=USUAL, label="Method", min_width=140)
            with gr.Row():
                for name in SAMPLING:
                    label = "CFG" if name == "cfg" else name.replace("_", " ").capitalize()
                    own[name] = gr.Textbox(label=label, placeholder=usual.get(name, "usual"), min_width=120)
            with gr.Column(visible=False) as self.groups["steps"]:
                own["steps"] = gr.Textbox(label="Steps", placeholder="usual", min_width=120)
            with gr.Row(visible=False) as self.groups["flow"]:
                flow_fields(own, True)

    def _react(self) -> None:
        """One choice changes what others offer."""
        own = self.fields
        asked = [own[name] for name in ("task", "by", "model", "method")]
        for name in ("task", "by", "method"):
            # Without preprocessing: a value that was sent before its list changed would be an error of Gradio's.
            groups = list(self.groups.values())
            own[name].change(self._visible, asked, groups, show_progress="hidden", preprocess=False)
        of_picture = [self.painter.canvas, own["mask_file"], own["mask_reads"], self.mask_of, own["painted"]]
        own["source"].change(self._source_changed, [own["source"], self.mask_of], of_picture, show_progress="hidden")
        own["mask_file"].change(
            self._mask_changed, [own["source"], own["mask_file"], self.mask_of], self.mask_of, show_progress="hidden"
        )
        masked = [own[name] for name in ("source", "painted", "mask_file", "mask_reads")]
        self.save.click(self._saved_mask, masked, self.saved, show_progress="hidden").success(
            None, self.saved, None, js=SAVE
        )
        changed = [own[name] for name in self.of_pack(self.pack)]
        updated = [*changed, *self.groups.values()]
        own["model"].input(
            self._pack_changed, [own["model"], *changed], updated, show_progress="hidden", preprocess=False
        )

    def takes(self, task: str, by: str, model: str, method: str) -> set[str]:
        """Which of the options "steps" and FLOW_FIELDS what draws has a use for: a flow for all, a masked code
        transformer for the first."""
        pack = self.context.engine.brush(model).pack
        painter = {"codes": "sample"}.get(by, by) if task == TRANSLATE else method or usual_painter(pack)
        if painter == FLOW:
            return {"steps", *FLOW_FIELDS}
        return {"steps"} if painter == "sample" and is_masked(pack) else set()

    def visible(self, task: str, by: str, model: str, method: str) -> dict[str, bool]:
        """Which groups of fields have a use."""
        taken, pack = self.takes(task, by, model, method), self.context.engine.brush(model).pack
        flows = "sampler" in taken
        tuned = task in DRAWN or (task == TRANSLATE and by != TRANSLATOR)
        return {
            "mask": task == MASK, "words": task in PROMPTED, "extend": task == EXTEND, "strength": task == REDRAW,
            "varied": flows and task == VARY,
            "fill": flows and task in (MASK, EXTEND), "translate": task == TRANSLATE, "upscale": task == UPSCALE,
            "interpolate": task == INTERPOLATE, "n": tuned, "enlarge": (task in DRAWN or task == TRANSLATE)
            and pack.has("upscaler"), "seed": tuned or task == INTERPOLATE, "sampling": tuned,
            "method": task in DRAWN, "steps": tuned and "steps" in taken, "flow": tuned and flows,
        }  # fmt: skip

    def _visible(self, task: str, by: str, model: str, method: str) -> list[Any]:
        shown = self.visible(task, by, model, method)
        return [gr.update(visible=shown[name]) for name in self.groups]

    def _source_changed(self, path: str | None, mask_of: str) -> list[Any]:
        """Another picture has no mask yet. Gradio also says that a picture has changed when it is only shown anew, as
        when its tab opens: the canvas then has the same value again, and keeps what is painted. One that is dropped on
        another takes that away first, even if it is the same; that empties the mask also while it is not shown."""
        with told(self.context):
            begins = begun(path, None if path is None else self._read(path))
        digest = checksum(path)
        painted = gr.skip() if path else ""
        if path and mask_of in (digest, ANY):
            return [begins, gr.skip(), gr.skip(), digest, painted]
        return [begins, None, WHITE, digest, painted]

    def _mask_changed(self, source: str | None, mask: str | None, mask_of: str) -> str:
        if mask is None:
            return mask_of
        return checksum(source) or ANY

    def _pack_changed(self, name: str, *before: Any) -> list[Any]:
        about = self.of_pack(self.context.engine.brush(name).pack)
        values = dict(zip(about, before, strict=True))
        for field, looks in about.items():
            if "choices" in looks and values[field] not in values_of(looks["choices"]):
                values[field] = first_of(looks["choices"])
        updates = [gr.update(**looks, value=values[field]) for field, looks in about.items()]
        return [*updates, *self._visible(values["task"], values["by"], name, values["method"])]

    def of_pack(self, pack: Pack) -> dict[str, dict[str, Any]]:
        """What the fields that depend on the pack look like for one: what they offer, and what is usual."""
        choices: dict[str, Sequence[Any]] = {
            "task": tasks_of(pack), "style": styles_of(pack), "to": targets_of(pack), "by": _ways(pack),
            "method": _painters(pack), "through": _throughs(pack),
        }  # fmt: skip
        found: dict[str, dict[str, Any]] = {name: {"choices": offered} for name, offered in choices.items()}
        return found | {name: {"placeholder": usual} for name, usual in usual_sampling(pack).items()}

    def _read(self, path: str) -> Any:
        most = self.context.settings.max_input_pixels
        return decode_image(Path(path).read_bytes(), keep_mode=True, max_pixels=most)

    def _saved_mask(self, source: str | None, painted: str, mask_file: str | None, reads: str) -> str:
        """The mask as a picture in a URL, white where the picture changes."""
        with told(self.context):
            if not source:
                raise Problem(400, "choose a picture first")
            return url_of(self._mask_of(source, painted, mask_file, reads, self._read(source).size))

    def _mask_of(
        self, source: str, painted: str, mask_file: str | None, reads: str, size: tuple[int, int]
    ) -> Image.Image:
        """What was painted and what a file says, as one mask. Raises Problem if neither says anything."""
        mask = painted_mask(painted, source, size)
        if mask_file:
            read = mask_of_file(mask_file, reads, size, self.context.settings.max_input_pixels)
            mask = read if mask is None else ImageChops.lighter(mask, read)
        if mask is None:
            raise Problem(400, "paint over the part that is to change, or choose a mask's file")
        return mask

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
        task, pack, names = given["task"], given["model"], {"picture_00": Path(given["source"]).name}
        if not self.context.engine.brush(pack).pack.has("upscaler"):
            given["upscale"] = 1  # what another pack was asked for is not shown with this one
        if task == UPSCALE:
            return "upscale", pack, found | {"scale": given["scale"], "names": names}, files
        if task == INTERPOLATE:
            if not given["second"]:
                raise Problem(400, "choose the picture that it becomes")
            files["picture_01"] = Path(given["second"]).read_bytes()
            names["picture_01"] = Path(given["second"]).name
            asked = {"frames": given["frames"], "through": given["through"], "names": names}
            seed = seed_of(given["random"], given["seed"])
            return "interpolate", pack, found | {"pictures": list(files), "seed": seed, **asked}, files
        found["mask"] = task == MASK
        taken = self.takes(task, given["by"], pack, given["method"])
        if task == TRANSLATE:
            return "translate", pack, found | self._translation(given, taken), files
        found |= self._drawing(given, taken)
        if task == VARY:
            found |= {"strength": given["varied"]} if "sampler" in taken else {}
            return "vary", pack, {name: value for name, value in found.items() if name != "prompt"}, files
        if task == REDRAW:
            return "edit", pack, found | {"strength": given["strength"]}, files
        if "sampler" in taken and given["fill"] < 1:
            found["strength"] = given["fill"]
        if task == MASK:
            told_by = (given["painted"], given["mask_file"], given["mask_reads"])
            mask = self._mask_of(given["source"], *told_by, picture.size)
            files["mask"] = clear_where_white(mask)
            return "edit", pack, found, files
        found["extend"] = {side: int(given[side]) for side in SIDES if given[side]}
        if not found["extend"]:
            raise Problem(400, "say by how many pixels the picture is extended, on one side at least")
        return "edit", pack, found, files

    def _translation(self, given: Mapping[str, Any], taken: Collection[str]) -> dict[str, Any]:
        if given["to"] is None:
            raise Problem(400, "this pack has no style to translate into")
        found = {"style": given["to"], "by": given["by"]}
        if given["by"] == TRANSLATOR:  # which gives one picture, without any seed
            return found | ({"upscale": given["upscale"]} if given["upscale"] != 1 else {})
        drawn = self._drawing({**given, "method": USUAL}, taken)
        return found | {name: value for name, value in drawn.items() if name != "prompt"}

    def _drawing(self, given: Mapping[str, Any], taken: Collection[str]) -> dict[str, Any]:
        """What is drawn under the prompt, and how, by a painter that takes those of the options "steps" and
        FLOW_FIELDS."""
        words = (given["prompt"] or "").strip() if given["task"] in PROMPTED else ""
        if not words and given["task"] == REDRAW:
            raise Problem(400, "say what the picture is to show: a redrawn picture needs a prompt")
        names = ["method", "upscale", *SAMPLING, *taken]
        names += ["negative_prompt", "style"] if given["task"] in PROMPTED else []
        options = {name: given[name] for name in names if given[name] not in (None, USUAL)}
        asked = EditRequest.model_validate(
            {"prompt": words or UNPROMPTED, "n": given["n"], **options}, context=FROM_FORM
        )
        asked.seed = seed_of(given["random"], given["seed"])
        return {**drawing_options(asked, PASSED), "prompt": words}


def checksum(path: str | None) -> str:
    """The sha256 of a file; "" for none."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest() if path else ""


def _picture(label: str, name: str, height: int = 240) -> Any:
    return gr.Image(
        label=label, type="filepath", image_mode=None, sources=["upload", "clipboard"], height=height, elem_id=name,
        elem_classes=TAKES_PICTURES, buttons=[],
    )  # fmt: skip


def tasks_of(pack: Pack) -> list[tuple[str, str]]:
    """What can be done with a pack, as choices."""
    lacks = {TRANSLATE: not targets_of(pack), UPSCALE: not pack.has("upscaler")}
    lacks |= dict.fromkeys(DRAWN, not any(map(pack.has, PAINTERS.values())))
    return [(label, task) for task, label in TASKS.items() if not lacks.get(task)]


def targets_of(pack: Pack) -> Sequence[str]:
    """The styles that a pack translates into."""
    if pack.has("translator"):
        return pack.config(TranslatorConfig).styles
    return pack.info.get("translation", {}).get("styles", ())


def _painters(pack: Pack) -> list[tuple[str, str]]:
    names = [name for name, member in PAINTERS.items() if pack.has(member)]
    return [("usual", USUAL), *((name, name) for name in names)]


def _throughs(pack: Pack) -> list[str]:
    return [way for way in THROUGH if way != "noise" or pack.has("flow")]


def _ways(pack: Pack) -> list[tuple[str, str]]:
    drawn = pack.info.get("translation", {}).get("styles")
    ways = [("the translator", TRANSLATOR)] if pack.has("translator") else []
    ways += [("drawing codes", "codes")] if drawn and pack.has("transformer") else []
    ways += [("a flow", FLOW)] if drawn and pack.has("flow") else []
    return ways or [("the translator", TRANSLATOR)]
