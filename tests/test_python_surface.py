"""What a user of the Python package meets: short texts, notebooks, one or several of each, styles, unknown options."""

import io
import json
import warnings
from pathlib import Path
from typing import Any

import numpy
import pytest
from PIL import Image

from codebrush import Codebrush
from codebrush.errors import ImageError, PackError, PromptError, UsageError
from codebrush.generation.result import MOST_SHOWN, Gallery, Result
from codebrush.progress import shares
from packs import micro_captioner, micro_tokenizer, micro_transformer, write_micro_pack

STYLES = {"text": "{prompt}, {style} style", "names": ["noto", "3d"]}


@pytest.fixture(scope="module")
def brush(tmp_path_factory: pytest.TempPathFactory) -> Codebrush:
    folder = write_micro_pack(
        tmp_path_factory.mktemp("surface") / "micro",
        transformer=micro_transformer(image_embedding=24, source_codes=True),
        captioner=micro_captioner(),
        words=micro_tokenizer(),
        extras={"styles": STYLES},
    )
    return Codebrush.from_pretrained(folder, device="cpu")


@pytest.fixture(scope="module")
def pictures() -> list[Image.Image]:
    return [Image.new("RGB", (32, 32), colour) for colour in ("orange", "navy")]


def pixels(results: list[Any]) -> list[Any]:
    return [pixels(each) if isinstance(each, list) else each.image.tobytes() for each in results]


def opened(png: bytes | None) -> Image.Image:
    assert png is not None
    return Image.open(io.BytesIO(png))


def test_texts_are_short(brush: Codebrush) -> None:
    members = "clip, vqgan, transformer, captioner"
    assert repr(brush.pack) == f"<Pack micro 1: 32x32 pixels; {members}>"
    assert repr(brush) == f"<Codebrush micro 1: 32x32 pixels; {members}; on cpu>"
    results = brush.generate("a red circle", n=2, rerank=2, seed=7)
    first = f"<Result 32x32, CLIP {results[0].score:.3f}, seed 7, index {results[0].manifest['index']}>"
    assert repr(results[0]) == first
    assert repr(results).startswith(f"[{first}, <Result ")


def test_notebooks_show_the_pictures(brush: Codebrush) -> None:
    results = brush.generate(["a red circle", "a blue square"], n=2, rerank=2)
    assert opened(results[0][0]._repr_png_()).tobytes() == results[0][0].image.tobytes()
    assert opened(results[0]._repr_png_()).width == 8 + 2 * (96 + 8)
    assert opened(results._repr_png_()).height > opened(results[0]._repr_png_()).height  # four pictures in two rows
    assert list(results.results) == [*results[0], *results[1]]
    assert isinstance(results[0][:1], Gallery)
    assert Gallery()._repr_png_() is None


def test_a_notebook_is_not_flooded(brush: Codebrush) -> None:
    result = brush.generate("a red circle", n=1, rerank=1)[0]
    shown = opened(Gallery([result] * (MOST_SHOWN + 40))._repr_png_())
    assert shown.tobytes() == opened(Gallery([result] * MOST_SHOWN)._repr_png_()).tobytes()


def test_a_list_of_prompts_draws_each_as_if_alone(brush: Codebrush) -> None:
    prompts, done = ["a red circle", "a blue square"], []
    both = brush.generate(prompts, n=2, rerank=2, seed=3, progress=lambda *at: done.append(at))
    assert pixels(both) == [pixels(brush.generate(prompt, n=2, rerank=2, seed=3)) for prompt in prompts]
    assert done == sorted(done)
    assert done[-1] == (64, 64)  # both are drawn together
    assert pixels(brush.generate(("a red circle",), n=1)) == [pixels(brush.generate("a red circle", n=1))]


@pytest.mark.parametrize("prompt", [[], None, 5])
def test_what_is_no_prompt_is_refused(brush: Codebrush, prompt: Any) -> None:
    with pytest.raises(PromptError, match="give a prompt, or a list of them"):
        brush.generate(prompt)


def test_a_folder_is_for_the_run_of_one_prompt(brush: Codebrush, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="a folder holds the run of one prompt"):
        brush.generate(["a", "b"], method="guide", folder=tmp_path / "run", steps=1)
    assert not (tmp_path / "run").exists()


