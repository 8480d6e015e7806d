"""The tab Train: a pack is trained on captioned pictures of a library, watched, stopped and resumed."""

from collections.abc import AsyncIterator, Callable
from typing import Any

import gradio as gr
from pydantic import ValidationError
from starlette.concurrency import run_in_threadpool

from codebrush.serving.api.context import Context
from codebrush.serving.api.problems import Problem
from codebrush.serving.api.schemas.library import TrainRequest
from codebrush.serving.api.training import stopped_training, training_job
from codebrush.serving.job import Job
from codebrush.serving.studio import views
from codebrush.serving.studio.following import follow, was_cancelled
from codebrush.serving.studio.library_parts import no_library, place_choices
from codebrush.serving.studio.parts import Studio, Tab, Values, line_of, note, owner_of, told
from codebrush.serving.studio.train import views as shown
from codebrush.training.packs.budget import spell_seconds

ID, LABEL = "train", "Train"
BUDGETS = ["1m", "10m", "30m", "60m", "3h", "8h"]
FRESH = "nothing"
OWN_SIZE = 0
LOOKING = "Looking through the pictures ..."
EMPTY = note("Here stand the curves and pictures of a training while it goes on.")


def build(studio: Studio) -> Tab:
    """The form beside the training; without a library, how to start the server with one."""
    if not studio.context.engine.library.roots:
        return no_library("train on", "train")
    with gr.Row(elem_classes="cb-columns"):
        with gr.Column(scale=2, min_width=320):
            form = _Form(studio.context)
        with gr.Column(scale=3, min_width=320):
            view = _View(studio)
    _wire(studio, form, view)
    return Tab()


class _Form:
    """What is trained, on what and how long."""

    def __init__(self, context: Context) -> None:
        self.context, engine = context, context.engine
        choices = place_choices(context)
        self.source = gr.Dropdown(
            choices, value=choices[0][1], label="Captioned pictures", elem_id="train-source",
            allow_custom_value=True, info="A folder with a text file beside each picture, or with a table; or a table.",
        )  # fmt: skip
        self.captions = gr.Textbox(
            label="Caption template", lines=1, max_lines=6, placeholder="a {breed} cat", elem_id="train-captions",
            info="Made of columns; one a line. Empty: the captions that are there.",
        )  # fmt: skip
        self.check = gr.Button("Check the pictures", size="sm", elem_id="train-check")
        self.checked = gr.HTML(elem_id="train-checked", js_on_load=None)
        self.name = gr.Textbox(
            label="Name of the new pack", max_lines=1, placeholder="my-cats", elem_id="train-name",
            info="Small letters, digits, - and _.",
        )  # fmt: skip
        limit = spell_seconds(engine.limits.budget)
        with gr.Row():
            self.budget = gr.Dropdown(
                BUDGETS, value="60m", label="Budget", allow_custom_value=True, info=f"90s, 60m or 2h; {limit} at most.",
                elem_id="train-budget", min_width=140,
            )  # fmt: skip
            self.start = gr.Dropdown(
                self.starts(), value=context.settings.packs[0], label="Begin from", info="A pack that draws already.",
                min_width=140,
            )  # fmt: skip
            sizes = [("that pack's", OWN_SIZE), *((f"{side} pixels", side) for side in (32, 64, 128, 256))]
            self.size = gr.Dropdown(
                sizes, value=OWN_SIZE, label="Size", info="Of the pictures it draws.", min_width=140
            )
        self.go = gr.Button("Train", variant="primary", elem_classes="cb-go", elem_id="train-go")
        threads = engine.trainer.threads
        gr.HTML(
            note(
                f"Trains beside what is painted, with {threads} CPU thread{'s' if threads > 1 else ''}, one at a time."
            ),
            js_on_load=None,
        )

    def starts(self) -> list[str]:
        """The packs that a training may begin from, and nothing."""
        return [*self.context.engine.packs, FRESH]

    @property
    def fields(self) -> list[Any]:
        """The components whose values a training reads."""
        return [self.source, self.captions, self.name, self.budget, self.start, self.size]

    def templates(self, text: str | None) -> list[str]:
        """The caption templates of a text, one a line."""
        return [line.strip() for line in (text or "").splitlines() if line.strip()]

    def asked(self, values: Values) -> TrainRequest:
        """What the form's values ask for. Raises Problem for what is missing, ValidationError for what is wrong."""
        if not (values[self.name] or "").strip():
            raise Problem(400, "give the new pack a name")
        start = values[self.start]
        try:
            return TrainRequest(
                source=values[self.source], captions=self.templates(values[self.captions]),
                name=values[self.name].strip(), budget=str(values[self.budget]).strip(),
                model=None if start == FRESH else start, fresh=start == FRESH, image_size=values[self.size] or None,
            )  # fmt: skip
        except ValidationError as error:
            if error.errors()[0]["loc"] == ("name",):
                raise Problem(400, "a pack's name has small letters, digits, - and _ alone") from None
            raise


