"""Formats are recognised by content; what is recognised and not read is named with its remedy."""

import io
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from codebrush.data.decoding import photo_formats
from codebrush.data.decoding.compression import is_lossy, jpeg2000_levels
from codebrush.data.decoding.images import decode_image, read_picture
from codebrush.data.decoding.picture_formats import (
    EXTENSIONS,
    HEAD,
    READ,
    READS_HEIC,
    READS_RAW,
    readable_format,
    unread_kind,
)
from codebrush.errors import CodebrushError, ImageError
from photo_files import small_dng

NOISE = Image.effect_noise((64, 48), 60).convert("RGB")


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


@pytest.mark.parametrize(
    ("name", "data"),
    [
        *((kind, encoded(NOISE, kind)) for kind in ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")),
        ("ICO", encoded(NOISE, "ICO", sizes=[(64, 48)])),
        *((kind, encoded(NOISE, kind)) for kind in ("PPM", "JPEG2000", "DIB", "QOI")),
        ("JPEG2000", encoded(NOISE, "JPEG2000", no_jp2=True)),
        ("PPM", encoded(NOISE.convert("L"), "PPM")),
        ("PPM", encoded(NOISE.convert("1"), "PPM")),
        ("JPEG", encoded(NOISE, "MPO", save_all=True, append_images=[NOISE.rotate(180)])),
        ("PNG", encoded(NOISE, "PNG", save_all=True, append_images=[NOISE.rotate(180)])),
    ],
)
def test_formats_are_recognised_and_read(name: str, data: bytes, tmp_path: Path) -> None:
    assert name in READ
    assert readable_format(data[:HEAD]) == name
    assert unread_kind(data[:HEAD], ".mp4") is None
    path = tmp_path / "no ending"
    path.write_bytes(data)
    picture = read_picture(path)
    assert (picture.size, picture.image.mode) == ((64, 48), "RGB")
    assert np.asarray(picture.image).std() > 30


def small_psd() -> bytes:
    head = b"8BPS" + struct.pack(">H6xHIIHH", 1, 3, 2, 3, 8, 3) + bytes(12)
    return head + b"\x00\x00" + b"".join(bytes([value] * 6) for value in (200, 100, 50))


def test_a_drawing_of_photoshop_is_read_as_its_composite() -> None:
    assert readable_format(small_psd()) == "PSD"
    assert decode_image(small_psd()).size == (3, 2)
    assert decode_image(small_psd()).getpixel((1, 1)) == (200, 100, 50)


@pytest.mark.parametrize(
    ("head", "ending", "name"),
    [
        (b"\x00\x00\x00\x18ftypisom\x00\x00\x02\x00isomiso2", "", "video"),
        (b"\x00\x00\x00\x14ftypqt  \x00\x00\x02\x00qt  ", "", "video"),
        (b"\x1aE\xdf\xa3", "", "video"),
        (b"\xff\x0a\xfa\x1f", "", "JPEG XL"),
        (b"\x00\x00\x00\x0cJXL \r\n\x87\n", ".png", "JPEG XL"),
        (b"<?xml version='1.0'?>\n<!-- drawn -->\n<svg xmlns='x'>", "", "SVG"),
        (b"%PDF-1.7", ".jpg", "PDF"),
        (b"\n<!DOCTYPE html><html>", ".jpg", "web page"),
        (b"version https://git-lfs.github.com/spec/v1", ".png", "Git LFS pointer"),
        (b"anything", ".TGA", "texture or HDR"),
    ],
)
def test_other_kinds_are_named_with_a_remedy(head: bytes, ending: str, name: str) -> None:
    assert readable_format(head) is None
    kind = unread_kind(head, ending)
    assert kind is not None
    assert kind.name == name
    if ending != ".TGA":
        with pytest.raises(ImageError, match="not a picture that is read here") as caught:
            decode_image(head)
        assert str(caught.value) == f"not a picture that is read here ({kind.name} file): {kind.remedy}"


def test_what_is_unknown_is_nothing() -> None:
    for head in (b"", b"BM, a text", b"P5, a text", b"words", bytes(64)):
        assert readable_format(head) is None
        assert unread_kind(head) is None


@pytest.mark.parametrize("ending", [".jpe", ".jfif", ".mpo", ".jp2", ".j2k", ".pgm", ".pbm", ".pnm", ".dib", ".apng"])
def test_endings_that_cameras_and_downloaders_give(ending: str) -> None:
    assert ending in EXTENSIONS


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (encoded(NOISE, "JPEG"), True),
        (encoded(NOISE, "PNG"), False),
        (encoded(NOISE, "WEBP"), True),
        (encoded(NOISE.convert("RGBA"), "WEBP"), True),
        (encoded(NOISE, "WEBP", lossless=True), False),
        (encoded(NOISE, "WEBP", lossless=True, save_all=True, append_images=[NOISE.rotate(180)]), False),
        (encoded(NOISE, "WEBP", save_all=True, append_images=[NOISE.rotate(180)]), True),
        (encoded(NOISE, "AVIF"), True),
        (encoded(NOISE, "JPEG2000"), False),
        (encoded(NOISE, "JPEG2000", irreversible=True), True),
        (encoded(NOISE, "TIFF"), False),
        (encoded(NOISE, "TIFF", compression="jpeg"), True),
        (b"words", False),
    ],
)
def test_loss_is_told_by_the_content(data: bytes, expected: bool) -> None:
    assert is_lossy(data) == expected


