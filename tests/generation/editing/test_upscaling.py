"""Enlarging pictures: tiles without seams, transparency without fringes, any size and mode, and errors."""

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from codebrush.data.decoding.images import decode_image, save_png, to_tensor
from codebrush.data.synthetic.shapes import scene
from codebrush.errors import ImageError, PackError, UsageError
from codebrush.generation.editing.upscaling import (
    SCALES,
    Enlarger,
    check_size,
    file_manifest,
    fill_transparent,
    margin_of,
    upscale_picture,
    upscale_tensor,
)
from codebrush.generation.manifest import read_upscalings, upscaled_manifest
from codebrush.generation.result import Result
from codebrush.models.upscaler import Upscaler, UpscalerConfig
from codebrush.pack.pack import Pack, open_pack
from packs import write_micro_pack


def network(scale: int, blocks: int = 2, width: int = 8) -> Upscaler:
    """One whose weights all count."""
    torch.manual_seed(3)
    model = Upscaler(UpscalerConfig(4 if scale == 4 else 2, width, blocks)).eval().requires_grad_(False)
    nn.init.normal_(model.last_layer, std=0.1)
    return model


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, shape, dtype=np.uint8)


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image).astype(int)


@pytest.mark.parametrize("scale", [2, 4])
@pytest.mark.parametrize("own", [2, 4])
@pytest.mark.parametrize("size", [(70, 41), (33, 33), (16, 50)])
def test_tiles_are_the_picture_in_one_piece(own: int, scale: int, size: tuple[int, int]) -> None:
    model, picture = network(own), Image.fromarray(noise(size[1], size[0], 3))
    whole = upscale_tensor(model, to_tensor(picture)[None], scale)[0]
    tiled = to_tensor(upscale_picture(model, picture, scale, tile=16))
    assert tiled.shape == (3, scale * size[1], scale * size[0])
    assert (
        tiled - (whole * 255).round() / 255
    ).abs().max() <= 1.01 / 255  # what is between two levels may go either way
    assert ((tiled * 255).round() != (whole * 255).round()).float().mean() < 1e-3


@pytest.mark.parametrize(("own", "scale"), [(2, 2), (2, 4), (4, 4), (4, 2)])
def test_the_margin_is_what_a_tile_needs(own: int, scale: int) -> None:
    model = network(own, blocks=1).double()
    margin, side = margin_of(model, scale), 40
    picture = torch.rand(1, 3, side, side, dtype=torch.float64) * 0.2 + 0.4  # so that nothing is clamped
    whole = upscale_tensor(model, picture, scale)[..., scale * 20 :]
    part = upscale_tensor(model, picture[..., 20 - margin :], scale)[..., scale * margin :]
    assert (whole - part).abs().max() < 1e-12
    less = upscale_tensor(model, picture[..., 20 - margin + 2 :], scale)[..., scale * (margin - 2) :]
    assert (whole - less).abs().max() > 1e-9  # so it is no wider than it must be


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (5, 1), (3, 2), (17, 23)])
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "1", "P"])
def test_any_size_and_mode(size: tuple[int, int], mode: str) -> None:
    picture = Image.fromarray(noise(size[1], size[0], 4)).convert("RGBA" if mode == "LA" else "RGB").convert(mode)
    for scale in (2, 4):
        made = upscale_picture(network(2, blocks=1), picture, scale, tile=8)
        assert made.size == (scale * size[0], scale * size[1])
        assert made.mode == ("RGBA" if mode in ("RGBA", "LA") else "RGB")


def test_a_palette_with_transparency_keeps_it() -> None:
    picture = Image.new("P", (8, 8), 0)
    picture.putpalette([0, 0, 0, 255, 0, 0])
    picture.paste(1, (4, 0, 8, 8))
    picture.info["transparency"] = 0
    made = upscale_picture(network(2), picture, 2)
    assert made.mode == "RGBA"
    assert made.getpixel((0, 8))[3] == 0  # pyright: ignore
    assert made.getpixel((15, 8))[3] == 255  # pyright: ignore


def disc(size: int = 32) -> Image.Image:
    """A bright disc whose surroundings are transparent black, as files mostly have them."""
    rows, columns = np.mgrid[:size, :size] - (size - 1) / 2
    opacity = np.clip((size / 3 - np.hypot(rows, columns)) + 0.5, 0, 1)
    colours = np.where(opacity[..., None] > 0, [250, 220, 40], 0)
    return Image.fromarray(np.concatenate([colours, opacity[..., None] * 255], axis=2).round().astype(np.uint8))


