"""The form of the tab Edit with a flow and with a masked code transformer: their options draw what the package draws,
and come back from the picture."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("gradio", reason='needs the extra "studio"')

import gradio as gr
from PIL import Image

from codebrush import Codebrush
from codebrush.data.decoding.images import read_manifest
from codebrush.pack.pack import open_pack
from codebrush.pack.writing import PackMembers, write_pack
from codebrush.serving.api.context import Context
from codebrush.serving.settings import Settings
from codebrush.serving.studio.edit.form import EditForm, tasks_of
from codebrush.serving.studio.edit.restoring import restored_form
from engine_helpers import ended, make_engine, pixels
from packs import micro_flow, micro_transformer, write_micro_pack

OWNER = "address 127.0.0.1"
DRAWN = {"n": 1, "rerank": "1", "random": False, "seed": "5"}
FLOW = {"steps": "3", "sampler": "heun", "cfg_interval": "0.1, 0.9", "clip_guidance": "0.4"}
LED = {"steps": 3, "sampler": "heun", "cfg_interval": (0.1, 0.9), "clip_guidance": 0.4}


@pytest.fixture(scope="module")
def brush(tmp_path_factory: pytest.TempPathFactory) -> Codebrush:
    members = {"transformer": micro_transformer(masked=True), "flow": micro_flow(image_embedding=24, source=True)}
    return Codebrush.from_pretrained(write_micro_pack(tmp_path_factory.mktemp("both") / "micro", **members), "cpu")


@pytest.fixture(scope="module")
def form(brush: Codebrush, tmp_path_factory: pytest.TempPathFactory) -> Iterator[EditForm]:
    data = tmp_path_factory.mktemp("jobs")
    engine = make_engine(brush, data)
    engine.start()
    with gr.Blocks(analytics_enabled=False):
        yield EditForm(Context(engine, Settings(packs=("micro",), data=data)))
    engine.stop(5)


@pytest.mark.parametrize(
    ("method", "fields", "options"),
    [
        ("flow", FLOW, LED),
        ("sample", {"steps": "5"}, {"steps": 5}),
        ("sample", {**FLOW, "steps": "4"}, {"steps": 4}),  # what is seen for a flow alone is not sent
    ],
)
def test_each_painter_has_its_options(
    form: EditForm, brush: Codebrush, tmp_path: Path, method: str, fields: dict[str, str], options: dict[str, Any]
) -> None:
    photo = tmp_path / "photo.png"
    Image.new("RGB", (32, 32), "orange").save(photo)
    shown = form.visible("extend", "translator", "micro", method)
    assert (shown["steps"], shown["flow"]) == (True, method == "flow")
    given = {"source": str(photo), "task": "extend", "left": 8, "method": method, **DRAWN, **fields}
    values = {component: given.get(name, form.empty[name]) for name, component in form.fields.items()}
    expected = brush.edit(str(photo), extend={"left": 8}, n=1, seed=5, rerank=1, method=method, **options)
    kind, pack, found, files = form.job(values)
    job = ended(form.context.engine.submit(kind, pack, found, OWNER, files))
    assert job.state == "done", job.error
    assert pixels(job) == [each.image.tobytes() for each in expected]
    back, lost = restored_form(form, form.context, read_manifest(job.folder / "picture_00.png"), OWNER)
    assert lost == []
    manifest = read_manifest(job.folder / "picture_00.png")
    if method == "sample":
        eight = {**manifest, "options": {**manifest["options"], "weights": "int8"}}
        assert restored_form(form, form.context, eight, OWNER)[1] == [
            "It was drawn with weights in int8; this server draws with float32"
        ]
    back = {each: value.get("value") if isinstance(value, dict) else value for each, value in back.items()}
    kind, pack, found, files = form.job(back)
    assert pixels(ended(form.context.engine.submit(kind, pack, found, OWNER, files))) == pixels(job)


@pytest.mark.parametrize("strength", [1, 0.4])
def test_a_variation_comes_back_with_its_strength(
    form: EditForm, brush: Codebrush, tmp_path: Path, strength: float
) -> None:
    photo = tmp_path / "photo.png"
    Image.new("RGB", (32, 32), "orange").save(photo)
    assert form.visible("vary", "translator", "micro", "flow")["varied"]
    assert not form.visible("vary", "translator", "micro", "sample")["varied"]
    given = {"source": str(photo), "task": "vary", "varied": strength, "method": "flow", **DRAWN, "steps": "3"}
    values = {component: given.get(name, form.empty[name]) for name, component in form.fields.items()}
    kind, pack, found, files = form.job(values)
    job = ended(form.context.engine.submit(kind, pack, found, OWNER, files))
    assert job.state == "done", job.error
    expected = brush.vary(str(photo), n=1, seed=5, rerank=1, method="flow", steps=3, strength=strength)
    assert pixels(job) == [each.image.tobytes() for each in expected]
    back, lost = restored_form(form, form.context, read_manifest(job.folder / "picture_00.png"), OWNER)
    assert lost == []
    assert back[form.fields["varied"]] == strength


def test_a_pack_without_a_painter_is_offered_what_it_can_do(brush: Codebrush, tmp_path: Path) -> None:
    members = PackMembers({"clip": brush.clip, "vqgan": brush.vqgan}, {"clip": brush.tokenizer})
    write_pack(tmp_path / "plain", members, name="plain", version="1", licence="none", provenance={})
    assert [task for _, task in tasks_of(open_pack(tmp_path / "plain"))] == ["interpolate"]
    engine = make_engine(Codebrush.from_pretrained(tmp_path / "plain"), tmp_path / "data")
    opened = Context(engine, Settings(packs=("micro",), data=tmp_path / "data"))
    with gr.Blocks(analytics_enabled=False):
        first = EditForm(opened)
    assert (first.groups["interpolate"].visible, first.groups["mask"].visible) == (True, False)
    assert {"mask", "extend", "redraw", "vary"} <= {task for _, task in tasks_of(brush.pack)}
