"""Jobs that wait in the tabs Search and Train: the right one is cancelled, and what is said of them is true."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("gradio", reason='needs the extra "studio"')

import gradio as gr

from codebrush import Codebrush
from codebrush.serving.api.context import Context
from codebrush.serving.jobs.engine import Engine
from codebrush.serving.jobs.store import Store
from codebrush.serving.library import Library
from codebrush.serving.settings import Settings
from codebrush.serving.studio.page import build
from codebrush.serving.studio.parts import Studio
from codebrush.serving.studio.train.tab import _View
from codebrush.training.packs.request import make_request, write_request

OWNER = "address 127.0.0.1"


@pytest.fixture
def context(served_brush: Codebrush, tmp_path: Path) -> Context:
    """A server that does not work yet, so that all jobs wait."""
    for name in ("one", "two"):
        (tmp_path / "pictures" / name).mkdir(parents=True)
    roots, data = (tmp_path / "pictures",), tmp_path / "data"
    engine = Engine({"micro": lambda: served_brush}, Store(data), library=Library(roots, data))
    return Context(engine, Settings(packs=("micro",), data=data, libraries=roots))


@pytest.mark.parametrize(("begun", "said"), [(False, "before there was anything to save"), (True, "It is saved")])
def test_a_training_that_only_waited_is_not_said_to_be_saved(context: Context, begun: bool, said: str) -> None:
    engine = context.engine
    asked = {"name": "mine", "source": "pictures/one", "captions": [], "seconds": 60.0, "resume": begun}
    if begun:  # and stopped before
        write_request(make_request("pictures/one", engine.trainer.places.pack("mine"), {"budget": 60.0}))
    job = engine.submit("train", "micro", asked, OWNER)
    with gr.Blocks(analytics_enabled=False):
        view, go = _View(Studio(context, None, None)), gr.Button("Train")

    async def last() -> Any:
        updates = []
        async for update in view.follow(job, go):
            updates.append(update)
            engine.cancel(job)
        return updates[-1]

    assert said in asyncio.run(last())[view.status]


def test_cancel_is_of_the_folder_that_is_being_indexed(context: Context) -> None:
    page = build(context)
    by_name = {each.value: each for each in page.blocks.values() if isinstance(each, gr.Button)}
    index = by_name["Index this folder"]
    events = dict(page.fns)
    (begin,) = [event for event in events.values() if (index._id, "click") in event.targets]
    stops = [each for each in begin.outputs if isinstance(each, gr.Button) and each.value == "Cancel"]
    (cancel,) = [event for event in events.values() if (stops[0]._id, "click") in event.targets]
    (running,) = cancel.inputs
    assert isinstance(running, gr.State)  # the job, not what is chosen in the list meanwhile
    assert running in begin.outputs