@pytest.mark.parametrize("scale", [2, 4])
def test_transparent_pixels_leave_no_dark_fringe(scale: int) -> None:
    plain = Upscaler(UpscalerConfig(2, 8, 1)).eval()  # bicubic
    made = pixels(upscale_picture(plain, disc(), scale, tile=16))
    visible = made[..., 3] > 0
    assert np.abs(made[visible][:, :3] - [250, 220, 40]).max() <= 4  # a mean that is weighed is rounded
    assert (made[..., 3] == 255).mean() > 0.25
    naive = pixels(disc().convert("RGB").resize((32 * scale, 32 * scale), Image.Resampling.BICUBIC))
    assert naive[visible].min(0)[0] < 150  # what it would be


def test_opacity_stays_within_its_surroundings() -> None:
    model = network(2)
    nn.init.normal_(model.last_layer, std=1.0)  # whatever it makes of it
    made = pixels(upscale_picture(model, disc(), 2))[..., 3]
    before = pixels(disc())[..., 3]
    inside = np.kron(before, np.ones((2, 2), dtype=int))
    around = [np.roll(inside, (dy, dx), (0, 1)) for dy in (-2, 0, 2) for dx in (-2, 0, 2)]
    core = (slice(4, -4), slice(4, -4))
    assert (made <= np.max(around, axis=0))[core].all()
    assert (made >= np.min(around, axis=0))[core].all()
    assert ((made > 0) & (made < 255)).any()


def test_opacity_that_is_even_is_kept() -> None:
    picture = Image.fromarray(noise(20, 20, 3))
    colours = pixels(upscale_picture(network(2), picture, 2))
    picture.putalpha(100)
    made = pixels(upscale_picture(network(2), picture, 2))
    assert (made[..., 3] == 100).all()
    assert (made[..., :3] == colours).all()


def test_transparent_pixels_take_the_colours_near_them() -> None:
    picture = Image.new("RGBA", (40, 30), (0, 0, 0, 0))
    picture.paste((255, 0, 0, 255), (0, 0, 5, 30))
    picture.paste((0, 0, 255, 128), (35, 0, 40, 30))
    found = fill_transparent(picture)
    assert found.getchannel("A").tobytes() == picture.getchannel("A").tobytes()
    colours = pixels(found)[..., :3]
    assert (colours[:, :5] == [255, 0, 0]).all()
    assert (colours[:, 35:] == [0, 0, 255]).all()
    assert colours[:, 5:8, 0].min() > 180
    assert colours[:, 32:35, 2].min() > 180
    assert (pixels(fill_transparent(Image.new("RGBA", (3, 3), (9, 9, 9, 0))))[..., 3] == 0).all()


def test_a_large_picture_takes_little_memory_beside_its_own() -> None:
    model, seen = Upscaler(UpscalerConfig(2, 1, 0)).eval(), []
    picture = Image.new("RGBA", (2000, 2000), (200, 100, 50, 255))
    tracemalloc.start()  # of Python's own, to which NumPy's arrays belong
    largest = 0

    def tiles(module: nn.Module, given: tuple[torch.Tensor, ...]) -> None:
        nonlocal largest
        largest = max(largest, given[0].numel())

    model.register_forward_pre_hook(tiles)
    made = upscale_picture(model, picture, 2, progress=lambda done, total: seen.append((done, total)))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert made.size == (4000, 4000)
    assert made.getpixel((2000, 3999)) == (200, 100, 50, 255)
    assert seen == [(number, 11**2) for number in range(1, 11**2 + 1)]
    assert largest <= 3 * (192 + 2 * margin_of(model, 2)) ** 2
    assert peak < 50e6


def test_a_wide_strip_and_absurd_sizes() -> None:
    assert upscale_picture(network(2, blocks=0), Image.new("RGB", (20_000, 2)), 2).size == (40_000, 4)
    for width, height, scale in ((9000, 5000, 2), (4000, 4000, 4), (90_000_000, 1, 2)):
        with pytest.raises(ImageError, match=r"would become \d+ x \d+, over the limit of 89,478,485 pixels: use a sm"):
            check_size(width, height, scale)
    check_size(4000, 4000, 2)
    with pytest.raises(ImageError, match="no pixels"):
        upscale_picture(network(2), Image.new("RGB", (0, 5)), 2)
    for scale in (0, 1, 3, 8, True):
        with pytest.raises(UsageError, match=f"the scale must be 2 or 4, not {scale}"):
            upscale_picture(network(2), Image.new("RGB", (2, 2)), scale)


