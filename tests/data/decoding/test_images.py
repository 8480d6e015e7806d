"""Reading any picture file safely, making tensors of pictures, and writing PNGs with a manifest."""

import io
import resource
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, PngImagePlugin

from codebrush.data.decoding.images import (
    MAX_PIXELS,
    decode_image,
    read_manifest,
    resize_square,
    save_png,
    stack,
    to_pil,
    to_tensor,
)
from codebrush.errors import CodebrushError, ImageError


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def quadrants() -> Image.Image:
    """Red, green, blue and black quarters, 8 x 8 each: any rotation or swap of channels shows."""
    image = Image.new("RGB", (16, 16))
    for colour, corner in (("red", (0, 0)), ("lime", (8, 0)), ("blue", (0, 8))):
        image.paste(colour, (*corner, corner[0] + 8, corner[1] + 8))
    return image


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("PNG", {}),
        ("BMP", {}),
        ("TIFF", {}),
        ("PPM", {}),
        ("WEBP", {"lossless": True}),
        ("JPEG2000", {"irreversible": False}),
    ],
)
def test_lossless_kinds_decode_exactly(kind, options):
    decoded = decode_image(encoded(quadrants(), kind, **options))
    assert decoded.mode == "RGB"
    assert np.array_equal(np.asarray(decoded), np.asarray(quadrants()))


@pytest.mark.parametrize("kind", ["JPEG", "GIF", "AVIF"])
def test_other_kinds_decode_closely(kind):
    decoded = decode_image(encoded(quadrants(), kind))
    difference = np.abs(np.asarray(decoded, float) - np.asarray(quadrants(), float))
    assert difference.mean() < 12


@pytest.mark.parametrize(
    "where", ["PIL.ImageFile.ImageFile.load", "PIL.ImageOps.exif_transpose", "PIL.Image.Image.copy"]
)
def test_a_lack_of_memory_is_no_image_error(monkeypatch, where):
    def poor(*_, **__):
        raise MemoryError

    file = encoded(quadrants(), "PNG")
    monkeypatch.setattr(where, poor)
    with pytest.raises(MemoryError):
        decode_image(file)


def test_path_and_pillow_image_decode_like_bytes(tmp_path):
    path = tmp_path / "a.png"
    quadrants().save(path)
    for source in (path, str(path), path.read_bytes(), quadrants()):
        assert decode_image(source).tobytes() == quadrants().tobytes()


def test_decoding_a_pillow_image_gives_a_copy():
    original = quadrants()
    decode_image(original).putpixel((0, 0), (1, 2, 3))
    assert original.getpixel((0, 0)) == (255, 0, 0)


def palette_with_transparency() -> bytes:
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.putpixel((1, 0), 1)
    return encoded(image, "PNG", transparency=1)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (encoded(Image.new("RGBA", (2, 2), (255, 0, 0, 0)), "PNG"), (255, 255, 255)),
        (encoded(Image.new("RGBA", (2, 2), (255, 0, 0, 128)), "PNG"), (255, 127, 127)),
        (encoded(Image.new("RGBA", (2, 2), (255, 0, 0, 0)), "WEBP", lossless=True), (255, 255, 255)),
        (encoded(Image.new("LA", (2, 2), (0, 128)), "PNG"), (127, 127, 127)),
        (encoded(Image.new("RGB", (2, 2), (9, 8, 7)), "PNG", transparency=(9, 8, 7)), (255, 255, 255)),
        (encoded(Image.new("L", (2, 2), 77), "PNG"), (77, 77, 77)),
        (encoded(Image.new("1", (2, 2), 1), "PNG"), (255, 255, 255)),
        (palette_with_transparency(), (255, 0, 0)),
    ],
)
def test_transparency_and_grey(data, expected):
    assert decode_image(data).getpixel((0, 0)) == expected


def test_transparent_palette_entry_goes_over_white():
    assert decode_image(palette_with_transparency()).getpixel((1, 0)) == (255, 255, 255)


def test_cmyk_jpeg():
    magenta = Image.new("CMYK", (16, 16), (0, 255, 0, 0))
    red, green, blue = decode_image(encoded(magenta, "JPEG", quality=95)).getpixel((8, 8))
    assert red > 240
    assert green < 15
    assert blue > 240


