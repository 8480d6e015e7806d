"""The tab Edit: a part of a picture painted anew, pictures extended, redrawn, translated, enlarged and interpolated."""

from collections.abc import AsyncIterator
from typing import Any

import gradio as gr

from codebrush.serving.jobs import Job
from codebrush.serving.studio.edit_form import EditForm
from codebrush.serving.studio.edit_restoring import METHODS, restored_form
from codebrush.serving.studio.parts import Studio, Tab, Values, owner_of
from codebrush.serving.studio.results import Results

ID, LABEL = "edit", "Edit"


def build(studio: Studio) -> Tab:
    """The form beside the results."""
    with gr.Row(elem_classes="cb-columns"):
        with gr.Column(scale=3, min_width=320):
            form = EditForm(studio.context)
        with gr.Column(scale=3, min_width=320):
            results = Results(studio, form.go)

    async def edit(values: Values, request: gr.Request) -> AsyncIterator[Values]:
        owner = owner_of(request)

        def submit() -> Job:
            kind, pack, found, files = form.job(values)
            return studio.context.engine.submit(kind, pack, found, owner, files)

        async for update in results.run(submit):
            yield update

    form.go.click(edit, set(form.fields.values()), results.outputs, show_progress="hidden")

    def restore(manifest: Any, owner: str) -> tuple[Values, list[str]]:
        return restored_form(form, studio.context, manifest, owner)

    return Tab(
        verb="Edit", picture=form.fields["source"], methods=METHODS, restored=[*form.fields.values(), form.mask_box],
        restore=restore, packs=form.fields["model"],
    )  # fmt: skip
