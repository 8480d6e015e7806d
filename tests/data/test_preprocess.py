"""Modes, shapes and files on their way to square pixels; parity with the originals is tests/parity's matter."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from codebrush.data.decoding.images import MAX_PIXELS, decode_image
from codebrush.data.preprocess import clip_resize, preprocess
from codebrush.errors import ImageError

RNG = np.random.default_rng(0)


def noise(mode: str, width: int = 50, height: int = 37) -> Image.Image:
    if mode == "P":
        return noise("RGB", width, height).quantize(16)
    if mode == "1":
        return Image.fromarray(RNG.integers(0, 2, (height, width)).astype(bool))
    channels = len(Image.new(mode, (1, 1)).getbands())
    values = RNG.integers(0, 256, (height, width, channels), dtype=np.uint8)
    return Image.merge(mode, [Image.fromarray(values[..., band]) for band in range(channels)])


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "LA", "P", "1", "CMYK"])
def test_pictures_are_scaled_and_cut_in_their_own_mode(mode: str) -> None:
    picture = noise(mode)
    scaled = picture.resize((int(24 * 50 / 37), 24), Image.Resampling.BICUBIC)
    expected = scaled.crop((4, 0, 28, 24)).convert("RGB")  # 32 - 24 leaves 4 on each side
    assert clip_resize(picture, 24).tobytes() == expected.tobytes()
    assert picture.mode == mode
    assert clip_resize(picture, 24, crop=False).tobytes() == picture.convert("RGB").resize((24, 24), 3).tobytes()


@pytest.mark.parametrize(("long", "left"), [(33, 0), (35, 2), (37, 2), (39, 4), (34, 1)])
def test_half_a_pixel_goes_to_the_even_offset(long: int, left: int) -> None:
    picture = noise("RGB", long, 32)
    assert clip_resize(picture, 32).tobytes() == picture.crop((left, 0, left + 32, 32)).tobytes()
    upright = picture.transpose(Image.Transpose.TRANSPOSE)
    assert clip_resize(upright, 32).tobytes() == upright.crop((0, left, 32, left + 32)).tobytes()


def test_long_sides_lose_their_fraction() -> None:
    picture = noise("RGB", 47, 61)  # 61 / 47 * 32 = 41.5
    scaled = picture.resize((32, 41), Image.Resampling.BICUBIC)
    assert clip_resize(picture, 32).tobytes() == scaled.crop((0, 4, 32, 36)).tobytes()


def test_a_strip_never_becomes_larger_than_the_limit() -> None:
    strip = Image.new("RGBA", (1, 5_000_000), (255, 0, 0, 9))
    assert 64 * 64 * strip.height > MAX_PIXELS
    fitted = clip_resize(strip, 64)
    assert fitted.size == (64, 64)
    assert fitted.getpixel((32, 32)) == (255, 0, 0)


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def test_transparency_shows_what_lies_under_it() -> None:
    file = encoded(Image.new("RGBA", (9, 5), (255, 0, 0, 1)))
    assert preprocess([file], 4)[0, :, 0, 0].tolist() == [1, 0, 0]
    assert decode_image(file).getpixel((0, 0)) == (255, 254, 254)


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "LA", "P", "1"])
def test_decoding_can_keep_the_mode(mode: str) -> None:
    picture = noise(mode)
    decoded = decode_image(encoded(picture), keep_mode=True)
    assert decoded.mode == mode
    assert decoded.convert("RGBA").tobytes() == picture.convert("RGBA").tobytes()
    decode_image(picture, keep_mode=True).putpixel((0, 0), picture.getpixel((1, 1)))
    assert decoded.convert("RGBA").tobytes() == picture.convert("RGBA").tobytes()


def test_files_are_turned_upright_and_keep_sixteen_bits_of_shades() -> None:
    picture = noise("RGB", 32, 32)
    exif = Image.Exif()
    exif[0x0112] = 3
    turned = preprocess([encoded(picture, exif=exif)], 32)
    assert torch.equal(turned, preprocess([picture], 32).flip(-1, -2))
    deep = Image.fromarray(np.full((8, 8), 257 * 100, dtype="<u2"))
    assert preprocess([encoded(deep)], 4).mul(255).round().eq(100).all()


def test_bad_files_are_refused_as_ever() -> None:
    with pytest.raises(ImageError, match="not a picture"):
        preprocess([b"words"], 32)
    with pytest.raises(ImageError, match="over the limit"):
        decode_image(Image.new("1", (10_000, 10_000)), keep_mode=True)
    assert preprocess([], 32).shape == (0, 3, 32, 32)
