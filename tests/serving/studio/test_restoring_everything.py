"""Of every kind of picture that the package makes, each option in its manifest comes back into the form, or is said."""

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("gradio", reason='needs the extra "studio"')

import gradio as gr
from PIL import Image

from codebrush import Codebrush
from codebrush.data.decoding.images import read_manifest, save_png
from codebrush.generation.editing.upscaling import file_manifest
from codebrush.generation.manifest import interpolated_manifest, upscaled_manifest
from codebrush.generation.origin import origin
from codebrush.models.upscaler import Upscaler, UpscalerConfig
from codebrush.serving.api.context import Context
from codebrush.serving.settings import Settings
from codebrush.serving.studio.edit import restoring as edit_restoring
from codebrush.serving.studio.edit.form import EditForm
from codebrush.serving.studio.paint import restoring as paint_restoring
from codebrush.serving.studio.paint.form import PaintForm
from engine_helpers import make_engine
from packs import micro_flow, micro_transformer, write_micro_pack

OWNER = "address 127.0.0.1"
# What a manifest says beside the request.
FACTS = {
    "method", "index", "clip_score", "scorer", "size", "steps", "plan", "events", "translator", "pack", "versions",
    "device", "threads", "source", "files", "found", "hash", "upscaler", "show_every", "weights",
}  # fmt: skip
PLACES = {"style": ("to", "style"), "strength": ("strength", "fill", "varied"), "scale": ("scale", "upscale")}
CODES = {"cfg": 2.5, "temperature": 0.9, "top_k": 5, "top_p": 0.95, "min_p": 0.01}
FLOW = {"method": "flow", "cfg": 2.5, "steps": 3, "sampler": "heun", "cfg_interval": (0.1, 0.9)}
DRAWN = {"n": 1, "rerank": 2, "seed": 2**62 + 1}


@pytest.fixture(scope="module")
def brush(tmp_path_factory: pytest.TempPathFactory) -> Codebrush:
    members = {
        "transformer": micro_transformer(image_embedding=24, source_codes=True),
        "flow": micro_flow(image_embedding=24, source=True),
        "upscaler": Upscaler(UpscalerConfig(width=8, blocks=1)).eval(),
    }
    brush = Codebrush.from_pretrained(write_micro_pack(tmp_path_factory.mktemp("all") / "micro", **members), "cpu")
    brush.pack.info["translation"] = {"text": "{style} style", "styles": ["noto", "3d"]}
    return brush


def again(brush: Codebrush, form: PaintForm, values: Mapping[Any, Any]) -> dict[str, Any]:
    """The options of the guided run that the form now asks for."""
    _, asked, _ = form.job(dict(values))
    given = {name: value for name, value in asked.items() if name not in ("method", "previews", "upscale")}
    return json.loads(json.dumps(brush.guide(given.pop("prompt"), **given).request.to_json()["options"]))


@pytest.fixture(scope="module")
def restore(
    brush: Codebrush, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[Mapping[str, Any]], tuple[dict[str, Any], list[str], dict[str, Any]]]]:
    """A function: the form's values by their names, the lines, and the options of guidance then, for a manifest."""
    data = tmp_path_factory.mktemp("jobs")
    engine = make_engine(brush, data)
    context = Context(engine, Settings(packs=("micro",), data=data))
    with gr.Blocks(analytics_enabled=False):
        paint, edit = PaintForm(context), EditForm(context)

    def restored(manifest: Mapping[str, Any]) -> tuple[dict[str, Any], list[str], dict[str, Any]]:
        form, module = (
            (edit, edit_restoring) if manifest["method"] in edit_restoring.METHODS else (paint, paint_restoring)
        )
        found, lost = module.restored_form(form, context, manifest, OWNER)
        values = {each: value.get("value") if isinstance(value, dict) else value for each, value in found.items()}
        fields = {name: values[component] for name, component in form.fields.items()}
        return fields, lost, again(brush, paint, values) if manifest["method"] == "guide" else {}

    yield restored
    engine.stop(5)


@pytest.fixture(scope="module")
def photo() -> Image.Image:
    drawn = Image.new("RGB", (40, 48), "orange")
    drawn.paste("navy", (10, 10, 30, 25))
    return drawn


