"""Builds the page of its tabs, and mounts it at the root of the server.

A tab is a file of this folder, or `tab.py` in a folder of its own, with the constants ID and LABEL and a function
`build(studio)`, which makes its components and their events and returns a `Tab`, which says what it offers to the
others; TABS lists them in order.
For a new tab:

- `parts` has what tabs share: `Studio.context` is the server, `owner_of(request)` the caller (an event takes
  `request: gr.Request`), `told(context)` shows errors, `studio.later(wire)` makes events that lead to other tabs. All
  work is done by jobs: `studio.context.engine.submit(kind, pack, request, owner, files)`.
- `results.Results(studio, go)` shows a job that makes pictures, from its progress to a gallery; see the tab Paint.
  `fields` has what forms of pictures share.
  `following.follow` follows any other job; `views` has HTML of progress and curves. What users wrote is escaped.
- A button of the class "cb-go" is what Ctrl+Enter presses in its tab.
- A component that takes a picture is a `gr.Image(type="filepath", elem_classes=TAKES_PICTURES)`, read with
  `decode_image(Path(path).read_bytes(), max_pixels=...)`; named in `Tab.picture`, every gallery gets a button for it.
- An event that shows progress itself has `show_progress="hidden"`; none has `queue=False`, whose route is not open.
- Its test is tests/serving/studio/test_studio_NAME.py, with the fixtures of tests/serving/conftest.py.
"""

import os
import warnings
from contextlib import suppress
from pathlib import Path

import gradio as gr
from fastapi import FastAPI

from codebrush.serving.api.context import Context
from codebrush.serving.studio import dropping, queue_tab, search_tab
from codebrush.serving.studio.edit import tab as edit_tab
from codebrush.serving.studio.gate import DATA_SECONDS, Gate, PageMount
from codebrush.serving.studio.paint import tab as paint_tab
from codebrush.serving.studio.parts import Studio
from codebrush.serving.studio.train import tab as train_tab
from codebrush.serving.studio.understand import tab as understand_tab
from codebrush.serving.studio.uploads import keep_to_uploads

TABS = (paint_tab, edit_tab, understand_tab, search_tab, train_tab, queue_tab)
HERE = Path(__file__).parent
UPLOAD_SECONDS = 24 * 3600  # after which an upload is removed that stands in no form of an open window
TOUCH_SECONDS = 600  # between two times that a window says which stand in its forms
HEAD = """<meta name="color-scheme" content="light dark">
<script>{script}</script>"""
HEADER = """<h1>Codebrush</h1>"""
THEME = """<button type="button" class="cb-small" data-theme-toggle aria-label="Light or dark">◐</button>"""
SIGN_OUT = """<form method="post" action="/logout"><button class="cb-small">Sign out</button></form>"""


def mount(app: FastAPI, context: Context) -> None:
    """Serve the page of `context` at the root of `app`, behind all its other routes."""
    keep_to_uploads()
    page = build(context)
    page.queue(default_concurrency_limit=None, max_size=None, api_open=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        gr.mount_gradio_app(
            app, page, "/", footer_links=[], run_history=False, allowed_paths=[], show_error=False, ssr_mode=False,
            enable_monitoring=False, pwa=False, mcp_server=False, max_file_size=context.settings.max_body,
            theme=theme(), css=(HERE / "page.css").read_text(),
            head=HEAD.format(script=(HERE / "page.js").read_text()),
        )  # fmt: skip
    page.has_launched = True  # else Gradio does not check which files events may name
    mounted = app.router.routes.pop()
    grace = min(DATA_SECONDS, context.settings.grace / 2)
    gate = Gate(mounted.app, lambda: context.engine.stopping, grace)  # pyright: ignore[reportAttributeAccessIssue]
    app.router.routes.append(PageMount("/", gate, name="page"))


def build(context: Context) -> gr.Blocks:
    """The page."""
    blocks = gr.Blocks(
        title="Codebrush", analytics_enabled=False, fill_width=True, delete_cache=(UPLOAD_SECONDS // 24, UPLOAD_SECONDS)
    )
    with blocks:
        with gr.Row(elem_id="header"):
            gr.HTML(HEADER, js_on_load=None)
            drop = dropping.build()
            if context.settings.keys:
                gr.HTML(SIGN_OUT, js_on_load=None)
            gr.HTML(THEME, js_on_load=None)
        drop.show()
        with gr.Tabs(elem_id="tabs", overflow_behavior="wrap") as tabs:
            studio = Studio(context, tabs, drop.notice)
            for module in TABS:
                with gr.Tab(module.LABEL, id=module.ID, elem_id=f"tab-{module.ID}") as item:
                    studio.tabs[module.ID] = module.build(studio)
                    studio.tabs[module.ID].item = item
        dropping.wire(drop, studio)
        studio.finish(blocks)
        pictures = [each for each in blocks.blocks.values() if isinstance(each, gr.Image)]
        gr.Timer(TOUCH_SECONDS).tick(touch, [*pictures, drop.foreign], None, show_progress="hidden")
    return blocks


def touch(*paths: str | None) -> None:
    """Keep files for another UPLOAD_SECONDS: the age of a file is counted from its last change."""
    for path in filter(None, paths):
        with suppress(OSError):
            os.utime(path)


def theme() -> gr.themes.Base:
    """The look: the system's own fonts, so that none is loaded."""
    font = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"]
    mono = ["ui-monospace", "SFMono-Regular", "Menlo", "monospace"]
    look = gr.themes.Base(primary_hue="teal", neutral_hue="slate", font=font, font_mono=mono, radius_size="md")
    return look.set(  # contrasts of 4.5 and more
        button_primary_background_fill="*primary_700", button_primary_background_fill_hover="*primary_800",
        button_primary_background_fill_dark="*primary_700", button_primary_background_fill_hover_dark="*primary_600",
        body_text_color_subdued="*neutral_500", block_info_text_color="*neutral_500",
        input_placeholder_color="*neutral_500", input_placeholder_color_dark="*neutral_300",
        link_text_color="*primary_700", link_text_color_dark="*primary_300",
    )  # fmt: skip
