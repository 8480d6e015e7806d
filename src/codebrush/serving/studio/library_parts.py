"""What the tabs of libraries share: the list of places, and what they say without a library."""

import gradio as gr

from codebrush.serving.api.context import Context
from codebrush.serving.library import Entry
from codebrush.serving.studio.parts import Tab


def place_choices(context: Context) -> list[tuple[str, str]]:
    """The folders and tables of the libraries, with how many pictures they hold, for a list."""
    return [(f"{entry.place}{_held(entry)}", entry.place) for entry in context.engine.library.places()]


def _held(entry: Entry) -> str:
    if not entry.pictures:
        return ""
    return f" ({entry.pictures:,} picture{'' if entry.pictures == 1 else 's'})"


def no_library(doing: str, what: str) -> Tab:
    """A tab that can do nothing without a library."""
    gr.Markdown(
        f"To {doing} your own pictures, start the server with their folder: `codebrush serve --library FOLDER`.",
        elem_id=f"{what}-no-library",
    )
    return Tab()
