"""The tab Paint: a prompt and options become pictures."""

from pathlib import Path
from typing import Any

import gradio as gr

from codebrush.serving.job import Job
from codebrush.serving.studio.paint.form import METHOD_LABELS, PaintForm
from codebrush.serving.studio.paint.restoring import restored_form
from codebrush.serving.studio.parts import Studio, Tab, Values
from codebrush.serving.studio.results import Results

ID, LABEL = "paint", "Paint"


def build(studio: Studio) -> Tab:
    """The form beside the results."""
    with gr.Row(elem_classes="cb-columns"):
        with gr.Column(scale=2, min_width=320):
            form = PaintForm(studio.context)
        with gr.Column(scale=3, min_width=320):
            results = Results(studio, form.go)

    def submit(values: Values, owner: str) -> Job:
        pack, found, start = form.job(values)
        files = {} if start is None else {found["start"]: Path(start).read_bytes()}
        return studio.context.engine.submit("generate", pack, found, owner, files)

    results.begin_with(form.fields.values(), submit)

    def restore(manifest: Any, owner: str) -> tuple[Values, list[str]]:
        return restored_form(form, studio.context, manifest, owner)

    return Tab(
        verb="Use as start", picture=form.fields["start"], around=form.guidance, methods=tuple(METHOD_LABELS),
        restored=[*form.fields.values(), form.touched], restore=restore, packs=form.fields["model"],
        pack_fields=[form.fields[name] for name in form.of_pack(form.pack)], pack_chosen=form.pack_chosen,
    )  # fmt: skip