class _View:
    """The training that runs, or the last one, and those that were stopped."""

    def __init__(self, studio: Studio) -> None:
        self.studio = studio
        self.job = gr.State(None)  # id of the training that is shown
        self.status = gr.HTML(EMPTY, elem_classes="cb-status", elem_id="train-status", js_on_load=None)
        with gr.Row(elem_classes="cb-actions"):
            self.stop = gr.Button("Stop", visible=False, elem_id="train-stop")
            self.paint = gr.Button("Paint with it", visible=False, variant="primary", elem_id="train-paint")
        self.report = gr.HTML(elem_id="train-report", js_on_load=None)
        self.stopped = gr.HTML(elem_id="train-stopped", js_on_load=views.CLICKS)
        self.outputs = [self.job, self.status, self.stop, self.paint, self.report, self.stopped]

    async def follow(self, job: Job, go: Any) -> AsyncIterator[Values]:
        """The updates of `outputs` and the button `go` while a training goes on."""
        engine = self.studio.context.engine
        yield {
            self.job: job.id, go: gr.Button(interactive=False), self.stop: gr.Button(visible=True, interactive=True),
            self.paint: gr.Button(visible=False), self.status: shown.progress(job), self.report: "",
            self.stopped: await run_in_threadpool(self.listed),
        }  # fmt: skip
        rest = {go: gr.Button(interactive=True), self.stop: gr.Button(visible=False)}
        try:
            async for _ in follow(engine, job):
                yield {
                    self.status: shown.progress(job), self.report: await self._reported(job),
                    go: gr.Button(interactive=False), self.stop: gr.Button(visible=True),
                }  # fmt: skip
        except Problem as problem:
            saved = job.request["name"] in await run_in_threadpool(engine.trainer.places.stopped)
            line = note(
                "Stopped. It is saved, and can be resumed." if saved else "Stopped before there was anything to save."
            )
            line = line if was_cancelled(problem) else views.failure(problem.detail)
            yield {self.status: line, **await self._ended(job), **rest}
            return
        yield {self.status: shown.finished(job), **await self._ended(job), self.paint: gr.Button(visible=True), **rest}

    async def _reported(self, job: Job) -> str:
        return await run_in_threadpool(shown.report, self.studio.context.engine.trainer, job)

    async def _ended(self, job: Job) -> Values:
        return {self.report: await self._reported(job), self.stopped: await run_in_threadpool(self.listed)}

    def listed(self) -> str:
        """The trainings that can be resumed, and the packs that were trained here."""
        engine = self.studio.context.engine
        return shown.listed(engine.trainer, {job.request["name"] for job in engine.live("train")}, list(engine.packs))


