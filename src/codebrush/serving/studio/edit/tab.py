"""The tab Edit: a part of a picture painted anew, pictures extended, redrawn, translated, enlarged and interpolated."""

from typing import Any

import gradio as gr

from codebrush.serving.job import Job
from codebrush.serving.studio.edit.form import EditForm
from codebrush.serving.studio.edit.restoring import METHODS, restored_form
from codebrush.serving.studio.parts import Studio, Tab, Values
from codebrush.serving.studio.results import Results

ID, LABEL = "edit", "Edit"


def build(studio: Studio) -> Tab:
    """The form beside the results."""
    with gr.Row(elem_classes="cb-columns"):
        with gr.Column(scale=3, min_width=320):
            form = EditForm(studio.context)
        with gr.Column(scale=3, min_width=320):
            results = Results(studio, form.go)

    def submit(values: Values, owner: str) -> Job:
        kind, pack, found, files = form.job(values)
        return studio.context.engine.submit(kind, pack, found, owner, files)

    results.begin_with(form.fields.values(), submit)

    def restore(manifest: Any, owner: str) -> tuple[Values, list[str]]:
        return restored_form(form, studio.context, manifest, owner)

    others = [form.mask_box, form.mask_of, *form.groups.values()]
    return Tab(
        verb="Edit", picture=form.fields["source"], methods=METHODS, restored=[*form.fields.values(), *others],
        restore=restore, packs=form.fields["model"],
    )  # fmt: skip
