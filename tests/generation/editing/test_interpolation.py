"""Interpolation: ends, spacing, what counts as a key, and errors."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from codebrush import Codebrush
from codebrush.data.decoding.transparency import flattened
from codebrush.data.synthetic.shapes import scene
from codebrush.errors import ImageError, PackError, UsageError
from codebrush.generation.editing.interpolation import spread, with_grounds
from packs import micro_transformer, write_micro_pack


@pytest.fixture(scope="module")
def brush(tmp_path_factory: pytest.TempPathFactory) -> Codebrush:
    folder = tmp_path_factory.mktemp("packs") / "between"
    torch.manual_seed(1)
    transformer = micro_transformer(image_embedding=24)
    with torch.no_grad():  # untrained, one picture's embedding is nearly the same as another's
        transformer.projections["image_embedding"][0].weight.mul_(200)
        transformer.projections["image_embedding"][1].weight.mul_(20)
    write_micro_pack(folder, transformer=transformer)
    return Codebrush.from_pretrained(folder, device="cpu")


def pixels(image: Any) -> np.ndarray:
    return np.asarray(image, dtype=int)


def same(one: np.ndarray, other: np.ndarray) -> bool:
    """But for rounding, which another batch does otherwise."""
    return bool(np.abs(one - other).max() <= 1)


@pytest.mark.parametrize(("count", "frames"), [(2, 2), (2, 9), (3, 3), (3, 10), (4, 7)])
def test_there_are_as_many_frames_as_asked_for_and_every_key_is_among_them(count: int, frames: int) -> None:
    keys = torch.randn(count, 5, 2, 3)
    path = spread(keys, frames)
    assert len(path) == frames
    assert torch.equal(path[0], keys[0])
    assert torch.equal(path[-1], keys[-1])
    for key in keys:
        assert any(torch.equal(key, each) for each in path)


def test_pictures_turn_into_each_other(brush: Codebrush) -> None:
    one, other = (scene(0, index, 32).image for index in (1, 2))
    calls: list[tuple[int, int]] = []
    found = list(brush.interpolate([one, other], 7, progress=lambda *step: calls.append(step)))
    ends = [pixels(each) for each in brush.reconstruct([one, other])]
    assert calls == [(number, 7) for number in range(1, 8)]
    assert same(pixels(found[0]), ends[0])
    assert same(pixels(found[-1]), ends[1])
    far = [np.abs(pixels(each) - ends[0]).mean() for each in found]
    assert far[0] < 1
    assert far == sorted(far)  # each is farther from the first than the one before


def test_prompts_files_and_latents_are_keys(brush: Codebrush, tmp_path: Path) -> None:
    scene(0, 1, 48).image.save(tmp_path / "picture.png")
    (drawn,) = brush.generate("a red circle", n=1, seed=3, rerank=4)
    save_file({"latent": drawn.latent.contiguous()}, tmp_path / "drawn.safetensors")
    keys = ["a red circle", str(tmp_path / "picture.png"), str(tmp_path / "drawn.safetensors"), drawn.latent]
    found = [pixels(each) for each in brush.interpolate(keys, 4, seed=3)]
    assert same(found[0], pixels(drawn.image))
    assert same(found[2], pixels(drawn.image))
    assert same(found[3], pixels(drawn.image))
    assert not np.array_equal(found[1], found[0])


def test_embeddings_are_drawn_with_the_same_random_numbers(brush: Codebrush) -> None:
    one, other = Image.new("RGB", (32, 32), "black"), Image.effect_noise((32, 32), 200).convert("RGB")
    found = [pixels(each) for each in brush.interpolate([one, other], 3, seed=5, through="embeddings", cfg=20)]
    for picture, frame in ((one, found[0]), (other, found[2])):
        (alone,) = brush.vary(picture, n=1, rerank=1, seed=5, cfg=20)
        assert same(frame, pixels(alone.image))
    assert not same(found[0], found[2])


def test_bad_input_is_one_line(brush: Codebrush, micro_pack: Path, tmp_path: Path) -> None:
    for keys, options, said in (
        (["a dog", "a cat"], {"upscale": 2}, "upscale is not an option"),
        (["a dog", "a cat"], {"size": "64x64"}, "size is not an option"),
        (["a dog"], {}, "give at least two prompts"),
        (["a dog", "a cat"], {"frames": 1}, "frames must be from 2"),
        (["a dog", "a cat"], {"through": "space"}, "through must be one of latents, embeddings, noise, not space"),
        ([torch.zeros(3, 9, 9), "a cat"], {}, "does not fit this pack, whose grid is"),
    ):
        with pytest.raises(UsageError, match=said):
            list(brush.interpolate(keys, **options))  # pyright: ignore
    with pytest.raises(UsageError, match="give at least two prompts"):
        brush.interpolate(["a dog"])  # refused before the first frame is drawn
    with pytest.raises(ImageError, match=r"typo\.png: no such file"):
        brush.interpolate(["typo.png", "a cat"])
    assert len(list(brush.interpolate(["a " + "very " * 100 + "long one", "a cat"], 2, rerank=1))) == 2
    frames = brush.interpolate(["a dog", "a cat"], 2, rerank=1)
    next(frames)
    assert torch.is_grad_enabled()  # between two frames the caller may train
    (tmp_path / "broken.png").write_bytes(b"no picture")
    with pytest.raises(ImageError, match=r"broken\.png"):
        list(brush.interpolate([str(tmp_path / "broken.png"), "a cat"]))
    bare = Codebrush.from_pretrained(micro_pack, device="cpu")
    with pytest.raises(PackError, match="go through latents"):
        list(bare.interpolate(["a dog", "a cat"], 2, through="embeddings"))


@pytest.mark.parametrize("through", ["latents", "embeddings"])
def test_frames_between_transparent_pictures_are_transparent(brush: Codebrush, through: str) -> None:
    clear = [Image.new("RGBA", (32, 32), (0, 0, 0, 0)) for _ in range(2)]
    for picture, left in zip(clear, (4, 14), strict=True):
        picture.paste((20, 20, 120, 255), (left, 8, left + 14, 24))
    found = list(brush.interpolate(clear, 3, through=through))
    plain = list(brush.interpolate([flattened(picture) for picture in clear], 3, through=through))
    assert [frame.mode for frame in found] == ["RGBA"] * 3
    assert [frame.mode for frame in plain] == ["RGB"] * 3
    mixed = brush.interpolate([clear[0], flattened(clear[1])], 2, through=through)
    assert [frame.mode for frame in mixed] == ["RGB"] * 2
    if through == "latents":
        assert same(pixels(found[0]), pixels(brush.reconstruct(clear)[0]))


def test_what_is_clear_in_both_pictures_is_clear_in_between(brush: Codebrush) -> None:
    one = Image.new("RGBA", (32, 32), (0, 0, 0, 0))
    other = Image.new("RGBA", (32, 32), (255, 255, 255, 255))
    other.paste((0, 0, 0, 0), (0, 0, 32, 16))
    white = [Image.new("RGB", (32, 32), "white")] * 5
    alphas = [np.asarray(frame.getchannel("A")) for frame in with_grounds(iter(white), [one, other], 5)]
    assert (alphas[0] == 0).all()
    assert (alphas[4][:16] == 0).all()
    assert (alphas[4][18:] == 255).all()
    assert all((alpha[:16] == 0).all() for alpha in alphas)
