"""Reads picture files, converts pictures and tensors, and writes PNG files with a manifest of how they were made.

Decoding trusts no file: whatever is wrong with it is one `ImageError` with the reason. Only a lack of memory, which is
not the file's fault, stays a MemoryError.
"""

import io
import json
import stat
import struct
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol, TypeGuard, cast

import numpy as np
import torch
from PIL import Image, PngImagePlugin, UnidentifiedImageError

from codebrush.data.decoding.deep_pictures import check_deep_colours, deep_to_grey, has_deep_colours, is_deep
from codebrush.data.decoding.frames import choose_frame
from codebrush.data.decoding.large_pictures import (
    MAX_PIXELS,
    ONE_LARGE_AT_A_TIME,
    check_pixels,
    is_large,
    reduce_while_decoding,
    reduced,
    reduction,
)
from codebrush.data.decoding.orientation import upright
from codebrush.data.decoding.photo_formats import is_raw, open_heic, open_raw, refusal
from codebrush.data.decoding.picture_formats import FORMATS, HEAD, READ, picture_format, readable_format, unread_kind
from codebrush.data.decoding.transparency import flattened
from codebrush.errors import CodebrushError, ImageError
from codebrush.files import atomic_file, write_errors

WITH_PROFILE = ("RGB", "RGBA", "P")  # modes whose colour profile is also right after conversion to RGB
MANIFEST_KEY = "codebrush"
Picture = Image.Image | str | Path  # a picture in memory, or its file


class MadePicture(Protocol):
    """Something with a picture in it, such as a `Result`."""

    @property
    def image(self) -> Image.Image: ...


AnyPicture = Picture | MadePicture  # what a user may give as a picture

# What Pillow warns of (many pixels, odd metadata) is refused or handled below. Set once for the whole process, because
# pictures are decoded in threads, where warnings.catch_warnings has no effect.
for _category in (UserWarning, RuntimeWarning):
    warnings.filterwarnings("ignore", category=_category, module=r"PIL\.")


@dataclass(frozen=True)
class ReadPicture:
    """A decoded picture.

    `size` is the width and height of the whole picture, upright, of which `image` may be a reduced copy. `frame` is the
    number of the frame or page that was read, from 0; None if the file holds a single picture.
    """

    image: Image.Image
    size: tuple[int, int]
    frame: int | None = None


def decode_image(
    source: bytes | str | Path | Image.Image,
    keep_mode: bool = False,
    wanted: int | None = None,
    max_pixels: int | None = None,
) -> Image.Image:
    """Read a picture from bytes, a path or a Pillow image as RGB, upright, with transparency over white.

    Of animations and files of several pages the first frame is taken that is not of one colour. Palette, grey, CMYK,
    16-bit and float pictures are converted; with `keep_mode` those of up to 8 bits a channel keep their mode, palette
    and transparency. If the shorter side needs only `wanted` pixels, files of more than 16 megapixels (`LARGE_PIXELS`)
    come reduced, with at least four times that side; smaller ones are the same with and without it.

    Raises:
        ImageError: if the picture is missing, damaged, of a format that is not read, or has more pixels than the limit
            of `check_pixels`. Names the file if there is one.
    """
    return read_picture(source, keep_mode, wanted, max_pixels).image


def read_picture(
    source: bytes | str | Path | Image.Image,
    keep_mode: bool = False,
    wanted: int | None = None,
    max_pixels: int | None = None,
) -> ReadPicture:
    """Like `decode_image`, with the size of the whole picture and the frame that was read."""
    if isinstance(source, str | Path):
        try:
            with open_file(source) as stream:
                return _read_stream(stream, keep_mode, wanted, max_pixels)
        except ImageError as error:
            raise ImageError(f"{source}: {error}") from error
    return _read_stream(io.BytesIO(source) if isinstance(source, bytes) else source, keep_mode, wanted, max_pixels)


def open_file(path: str | Path) -> BinaryIO:
    """Open a picture's file; what is no file is not waited for.

    Raises:
        ImageError: if there is none, it is a folder, pipe, socket or device, or it cannot be opened.
    """
    try:
        mode = Path(path).stat().st_mode
        if stat.S_ISDIR(mode):
            raise ImageError("a directory, not a file")
        if not stat.S_ISREG(mode):
            raise ImageError("not a file but a pipe, a socket or a device")
        return Path(path).open("rb")
    except FileNotFoundError:
        raise ImageError("no such file") from None
    except (OSError, ValueError) as error:
        raise ImageError(f"cannot be read: {getattr(error, 'strerror', None) or error}") from error


