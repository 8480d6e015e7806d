"""The tab Search: a folder of a library is indexed, and its pictures are found by words, by a picture, or by both."""

import time
from collections.abc import AsyncIterator, Callable
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
from starlette.concurrency import run_in_threadpool

from codebrush.optional import installed_version
from codebrush.serving.api.library import address_of, delete_index
from codebrush.serving.api.problems import Problem
from codebrush.serving.job import Job, png_bytes
from codebrush.serving.jobs.engine import Engine
from codebrush.serving.studio import views
from codebrush.serving.studio.following import follow, was_cancelled
from codebrush.serving.studio.library_parts import no_library, place_choices
from codebrush.serving.studio.parts import TAKES_PICTURES, Studio, Tab, Values, line_of, note, owner_of, told
from codebrush.serving.work.library import whole_picture

ID, LABEL = "search", "Search"
MODES = [("the pictures", "vector"), ("their captions", "text"), ("both", "hybrid"), ("meaning of captions", "meaning")]
MOST = 60


def build(studio: Studio) -> Tab:
    """The form beside the results; without a library, how to start the server with one."""
    if not studio.context.engine.library.roots:
        return no_library("search", "search")
    if installed_version("lancedb") is None:
        gr.Markdown(
            'Search needs LanceDB: `pip install "codebrush[search]"` (`make serve` does that), and start the server '
            "again.", elem_id="search-not-installed",
        )  # fmt: skip
        return Tab()
    with gr.Row(elem_classes="cb-columns"):
        with gr.Column(scale=2, min_width=320):
            form = _Form(studio)
        with gr.Column(scale=3, min_width=320):
            found = _Found(studio)
    _wire(studio, form, found)
    return Tab(verb="Search for it", picture=form.picture, packs=form.pack)


class _Form:
    """What is searched, and for what."""

    def __init__(self, studio: Studio) -> None:
        self.context = studio.context
        packs = list(studio.context.engine.packs)
        choices = place_choices(studio.context)
        self.place = gr.Dropdown(
            choices, value=choices[0][1], label="Folder", elem_id="search-folder", allow_custom_value=True
        )
        self.pack = gr.Dropdown(packs, value=packs[0], label="Pack", visible=len(packs) > 1)
        self.running = gr.State(None)  # id of the job that indexes
        self.state = gr.HTML(self.said(choices[0][1], packs[0]), elem_id="index-state", js_on_load=views.CLICKS)
        with gr.Row():
            self.index = gr.Button("Index this folder", size="sm", elem_id="index-go")
            self.cancel = gr.Button("Cancel", size="sm", visible=False)
        self.words = gr.Textbox(
            label="Words", lines=1, max_lines=4, placeholder="a red apple", elem_id="search-words",
            info="What the picture shows, and below one that it resembles; either or both. Ctrl+Enter searches.",
        )  # fmt: skip
        self.picture = gr.Image(
            label="Picture", type="filepath", sources=["upload", "clipboard"], height=180, buttons=[],
            elem_classes=TAKES_PICTURES, elem_id="search-picture", image_mode=None,
        )  # fmt: skip
        self.go = gr.Button("Search", variant="primary", elem_classes="cb-go", elem_id="search-go")
        with gr.Accordion("More", open=False):
            self.n = gr.Slider(1, MOST, 12, step=1, label="Results")
            self.weight = gr.Slider(0, 1, 0.5, step=0.05, label="Weight of the picture", info="Beside words.")
            self.without = gr.Textbox(label="Without", info="What the pictures should not show.", max_lines=1)
            self.mode = gr.Dropdown(MODES, value="vector", label="Compare words with")

    @property
    def fields(self) -> list[Any]:
        """The components whose values a search reads."""
        return [self.place, self.pack, self.words, self.picture, self.n, self.weight, self.without, self.mode]

    def said(self, place: str, pack: str) -> str:
        """Whether a place is indexed."""
        known = [
            each
            for each in self.context.engine.library.index_list()
            if not each["gone"]
            if (each["folder"], each["model"]) == (place, pack)
        ]
        if not known:
            return note("Not indexed yet: that is done once, and again when pictures have changed.")
        when = time.strftime("%Y-%m-%d %H:%M %Z", time.localtime(known[0]["finished"]))
        about = f"{place}: {known[0]['pictures']:,} pictures indexed at {when}."
        sure = f"Delete the index of {place}? The pictures stay; to search them they must be indexed again."
        button = (
            f'<button type="button" class="cb-small" data-action="delete" data-index="{known[0]["id"]}" '
            f'data-confirm="{escape(sure)}" aria-label="Delete the index of {escape(place)}">Delete index</button>'
        )
        return f'<div class="cb-line">{note(about)}{button}</div>'

    def request(self, values: Values) -> tuple[str, dict[str, Any], str | None]:
        """The pack, the request of the job and the picture that the form's values ask for."""
        words, picture = (values[self.words] or "").strip(), values[self.picture]
        mode, without = values[self.mode], (values[self.without] or "").strip()
        if not words and not picture:
            raise Problem(400, "there is nothing to search for: give words, a picture or both")
        if mode in ("text", "meaning") and picture:
            raise Problem(400, "captions are compared with words alone: take the picture away")
        if mode != "vector" and not words:
            raise Problem(400, "captions are compared with words: give some")
        found: dict[str, Any] = {"folder": values[self.place], "text": words or None, "n": int(values[self.n])}
        found |= {"mode": mode, "without": [without] if without else [], "picture_weight": values[self.weight]}
        return values[self.pack], found, picture


