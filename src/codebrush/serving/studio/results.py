"""What a tab that makes pictures shows of its job: progress, half-drawn pictures, then a gallery, and of the chosen
picture how it was made and what can be done with it."""

from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any

import gradio as gr
from starlette.concurrency import run_in_threadpool

from codebrush.data.decoding.images import read_manifest
from codebrush.serving.api.images import drawing_options
from codebrush.serving.api.problems import Problem
from codebrush.serving.api.schemas.images import VariationRequest
from codebrush.serving.job import Job
from codebrush.serving.studio import views
from codebrush.serving.studio.following import follow, was_cancelled
from codebrush.serving.studio.parts import Studio, Values, line_of, owner_of, told

VARIATIONS = 4


def _varied() -> dict[str, Any]:
    return {"mask": False, **drawing_options(VariationRequest(n=VARIATIONS), ())}


# What buttons make of the chosen picture: the kind of job, and its options.
MAKING: dict[str, tuple[str, Callable[[], dict[str, Any]]]] = {
    "Vary": ("vary", _varied),
    "Upscale 2x": ("upscale", lambda: {"scale": 2}),
    "Upscale 4x": ("upscale", lambda: {"scale": 4}),
}


class Results:
    """The components, built where it is made; `go` is the button that begins a job, which rests meanwhile.

    `run` is for an event that makes a job by `submit`: it follows the job, and its outputs are `outputs`.
    """

    def __init__(self, studio: Studio, go: Any) -> None:
        self.studio, self.go = studio, go
        self.running = gr.State(None)  # id of the job that is followed
        self.chosen = gr.State(None)  # id of a job and number of its picture
        self.cancel = gr.Button("Cancel", visible=False, elem_classes="cb-cancel")
        self.status = gr.HTML(elem_classes="cb-status", js_on_load=None)
        self.before = gr.State(None)  # as `chosen`, of the pictures that were shown before the last job
        self.back = gr.Button("Back to the pictures before", size="sm", visible=False, elem_classes="cb-narrow")
        self.grid = gr.HTML(elem_classes="cb-results", js_on_load=views.CLICKS)
        with gr.Column(visible=False, elem_classes="cb-detail") as self.detail:
            self.about = gr.HTML(js_on_load=None)
            with gr.Row(elem_classes="cb-actions") as self.actions:
                self.again = gr.Button("Again with these", size="sm")
                self.making = [gr.Button(label, size="sm") for label in MAKING]
        shown = [self.chosen, self.status, self.grid, self.detail, self.about, self.before, self.back]
        self.outputs = [self.running, go, self.cancel, *shown]
        self.back.click(self._back, self.before, shown, show_progress="hidden")
        self.cancel.click(studio.cancel, self.running, None, show_progress="hidden")
        self.grid.click(self._choose, None, [self.chosen, self.detail, self.about], show_progress="hidden")
        for button, make in zip(self.making, MAKING.values(), strict=True):
            button.click(self._maker(*make), self.chosen, self.outputs, show_progress="hidden")
        studio.later(self._wire)

    def _wire(self) -> None:
        """Buttons that send the chosen picture to other tabs."""
        with self.actions:
            buttons = {name: gr.Button(tab.verb, size="sm") for name, tab in self.studio.takers().items()}
        for name, button in buttons.items():
            button.click(self._sender(name), self.chosen, self.studio.receivers(name), show_progress="hidden")
        self.again.click(self._again, self.chosen, self.studio.restored, show_progress="hidden")

    def begin_with(self, fields: Iterable[Any], submit: Callable[[Values, str], Job]) -> None:
        """Let the button `go` begin the job that `submit` makes of the values of `fields`, for a caller."""

        async def begin(values: Values, request: gr.Request) -> AsyncIterator[Values]:
            before = values.pop(self.chosen)
            async for update in self.run(lambda: submit(values, owner_of(request)), before):
                yield {self.studio.notice: "", **update}

        self.go.click(begin, {self.chosen, *fields}, [self.studio.notice, *self.outputs], show_progress="hidden")

    async def run(self, submit: Callable[[], Job], before: Any) -> AsyncIterator[Values]:
        """The updates of `outputs` while a job is followed, from when it is submitted until it has ended; `before` is
        what was chosen of the pictures that it takes the place of."""
        try:
            job = await run_in_threadpool(submit)
        except Exception as error:
            yield {self.status: views.failure(line_of(error, self.studio.context)), **self._rest()}
            return
        async for values in self.follow(job, before):
            yield values

    async def follow(self, job: Job, before: Any) -> AsyncIterator[Values]:
        """As `run`, of a job that there is."""
        # Every update says what runs and the buttons' state: another job of this place may end meanwhile, and on a busy
        # machine the page has missed what a single update said.
        busy = {self.running: job.id, self.go: gr.Button(interactive=False), self.cancel: gr.Button(visible=True)}
        yield {
            self.chosen: None, self.status: views.progress(job), self.grid: "",
            self.detail: gr.Column(visible=False), self.back: gr.Button(visible=False), **busy,
        }  # fmt: skip
        engine = self.studio.context.engine
        try:
            async for _ in follow(engine, job):
                yield {self.status: views.progress(job, engine.waiting), **busy}
        except Problem as problem:
            ended = views.cancelled(job)
            if not was_cancelled(problem):
                ended = views.failure(problem.detail) + views.half_drawn(job)
            shown = await run_in_threadpool(self._as_before, before, job.owner)
            yield {**shown, self.status: ended, **self._rest()}
            return
        back = {self.before: before, self.back: gr.Button(visible=before is not None)}
        yield {**await run_in_threadpool(self.open, job), **back, **self._rest()}

    def open(self, job: Job) -> Values:
        """What is to be seen of a job that is done."""
        values = (
            self._about(job, 0) if job.result and job.result.get("images") else {self.detail: gr.Column(visible=False)}
        )
        return {self.status: views.finished(job), self.grid: views.gallery(job), **values}

    def _as_before(self, before: Any, owner: str) -> Values:
        """The pictures that were shown before, if they are still kept."""
        try:
            job, number, _ = self.picture(before, owner)
        except Problem:
            return {}
        return {self.grid: views.gallery(job, number), **self._about(job, number)}

    def _back(self, before: Any, request: gr.Request) -> Values:
        owner = owner_of(request)
        with told(self.studio.context):
            job, _, _ = self.picture(before, owner)
            rest = {self.before: None, self.back: gr.Button(visible=False)}
            return {self.status: views.finished(job), **self._as_before(before, owner), **rest}

    def _rest(self) -> Values:
        return {self.running: None, self.go: gr.Button(interactive=True), self.cancel: gr.Button(visible=False)}

    def _about(self, job: Job, number: int) -> Values:
        assert job.result is not None
        manifest = read_manifest(job.folder / job.result["images"][number]["file"])
        return {
            self.chosen: [job.id, number],
            self.detail: gr.Column(visible=True),
            self.about: views.about(job, number, manifest),
        }

    def picture(self, chosen: Any, owner: str) -> tuple[Job, int, bytes]:
        """The job, number and file of a chosen picture of the caller. Raises Problem if it is gone."""
        job = self.studio.context.engine.find(str(chosen[0]), owner) if chosen else None
        images = [] if job is None or job.result is None else job.result.get("images", [])
        number = int(chosen[1]) if chosen else 0
        if job is None or not 0 <= number < len(images):
            raise Problem(404, "this picture is no longer kept", "not_found")
        return job, number, (job.folder / images[number]["file"]).read_bytes()

    def _choose(self, event: gr.EventData, request: gr.Request) -> Values:
        with told(self.studio.context):
            job, number, _ = self.picture((event.job, event.number), owner_of(request))
            return self._about(job, number)

    def _maker(self, kind: str, options: Callable[[], dict[str, Any]]) -> Callable[..., AsyncIterator[Values]]:
        """An event that makes a picture or more of the chosen one."""
        context = self.studio.context

        async def make(chosen: Any, request: gr.Request) -> AsyncIterator[Values]:
            owner = owner_of(request)

            def submit() -> Job:
                job, _, content = self.picture(chosen, owner)
                found = {"pictures": ["picture_00"], "max_pixels": context.settings.max_input_pixels, **options()}
                return context.engine.submit(kind, job.pack, found, owner, {"picture_00": content})

            async for values in self.run(submit, chosen):
                yield values

        return make

    def _again(self, chosen: Any, request: gr.Request) -> Values:
        with told(self.studio.context):
            job, number, _ = self.picture(chosen, owner_of(request))
            assert job.result is not None
            manifest = read_manifest(job.folder / job.result["images"][number]["file"])
            return self.studio.restore(manifest, owner_of(request))

    def _sender(self, name: str) -> Callable[..., Values]:
        def send(chosen: Any, request: gr.Request) -> Values:
            with told(self.studio.context):
                return self.studio.sent(name, self.picture(chosen, owner_of(request))[2])

        return send
