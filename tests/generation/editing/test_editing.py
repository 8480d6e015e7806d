"""Edits on a pack with random weights: what the code transformer sees, what stays, replay and errors."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from codebrush import Codebrush
from codebrush.data.decoding.images import read_manifest, save_png
from codebrush.data.synthetic.shapes import scene
from codebrush.errors import ImageError, PackError, PromptError, UsageError
from codebrush.generation.editing.editing import Edit, prepare_edit
from codebrush.generation.result import Result
from codebrush.generation.sampling.sampler import draw_options
from packs import micro_transformer, write_micro_pack

SIZE = 32
WHOLE = {"n": 2, "rerank": 3, "cfg": 1.5}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pack = tmp_path_factory.mktemp("packs") / "editor"
    torch.manual_seed(1)
    write_micro_pack(pack, transformer=micro_transformer(image_embedding=24, source_codes=True))
    info = json.loads((pack / "pack.json").read_text())
    info["translation"] = {"text": "{style} style", "styles": ["noto", "3d"], "likeness": 2.0, "defaults": {"cfg": 1.5}}
    (pack / "pack.json").write_text(json.dumps(info))
    return pack


@pytest.fixture(scope="module")
def brush(folder: Path) -> Codebrush:
    return Codebrush.from_pretrained(folder, device="cpu")


@pytest.fixture(scope="module")
def bare(micro_pack: Path) -> Codebrush:
    return Codebrush.from_pretrained(micro_pack, device="cpu")


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    scene(0, 1, 48).image.save(tmp_path / "picture.png")
    return tmp_path / "picture.png"


def ready(brush: Codebrush, edit: Edit) -> Any:
    return prepare_edit(brush.sampler, edit, draw_options(brush.pack, {"n": 1, "seed": 0}))


class TestWhatTheNetworkSees:
    def test_a_variation_sees_the_embedding_alone(self, brush: Codebrush, picture: Path) -> None:
        drawing = ready(brush, Edit("vary", picture))
        ((condition, weight),) = drawing.conditions
        embedding = brush.embed_images([picture])
        assert weight == 1
        torch.testing.assert_close(condition.image_embedding, embedding)
        assert condition.text_features is None
        assert condition.source_codes is None
        torch.testing.assert_close(drawing.texts, embedding)

    def test_a_hole_is_every_code_that_it_touches(self, brush: Codebrush) -> None:
        drawn = scene(0, 1, SIZE).image
        drawing = ready(brush, Edit("inpaint", drawn, "a red circle", box=(9, 4, 4, 4)))
        kept = drawing.known.fixed[0]
        assert kept.shape == (8, 8)
        assert (~kept).sum() == 2  # 4 pixels a code: columns 2 and 3 of row 1
        assert not kept[1, 2]
        assert not kept[1, 3]
        ((condition, _),) = drawing.conditions
        assert torch.equal(condition.source_mask, drawing.known.fixed)
        assert torch.equal(condition.source_codes, drawing.known.codes)
        assert condition.text_features is not None
        assert drawing.unconditional.text_features is None
        assert torch.equal(drawing.unconditional.source_codes, drawing.known.codes)

    def test_what_was_in_the_hole_is_not_seen(self, brush: Codebrush) -> None:
        clean = scene(0, 1, SIZE).image
        dirty = clean.copy()
        dirty.paste("lime", (8, 8, 20, 20))
        codes = [ready(brush, Edit("inpaint", each, "x", box=(8, 8, 12, 12))).known.codes for each in (clean, dirty)]
        assert torch.equal(*codes)

    @pytest.mark.parametrize(("strength", "new"), [(0.01, 1), (0.25, 16), (0.6, 38), (1.0, 64)])
    def test_strength_is_the_share_that_is_new(
        self, brush: Codebrush, picture: Path, strength: float, new: int
    ) -> None:
        kept = ready(brush, Edit("edit", picture, "a dog", strength)).known.fixed
        assert int((~kept).sum()) == new

    def test_a_translation_sees_all_codes_and_the_text_for_a_style(self, brush: Codebrush, picture: Path) -> None:
        drawing = ready(brush, Edit("translate", picture, style="3d"))
        assert drawing.prompt == "3d style"
        ((condition, _),) = drawing.conditions
        assert condition.source_mask is None
        assert condition.source_codes.shape == (1, 8, 8)
        assert drawing.known is None
        assert drawing.texts.shape[0] == 2  # like its style, and like its source
        codes = condition.source_codes.flatten()
        assert torch.equal(drawing.bias.argmax(1), codes)  # each place is drawn to the code it had
        torch.testing.assert_close(drawing.bias.amax(1), torch.full((64,), 2.0))
        assert brush.translate(picture, "3d", n=1, rerank=1)[0].manifest["options"]["cfg"] == 1.5
        assert brush.translate(picture, "3d", n=1, rerank=1, cfg=3)[0].manifest["options"]["cfg"] == 3


def test_the_name_of_a_style_is_literal(tmp_path: Path, picture: Path) -> None:
    torch.manual_seed(1)
    pack = write_micro_pack(tmp_path / "styles", transformer=micro_transformer(image_embedding=24, source_codes=True))
    info = json.loads((pack / "pack.json").read_text())
    info["translation"] = {"text": "{style} style", "styles": ["3d:flat", "a|b", "3d flat"]}
    (pack / "pack.json").write_text(json.dumps(info))
    brush = Codebrush.from_pretrained(pack, device="cpu")
    for style in ("3d:flat", "a|b"):
        (result,) = brush.translate(picture, style, n=1, rerank=1)
        assert result.manifest["prompt"] == f"{style} style"
        drawing = ready(brush, Edit("translate", picture, style=style))
        torch.testing.assert_close(drawing.texts[:1], brush.embed_text([f"{style} style"]))
        assert brush.replay(result.manifest).image.tobytes() == result.image.tobytes()


def test_an_edit_of_another_size_is_refused_and_not_drawn_without_its_picture(brush: Codebrush, picture: Path) -> None:
    options = draw_options(brush.pack, {"n": 1, "seed": 0, "rerank": 1, "size": "48x48"})
    for edit in (Edit("inpaint", picture, "a dog", box=(3, 4, 20, 10)), Edit("translate", picture, style="3d")):
        with pytest.raises(UsageError, match="an edit is drawn at the pack's own size: leave out size"):
            brush.sampler.best(prepare_edit(brush.sampler, edit, options))
    assert brush.sampler.best(prepare_edit(brush.sampler, Edit("vary", picture), options))[0].image.size == (48, 48)


def test_kept_codes_are_in_the_result(brush: Codebrush) -> None:
    drawn = scene(0, 1, SIZE).image
    known = ready(brush, Edit("inpaint", drawn, "a dog", box=(0, 0, 16, 32))).known
    for result in brush.edit(drawn, "a dog", box=(0, 0, 16, 32), **WHOLE):
        assert torch.equal(result.codes[known.fixed[0]], known.codes[0][known.fixed[0]])


@pytest.mark.parametrize("prompt", ["a dog", "a dog:2|a cat:-0.5", ""])
def test_an_inpainted_picture_keeps_its_size_and_the_rest(brush: Codebrush, picture: Path, prompt: str) -> None:
    results = brush.edit(picture, prompt, box=(10, 12, 14, 9), **WHOLE)
    before = np.asarray(Image.open(picture).convert("RGB"))
    assert len(results) == 2
    assert results[0].score >= results[1].score
    for result in results:
        after = np.asarray(result.image)
        assert after.shape == before.shape
        assert (after[:9] == before[:9]).all()
        assert (after[12:21, 10:24] != before[12:21, 10:24]).any()
        assert result.manifest["size"] == [48, 48]


def test_a_picture_grows(brush: Codebrush, picture: Path) -> None:
    (result,) = brush.edit(picture, "a dog", extend={"right": 30, "top": 6}, n=1, rerank=1)
    assert result.image.size == (78, 54)
    before, after = np.asarray(Image.open(picture).convert("RGB")), np.asarray(result.image)
    assert (after[10:, :44] == before[4:, :44]).all()


@pytest.mark.parametrize(
    "make",
    [
        lambda brush, file, mask: brush.vary(file, **WHOLE),
        lambda brush, file, mask: brush.edit(file, "a dog", strength=0.4, **WHOLE),
        lambda brush, file, mask: brush.edit(file, "a dog", mask=mask, **WHOLE),
        lambda brush, file, mask: brush.edit(file, "a dog", box=(3, 4, 20, 10), **WHOLE),
        lambda brush, file, mask: brush.edit(file, extend={"left": 16}, **WHOLE),
        lambda brush, file, mask: brush.translate(file, "noto", **WHOLE),
    ],
)
def test_every_edit_is_replayed_from_its_png(brush: Codebrush, picture: Path, tmp_path: Path, make: Any) -> None:
    mask = Image.new("L", (48, 48))
    mask.paste(255, (5, 5, 30, 40))
    mask.save(tmp_path / "mask.png")
    for number, result in enumerate(make(brush, picture, tmp_path / "mask.png")):
        save_png(result.image, tmp_path / f"{number}.png", result.manifest)
        again = brush.replay(read_manifest(tmp_path / f"{number}.png"))
        assert np.array_equal(np.asarray(again.image), np.asarray(result.image))
        assert again.manifest == result.manifest


CLEARED: dict[str, Callable[[Codebrush, Path], Result]] = {
    "vary": lambda brush, picture: brush.vary(picture, n=1, rerank=1)[0],
    "edit": lambda brush, picture: brush.edit(picture, "a dog", n=1, rerank=1)[0],
    "translate": lambda brush, picture: brush.translate(picture, "3d", n=1, rerank=1)[0],
    "box": lambda brush, picture: brush.edit(picture, n=1, rerank=1, box=(8, 8, 24, 24))[0],
    "extend": lambda brush, picture: brush.edit(picture, n=1, rerank=1, extend={"right": 32})[0],
}


@pytest.mark.parametrize("make", CLEARED.values(), ids=CLEARED.keys())
def test_transparency_is_kept_and_old_manifests_give_opaque_pictures(
    brush: Codebrush, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[[Codebrush, Path], Result]
) -> None:
    sticker = Image.new("RGBA", (SIZE, SIZE), (0, 0, 0, 0))
    sticker.paste((200, 30, 40, 255), (12, 12, 20, 20))
    sticker.save(tmp_path / "sticker.png")
    drawn = torch.ones(3, SIZE, SIZE)  # white, with a blue square
    drawn[:2, 14:22, 14:22] = 0
    monkeypatch.setattr(type(brush.vqgan), "decode", lambda self, latent: drawn.expand(len(latent), -1, -1, -1))
    result = make(brush, tmp_path / "sticker.png")
    assert result.image.mode == "RGBA"
    shown = np.asarray(result.image)
    assert (shown[..., 3] == 0).mean() > 0.8  # the ground, and no pale box
    assert ((shown == (0, 0, 255, 255)).all(-1)).sum() > 30  # the square
    assert result.manifest["edit"]["transparency"] == "kept"
    assert np.array_equal(np.asarray(brush.replay(result.manifest).image), shown)
    entry = {name: value for name, value in result.manifest["edit"].items() if name != "transparency"}
    old = brush.replay({**result.manifest, "edit": entry})  # as versions before 0.3 wrote it
    assert old.image.mode == ("RGBA" if old.manifest["method"] == "inpaint" else "RGB")
    ground = np.asarray(old.image)[10, 10]  # in the hole, or new
    assert old.manifest["edit"] == entry
    if "extend" not in entry:
        assert ground.tolist() == [255] * len(ground)
    sticker.convert("RGB").save(tmp_path / "sticker.png")
    opaque = make(brush, tmp_path / "sticker.png")
    assert opaque.image.mode == "RGB"
    assert "transparency" not in opaque.manifest["edit"]


def test_an_edit_of_a_picture_that_changed_is_not_replayed(brush: Codebrush, picture: Path) -> None:
    (result,) = brush.vary(picture, n=1, rerank=1)
    scene(0, 2, 48).image.save(picture)
    with pytest.raises(ImageError, match="has changed since the edit was made"):
        brush.replay(result.manifest)
    picture.unlink()
    with pytest.raises(ImageError, match=r"picture\.png: cannot be read"):
        brush.replay(result.manifest)
    (result,) = brush.vary(scene(0, 1, 48).image, n=1, rerank=1)
    with pytest.raises(
        ImageError, match="the picture that it was made from is not part of the manifest: give it as a source"
    ):
        brush.replay(result.manifest)
    scene(0, 1, 48).image.save(picture)
    (result,) = brush.vary(picture, n=1, rerank=1)
    for damage, message in (
        (3, "'int' object is not iterable"),
        ({"prompt": "x"}, "missing 1 required positional argument: 'picture'"),
        ({**result.manifest["edit"], "strange": 1}, "unexpected keyword argument 'strange'"),
    ):
        with pytest.raises(ImageError, match=f"manifest is damaged .*{message}"):
            brush.replay({**result.manifest, "edit": damage})


def test_an_edit_that_the_pack_was_not_trained_for_is_one_line(bare: Codebrush, picture: Path) -> None:
    with pytest.raises(PackError, match="takes no image embedding"):
        bare.vary(picture)
    with pytest.raises(PackError, match="fills no holes"):
        bare.edit(picture, "a dog", box=(1, 1, 5, 5))
    with pytest.raises(PackError, match="was not trained to translate"):
        bare.translate(picture, "noto")


@pytest.mark.parametrize(
    ("part", "said"),
    [
        ({"extend": {"left": 9999}}, "extend adds 9999 pixels"),
        ({"extend": {"up": 3}}, "extend takes the pixels"),
        ({"box": (900, 0, 5, 5)}, "lies outside the picture"),
        ({"mask": Image.new("L", (9, 9), 255)}, "the mask has 9 x 9 pixels"),
    ],
)
def test_a_part_that_cannot_be_painted_is_refused_before_a_model_loads(
    folder: Path, picture: Path, part: dict[str, Any], said: str
) -> None:
    brush = Codebrush.from_pretrained(folder, device="cpu")
    with pytest.raises(UsageError, match=said):
        brush.edit(picture, "a dog", **part)
    assert not {"clip", "vqgan", "transformer"} & (set(vars(brush)) | set(vars(brush.pack)))


def test_wrong_edits_are_one_line(brush: Codebrush, picture: Path) -> None:
    with pytest.raises(UsageError, match="the pack has no style 'oil': it has noto, 3d"):
        brush.translate(picture, "oil")
    with pytest.raises(UsageError, match="give a prompt to redraw the picture under"):
        brush.edit(picture, " ")
    with pytest.raises(UsageError, match="strength must be above 0 and up to 1, not 0"):
        brush.edit(picture, "a dog", strength=0)
    with pytest.raises(UsageError, match="strength is for redrawing a whole picture"):
        brush.edit(picture, "a dog", strength=0.5, box=(1, 1, 5, 5))
    with pytest.raises(UsageError, match="give one of mask, box and extend"):
        brush.edit(picture, "a dog", box=(1, 1, 5, 5), extend={"left": 3})
    for strength in ("much", float("nan")):
        with pytest.raises(UsageError, match=f"strength must be above 0 and up to 1, not {strength}"):
            Edit("edit", picture, "a dog", strength=strength)  # pyright: ignore
    for box in ((1, 2, 3), (0.5, 0, 9, 9), "1,2,3,4"):
        with pytest.raises(UsageError, match="box must be x, y, width and height in whole pixels, not"):
            brush.edit(picture, "a dog", box=box)  # pyright: ignore
    for extend in ({"left": "3"}, {"left": 0.5}, {"up": 3}, {"left": -3}, {"left": 0}):
        with pytest.raises(UsageError, match="extend takes the pixels to add on left, top, right, bottom"):
            brush.edit(picture, "a dog", extend=extend)  # pyright: ignore
    with pytest.raises(PromptError, match="a prompt is a text, not NoneType"):
        brush.edit(picture, None)  # pyright: ignore
    with pytest.raises(UsageError, match="colour is not an option of an edit"):
        brush.vary(picture, colour=3)
    with pytest.raises(PromptError, match=r'the stop "0.5:7" of "a dog" is not a number'):
        brush.edit(picture, "a dog:2:0.5:7|", box=(1, 1, 5, 5))
    with pytest.raises(ImageError, match=r"gone\.png"):
        brush.vary("gone.png")