class _Found:
    """The results, and what can be done with the chosen one."""

    def __init__(self, studio: Studio) -> None:
        self.studio = studio
        self.answer = gr.State(None)  # place, pack, index, and the results of the last search
        self.chosen = gr.State(None)  # number of one
        self.status = gr.HTML(elem_classes="cb-status", elem_id="search-status", js_on_load=None)
        self.grid = gr.HTML(elem_classes="cb-results", elem_id="search-results", js_on_load=views.CLICKS)
        with gr.Column(visible=False, elem_classes="cb-detail") as self.detail:
            self.about = gr.HTML(js_on_load=None)
            with gr.Row(elem_classes="cb-actions") as self.actions:
                self.alike = gr.Button("More like this", size="sm")
        self.outputs = [self.answer, self.chosen, self.status, self.grid, self.detail, self.about]

    def show(self, place: str, pack: str, result: dict[str, Any]) -> Values:
        """What a search found."""
        shown = {self.answer: {"place": place, "pack": pack, "index": result["index"], "data": result["data"]}}
        grid = "".join(self._button(result["index"], number, each) for number, each in enumerate(result["data"]))
        grid = f'<div class="cb-grid" role="group" aria-label="Results, best first">{grid}</div>'
        return {**shown, self.chosen: None, self.grid: grid, self.detail: gr.Column(visible=False),
                self.status: said_of(result)}  # fmt: skip

    def _button(self, index: str, number: int, each: dict[str, Any]) -> str:
        said = f"Result {number + 1}: {each['caption'] or each['picture']}, score {each['score']:.2f}"
        address = address_of(self.studio.context, index, each["id"])
        return (
            f'<button type="button" class="cb-picture" data-action="choose" data-number="{number}" '
            f'aria-pressed="false" aria-label="{escape(said)}" title="{escape(each["picture"])}">'
            f'<img src="{address}" alt="" loading="lazy">'
            f'<span class="cb-under"><span class="cb-said">{escape(each["caption"])}</span>'
            f"<span>{each['score']:.2f}</span></span></button>"
        )

    def choose(self, answer: Any, event: gr.EventData) -> Values:
        """A result at its own size, with what is known of it."""
        number = int(event.number)
        each = answer["data"][number]
        address = address_of(self.studio.context, answer["index"], each["id"])
        size = f"{each['width']} x {each['height']}" if each["width"] else ""
        rows = {"picture": each["picture"], "caption": each["caption"], "size": size, "score": f"{each['score']:.3f}"}
        lines = "".join(f"<dt>{name}</dt><dd>{escape(value)}</dd>" for name, value in rows.items() if value)
        picture = f'<img src="{address}/large" alt="{escape(each["caption"] or each["picture"])}">'
        html = f'<figure class="cb-large">{picture}</figure><dl class="cb-settings">{lines}</dl>'
        return {self.chosen: number, self.detail: gr.Column(visible=True), self.about: html}

    def content(self, answer: Any, chosen: Any) -> bytes:
        """The file of the chosen result as PNG. Raises Problem if it is gone."""
        context = self.studio.context
        picture = answer["data"][int(chosen)]["id"]
        found = whole_picture(context.engine.library, answer["index"], picture, context.settings.max_input_pixels)
        if found is None:
            raise Problem(404, "this picture is no longer there", "not_found")
        return png_bytes(found)


def said_of(result: dict[str, Any]) -> str:
    """What there is to say above the results."""
    lines = [result["note"], result["doubt"]]
    if result["by_meaning"]:
        lines.append(f"Nothing looks like that; first come captions that mean it: {', '.join(result['by_meaning'])}")
    if not result["data"]:
        lines.append("Nothing found.")
    count = len(result["data"])
    first = f'<p role="status">{count} result{"" if count == 1 else "s"}, best first</p>' if count else ""
    return first + "".join(note(f"{line[0].upper()}{line[1:]}") for line in lines if line)


