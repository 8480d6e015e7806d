"""A picture that is dropped, pasted or opened anywhere on the page restores how it was made, if Codebrush made it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from codebrush.data.decoding.images import decode_image, read_manifest
from codebrush.errors import ImageError
from codebrush.serving.studio import views
from codebrush.serving.studio.parts import Studio, Values, line_of, note, owner_of, told

FOREIGN = "This picture does not say how it was made: Codebrush did not make it, or it was saved without that."


@dataclass
class Drop:
    """Its components."""

    file: Any
    notice: Any
    offers: Any
    foreign: Any  # the picture that is offered, a file

    def show(self) -> None:
        """Show what is said of a picture here."""
        self.notice.render()
        self.offers.render()


def build() -> Drop:
    """The button that opens a picture, into which the page's script puts what is dropped; and what is said of it."""
    file = gr.UploadButton(
        "Open a picture", file_types=["image"], type="filepath", size="sm", elem_id="open-picture", variant="secondary"
    )
    notice = gr.HTML(elem_id="notice", js_on_load=None, render=False)
    offers = gr.Row(visible=False, elem_classes="cb-actions", render=False)
    return Drop(file, notice, offers, gr.State(None))


def wire(drop: Drop, studio: Studio) -> None:
    """Connect it with the tabs, all of which are built."""
    takers = studio.takers()

    def opened(path: str, request: gr.Request) -> Values:
        nothing = {drop.offers: gr.Row(visible=False), drop.foreign: None}
        try:
            if not says_how(path):
                most = studio.context.settings.max_input_pixels
                decode_image(Path(path).read_bytes(), max_pixels=most)  # refuses what is none
                return {drop.notice: note(FOREIGN), drop.offers: gr.Row(visible=bool(takers)), drop.foreign: path}
            return {**studio.restore(read_manifest(path), owner_of(request)), **nothing}
        except Exception as error:  # which as an error of the event would mark all the fields that are restored
            return {drop.notice: views.failure(line_of(error, studio.context)), **nothing}

    drop.file.upload(
        opened,
        drop.file,
        [*studio.restored, drop.offers, drop.foreign],
        show_progress="hidden",
        api_visibility="private",
    )
    with drop.offers:
        for name, tab in takers.items():
            button = gr.Button(tab.verb, size="sm")
            outputs = [*studio.receivers(name), drop.offers, drop.notice]
            button.click(_sender(studio, drop, name), drop.foreign, outputs, show_progress="hidden")


def says_how(path: str) -> bool:
    """Whether a picture has a manifest. Raises ImageError if it is damaged."""
    try:
        read_manifest(path)
    except ImageError as error:
        if "damaged" in str(error).removeprefix(path):  # the name of a file may say that, too
            raise
        return False
    return True


def _sender(studio: Studio, drop: Drop, name: str) -> Any:
    def send(foreign: Any) -> Values:
        with told(studio.context):
            sent = studio.sent(name, Path(foreign).read_bytes())
            return {**sent, drop.offers: gr.Row(visible=False), drop.notice: ""}

    return send