@pytest.mark.parametrize(("kind", "order"), [("PNG", "<u2"), ("TIFF", "<u2"), ("TIFF", ">u2")])
def test_sixteen_bit_grey_keeps_its_shades(kind, order):
    values = np.array([[0, 257 * 100, 32768, 65535]], dtype=order)
    decoded = decode_image(encoded(Image.fromarray(values), kind))
    assert [decoded.getpixel((x, 0))[0] for x in range(4)] == [0, 100, 128, 255]


def test_float_tiff_is_read_as_zero_to_one():
    values = np.array([[0, 0.5, 1]], dtype=np.float32)
    assert np.asarray(decode_image(encoded(Image.fromarray(values), "TIFF")))[0, :, 0].tolist() == [0, 128, 255]


@pytest.mark.parametrize(
    "values",
    [np.array([[0, 300.0]], np.float32), np.array([[np.nan, 1]], np.float32), np.array([[0, 1 << 20]], np.int32)],
)
def test_deep_pictures_of_unknown_range_are_refused(values):
    with pytest.raises(ImageError, match="8 bits"):
        decode_image(encoded(Image.fromarray(values), "TIFF"))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_undone(orientation):
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_270,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_90,
    }
    # As cameras do: store the picture rotated, with the orientation that undoes it.
    inverse = {6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}
    stored = quadrants()
    if orientation in undo:
        stored = stored.transpose(inverse.get(orientation, undo[orientation]))
    exif = Image.Exif()
    exif[0x0112] = orientation
    decoded = decode_image(encoded(stored, "PNG", exif=exif))
    assert decoded.tobytes() == quadrants().tobytes()


def damaged_exif() -> bytes:
    return encoded(quadrants(), "JPEG", exif=b"Exif\x00\x00II*\x00\xff\xff\xff\x7f" + b"\xff" * 30)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_damaged_exif_is_ignored():
    assert decode_image(damaged_exif()).size == (16, 16)


def test_odd_files_leave_stderr_alone(tmp_path):
    (tmp_path / "exif.jpg").write_bytes(damaged_exif())
    (tmp_path / "many.png").write_bytes(png_claiming(10_000, 10_000))
    program = """
import sys
from codebrush.data.decoding.images import decode_image
for path in sys.argv[1:]:
    try:
        decode_image(path)
    except Exception as error:
        print(error)
"""
    paths = [str(tmp_path / name) for name in ("exif.jpg", "many.png")]
    run = subprocess.run([sys.executable, "-c", program, *paths], capture_output=True, text=True, check=True)
    assert run.stderr == ""
    assert run.stdout.count("\n") == 1


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP"])
def test_animation_gives_its_first_frame(kind):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    assert decode_image(data).getpixel((4, 4)) == (255, 0, 0)


def png_claiming(width: int, height: int) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(b"\0" * 100)), (b"IEND", b""))
    body = b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + body


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize(("width", "height"), [(10_000, 10_000), (30_000, 30_000)])
def test_too_many_pixels_are_refused_by_the_header_alone(width, height):
    with pytest.raises(ImageError, match=f"limit of {MAX_PIXELS:,} pixels"):
        decode_image(png_claiming(width, height))


def text_bomb() -> bytes:
    info = PngImagePlugin.PngInfo()
    info.add_text("Comment", "a" * 3_000_000, zip=True)
    return encoded(Image.new("RGB", (2, 2)), "PNG", pnginfo=info)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: b"", "the file is empty"),
        (lambda: b"GIF89a", "not a picture|cannot be decoded"),
        (lambda: b"just words, not a picture", "not a picture"),
        (lambda: b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not a picture"),
        # Pillow would give this one to Ghostscript, which executes it.
        (lambda: encoded(Image.new("RGB", (8, 8)), "EPS"), "not a picture"),
        (lambda: encoded(quadrants(), "PNG")[:60], "cannot be decoded"),
        (lambda: encoded(Image.effect_noise((64, 64), 90), "JPEG")[:900], "truncated"),
        (lambda: encoded(Image.effect_noise((64, 64), 90), "WEBP")[:900], "cannot be decoded|not a picture"),
        (lambda: encoded(quadrants(), "PNG").replace(b"IDAT", b"IDAX"), "not a picture"),
        (text_bomb, "cannot be decoded"),
    ],
)
def test_bad_files_are_refused_with_one_line(make, reason):
    with pytest.raises(ImageError, match=reason) as caught:
        decode_image(make())
    assert "\n" not in str(caught.value)


