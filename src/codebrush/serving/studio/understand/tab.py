"""The tab Understand: what a picture shows, in captions, answers, labels and heat maps."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import gradio as gr
from starlette.concurrency import run_in_threadpool

from codebrush.data.decoding.images import decode_image
from codebrush.pack.pack import Pack
from codebrush.serving.api.problems import Problem
from codebrush.serving.api.schemas.reading import AskRequest, CaptionRequest, ClassifyRequest, ExplainRequest
from codebrush.serving.api.schemas.values import DATA_URL
from codebrush.serving.job import Job
from codebrush.serving.studio import views
from codebrush.serving.studio.following import follow, was_cancelled
from codebrush.serving.studio.parts import TAKES_PICTURES, Studio, Tab, Values, line_of, owner_of, told
from codebrush.serving.studio.understand import views as shown

ID, LABEL = "understand", "Understand"
CAPTION, ASK, CLASSIFY, EXPLAIN = "caption", "ask", "classify", "explain"
TASKS = {CAPTION: "Caption", ASK: "Ask", CLASSIFY: "Classify", EXPLAIN: "Explain"}
CAPTIONS = 3
LABELS = "an apple\na dog\na car"


def build(studio: Studio) -> Tab:
    """The form beside what is found."""
    context, own = studio.context, dict[str, Any]()
    packs = list(context.engine.packs)
    pack = context.engine.brush(packs[0]).pack
    with gr.Row(elem_classes="cb-columns"):
        with gr.Column(scale=2, min_width=320):
            own["picture"] = gr.Image(
                label="Picture", type="filepath", image_mode=None, sources=["upload", "clipboard"], height=280,
                elem_id="understand-picture", elem_classes=TAKES_PICTURES, buttons=[],
            )  # fmt: skip
            own["task"] = gr.Radio(tasks_of(pack), value=tasks_of(pack)[0][1], label="What to do")
            groups = _asked(own, tasks_of(pack)[0][1])
            own["model"] = gr.Dropdown(packs, value=packs[0], label="Pack", visible=len(packs) > 1)
            go = gr.Button("Look", variant="primary", elem_classes="cb-go", elem_id="understand-go")
            similar = gr.Button("Similar pictures in a library", size="sm", visible=bool(context.engine.library.roots))
        with gr.Column(scale=3, min_width=320):
            running = gr.State(None)
            cancel = gr.Button("Cancel", visible=False, elem_classes="cb-cancel")
            found = gr.HTML(elem_id="found", js_on_load=None)

    async def look(values: Values, request: gr.Request) -> AsyncIterator[Values]:
        rest = {running: None, go: gr.Button(interactive=True), cancel: gr.Button(visible=False)}
        try:
            given = {name: values[component] for name, component in own.items()}
            job = await run_in_threadpool(_submit, studio, given, owner_of(request))
        except Exception as error:
            yield {found: views.failure(line_of(error, context))}
            return
        busy = {go: gr.Button(interactive=False), cancel: gr.Button(visible=True)}
        yield {running: job.id, **busy}
        try:
            async for _ in follow(context.engine, job):
                yield {found: views.progress(job, context.engine.waiting), **busy}
        except Problem as problem:
            ended = "Cancelled." if was_cancelled(problem) else problem.detail
            yield {found: views.failure(ended), **rest}
            return
        yield {found: await run_in_threadpool(shown.found, job), **rest}
        await run_in_threadpool(context.engine.forget, job)  # the caller has it, and nobody else may

    def packed(name: str, task: str) -> Any:
        choices = tasks_of(context.engine.brush(name).pack)
        offered = [each for _, each in choices]
        return gr.Radio(choices, value=task if task in offered else offered[0])

    studio.later(lambda: _to_search(studio, similar, own["picture"]))
    go.click(look, set(own.values()), [running, go, cancel, found], show_progress="hidden")
    cancel.click(studio.cancel, running, None, show_progress="hidden")
    own["task"].change(
        lambda task: [gr.update(visible=name == task) for name in groups], own["task"], list(groups.values()),
        show_progress="hidden",
    )  # fmt: skip
    own["model"].change(packed, [own["model"], own["task"]], own["task"], show_progress="hidden")
    return Tab(verb="Understand", picture=own["picture"], packs=own["model"])


def _to_search(studio: Studio, button: Any, picture: Any) -> None:
    """Let a button send the picture to the tab Search, if there is a library to search."""
    if "search" not in studio.takers():
        return

    def send(path: str | None) -> Values:
        with told(studio.context):
            if not path:
                raise Problem(400, "choose a picture first")
            return studio.sent("search", Path(path).read_bytes())

    button.click(send, picture, studio.receivers("search"), show_progress="hidden")


def _asked(own: dict[str, Any], task: str) -> dict[str, Any]:
    """What is asked, one group a task, of which that of `task` is shown."""
    groups: dict[str, Any] = {}
    with gr.Column(visible=task == CAPTION) as groups[CAPTION]:
        own["n"] = gr.Slider(1, 10, CAPTIONS, step=1, label="Captions")
    with gr.Column(visible=task == ASK) as groups[ASK]:
        own["question"] = gr.Textbox(label="Question", placeholder="what colour is it?", elem_id="question")
    with gr.Column(visible=task == CLASSIFY) as groups[CLASSIFY]:
        own["labels"] = gr.Textbox(
            LABELS,
            label="Labels",
            info="One a line, or in one line with commas.",
            lines=4,
            max_lines=20,
            elem_id="labels",
        )
        own["none"] = gr.Checkbox(False, label='Also "none of these"')
    with gr.Column(visible=task == EXPLAIN) as groups[EXPLAIN]:
        own["text"] = gr.Textbox(
            label="Text", placeholder="a red apple", elem_id="explained",
            info="Heat maps show which pixels match it, and each of its words.",
        )  # fmt: skip
        own["method"] = gr.Dropdown(
            [("usual", "auto"), ("by gradients", "gradient"), ("by covering parts, slowly", "occlusion")],
            value="auto", label="Method",
        )  # fmt: skip
    return groups


def tasks_of(pack: Pack) -> list[tuple[str, str]]:
    """What can be done with a pack, as choices."""
    reads = pack.has("captioner")
    return [(label, task) for task, label in TASKS.items() if reads or task not in (CAPTION, ASK)]


def _submit(studio: Studio, given: dict[str, Any], owner: str) -> Job:
    """The job that the form's values ask for.

    Raises:
        Problem, ValidationError, CodebrushError: if there is no such job.
    """
    context, task = studio.context, given["task"]
    if not given["picture"]:
        raise Problem(400, "choose a picture first")
    content, most = Path(given["picture"]).read_bytes(), context.settings.max_input_pixels
    decode_image(content, max_pixels=most)  # refuses what is no picture
    found: dict[str, Any] = {"pictures": ["picture_00"], "max_pixels": most}
    if task == EXPLAIN:
        asked = ExplainRequest(image=DATA_URL, text=_words(given["text"], "a text to look for"), method=given["method"])
        found |= {"texts": [asked.text], "method": asked.method}
    elif task == CAPTION:
        found["options"] = {"n": CaptionRequest(image=DATA_URL, n=given["n"]).n}
    elif task == ASK:
        words = _words(given["question"], "a question")
        found["options"] = {"question": AskRequest(image=DATA_URL, question=words).question}
    else:
        asked = ClassifyRequest(image=DATA_URL, labels=labels_of(given["labels"] or ""), none=given["none"])
        found["options"] = {"labels": asked.labels, "none": asked.none}
    return context.engine.submit(task, given["model"], found, owner, {"picture_00": content})


def labels_of(text: str) -> list[str]:
    """The labels of a text, one a line; of a single line those between commas, as on the command line."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return [part.strip() for part in lines[0].split(",") if part.strip()] if len(lines) == 1 else lines


def _words(text: str | None, what: str) -> str:
    if not (text or "").strip():
        raise Problem(400, f"give {what}")
    return str(text).strip()