def test_one_or_several_pictures(brush: Codebrush, pictures: list[Image.Image]) -> None:
    edits = {
        "vary": lambda given: brush.vary(given, n=1),
        "edit": lambda given: brush.edit(given, "a dog", n=1, box=(4, 4, 8, 8)),
        "redraw": lambda given: brush.edit(given, "a dog", n=1),
    }
    for edit in edits.values():
        alone = [edit(picture) for picture in pictures]
        assert isinstance(alone[0][0], Result)
        assert pixels(edit(pictures)) == pixels(alone)
        assert pixels(edit(pictures[:1])) == pixels(alone[:1])
    assert brush.score(pictures, "a dog") == pytest.approx([brush.score(each, "a dog") for each in pictures], abs=1e-6)
    assert brush.ask(pictures, "what is it?", 0) == [brush.ask(each, "what is it?", 0) for each in pictures]
    assert brush.embed_images(pictures[0]).shape == (1, 24)
    for several in (brush.reconstruct, brush.caption, lambda given: brush.classify(given, ["a dog", "a cat"])):
        assert len(several(pictures[0])) == 1
        assert len(several(pictures)) == 2


def test_a_result_is_a_picture(brush: Codebrush) -> None:
    drawn = brush.generate("a red circle", n=2, rerank=2)
    images = [result.image for result in drawn]
    assert pixels(brush.vary(drawn[0], n=1)) == pixels(brush.vary(images[0], n=1))
    assert pixels(brush.vary(drawn, n=1)) == pixels(brush.vary(images, n=1))
    mask = Image.new("L", (32, 32))
    mask.paste(255, (4, 4, 20, 20))
    painted = Result(mask, 0.0, drawn[0].codes, drawn[0].latent, {})
    assert pixels(brush.edit(drawn[0], n=1, mask=painted)) == pixels(brush.edit(images[0], n=1, mask=mask))
    assert brush.score(drawn, "a dog") == brush.score(images, "a dog")
    assert brush.caption(drawn[0]) == brush.caption(images[0])
    assert brush.ask(drawn[0], "what is it?", 0) == brush.ask(images[0], "what is it?", 0)
    frames = [list(brush.interpolate(ends, frames=3)) for ends in (drawn, images)]
    assert [frame.tobytes() for frame in frames[0]] == [frame.tobytes() for frame in frames[1]]


@pytest.mark.parametrize("given", [5, None, b"PNG", numpy.zeros((32, 32, 3), numpy.uint8), [numpy.zeros((4, 4))]])
def test_what_is_no_picture_is_refused(brush: Codebrush, given: Any) -> None:
    said = "a picture is a Pillow image, a file's path or a Result, not (int|NoneType|ndarray): PIL.Image.fromarray"
    for task in (brush.vary, brush.caption, brush.reconstruct, lambda one: brush.score(one, "a dog")):
        with pytest.raises(ImageError, match=said):
            task(given)


def test_what_is_no_mask_is_refused(brush: Codebrush, pictures: list[Image.Image]) -> None:
    with pytest.raises(ImageError, match="a picture is a Pillow image, a file's path or a Result, not ndarray"):
        brush.edit(pictures[0], mask=numpy.zeros((32, 32), bool))  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("keys", ["a dog", 5])
def test_one_end_is_not_enough_to_go_between(brush: Codebrush, keys: Any) -> None:
    with pytest.raises(UsageError, match=f"a list of at least two prompts, pictures or latents .*, not {keys!r}"):
        brush.interpolate(keys)


def test_a_style_is_worded_as_in_training(brush: Codebrush, pictures: list[Image.Image]) -> None:
    styled = brush.generate("a dog:1.5 | blurry:-0.5", n=1, style="noto")
    assert styled[0].manifest["prompt"] == "a dog, noto style:1.5 | blurry:-0.5"
    assert pixels(styled) == pixels(brush.generate("a dog, noto style:1.5 | blurry:-0.5", n=1))
    assert brush.replay(styled[0].manifest).image.tobytes() == styled[0].image.tobytes()
    assert brush.edit(pictures[0], "a dog", n=1, style="3d")[0].manifest["prompt"] == "a dog, 3d style"
    run = brush.guide("a dog", steps=1, style="3d", story=["a cat", "a cow"])
    assert run.request.prompt == "a dog, 3d style"
    assert run.request.options.story == ("a cat, 3d style", "a cow, 3d style")


def test_an_unknown_style_is_refused(brush: Codebrush, micro_pack: Path) -> None:
    with pytest.raises(UsageError, match="the pack has no style 'oil': it has noto, 3d"):
        brush.generate("a dog", style="oil")
    with pytest.raises(PackError, match="the pack 'micro' was trained with no styles"):
        Codebrush.from_pretrained(micro_pack).generate("a dog", style="oil")
    with pytest.raises(UsageError, match="are for pictures that are drawn under a prompt"):
        brush.edit(Image.new("RGB", (32, 32)), box=(4, 4, 8, 8), style="noto")