def test_path_errors_name_the_file(tmp_path):
    (tmp_path / "words.png").write_text("words")
    for path, reason in ((tmp_path / "gone.png", "no such file"), (tmp_path / "words.png", "not a picture")):
        with pytest.raises(ImageError, match=reason) as caught:
            decode_image(path)
        assert str(caught.value).startswith(str(path))
    with pytest.raises(ImageError, match="directory"):
        decode_image(tmp_path)


@pytest.mark.parametrize("size", [(100, 63), (63, 100), (32, 32), (7, 20), (331, 500)])
def test_resize_square_is_scale_then_crop(size):
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    image = Image.fromarray(noise)
    short = min(size)
    whole = image.resize((32 * size[0] // short, 32 * size[1] // short), Image.Resampling.BICUBIC)
    left, top = round((whole.width - 32) / 2), round((whole.height - 32) / 2)
    expected = whole.crop((left, top, left + 32, top + 32))
    difference = np.asarray(resize_square(image, 32), int) - np.asarray(expected, int)
    assert np.abs(difference).max() <= 1


def test_resize_square_of_a_long_strip_stays_small():
    strip = resize_square(Image.new("RGB", (1, 5_000_000), "red"), 64)
    assert strip.size == (64, 64)
    assert strip.getpixel((32, 32)) == (255, 0, 0)


def test_tensor_and_back():
    tensor = to_tensor(quadrants())
    assert tensor.shape == (3, 16, 16)
    assert tensor.dtype == torch.float32
    assert tensor[:, 0, 0].tolist() == [1, 0, 0]
    assert tensor[:, 0, 15].tolist() == [0, 1, 0]
    assert to_pil(tensor).tobytes() == quadrants().tobytes()


def test_to_pil_clamps():
    pixels = torch.tensor([-0.5, 0.5, 1.5]).reshape(3, 1, 1).requires_grad_()
    assert to_pil(pixels).getpixel((0, 0)) == (0, 128, 255)


def test_stack_brings_all_to_one_size():
    batch = stack([Image.new("RGB", (9, 5)), Image.new("RGB", (40, 80)), quadrants()], 12)
    assert batch.shape == (3, 3, 12, 12)


def test_manifest_comes_back(tmp_path):
    manifest = {"prompt": "a café ☕ at night", "seed": 3, "cfg": 2.5, "rows": list(range(1000))}
    path = tmp_path / "new" / "a.png"
    save_png(quadrants(), path, manifest)
    assert read_manifest(path) == manifest
    assert read_manifest(str(path)) == manifest
    assert decode_image(path).tobytes() == quadrants().tobytes()
    assert [file.name for file in path.parent.iterdir()] == ["a.png"]


def test_pictures_that_cannot_say_how_they_were_made(tmp_path):
    save_png(quadrants(), tmp_path / "plain.png")
    quadrants().save(tmp_path / "a.jpg")
    for name, text in (("broken.png", "{"), ("list.png", "[1]")):
        info = PngImagePlugin.PngInfo()
        info.add_itxt("codebrush", text)
        quadrants().save(tmp_path / name, pnginfo=info)
    for name, reason in (
        ("plain.png", "does not say"),
        ("a.jpg", "not a PNG"),
        ("gone.png", "No such file"),
        ("broken.png", "damaged"),
        ("list.png", "damaged"),
    ):
        with pytest.raises(ImageError, match=reason) as caught:
            read_manifest(tmp_path / name)
        assert name in str(caught.value)


def test_unwritable_folder_is_named(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(CodebrushError, match=f"cannot write pictures in {tmp_path / 'file'}"):
        save_png(quadrants(), tmp_path / "file" / "a.png")


def test_full_disk_leaves_the_old_picture(tmp_path: Path):
    path = tmp_path / "a.png"
    save_png(quadrants(), path)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))  # a longer file fails as on a full disk
    try:
        with pytest.raises(CodebrushError, match=f"cannot write pictures in {tmp_path}"):
            save_png(Image.effect_noise((200, 200), 90), path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert decode_image(path).tobytes() == quadrants().tobytes()
    assert [file.name for file in tmp_path.iterdir()] == ["a.png"]