def test_a_colour_profile_is_kept(tmp_path: Path) -> None:
    picture = Image.new("RGB", (4, 4), "red")
    picture.info["icc_profile"] = b"a profile"
    made = upscale_picture(network(2), picture, 2)
    save_png(made, tmp_path / "made.png")
    assert Image.open(tmp_path / "made.png").info["icc_profile"] == b"a profile"
    assert "icc_profile" not in upscale_picture(network(2), picture.convert("CMYK"), 2).info


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> Pack:
    return open_pack(write_micro_pack(tmp_path_factory.mktemp("packs") / "large", upscaler=network(2)))


def test_a_result_records_that_it_was_enlarged(pack: Pack) -> None:
    image, latent = scene(0, 0, 32).image, torch.zeros(4, 8, 8)
    drawn = Result(image, 0.25, torch.zeros(8, 8), latent, {"method": "sample", "size": [32, 32], "threads": 1})
    enlarger = Enlarger(pack.upscaler, pack)
    (once,) = enlarger.results(2)([drawn])
    assert once.image.size == (64, 64)
    assert (once.score, once.codes is drawn.codes, once.latent is latent) == (0.25, True, True)
    step = {"scale": 2, "pack": "micro", "upscaler": pack.hash_of("upscaler")}
    assert once.manifest == {"method": "sample", "size": [64, 64], "threads": 1, "upscaled": [step]}
    twice = enlarger.result(once, 2)
    assert twice.manifest["upscaled"] == [step, step]
    assert read_upscalings(twice.manifest, pack, SCALES) == [2, 2]
    again = enlarger.replay(drawn, twice.manifest)
    assert again.image.tobytes() == twice.image.tobytes()
    assert again.manifest == twice.manifest
    assert drawn.manifest == {"method": "sample", "size": [32, 32], "threads": 1}


def test_four_times_is_twice_and_twice_again_up_to_rounding(pack: Pack) -> None:
    picture = decode_image(scene(0, 1, 32).image)
    at_once = pixels(upscale_picture(pack.upscaler, picture, 4))
    rounded = pixels(upscale_picture(pack.upscaler, upscale_picture(pack.upscaler, picture, 2), 2))
    assert np.abs(at_once - rounded).max() <= 4


@pytest.mark.parametrize(
    "steps",
    [3, "2", [2], [{}], [{"scale": 2}], [{"scale": 3, "upscaler": "x"}], [{"scale": 2.0, "upscaler": "x"}], {"a": 1}],
)
def test_a_damaged_manifest_is_one_line(pack: Pack, steps: object) -> None:
    with pytest.raises(ImageError, match="the picture's manifest is damaged"):
        read_upscalings({"upscaled": steps}, pack, SCALES)


def test_another_upscaler_is_refused(pack: Pack, micro_pack: Path) -> None:
    manifest = upscaled_manifest({}, 2, (4, 4), pack)
    assert read_upscalings({}, open_pack(micro_pack), SCALES) == []
    with pytest.raises(PackError, match=r"enlarged by an upscaler .* that the pack 'micro' does not have"):
        read_upscalings(manifest, open_pack(micro_pack), SCALES)
    with pytest.raises(PackError, match="that the pack 'micro' does not have"):
        read_upscalings({"upscaled": [{**manifest["upscaled"][0], "upscaler": "0" * 64}]}, pack, SCALES)


def test_a_file_keeps_its_manifest(pack: Pack, tmp_path: Path) -> None:
    save_png(Image.new("RGB", (4, 4)), tmp_path / "made.png", {"method": "sample", "seed": 3, "size": [4, 4]})
    manifest = file_manifest(tmp_path / "made.png", 2, (8, 8), pack)
    assert (manifest["method"], manifest["seed"], manifest["size"]) == ("sample", 3, [8, 8])
    Image.new("RGB", (4, 4)).save(tmp_path / "photo.jpg")
    manifest = file_manifest(tmp_path / "photo.jpg", 2, (8, 8), pack)
    assert (manifest["method"], manifest["source"]) == ("upscale", "photo.jpg")
    assert [step["scale"] for step in manifest["upscaled"]] == [2]
    save_png(Image.new("RGB", (4, 4)), tmp_path / "odd.png", {"method": "sample", "upscaled": 7})
    with pytest.raises(ImageError, match="damaged"):
        file_manifest(tmp_path / "odd.png", 2, (8, 8), pack)