@pytest.mark.parametrize(
    "styles", [["noto"], {"text": "no place for the words", "names": ["noto"]}, {"text": "{prompt}", "names": "noto"}]
)
def test_a_pack_with_damaged_styles_is_refused(tmp_path: Path, styles: Any) -> None:
    about = write_micro_pack(tmp_path / "pack") / "pack.json"
    about.write_text(json.dumps(json.loads(about.read_text()) | {"styles": styles}))
    with pytest.raises(PackError, match="its 'styles' must be an object"):
        Codebrush.from_pretrained(tmp_path / "pack")


def test_a_pack_that_translates_knows_its_styles(tmp_path: Path) -> None:
    known = {"text": "{style} style", "styles": ["noto", "3d"]}
    brush = Codebrush.from_pretrained(write_micro_pack(tmp_path / "pack", extras={"translation": known}))
    assert brush.generate("a dog", n=1, style="noto")[0].manifest["prompt"] == "a dog, noto style"


def test_the_built_in_pack_says_its_styles_as_its_translator_does() -> None:
    pack = Codebrush.from_pretrained("emoji").pack
    assert pack.styles == ("{prompt}, {style} style", list(pack.translator.config.styles))


@pytest.mark.parametrize(
    ("negative", "written"),
    [
        ("blurry", "a dog | blurry:-0.5"),
        ("blurry:1.2 | a re\\:zero", "a dog | blurry:-0.6 | a re\\:zero:-0.5"),
        ("at 12: noon", "a dog | at 12\\: noon:-0.5"),
        ("back\\\\slash", "a dog | back\\\\slash:-0.5"),
        ("", "a dog"),
        (" ", "a dog"),
    ],
)
def test_a_negative_prompt_leads_away(brush: Codebrush, negative: str, written: str) -> None:
    drawn = brush.generate("a dog", n=1, negative_prompt=negative)
    assert drawn[0].manifest["prompt"] == written
    assert pixels(drawn) == pixels(brush.generate(written, n=1))


def test_a_negative_prompt_has_no_stops(brush: Codebrush) -> None:
    with pytest.raises(PromptError, match="a negative prompt has no stops"):
        brush.guide("a dog", negative_prompt="blurry:1:0.4")


@pytest.mark.parametrize(
    ("task", "given", "meant"),
    [
        ("generate", "guidance_scale", "cfg"),
        ("generate", "num_images_per_prompt", "n"),
        ("generate", "negative_promt", "negative_prompt"),
        ("generate", "stile", "style"),
        ("edit", "strenght", "strength"),
        ("edit", "mask_image", "mask"),
        ("vary", "num_images", "n"),
        ("guide", "num_inference_steps", "steps"),
        ("guide", "cutn", "cutouts"),
    ],
)
def test_an_unknown_option_is_answered_with_the_one_that_was_meant(
    brush: Codebrush, pictures: list[Image.Image], task: str, given: str, meant: str
) -> None:
    first = "a dog" if task in ("generate", "guide") else pictures[0]
    words = {"prompt": "a dog"} if task == "edit" else {}
    with pytest.raises(UsageError, match=rf"{given}.*did you mean {meant}\?"):
        getattr(brush, task)(first, **words, **{given: 1})


def test_shares_of_a_progress_add_up() -> None:
    seen: list[tuple[int, int]] = []
    for share in shares(lambda *at: seen.append(at), 3):
        assert share is not None
        share(5, 10)
    assert seen == [(5, 30), (15, 30), (25, 30)]
    assert shares(None, 2) == [None, None]


@pytest.mark.parametrize(("size", "part"), [((64, 48), "the square in the middle of the"), ((96, 96), "the")])
def test_a_picture_that_comes_back_at_another_size_is_announced(
    brush: Codebrush, size: tuple[int, int], part: str
) -> None:
    said = f"^{part} picture of {size[0]} x {size[1]} pixels comes back at the pack's 32 x 32: choose a part"
    with pytest.warns(UserWarning, match=said):
        brush.edit(Image.new("RGB", size), "a dog", n=1, rerank=1)


def test_a_picture_of_the_packs_size_needs_no_word(brush: Codebrush, pictures: list[Image.Image]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        brush.edit(pictures[0], "a dog", n=1, rerank=1)
