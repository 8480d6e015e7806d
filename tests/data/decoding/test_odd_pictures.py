"""Deep values, large photos, animations, broken EXIF tags and paths that are no files come out right or are refused."""

import io
import os
import socket
import struct
import threading
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, TiffImagePlugin

from codebrush.data.decoding import large_pictures
from codebrush.data.decoding.images import decode_image, read_picture
from codebrush.data.decoding.large_pictures import MAX_PIXELS
from codebrush.errors import ImageError, UsageError

RAMP = np.linspace(0, 4095, 64).astype("<u2").reshape(8, 8)
NOISE = Image.effect_noise((64, 48), 60).convert("RGB")


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def png_of_16_bits(values: np.ndarray) -> bytes:
    """(H, W, 1 to 4 channels) -> a PNG of 16 bits a channel, which Pillow cannot write."""
    height, width, channels = values.shape
    kind = (0, 4, 2, 6)[channels - 1]
    rows = b"".join(b"\x00" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )


@pytest.mark.parametrize(
    "data",
    [
        encoded(Image.fromarray(RAMP), "TIFF", tiffinfo={281: 4095}),
        encoded(Image.fromarray((RAMP * 4).astype(">u2")), "TIFF", tiffinfo={281: 4 * 4095}),
        encoded(Image.fromarray(RAMP // 16), "TIFF", tiffinfo={281: 255}),
        encoded(Image.fromarray((RAMP // 16).astype("<i4")), "TIFF"),
        b"P5 8 8 4095\n" + RAMP.astype(">u2").tobytes(),
        encoded(Image.fromarray(65520 - RAMP * 16), "TIFF", tiffinfo={262: 0, 281: 65520}),  # white is zero
    ],
)
def test_deep_values_with_a_known_white_keep_their_shades(data: bytes) -> None:
    grey = np.asarray(decode_image(data), int)[..., 0]
    assert np.abs(grey - RAMP / 4095 * 255).max() <= 1
    assert (grey.min(), grey.max()) == (0, 255)


@pytest.mark.parametrize(
    "data",
    [
        encoded(Image.fromarray(RAMP), "PNG"),
        encoded(Image.fromarray(RAMP * 4), "TIFF"),
        encoded(Image.fromarray(RAMP // 16), "PNG"),
        encoded(Image.fromarray(RAMP.astype("<i4")), "TIFF"),
        png_of_16_bits(np.stack([RAMP] * 3, axis=-1)),
        png_of_16_bits(np.stack([RAMP // 16] * 3, axis=-1)),
        png_of_16_bits(np.stack([RAMP, RAMP, RAMP, RAMP * 0 + 65535], axis=-1)),
        png_of_16_bits(np.stack([RAMP, RAMP * 0 + 65535], axis=-1)),
    ],
)
def test_deep_values_of_unknown_white_are_refused_with_the_remedy(data: bytes) -> None:
    with pytest.raises(ImageError, match="white is unknown: save it with 8 bits a channel, or as TIFF with the tag"):
        decode_image(data)


def test_full_deep_colours_and_plain_black_are_read() -> None:
    colours = decode_image(png_of_16_bits(np.stack([RAMP * 16, RAMP, RAMP * 0], axis=-1)))
    assert colours.getpixel((7, 7)) == (255, 15, 0)
    assert decode_image(encoded(Image.fromarray(RAMP * 0), "PNG")).getextrema() == ((0, 0),) * 3


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF", "AVIF"])
def test_a_fade_in_is_judged_by_a_frame_that_shows_something(kind: str) -> None:
    black = Image.new("RGB", NOISE.size)
    options = {"lossless": True} if kind == "WEBP" else {"quality": 100} if kind == "AVIF" else {}
    frames = [Image.new("RGB", NOISE.size, (2, 2, 2)), Image.new("RGB", NOISE.size, "red"), NOISE, black]
    picture = read_picture(encoded(black, kind, save_all=True, append_images=frames, **options))
    assert picture.frame == 3
    assert picture.size == NOISE.size
    if kind != "GIF":  # 256 colours
        assert np.abs(np.asarray(picture.image, int) - np.asarray(NOISE, int)).mean() < 3
    plain = encoded(black, kind, save_all=True, append_images=[Image.new("RGB", NOISE.size, "red")], **options)
    picture = read_picture(plain)
    assert picture.frame == 0
    assert max(high for _, high in picture.image.getextrema()) < 3  # pyright: ignore


def test_the_first_frame_counts_where_it_shows_something_and_single_pictures_have_none() -> None:
    turned = NOISE.rotate(180)
    picture = read_picture(encoded(turned, "PNG", save_all=True, append_images=[NOISE]))
    assert (picture.frame, picture.image.tobytes()) == (0, turned.tobytes())
    assert read_picture(encoded(Image.new("RGB", (9, 9)), "PNG")).frame is None
    faint = Image.new("RGB", (64, 48), (4, 4, 4))
    faint.paste((9, 9, 9), (0, 0, 20, 20))
    picture = read_picture(encoded(Image.new("RGB", (64, 48)), "PNG", save_all=True, append_images=[faint]))
    assert (picture.frame, picture.image.tobytes()) == (1, faint.tobytes())


def test_pages_of_other_sizes() -> None:
    data = encoded(Image.new("RGB", (20, 10), "white"), "TIFF", save_all=True, append_images=[NOISE])
    picture = read_picture(data)
    assert (picture.frame, picture.size, picture.image.size) == (1, (64, 48), (64, 48))


def photo(kind: str, size: tuple[int, int] = (1200, 800), mode: str = "RGB", **options) -> bytes:
    """Smooth shades from left to right and from top to bottom."""
    across, down = Image.linear_gradient("L").rotate(90), Image.linear_gradient("L")
    image = Image.merge("RGB", (across, down, Image.new("L", across.size, 90))).resize(size)
    return encoded(image.quantize(64) if mode == "P" else image.convert(mode), kind, **options)


@pytest.mark.parametrize(
    ("kind", "mode", "options"),
    [
        ("JPEG", "RGB", {"quality": 95}),
        ("JPEG", "L", {"quality": 95, "progressive": True}),
        ("JPEG2000", "RGB", {}),
        ("PNG", "RGB", {}),
        ("PNG", "RGBA", {}),
        ("PNG", "P", {}),
        ("TIFF", "RGB", {}),
        ("WEBP", "RGB", {"lossless": True}),
    ],
)
@pytest.mark.parametrize("keep_mode", [False, True])
def test_large_pictures_come_reduced_and_others_as_they_are(
    kind: str, mode: str, options: dict, keep_mode: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = photo(kind, mode=mode, **options)
    whole = decode_image(data, keep_mode)
    assert decode_image(data, keep_mode, wanted=16).tobytes() == whole.tobytes()  # below the limit nothing changes
    monkeypatch.setattr(large_pictures, "LARGE_PIXELS", 500_000)
    picture = read_picture(data, keep_mode, wanted=16)
    assert picture.size == (1200, 800)
    assert 64 <= min(picture.image.size) <= 200
    small = [np.asarray(image.convert("RGB").resize((24, 16)), int) for image in (whole, picture.image)]
    assert np.abs(small[0] - small[1]).max() <= 4
    assert read_picture(data, keep_mode).image.tobytes() == whole.tobytes()


def test_a_large_photo_is_turned_upright(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(large_pictures, "LARGE_PIXELS", 500_000)
    exif = Image.Exif()
    exif[0x112] = 6
    picture = read_picture(photo("JPEG", exif=exif), wanted=16)
    assert (picture.size, picture.image.size) == ((800, 1200), (100, 150))


def test_photos_of_phones_over_the_limit_are_read_where_a_small_side_is_wanted() -> None:
    data = encoded(Image.new("L", (12_000, 9_000), 128), "JPEG", quality=30)
    picture = read_picture(data, wanted=224)
    assert (picture.size, picture.image.size) == ((12_000, 9_000), (1_500, 1_125))
    assert picture.image.getpixel((700, 500)) == (128, 128, 128)
    with pytest.raises(ImageError) as caught:
        decode_image(data)
    assert str(caught.value) == (
        f"12000 x 9000 is over the limit of {MAX_PIXELS:,} pixels: "
        "make it smaller, or raise the limit with --max-pixels 108000000 (or CODEBRUSH_MAX_PIXELS=108000000)"
    )


def test_the_limit_can_be_set(monkeypatch: pytest.MonkeyPatch) -> None:
    data = photo("PNG")
    with pytest.raises(ImageError, match="limit of 900,000 pixels"):
        decode_image(data, max_pixels=900_000)
    monkeypatch.setenv("CODEBRUSH_MAX_PIXELS", "959999")
    for wanted in (None, 16):
        with pytest.raises(ImageError, match=r"CODEBRUSH_MAX_PIXELS=960000"):
            decode_image(data, wanted=wanted)
    monkeypatch.setenv("CODEBRUSH_MAX_PIXELS", "960000")
    assert decode_image(data).size == (1200, 800)
    for wrong in ("many", "-1", "0", "1e8"):
        monkeypatch.setenv("CODEBRUSH_MAX_PIXELS", wrong)
        with pytest.raises(UsageError, match=f'CODEBRUSH_MAX_PIXELS is "{wrong}"'):
            decode_image(data)


def tagged(**more: object) -> Image.Exif:
    exif = Image.Exif()
    exif[0x112] = 6
    for tag, value in more.items():
        exif[int(tag[1:])] = value
    return exif


def long_orientation() -> bytes:
    block = bytearray(tagged().tobytes())
    place = block.find(b"\x01\x12", 6)
    block[place + 2 : place + 4] = b"\x00\x04"  # the type of a long number, with a short one in its place
    return bytes(block)


@pytest.mark.parametrize(
    "options",
    [
        {"exif": tagged()},
        {"exif": tagged(t282=TiffImagePlugin.IFDRational(1, 0))},
        {"exif": tagged(t37510=b"x" * 20).tobytes()[:-3]},
        {"exif": long_orientation()},
        {"exif": tagged(), "xmp": b"<x:xmpmeta>caf\xe9</x:xmpmeta>"},
    ],
    ids=["plain", "zero", "cut", "long", "xmp"],
)
def test_orientation_counts_beside_broken_tags(options: dict) -> None:
    upright = Image.new("RGB", (240, 160), "white")
    ImageDraw.Draw(upright).rectangle((0, 0, 240, 40), fill="red")
    stored = upright.transpose(Image.Transpose.ROTATE_90)
    decoded = decode_image(encoded(stored, "JPEG", quality=95, **options))
    assert decoded.size == (240, 160)
    assert np.abs(np.asarray(decoded, int) - np.asarray(upright, int)).mean() < 2
    assert decode_image(decoded).size == (240, 160)  # not turned twice


def test_pipes_sockets_and_devices_are_no_files(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "s.png"))
        found: list[str] = []

        def read() -> None:
            for path in (tmp_path / "pipe.png", tmp_path / "s.png", "/dev/zero"):
                with pytest.raises(ImageError, match="not a file") as caught:
                    decode_image(path)
                found.append(str(caught.value))

        thread = threading.Thread(target=read, daemon=True)  # a pipe that is waited for must not stop the tests
        thread.start()
        thread.join(20)
    assert len(found) == 3
    assert found[0].startswith(f"{tmp_path / 'pipe.png'}: ")


def test_a_file_without_a_byte_is_called_empty(tmp_path: Path):
    (tmp_path / "a.png").write_bytes(b"")
    with pytest.raises(ImageError, match=r"a\.png: the file is empty"):
        decode_image(tmp_path / "a.png")