def _wire(studio: Studio, form: _Form, found: _Found) -> None:
    engine = studio.context.engine

    async def search(values: Values, request: gr.Request) -> AsyncIterator[Values]:
        def submit() -> Job:
            pack, asked, picture = form.request(values)
            asked |= {"max_pixels": studio.context.settings.max_input_pixels}
            files = {"picture": Path(picture).read_bytes()} if picture else {}
            return engine.submit("search", pack, asked | {name: name for name in files}, owner_of(request), files)

        async for update in _searched(studio, found, submit):
            yield update

    async def alike(answer: Any, chosen: Any, request: gr.Request) -> AsyncIterator[Values]:
        def submit() -> Job:
            each = answer["data"][int(chosen)]
            asked = {"folder": answer["place"], "like": each["id"], "n": max(1, len(answer["data"]))}
            return engine.submit("search", answer["pack"], asked, owner_of(request))

        async for update in _searched(studio, found, submit):
            yield update

    async def index(place: str, pack: str, request: gr.Request) -> AsyncIterator[Values]:
        rest = {form.index: gr.Button(interactive=True), form.cancel: gr.Button(visible=False), form.running: None}
        try:
            job = await run_in_threadpool(_index_job, engine, place, pack, owner_of(request))
            own = job.owner == owner_of(request)  # another caller's is looked at, and goes on
            buttons = {form.index: gr.Button(interactive=False), form.cancel: gr.Button(visible=own)}
            yield {form.state: views.progress(job), form.running: job.id, **buttons}
            async for _ in follow(engine, job):
                yield {form.state: views.progress(job), **buttons}
        except Exception as error:
            line = "Cancelled; what was indexed is kept." if _is_cancelled(error) else line_of(error, studio.context)
            yield {form.state: views.failure(line), **rest}
            return
        said = await run_in_threadpool(form.said, place, pack)
        yield {form.state: said + _report(job.result or {}), found.status: "", **rest}

    def delete(place: str, pack: str, event: gr.EventData) -> str:
        with told(studio.context):
            delete_index(str(event.index), studio.context)
        return form.said(place, pack)

    shown = [form.state, form.index, form.cancel, form.running]
    form.go.click(search, set(form.fields), found.outputs, show_progress="hidden")
    form.index.click(index, [form.place, form.pack], [*shown, found.status], show_progress="hidden")
    form.cancel.click(studio.cancel, form.running, None, show_progress="hidden")
    form.state.click(delete, [form.place, form.pack], form.state, show_progress="hidden")
    for list_ in (form.place, form.pack):
        list_.change(form.said, [form.place, form.pack], form.state, show_progress="hidden")
    picked = [found.chosen, found.detail, found.about]
    found.grid.click(found.choose, found.answer, picked, show_progress="hidden")
    found.alike.click(alike, [found.answer, found.chosen], found.outputs, show_progress="hidden")
    studio.later(lambda: _send(studio, form, found))


def _index_job(engine: Engine, place: str, pack: str, owner: str) -> Job:
    """The job that indexes a place: one that there is, of whichever caller, or a new one."""
    engine.library.find(place)
    running = [job for job in engine.live("index") if job.request["folder"] == place and job.pack == pack]
    return running[0] if running else engine.submit("index", pack, {"folder": place, "captions": []}, owner)


async def _searched(studio: Studio, found: _Found, submit: Callable[[], Job]) -> AsyncIterator[Values]:
    """The updates of the results while a search runs."""
    engine = studio.context.engine
    try:
        job = await run_in_threadpool(submit)
        yield {found.status: note("Searching ...")}
        async for _ in follow(engine, job):
            pass
    except Exception as error:
        line = line_of(error, studio.context)
        if isinstance(error, Problem) and error.code == "not_indexed":
            line = "This folder is not indexed yet: press “Index this folder” first."
        yield {found.status: views.failure(line), found.grid: "", found.detail: gr.Column(visible=False)}
        return
    await run_in_threadpool(engine.forget, job)
    yield found.show(job.request["folder"], job.pack, job.result or {})


def _send(studio: Studio, form: _Form, found: _Found) -> None:
    """Where a button sends the chosen result, and what happens when the tab is shown."""

    def sender(name: str) -> Callable[..., Values]:
        def send(answer: Any, chosen: Any) -> Values:
            with told(studio.context):
                return studio.sent(name, found.content(answer, chosen))

        return send

    with found.actions:
        buttons = {name: gr.Button(tab.verb, size="sm") for name, tab in studio.takers().items() if name != ID}
    for name, button in buttons.items():
        targets = studio.receivers(name)
        button.click(sender(name), [found.answer, found.chosen], targets, show_progress="hidden")
    studio.tabs[ID].item.select(
        lambda: gr.Dropdown(place_choices(studio.context)), None, form.place, show_progress="hidden"
    )


def _report(result: dict[str, Any]) -> str:
    """What indexing did, with what it left out."""
    names = ("added", "updated", "removed", "unchanged", "skipped")
    counts = ", ".join(f"{result[name]:,} {name}" for name in names if result.get(name))
    left = [f"{each['picture']}: {each['reason']}" for each in result.get("named", ())] + result.get("notes", [])
    return note(f"{counts}." if counts else "There was nothing to do.") + "".join(map(note, left))


def _is_cancelled(error: Exception) -> bool:
    return isinstance(error, Problem) and was_cancelled(error)
