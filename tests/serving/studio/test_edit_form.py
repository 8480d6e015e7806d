"""The form of the tab Edit asks for what the package does, and comes back from the picture that was made."""

import base64
import io
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("gradio", reason='needs the extra "studio"')

import gradio as gr
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from codebrush import Codebrush
from codebrush.data.decoding.images import read_manifest
from codebrush.errors import PackError
from codebrush.files import file_sha256
from codebrush.models.upscaler import Upscaler, UpscalerConfig
from codebrush.serving.api.context import Context
from codebrush.serving.api.problems import Problem
from codebrush.serving.jobs.engine import Engine
from codebrush.serving.jobs.store import Store
from codebrush.serving.settings import Settings
from codebrush.serving.studio.dropping import says_how
from codebrush.serving.studio.edit.form import EditForm
from codebrush.serving.studio.edit.mask_painter import begun
from codebrush.serving.studio.edit.restoring import NO_SOURCE, restored_form
from codebrush.serving.studio.parts import cached, line_of, told
from engine_helpers import ended, make_engine, pixels
from packs import micro_transformer, write_micro_pack

OWNER = "address 127.0.0.1"
SIZE = (40, 48)  # of the photograph, upright
DRAWN = {"n": 1, "rerank": "1", "random": False, "seed": 5}


@pytest.fixture(scope="module")
def brush(tmp_path_factory: pytest.TempPathFactory) -> Codebrush:
    members = {
        "transformer": micro_transformer(image_embedding=24, source_codes=True),
        "upscaler": Upscaler(UpscalerConfig(width=8, blocks=1)).eval(),
    }
    brush = Codebrush.from_pretrained(write_micro_pack(tmp_path_factory.mktemp("form") / "micro", **members), "cpu")
    brush.pack.info["translation"] = {"text": "{style} style", "styles": ["noto", "3d"]}
    return brush


