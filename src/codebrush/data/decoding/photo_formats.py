"""Reads HEIC photos with pillow-heif, and camera RAW by the preview that the camera stored in it, with rawpy.

Both packages are the optional extra "photos".
"""

from io import BytesIO
from typing import Any, BinaryIO, NamedTuple

from PIL import Image, JpegImagePlugin

from codebrush.data.decoding.picture_formats import Kind
from codebrush.errors import ImageError
from codebrush.optional import require

DNG_VERSION, SUBFILE, PHOTOMETRIC, SUB_IFDS = 50706, 254, 262, 330  # tags of TIFF
SENSOR = (32803, 34892)  # values of the tag PhotometricInterpretation: a colour filter array, and linear RAW
REDUCED_SIZE = 1  # a bit of the tag NewSubfileType
TURNS = {3: Image.Transpose.ROTATE_180, 5: Image.Transpose.ROTATE_90, 6: Image.Transpose.ROTATE_270}


class Preview(NamedTuple):
    """The preview in a camera's RAW file, and the size (width, height) of the photo itself, upright."""

    image: Image.Image
    size: tuple[int, int]


def refusal(kind: Kind) -> ImageError:
    """The error for a kind of file that is recognised and not read."""
    return ImageError(f"not a picture that is read here ({kind.name} file): {kind.remedy}")


def open_heic(stream: BinaryIO) -> Image.Image:
    """Open a HEIC photo without decoding it. Raises ImageError without pillow-heif."""
    require("pillow_heif", "a HEIC photo needs", error=ImageError)
    from pillow_heif import HeifImageFile

    return HeifImageFile(stream)


def is_raw(image: Image.Image) -> bool:
    """Whether an opened TIFF file is a camera's RAW file: a DNG, or one that starts with a preview of its sensor."""
    tags: Any = getattr(image, "tag_v2", {})
    is_preview = SUB_IFDS in tags and bool(int(tags.get(SUBFILE, 0)) & REDUCED_SIZE)
    return DNG_VERSION in tags or tags.get(PHOTOMETRIC) in SENSOR or is_preview


def open_raw(stream: BinaryIO) -> Preview:
    """The preview of a camera's RAW file. Raises ImageError without rawpy, or if it cannot read the preview."""
    require("rawpy", "a camera RAW needs", ", or export it as JPEG", error=ImageError)
    import rawpy

    stream.seek(0)
    try:
        with rawpy.imread(stream) as raw:
            preview, sizes = raw.extract_thumb(), raw.sizes
    except (rawpy.LibRawNoThumbnailError, rawpy.LibRawUnsupportedThumbnailError):  # pyright: ignore
        raise ImageError("this camera RAW holds no preview: export it as JPEG") from None
    except rawpy.LibRawError:  # pyright: ignore  # says little, and in bytes
        raise ImageError("a damaged camera RAW, or of a camera that rawpy does not know: export it as JPEG") from None
    size = (sizes.height, sizes.width) if sizes.flip in (5, 6) else (sizes.width, sizes.height)
    if isinstance(preview.data, bytes):  # a JPEG file, else pixels
        return Preview(JpegImagePlugin.JpegImageFile(BytesIO(preview.data)), size)
    image = Image.fromarray(preview.data)
    return Preview(image if sizes.flip not in TURNS else image.transpose(TURNS[sizes.flip]), size)