def format_of(picture: bytes) -> str:
    """The format of a picture file by its content, such as "JPEG"; of camera RAW "RAW", also where it is TIFF.

    Raises:
        ImageError: if it cannot be opened as a picture.
    """
    with _one_error():
        image, photo = _opened(io.BytesIO(picture))
        with image:
            return "RAW" if photo else readable_format(picture[:HEAD]) or image.format or ""


def size_of(picture: bytes) -> tuple[int, int]:
    """Width and height in pixels that a picture file states, without decoding it.

    Raises:
        ImageError: if it cannot be opened as a picture.
    """
    with _one_error():
        image, photo = _opened(io.BytesIO(picture))
        with image:
            return photo or image.size


def picture_list(pictures: AnyPicture | Sequence[AnyPicture]) -> list[Picture]:
    """`pictures` as a list, also when a single one is given; of a `Result` its picture.

    Raises:
        ImageError: if one of them is something else.
    """
    given = pictures if is_several(pictures) else [cast(AnyPicture, pictures)]
    return [picture_of(each) for each in given]


def picture_of(picture: AnyPicture) -> Picture:
    """A picture, its file, or the picture of a `Result`. Raises ImageError if it is something else."""
    if isinstance(picture, Image.Image | str | Path):
        return picture
    image = getattr(picture, "image", None)
    if isinstance(image, Image.Image):
        return image
    raise ImageError(
        f"a picture is a Pillow image, a file's path or a Result, not {type(picture).__name__}: PIL.Image.fromarray "
        "makes one of an array, PIL.Image.open of a file's content"
    )


def is_several(pictures: AnyPicture | Sequence[AnyPicture]) -> TypeGuard[Sequence[AnyPicture]]:
    """Whether a sequence of pictures is given, and not a single one."""
    return isinstance(pictures, Iterable) and not isinstance(pictures, str)


def _read_stream(
    source: BinaryIO | Image.Image, keep_mode: bool, wanted: int | None, max_pixels: int | None
) -> ReadPicture:
    with _one_error():
        if isinstance(source, Image.Image):
            return _decoded(source, keep_mode, None, max_pixels)
        opened, size = _opened(source)
        with opened as image:
            found = _decoded(image, keep_mode, wanted, max_pixels)
        return found if size is None else ReadPicture(found.image, size, found.frame)


@contextmanager
def _one_error() -> Iterator[None]:
    """Turn whatever is wrong with a file into an ImageError with the reason."""
    try:
        yield
    except (CodebrushError, MemoryError):
        raise
    except Image.DecompressionBombError:
        raise ImageError(f"over the limit of {MAX_PIXELS:,} pixels") from None
    except Exception as error:  # damaged files make the decoders raise nearly anything
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise ImageError(f"cannot be decoded: {' '.join(reason.split())}") from error


def _opened(stream: BinaryIO) -> tuple[Image.Image, tuple[int, int] | None]:
    """The picture in a file, not decoded yet; of camera RAW its preview, and the size of the photo."""
    head = stream.read(HEAD)
    if not head:
        raise ImageError("the file is empty")
    name = picture_format(head)
    if name == "HEIC":
        return open_heic(stream), None
    if name == "RAW":
        return open_raw(stream)
    for name in FORMATS:
        # Not through Image.open, whose limit of pixels is one for all formats and the whole process.
        factory, accept = Image.OPEN[name]
        stream.seek(0)
        try:
            if accept is not None and accept(head[:16]) is not True:
                continue
            image = factory(stream, "")
        except (SyntaxError, IndexError, TypeError, struct.error):  # not this format after all
            continue
        return open_raw(stream) if name == "TIFF" and is_raw(image) else (image, None)
    kind = unread_kind(head)
    if kind is not None:
        raise refusal(kind)
    raise ImageError(f"not a picture of a known kind ({', '.join(READ)})")