@pytest.fixture(scope="module")
def form(brush: Codebrush, tmp_path_factory: pytest.TempPathFactory) -> Iterator[EditForm]:
    data = tmp_path_factory.mktemp("jobs")
    engine = make_engine(brush, data)
    engine.start()
    with gr.Blocks(analytics_enabled=False):
        yield EditForm(Context(engine, Settings(packs=("micro",), data=data, max_input_pixels=500_000)))
    engine.stop(5)


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A photograph that lies on its side."""
    drawn, exif = Image.new("RGB", (48, 40), "orange"), Image.Exif()
    drawn.paste("navy", (10, 10, 30, 25))
    exif[0x0112] = 6
    path = tmp_path_factory.mktemp("photo") / "photo.jpg"
    drawn.save(path, exif=exif)
    return str(path)


def filled(form: EditForm, **fields: Any) -> dict[Any, Any]:
    return {component: fields.get(name, form.empty[name]) for name, component in form.fields.items()}


def edited(form: EditForm, values: dict[Any, Any]) -> Any:
    kind, pack, found, files = form.job(values)
    job = ended(form.context.engine.submit(kind, pack, found, OWNER, files))
    assert job.state == "done", job.error
    return job


def restored(form: EditForm, job: Any, owner: str = OWNER) -> tuple[dict[Any, Any], list[str]]:
    manifest = read_manifest(job.folder / job.result["images"][0]["file"])
    values, lost = restored_form(form, form.context, manifest, owner)
    shown = {each: value.get("value") if isinstance(value, dict) else value for each, value in values.items()}
    return shown, lost


def url(picture: Image.Image) -> str:
    file = io.BytesIO()
    picture.save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def test_half_transparent_strokes_count_as_what_they_are_nearer_to(
    form: EditForm, brush: Codebrush, photo: str
) -> None:
    shown = begun(photo, Image.new("RGB", SIZE))["picture"]  # as large as what is painted on
    layer = Image.new("RGBA", Image.open(io.BytesIO(base64.b64decode(shown.partition(",")[2]))).size)
    scale = layer.width // SIZE[0]
    assert scale > 1
    layer.paste((9, 9, 9, 140), (0, 0, 20 * scale, layer.height))
    layer.paste((9, 9, 9, 100), (20 * scale, 0, *layer.size))
    white = Image.new("L", SIZE)
    white.paste(255, (0, 0, 20, 48))
    job = edited(form, filled(form, source=photo, prompt="a blue square", painted=url(layer), **DRAWN))
    expected = brush.edit(photo, "a blue square", n=1, seed=5, rerank=1, mask=white)
    assert pixels(job) == [each.image.tobytes() for each in expected]
    values, lost = restored(form, job)
    assert lost == []
    assert pixels(edited(form, values)) == pixels(job)
    assert restored(form, job, "somebody else")[1] == [NO_SOURCE, "Paint the mask again"]


@pytest.mark.parametrize(("reads", "mode"), [("white", "L"), ("clear", "RGBA")])
def test_a_mask_may_be_a_file(
    form: EditForm, brush: Codebrush, photo: str, tmp_path: Path, reads: str, mode: str
) -> None:
    white = Image.new("L", SIZE)
    white.paste(255, (5, 5, 20, 20))
    mask = white
    if mode == "RGBA":
        mask = Image.new("RGBA", SIZE, "black")
        mask.putalpha(white.point(lambda level: 255 - level))
    mask.save(tmp_path / "mask.png")
    given = {"source": photo, "mask_file": str(tmp_path / "mask.png"), "mask_reads": reads, **DRAWN}
    job = edited(form, filled(form, **given))
    expected = brush.edit(photo, n=1, seed=5, rerank=1, mask=white)
    assert pixels(job) == [each.image.tobytes() for each in expected]


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        (
            {"task": "extend", "left": 8, "bottom": 16},
            lambda brush, photo: brush.edit(photo, n=1, seed=5, rerank=1, extend={"left": 8, "bottom": 16}),
        ),
        (
            {"task": "redraw", "prompt": "a red circle", "strength": 0.35},
            lambda brush, photo: brush.edit(photo, "a red circle", n=1, seed=5, rerank=1, strength=0.35),
        ),
        ({"task": "vary"}, lambda brush, photo: brush.vary(photo, n=1, seed=5, rerank=1)),
    ],
    ids=["extend", "redraw", "vary"],
)
def test_the_form_makes_the_picture_again(
    form: EditForm, brush: Codebrush, photo: str, fields: Any, expected: Any
) -> None:
    job = edited(form, filled(form, source=photo, **DRAWN, **fields))
    assert pixels(job) == [each.image.tobytes() for each in expected(brush, photo)]
    values, lost = restored(form, job)
    assert lost == []
    assert pixels(edited(form, values)) == pixels(job)


def test_a_translation_comes_back(form: EditForm, brush: Codebrush, photo: str) -> None:
    given = {"task": "translate", "to": "3d", "by": "codes", **DRAWN}
    job = edited(form, filled(form, source=photo, **given))
    assert pixels(job) == [
        each.image.tobytes() for each in brush.translate(photo, "3d", n=1, seed=5, by="codes", rerank=1)
    ]
    values, lost = restored(form, job)
    assert (values[form.fields["task"]], values[form.fields["to"]], lost) == ("translate", "3d", [])
    assert pixels(edited(form, values)) == pixels(job)


def test_pictures_are_enlarged_and_interpolated(form: EditForm, brush: Codebrush, photo: str, tmp_path: Path) -> None:
    large = edited(form, filled(form, source=photo, task="upscale", scale=4))
    assert large.result["images"][0]["size"] == [160, 192]
    assert restored(form, large)[0][form.fields["scale"]] == 4
    assert read_manifest(large.folder / large.result["images"][0]["file"])["source"] == "photo.jpg"
    Image.new("RGB", (32, 32), "red").save(tmp_path / "b.png")
    job = edited(form, filled(form, source=photo, second=str(tmp_path / "b.png"), task="interpolate", frames=3))
    expected = brush.interpolate([photo, str(tmp_path / "b.png")], 3)
    assert pixels(job) == [each.tobytes() for each in expected]
    with Image.open(job.folder / job.result["film"]) as film:
        assert (film.format, getattr(film, "n_frames", 1)) == ("WEBP", 3)
    values, lost = restored(form, job)
    assert (values[form.fields["task"]], values[form.fields["frames"]], lost) == (
        "interpolate", 3, ["It goes from photo.jpg to b.png", NO_SOURCE]
    )  # fmt: skip
    made = read_manifest(job.folder / job.result["images"][1]["file"])
    assert made["pack"]["hash"] == brush.pack.hash
    assert made["files"] == {"photo.jpg": file_sha256(photo), "b.png": file_sha256(tmp_path / "b.png")}


def test_pictures_of_the_same_name_are_told_apart(form: EditForm, tmp_path: Path) -> None:
    paths = [tmp_path / folder / "image.png" for folder in ("one", "other")]
    for path, colour in zip(paths, ("red", "blue"), strict=True):
        path.parent.mkdir()
        Image.new("RGB", (32, 32), colour).save(path)
    job = edited(form, filled(form, source=str(paths[0]), second=str(paths[1]), task="interpolate", frames=2))
    made = read_manifest(job.folder / job.result["images"][0]["file"])
    assert made["keys"] == ["image.png", "image.png (2)"]
    assert made["files"] == dict(zip(made["keys"], map(file_sha256, paths), strict=True))


def test_a_mask_goes_with_its_picture(form: EditForm, photo: str, tmp_path: Path) -> None:
    other, again, mask = tmp_path / "other.png", tmp_path / "again.jpg", tmp_path / "mask.png"
    Image.new("RGB", SIZE, "red").save(other)
    shutil.copyfile(photo, again)
    Image.new("L", SIZE, "white").save(mask)
    begins, file, reads, mask_of, painted = form._source_changed(photo, "")
    assert (file, reads, painted) == (None, "white", gr.skip())
    assert form._source_changed(photo, mask_of)[0] == begins  # no more than shown anew: what is painted stays
    assert form._source_changed(str(again), mask_of)[0] != begins  # it came again: nothing is painted any more
    assert form._mask_changed(photo, str(mask), "") == mask_of
    assert form._source_changed(photo, mask_of)[1:3] == [gr.skip(), gr.skip()]  # its mask stays
    assert form._source_changed(str(other), mask_of)[1:3] == [None, "white"]
    assert form._source_changed(None, mask_of)[1:] == [None, "white", "", ""]
    first = form._mask_changed(None, str(mask), "")  # a mask that is chosen before its picture
    assert form._source_changed(photo, first)[1:] == [gr.skip(), gr.skip(), mask_of, gr.skip()]


def test_strokes_on_another_picture_are_no_mask_of_this_one(form: EditForm, photo: str, tmp_path: Path) -> None:
    """As long as the canvas does not show a new picture, the page still sends what was painted on the old one."""
    again = tmp_path / "again.jpg"
    shutil.copyfile(photo, again)
    file = begun(photo, Image.new("RGB", SIZE))["file"]
    painted = url(Image.new("RGBA", SIZE, "teal")).replace(";", f";of={file};", 1)
    assert form.job(filled(form, source=photo, painted=painted))[0] == "edit"
    with pytest.raises(Problem, match="paint over the part"):
        form.job(filled(form, source=str(again), painted=painted))


def test_the_mask_is_saved_as_it_is_used(form: EditForm, photo: str, tmp_path: Path) -> None:
    shown = begun(photo, Image.new("RGB", SIZE))["picture"]
    layer = Image.new("RGBA", Image.open(io.BytesIO(base64.b64decode(shown.partition(",")[2]))).size)
    layer.paste((9, 9, 9, 255), (0, 0, layer.width // 2, layer.height))
    white = Image.new("L", SIZE)
    white.paste(255, (0, 40, 40, 48))
    white.save(tmp_path / "mask.png")
    saved = form._saved_mask(photo, url(layer), str(tmp_path / "mask.png"), "white")
    found = Image.open(io.BytesIO(base64.b64decode(saved.partition(",")[2])))
    white.paste(255, (0, 0, 20, 48))
    assert (found.mode, found.tobytes()) == ("L", white.tobytes())
    with pytest.raises(gr.Error, match="paint over the part"):
        form._saved_mask(photo, "", None, "white")


@pytest.mark.parametrize(
    ("typed", "seed"), [("7", 7), (str(2**63 - 1), 2**63 - 1), (" 9007199254740993 ", 9007199254740993)]
)
def test_no_digit_of_a_seed_is_lost(form: EditForm, photo: str, typed: str, seed: int) -> None:
    _, _, found, _ = form.job(filled(form, source=photo, task="vary", random=False, seed=typed))
    assert found["seed"] == seed


@pytest.mark.parametrize("typed", ["-1", "", None])
def test_a_seed_of_minus_one_is_drawn_at_random(form: EditForm, photo: str, typed: str | None) -> None:
    values = filled(form, source=photo, task="vary", random=False, seed=typed)
    assert len({form.job(values)[2]["seed"] for _ in range(3)}) > 1


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        ({"task": "vary", "random": False, "seed": "-5"}, "seed must be a whole number from 0 to 2^63 - 1, not -5"),
        ({"task": "vary", "random": False, "seed": "1.5"}, "seed must be a whole number from 0 to 2^63 - 1, not 1.5"),
        ({"task": "vary", "random": False, "seed": str(2**63)}, "seed must be a whole number"),
        ({"source": None}, "choose a picture first"),
        ({}, "paint over the part that is to change"),
        ({"painted": "data:image/png;base64,aGVsbG8="}, "not a picture of a known kind"),
        ({"painted": "x"}, "a data URL must be"),
        ({"task": "extend"}, "say by how many pixels"),
        ({"task": "redraw"}, "a redrawn picture needs a prompt"),
        ({"task": "interpolate"}, "choose the picture that it becomes"),
        ({"task": "vary", "top_p": "2"}, "Invalid value for 'top_p'"),
        ({"mask_file": "large"}, "the mask has 700 x 700 pixels and the picture 40 x 48"),
        ({"source": "large"}, "600 x 900"),
    ],
)
def test_what_cannot_be_done_is_said(form: EditForm, photo: str, tmp_path: Path, fields: Any, line: str) -> None:
    for name, size in (("mask_file", (700, 700)), ("source", (600, 900))):
        if fields.get(name) == "large":
            Image.new("L", size).save(tmp_path / "large.png")
            fields = {name: str(tmp_path / "large.png")}
    with pytest.raises(Exception) as found:
        form.job(filled(form, **{"source": photo, **fields}))
    assert line in line_of(found.value, form.context)


def test_an_enlargement_that_the_pack_cannot_make_is_not_asked_for(
    brush: Codebrush, photo: str, tmp_path: Path
) -> None:  # fmt: skip
    transformer = micro_transformer(image_embedding=24, source_codes=True)
    plain = Codebrush.from_pretrained(write_micro_pack(tmp_path / "plain", transformer=transformer), "cpu")
    engine = Engine({"micro": lambda: brush, "plain": lambda: plain}, Store(tmp_path / "jobs"))
    with gr.Blocks(analytics_enabled=False):
        form = EditForm(Context(engine, Settings(packs=("micro", "plain"), data=tmp_path, max_input_pixels=500_000)))
    for pack, asked in (("micro", 2), ("plain", None)):
        _, _, found, _ = form.job(filled(form, source=photo, task="vary", model=pack, upscale=2, **DRAWN))
        assert found.get("upscale") == asked


@pytest.mark.parametrize("name", ["cat.jpg", "water-damaged.jpg"])
def test_a_file_that_does_not_say_how_it_was_made_is_offered_whatever_its_name(name: str) -> None:
    file = io.BytesIO()
    Image.new("RGB", (2, 2)).save(file, "JPEG")
    assert not says_how(cached(file.getvalue(), name))


def test_no_path_of_the_server_is_told_on_the_page(form: EditForm, brush: Codebrush) -> None:
    context, file = form.context, io.BytesIO()
    Image.new("RGB", (2, 2)).save(file, "PNG", pnginfo=_damaged())
    sent, gone = cached(file.getvalue(), "cat.png"), context.engine.store.data / "jobs" / "x" / "picture_00.png"
    tried: dict[str, Callable[[], Any]] = {
        "cat.png: its codebrush text is damaged": lambda: says_how(sent),
        "jobs/x/picture_00.png: cannot be read": lambda: read_manifest(gone),
        "micro/clip is damaged": lambda: _raise(PackError(f"{brush.pack.member('clip').absolute()} is damaged")),
    }
    for said, what in tried.items():
        with pytest.raises(gr.Error) as found, told(context):
            what()
        assert found.value.message.startswith(said)
        with pytest.raises(Exception) as raised:
            what()
        assert line_of(raised.value, context).startswith(said)


def _damaged() -> PngInfo:
    info = PngInfo()
    info.add_text("codebrush", "no JSON")
    return info


def _raise(error: Exception) -> None:
    raise error
