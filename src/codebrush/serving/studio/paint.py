"""The tab Paint: a prompt and options become pictures."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import gradio as gr

from codebrush.serving.jobs import Job
from codebrush.serving.studio.paint_form import PACK_FIELDS, PaintForm
from codebrush.serving.studio.paint_restoring import METHODS, restored_form
from codebrush.serving.studio.parts import Studio, Tab, Values, owner_of
from codebrush.serving.studio.results import Results

ID, LABEL = "paint", "Paint"


def build(studio: Studio) -> Tab:
    """The form beside the results."""
    with gr.Row(elem_classes="cb-columns"):
        with gr.Column(scale=2, min_width=320):
            form = PaintForm(studio.context)
        with gr.Column(scale=3, min_width=320):
            results = Results(studio, form.go)

    async def paint(values: Values, request: gr.Request) -> AsyncIterator[Values]:
        owner, engine = owner_of(request), studio.context.engine

        def submit() -> Job:
            pack, found, start = form.job(values)
            files = {} if start is None else {found["start"]: Path(start).read_bytes()}
            return engine.submit("generate", pack, found, owner, files)

        async for update in results.run(submit):
            yield update

    form.go.click(paint, set(form.fields.values()), results.outputs, show_progress="hidden")

    def restore(manifest: Any, owner: str) -> tuple[Values, list[str]]:
        return restored_form(form, studio.context, manifest, owner)

    return Tab(
        verb="Use as start", picture=form.fields["start"], around=form.guidance, methods=METHODS,
        restored=list(form.fields.values()), restore=restore, packs=form.fields["model"],
        pack_fields=[form.fields[name] for name in PACK_FIELDS], pack_chosen=form.pack_chosen,
    )  # fmt: skip