def held(manifest: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The options in a manifest by their names, those within others too."""
    for name, value in manifest.items():
        if (
            name in FACTS or value in ("", [0.0, 1.0]) or (name == "prompt" and "edit" in manifest)
        ):  # an edit has its own
            continue
        if name in ("picture", "mask") and isinstance(value, Mapping):
            yield name, value["sha256"]
        elif name == "clip_guidance":
            yield name, value["scale"]
            yield from held(value["options"])
        elif name == "cfg_interval":
            yield name, ",".join(map(repr, value))
        elif name == "upscaled":
            yield from (("scale", step["scale"]) for step in value)
        elif isinstance(value, Mapping):
            yield from held(value)
        else:
            yield name, value


def mask() -> Image.Image:
    white = Image.new("L", (40, 48))
    white.paste(255, (5, 5, 20, 20))
    return white


def enlarged(brush: Codebrush, photo: Image.Image, folder: Path, times: int) -> dict[str, Any]:
    photo.save(folder / "photo.png")
    manifest = file_manifest(folder / "photo.png", 2, (80, 96), brush.pack)
    return manifest if times == 1 else upscaled_manifest(manifest, 4, (320, 384), brush.pack)


MADE: dict[str, Callable[[Codebrush, Image.Image, Path], Any]] = {
    "codes": lambda brush, *_: brush.generate("a red circle | blue:-0.5", **CODES, **DRAWN, size="48x32"),
    "many": lambda brush, *_: brush.generate("a circle", n=12, rerank=70, seed=1),
    "enlarged": lambda brush, *_: brush.generate("a circle", **DRAWN, upscale=4),
    "flow": lambda brush, *_: brush.generate("a circle", **FLOW, **DRAWN),
    "flow led by CLIP": lambda brush, *_: brush.generate(
        "a circle", **FLOW, **DRAWN, clip_guidance=0.5, cutouts=2, exclude=["fog", "a (red) dot"], precision="float32"
    ),
    "redrawn by a flow led by CLIP": lambda brush, photo, _: brush.edit(
        photo, "a dot", **FLOW, **DRAWN, strength=0.4, clip_guidance=0.3
    ),
    "retrieve": lambda brush, *_: brush.generate("a circle", method="retrieve", prior="none", neighbours=3, **DRAWN),
    "guided": lambda brush, *_: brush.generate(
        "a circle", method="guide", n=2, seed=5, steps=2, cutouts=2, batch_size=2, init="random",
        include=["a (red) dot", "x | y"], exclude="fog", story=["a dog:1.2", "a cat"], palette="#ff0000",
        learning_rate=0.2, flip=0.0, antialias=False, show_every=1,
    ),
    "guided from codes": lambda brush, *_: brush.generate(
        "a circle", n=1, method="guide", steps=1, cutouts=2, init="sample", cfg=2.0, rerank=3
    ),
    "vary": lambda brush, photo, _: brush.vary(photo, **CODES, **DRAWN),
    "vary by a flow": lambda brush, photo, _: brush.vary(photo, strength=0.45, **FLOW, **DRAWN, upscale=2),
    "inpaint": lambda brush, photo, _: brush.edit(photo, "a dot | fog:-0.5", mask=mask(), **CODES, **DRAWN, upscale=2),
    "inpaint by a flow": lambda brush, photo, _: brush.edit(
        photo, "a dot", mask=mask(), strength=0.37, **FLOW, **DRAWN
    ),
    "box": lambda brush, photo, _: brush.edit(photo, box=(3, 4, 20, 21), **DRAWN),
    "extend": lambda brush, photo, _: brush.edit(photo, "a dot", extend={"left": 8, "bottom": 16}, **DRAWN),
    "strength": lambda brush, photo, _: brush.edit(photo, "a dot", strength=0.35, **CODES, **DRAWN),
    "strength, flow": lambda brush, photo, _: brush.edit(photo, "a dot", strength=0.35, **FLOW, **DRAWN),
    "translate": lambda brush, photo, _: brush.translate(photo, "3d", by="codes", **CODES, **DRAWN, upscale=2),
    "translate by a flow": lambda brush, photo, _: brush.translate(
        photo, "3d", by="flow", **DRAWN, steps=3, sampler="dpm"
    ),
    "interpolate": lambda brush, *_: interpolated_manifest(
        ["/a/b.png", "a dog"], "embeddings", 90, 7, 3, {"/a/b.png": "ab"}, origin(brush.pack, brush.device)
    ),
    "interpolate many": lambda brush, *_: interpolated_manifest(
        ["a dog", "a cat", "a cow"], "noise", 9, 7, 3, {}, origin(brush.pack, brush.device)
    ),
    "upscale": lambda brush, photo, folder: enlarged(brush, photo, folder, 1),
    "upscale twice": lambda brush, photo, folder: enlarged(brush, photo, folder, 2),
}  # fmt: skip


@pytest.mark.parametrize("kind", MADE)
def test_each_option_comes_back_or_is_said(
    kind: str, brush: Codebrush, photo: Image.Image, tmp_path: Path, restore: Any
) -> None:
    made = MADE[kind](brush, photo, tmp_path)
    if not isinstance(made, dict):
        save_png(made[0].image, tmp_path / "made.png", made[0].manifest)
        made = read_manifest(tmp_path / "made.png")
    fields, lost, again = restore(made)
    options = {name: value for name, value in held(made) if name not in again or again[name] != value}
    if made["method"] == "guide":  # left empty a field is what the preset says
        assert set(again) & set(made["options"])
        assert "seed" in options
    for name, value in options.items():
        said = str("\n".join(map(str, value)) if isinstance(value, list) else value)
        shown = {str(fields.get(place)) for place in PLACES.get(name, (name,))}
        back = said in shown or (name in ("prompt", "include", "story") and _same(said, shown))
        assert back or _is_said(name, value, lost), (name, value, shown, lost)
    assert len(lost) == len(set(lost))


def _same(said: str, shown: set[str]) -> bool:
    """Whether a text comes back as it is typed, with its brackets escaped."""
    return any(said == each.replace("\\", "") for each in shown)


def _is_said(name: str, value: Any, lost: list[str]) -> bool:
    words = {
        "picture": "the picture that it was made from", "keys": "It goes", "scale": f"{value} times",
        "n": f"one of {value} pictures", "rerank": f"best of {value}", "frames": f"{value} frames",
    }.get(name, name)  # fmt: skip
    return any(words in line or words.replace("_", " ") in line for line in lost)