def _decoded(image: Image.Image, keep_mode: bool, wanted: int | None, max_pixels: int | None) -> ReadPicture:
    factor = reduction(image, wanted)
    check_pixels(image, factor, max_pixels)
    with ONE_LARGE_AT_A_TIME if is_large(image) else nullcontext():
        stated, is_deep_colour = image.size, has_deep_colours(image)
        is_drafted = factor > 1 and reduce_while_decoding(image, factor)
        frame = choose_frame(image, max_pixels)
        width, height = stated if is_drafted else image.size  # pages differ in size
        if is_deep_colour:
            check_deep_colours(image)
        kept = deep_to_grey(image) if is_deep(image) else image
        kept = reduced(kept, reduction(kept, wanted))
        turned = upright(kept)
    if turned.size != kept.size:
        width, height = height, width
    if is_deep(image):
        return ReadPicture(turned.convert("RGB"), (width, height), frame)
    return ReadPicture(turned if keep_mode else flattened(turned), (width, height), frame)


def resize_square(image: Image.Image, size: int) -> Image.Image:
    """Scale the shorter side of `image` to `size` (antialiased bicubic) and crop the centre: size x size pixels.

    The pixel grid is the same as when scaling first and cropping then, as CLIP's published preprocessing does.
    """
    short = min(image.size)
    width, height = (size * side // short for side in image.size)  # of the whole picture after scaling
    left, top = round((width - size) / 2), round((height - size) / 2)
    across, down = image.width / width, image.height / height
    # Resampling this box only: scaled as a whole, a strip of 1 x 80,000,000 pixels would not fit into memory.
    box = (left * across, top * down, (left + size) * across, (top + size) * down)
    return image.resize((size, size), Image.Resampling.BICUBIC, box=box)


def to_tensor(image: Image.Image) -> torch.Tensor:
    """Convert a picture to (3, H, W) float32 in [0, 1], RGB."""
    pixels = torch.from_numpy(np.array(image.convert("RGB")))  # (H, W, 3) uint8
    return pixels.permute(2, 0, 1).float().div_(255)  # (3, H, W)


def stack(images: Sequence[Image.Image], size: int) -> torch.Tensor:
    """Resize pictures with `resize_square` and stack them: (B, 3, size, size) float32 in [0, 1]."""
    return torch.stack([to_tensor(resize_square(image, size)) for image in images])


def to_pil(image: torch.Tensor) -> Image.Image:
    """Convert a (3, H, W) tensor to a picture; values outside [0, 1] are clamped."""
    pixels = image.detach().float().clamp(0, 1).mul(255).round().to(torch.uint8)
    return Image.fromarray(pixels.permute(1, 2, 0).cpu().numpy())  # (H, W, 3)


def save_png(image: Image.Image, path: str | Path, manifest: dict[str, Any] | None = None) -> None:
    """Write `image` as a PNG through `atomic_file`, with `manifest` as JSON in the text chunk "codebrush".

    Folders above it are made.

    Raises:
        CodebrushError: if it cannot be written; names the folder.
    """
    path = Path(path)
    info = PngImagePlugin.PngInfo()
    if manifest is not None:
        info.add_itxt(MANIFEST_KEY, json.dumps(manifest, ensure_ascii=False))
    with write_errors(f"pictures in {path.parent}"), atomic_file(path) as part:
        image.save(part, format="PNG", pnginfo=info)


def read_manifest(path: str | Path | BinaryIO) -> dict[str, Any]:
    """Read the manifest that `save_png` wrote into a picture, from its file or an open one.

    Raises:
        ImageError: if the file cannot be read or has no manifest.
    """
    name = path if isinstance(path, str | Path) else "the picture"
    try:
        with Image.open(path, formats=("PNG",)) as image:
            text = getattr(image, "text", {}).get(MANIFEST_KEY)
    except UnidentifiedImageError:
        raise ImageError(f"{name}: not a PNG, so it cannot say how it was made") from None
    except Exception as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ImageError(f"{name}: cannot be read: {' '.join(reason.split())}") from error
    if text is None:
        raise ImageError(f"{name}: does not say how it was made (no {MANIFEST_KEY} text in it)")
    try:
        manifest = json.loads(text)
    except (ValueError, RecursionError):
        manifest = None
    if not isinstance(manifest, dict):
        raise ImageError(f"{name}: its {MANIFEST_KEY} text is damaged")
    return manifest
