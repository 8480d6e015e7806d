"""What a picture was made with comes back into the form, and the form then makes the same picture."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("gradio", reason='needs the extra "studio"')

import gradio as gr

from codebrush import Codebrush
from codebrush.data.decoding.images import read_manifest
from codebrush.errors import ImageError
from codebrush.models.upscaler import Upscaler, UpscalerConfig
from codebrush.serving.api.context import Context
from codebrush.serving.settings import Settings
from codebrush.serving.studio.paint.form import START, PaintForm
from codebrush.serving.studio.paint.restoring import NO_START, restored_form
from engine_helpers import ended, make_engine, pixels
from packs import micro_flow, write_micro_pack

OWNER = "address 127.0.0.1"


@pytest.fixture(scope="module")
def form(served_brush: Codebrush, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PaintForm]:
    data = tmp_path_factory.mktemp("form")
    engine = make_engine(served_brush, data)
    engine.start()
    with gr.Blocks(analytics_enabled=False):
        yield PaintForm(Context(engine, Settings(packs=("micro",), data=data)))
    engine.stop(5)


def filled(form: PaintForm, **fields: Any) -> dict[Any, Any]:
    return {component: fields.get(name, form.empty[name]) for name, component in form.fields.items()}


def painted(form: PaintForm, values: Mapping[Any, Any]) -> Any:
    """The job that the form asks for, when it has ended."""
    pack, found, start = form.job(dict(values))
    files = {} if start is None else {START: Path(start).read_bytes()}
    job = ended(form.context.engine.submit("generate", pack, found, OWNER, files))
    assert job.state == "done", job.error
    return job


def restored(form: PaintForm, job: Any, owner: str = OWNER) -> tuple[dict[Any, Any], list[str]]:
    """The form's values as they come back from the job's first picture."""
    manifest = read_manifest(job.folder / job.result["images"][0]["file"])
    values, lost = restored_form(form, form.context, manifest, owner)
    shown = {each: value["value"] if isinstance(value, dict) else value for each, value in values.items()}
    return shown, lost


GUIDED = {"method": "guide", "n": 1, "steps": "3", "cutouts": "2"}


@pytest.mark.parametrize(
    "fields",
    [
        {"n": 2, "rerank": "3", "temperature": "0.7123456789", "top_p": "0.9", "cfg": "2"},
        {"prompt": r"a (red:1.3) circle \(round\) | blue:-0.2", "n": 1, "negative_prompt": "[fog]"},
        {**GUIDED, "init": "random", "seed": 5},
        {**GUIDED, "init": "sample", "cfg": "2.5", "learning_rate": "0.1", "keep": "last"},
        {**GUIDED, "preset": "notebook", "cutouts": "", "include": "a square\na line", "flip": "0", "antialias": True},
    ],
    ids=["sample", "words", "guide", "guide a sample", "guide by a preset"],
)
def test_the_form_makes_the_picture_again(form: PaintForm, fields: dict[str, Any]) -> None:
    first = painted(form, filled(form, **{"prompt": "a red circle", "random": False, "seed": 3, **fields}))
    values, lost = restored(form, first)
    assert lost == []
    assert pixels(painted(form, values)) == pixels(first)


def test_a_method_and_a_start_leave_the_number_of_pictures_that_was_typed(form: PaintForm) -> None:
    assert form._of_method("guide", False) == 1
    assert form._of_method("sample", False) == 4
    assert form._of_method("guide", True) == gr.skip()
    assert form._started("start.png", "sample", False) == ["guide", 1]
    assert form._started("start.png", "sample", True) == ["guide", gr.skip()]


def test_the_options_are_those_of_the_chosen_pack(form: PaintForm, served_brush: Codebrush, tmp_path: Path) -> None:
    changes = {"flow": micro_flow(), "upscaler": Upscaler(UpscalerConfig(width=8, blocks=1)).eval()}
    other = Codebrush.from_pretrained(write_micro_pack(tmp_path / "other", **changes), "cpu")
    other.pack.info |= {"defaults": {"cfg": 7.5}, "guidance": {"learning_rate": 0.37, "quantise": False}}
    other.pack.info["styles"] = {"text": "{prompt}, {style} style", "names": ["noto"]}
    form.context.engine.packs["other"] = lambda: other
    try:
        own = {name: form.pack_chosen(name) for name in ("micro", "other")}
        fields = form.fields
        for name, shown in (("micro", False), ("other", True)):
            assert own[name][fields["upscale"]]["visible"] == own[name][fields["sampler"]]["visible"] == shown
        assert own["micro"][fields["upscale"]]["value"] == 1  # what is hidden counts for nothing
        assert [own[name][fields["cfg"]]["placeholder"] for name in own] == ["3", "7.5"]
        assert own["other"][fields["learning_rate"]]["placeholder"] == "0.37"
        assert own["other"][fields["quantise"]]["choices"][0][0] == "usual: off"
        assert own["other"][fields["style"]]["choices"] == [("any", ""), ("noto", "noto")]
        assert [each for _, each in own["other"][fields["method"]]["choices"]] == ["sample", "flow", "guide"]
        kept = form.pack_chosen("other", {"style": "noto", "method": "guide", "size": "1x1"})
        assert [kept[fields[name]]["value"] for name in ("style", "method", "size")] == ["noto", "guide", "auto"]
        back = form.pack_chosen("micro", {"style": "noto", "method": "flow", "size": "auto"})
        assert [back[fields[name]]["value"] for name in ("style", "method")] == ["", "sample"]
    finally:
        del form.context.engine.packs["other"]


def test_a_start_picture_comes_back_to_its_owner_alone(form: PaintForm, tmp_path: Path) -> None:
    from PIL import Image

    start = tmp_path / "any.png"
    Image.new("RGB", (32, 32), "red").save(start)
    first = painted(form, filled(form, prompt="a circle", start=str(start), **GUIDED))
    values, lost = restored(form, first)
    assert lost == []
    assert pixels(painted(form, values)) == pixels(first)
    values, lost = restored(form, first, owner="address 192.0.2.1")
    assert (values[form.fields["start"]], lost) == (None, [NO_START])


def test_no_file_that_a_picture_names_is_looked_at(form: PaintForm, tmp_path: Path) -> None:
    secret = tmp_path / START
    secret.write_bytes(b"secret")
    first = painted(form, filled(form, prompt="a circle", init="random", **GUIDED))
    manifest = read_manifest(first.folder / "picture_00.png")
    for path in (str(secret), f"{first.folder}/../{first.id}/{START}", f"../../{START}", "/etc/passwd"):
        options = {**manifest["options"], "init": path}
        values, lost = restored_form(form, form.context, {**manifest, "options": options}, OWNER)
        assert (values[form.fields["start"]], lost) == (None, [NO_START])


def test_another_pack_is_said(form: PaintForm) -> None:
    first = painted(form, filled(form, prompt="a circle", n=1))
    manifest = read_manifest(first.folder / "picture_00.png")
    other = {**manifest["pack"], "hash": "0" * 64}
    assert "has changed since" in restored_form(form, form.context, {**manifest, "pack": other}, OWNER)[1][0]
    other["name"] = "elsewhere"
    lost = restored_form(form, form.context, {**manifest, "pack": other}, OWNER)[1]
    assert lost == ["The pack 'elsewhere' is not served here: 'micro' will draw something else"]


@pytest.mark.parametrize("broken", [{"seed": "x"}, {"options": 3}, {"options": {"n": "many"}}, {"pack": None}])
def test_a_damaged_manifest_is_an_error_of_one_line(form: PaintForm, broken: dict[str, Any]) -> None:
    first = painted(form, filled(form, prompt="a circle", n=1))
    manifest = {**read_manifest(first.folder / "picture_00.png"), **broken}
    with pytest.raises(ImageError, match="damaged"):
        restored_form(form, form.context, manifest, OWNER)