def test_avif_with_the_colours_as_they_are_is_lossless() -> None:
    data = encoded(NOISE, "AVIF")
    place = data.index(b"nclx") + 8
    assert not is_lossy(data[:place] + b"\x00\x00" + data[place + 2 :])


def test_levels_of_jpeg_2000() -> None:
    assert jpeg2000_levels(encoded(NOISE, "JPEG2000", num_resolutions=3)) == 2
    assert jpeg2000_levels(b"words") == 0


def corner() -> Image.Image:
    image = Image.new("RGB", (64, 48), "white")
    image.paste("red", (0, 0, 32, 24))
    return image


def is_red(image: Image.Image, x: int, y: int) -> bool:
    red, green, blue = image.getpixel((x % image.width, y % image.height))  # pyright: ignore
    return red > 240 and green < 20 and blue < 20


@pytest.mark.skipif(not READS_RAW, reason="needs rawpy")
def test_a_camera_raw_that_cannot_be_read_is_refused_in_words() -> None:
    with pytest.raises(ImageError, match=r"^a damaged camera RAW, or of a camera that rawpy does not know: export it"):
        decode_image(b"II*\0\x10\0\0\0CR" + bytes(100))


@pytest.mark.skipif(not READS_RAW, reason="needs rawpy")
@pytest.mark.parametrize(("orientation", "place"), [(1, (5, 5)), (3, (-5, -5)), (6, (-5, 5)), (8, (5, -5))])
def test_camera_raw_gives_its_preview_upright(orientation: int, place: tuple[int, int]) -> None:
    data = small_dng(corner(), orientation)
    assert not is_lossy(data)
    picture = read_picture(data)
    assert picture.size == picture.image.size == ((64, 48) if orientation < 5 else (48, 64))
    places = ((5, 5), (-5, 5), (5, -5), (-5, -5))
    assert [each for each in places if is_red(picture.image, *each)] == [place]


@pytest.mark.skipif(not READS_HEIC, reason="needs pillow-heif")
def test_heic_photos_are_read_and_damaged_ones_refused() -> None:
    import pillow_heif

    file = io.BytesIO()
    pillow_heif.from_pillow(corner()).save(file, quality=95)
    data = file.getvalue()
    assert readable_format(data[:HEAD]) == "HEIC"
    assert is_lossy(data)
    picture = read_picture(data)
    assert picture.size == (64, 48)
    assert is_red(picture.image, 5, 5)
    assert not is_red(picture.image, 50, 40)
    for length in (100, len(data) // 2):
        with pytest.raises(ImageError, match="cannot be decoded"):
            decode_image(data[:length])


@pytest.mark.parametrize(
    ("data", "line"),
    [
        (b"\x00\x00\x00\x18ftypheic\x00\x00\x00\x00mif1heic", 'needs pillow-heif: pip install "codebrush[photos]"'),
        (b"FUJIFILMCCD-RAW 0201", 'needs rawpy: pip install "codebrush[photos]", or export it as JPEG'),
        (small_dng(NOISE, 1), 'needs rawpy: pip install "codebrush[photos]", or export it as JPEG'),
    ],
)
def test_without_their_packages_photos_are_refused_with_the_remedy(
    data: bytes, line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(package: str, what: str, otherwise: str = "", error: type[CodebrushError] = CodebrushError) -> None:
        raise error(f'{what} {package.replace("_", "-")}: pip install "codebrush[photos]"{otherwise}')

    monkeypatch.setattr(photo_formats, "require", missing)
    with pytest.raises(ImageError) as caught:
        decode_image(data)
    assert str(caught.value).endswith(line)