def _wire(studio: Studio, form: _Form, view: _View) -> None:
    engine, outputs = studio.context.engine, [*view.outputs, form.go, form.checked]

    async def look(source: str, captions: str, request: gr.Request) -> AsyncIterator[str]:
        async for html, _ in _checked(studio, form, source, captions, owner_of(request)):
            yield html

    async def train(values: Values, request: gr.Request) -> AsyncIterator[Values]:
        try:
            asked = form.asked(values)
            found = await run_in_threadpool(training_job, studio.context, asked)
        except Exception as error:
            yield {view.status: views.failure(line_of(error, studio.context))}
            return
        can_begin = False
        async for html, good in _checked(studio, form, asked.source, values[form.captions], owner_of(request)):
            can_begin = good
            yield {form.checked: html, view.status: ""}  # what was wrong before
        if can_begin:
            async for update in _begin(view, form.go, lambda: engine.submit("train", *found, owner_of(request))):
                yield update

    def stop(job: Any, request: gr.Request) -> Any:
        studio.cancel(job, request)
        return gr.Button(interactive=False)

    async def opened(request: gr.Request) -> AsyncIterator[Values]:
        """The tab is shown: go on with what runs."""
        own = [job for job in engine.live("train") if job.owner == owner_of(request)]
        if not own:
            yield {view.stopped: await run_in_threadpool(view.listed)}
            return
        async for update in view.follow(own[0], form.go):
            yield update

    form.check.click(look, [form.source, form.captions], form.checked, show_progress="hidden")
    form.go.click(train, set(form.fields), outputs, show_progress="hidden")
    view.stop.click(stop, view.job, view.stop, show_progress="hidden")
    _wire_stopped(studio, form, view, outputs)
    studio.later(lambda: _lead(studio, form, view, opened, outputs))


async def _begin(view: _View, go: Any, submit: Callable[[], Job]) -> AsyncIterator[Values]:
    """The updates of a training that `submit` begins."""
    try:
        job = await run_in_threadpool(submit)
    except Exception as error:
        yield {view.status: views.failure(line_of(error, view.studio.context))}
        return
    async for update in view.follow(job, go):
        yield update


def _wire_stopped(studio: Studio, form: _Form, view: _View, outputs: list[Any]) -> None:
    """The buttons of the trainings that were stopped."""
    engine = studio.context.engine

    async def act(event: gr.EventData, request: gr.Request) -> AsyncIterator[Values]:
        name = str(event.name)
        if event.action == "delete":
            with told(studio.context):
                await run_in_threadpool(engine.delete_pack, name)
            yield {view.stopped: await run_in_threadpool(view.listed)}
            return

        def submit() -> Job:
            begun = stopped_training(studio.context, name)
            return engine.submit("train", studio.context.settings.packs[0], begun, owner_of(request))

        async for update in _begin(view, form.go, submit):
            yield update

    view.stopped.click(act, None, outputs, show_progress="hidden")


def _lead(studio: Studio, form: _Form, view: _View, opened: Callable[..., Any], outputs: list[Any]) -> None:
    """What happens when the tab is shown, and when its pack is painted with."""
    engine = studio.context.engine
    item, paint = studio.tabs[ID].item, studio.tabs["paint"]
    item.select(opened, None, outputs, show_progress="hidden")
    lists = lambda: [gr.Dropdown(place_choices(studio.context)), gr.Dropdown(form.starts())]  # noqa: E731
    item.select(lists, None, [form.source, form.start], show_progress="hidden")

    def paint_with(job: Any, request: gr.Request) -> Values:
        with told(studio.context):
            found = engine.find(str(job), owner_of(request))
            if found is None or found.request["name"] not in engine.packs:
                raise Problem(404, "this pack is no longer there", "not_found")
            return studio.with_pack("paint", found.request["name"])

    targets = [studio.root, paint.packs, *paint.pack_fields]
    view.paint.click(paint_with, view.job, targets, show_progress="hidden")


async def _checked(
    studio: Studio, form: _Form, source: str, captions: str, owner: str
) -> AsyncIterator[tuple[str, bool]]:
    """What a training would find in a source, as HTML, and whether it can begin."""
    engine = studio.context.engine
    yield note(LOOKING), False
    try:
        asked = {"source": source, "captions": form.templates(captions)}
        pack = studio.context.settings.packs[0]
        job = await run_in_threadpool(engine.submit, "check", pack, asked, owner)
        async for _ in follow(engine, job):
            waits = "Waiting until other pictures are looked through ..." if job.state == "queued" else LOOKING
            yield note(waits), False
    except Exception as error:
        yield views.failure(line_of(error, studio.context)), False
        return
    await run_in_threadpool(engine.forget, job)
    yield shown.check(job.result or {}), True
