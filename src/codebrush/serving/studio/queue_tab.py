"""The tab Queue: the caller's jobs, latest first, to look at them, cancel them, and open what came of them."""

from html import escape
from typing import Any

import gradio as gr

from codebrush.serving.job import Job
from codebrush.serving.studio import views
from codebrush.serving.studio.parts import Studio, Tab, Values, note, owner_of, told
from codebrush.serving.studio.results import Results

ID, LABEL = "queue", "Queue"
SHOWN = 50
LOOK_SECONDS = 1.0  # between two looks while the tab is open


def build(studio: Studio) -> Tab:
    """The list, which looks again every second while the tab is open, and the results of an opened job."""
    engine = studio.context.engine
    refresh = gr.Button("Refresh", size="sm", elem_classes="cb-narrow")
    jobs = gr.HTML(elem_id="jobs", js_on_load=views.CLICKS)
    results = Results(studio, refresh)
    timer = gr.Timer(LOOK_SECONDS, active=False)

    def look(request: gr.Request) -> str:
        return listed(engine.jobs_of(owner_of(request), SHOWN))

    def act(event: gr.EventData, request: gr.Request) -> Values:
        owner = owner_of(request)
        with told(studio.context):
            job = engine.find(str(event.job), owner)
            if job is None:
                return {jobs: look(request), results.status: note("This job is no longer kept.")}
            if event.action == "cancel":
                engine.cancel(job)
                return {jobs: look(request)}
            return {jobs: look(request), **results.open(job)}

    refresh.click(look, None, jobs, show_progress="hidden")
    timer.tick(look, None, jobs, show_progress="hidden")
    jobs.click(act, None, [jobs, *results.outputs], show_progress="hidden")

    def wire() -> None:
        for name, tab in studio.tabs.items():
            here = name == ID
            tab.item.select(lambda here=here: gr.Timer(active=here), None, timer, show_progress="hidden")
        studio.tabs[ID].item.select(look, None, jobs, show_progress="hidden")

    studio.later(wire)
    return Tab()


def listed(jobs: list[Job]) -> str:
    """The jobs as a list."""
    if not jobs:
        return '<p class="cb-note">No jobs yet. What you paint stands here, also after the page was closed.</p>'
    return f'<ul class="cb-jobs">{"".join(map(_line, jobs))}</ul>'


def _line(job: Job) -> str:
    about = _about(job)
    buttons = ""
    if job.state in ("queued", "running"):
        buttons = _button(job, "cancel", "Cancel", about)
    elif job.state == "done" and job.result and "images" in job.result:
        buttons = _button(job, "open", "Open", about)
    state = views.WORDS[job.state]
    if job.state == "running" and job.of:
        left = job.seconds_left
        state += f", step {job.step:,} of {job.of:,}" + (
            f", about {views.seconds(left)} left" if left is not None else ""
        )
    bar = (
        f'<progress max="{job.of}" value="{job.step}" aria-label="Progress"></progress>'
        if job.state == "running" and job.of
        else ""
    )
    why = f'<span class="cb-failure">{escape(job.error["message"])}</span>' if job.error else ""
    return (
        f'<li class="cb-job cb-{job.state}">{_thumb(job)}<div><strong>{escape(about)}</strong>'
        f"<span>{state}, {views.ago(job.finished or job.created)}</span>{bar}{why}</div>{buttons}</li>"
    )


def _about(job: Job) -> str:
    kind = views.KINDS.get(job.kind, job.kind.capitalize())
    named = next(filter(None, (job.request.get(name) for name in ("prompt", "name", "text", "question", "folder"))), "")
    return f"{kind}: {named}" if named else kind


def _thumb(job: Job) -> str:
    source: Any = None
    if job.state == "done" and job.result and job.result.get("images"):
        source = views.picture_url(job, 0)
    elif job.shown and not job.ended:
        source = f"/files/{job.id}/latest.png?version={len(job.shown)}"
    return f'<img src="{escape(source)}" alt="">' if source else '<span class="cb-thumb"></span>'


def _button(job: Job, action: str, label: str, about: str) -> str:
    said = escape(f"{label} {about}")
    return (
        f'<button type="button" class="cb-small" data-action="{action}" data-job="{job.id}" aria-label="{said}">'
        f"{label}</button>"
    )
