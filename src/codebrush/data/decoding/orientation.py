"""Turns photos upright by the orientation that their EXIF block states, also where the rest of the block is broken."""

from PIL import ExifTags, Image, ImageOps

ORIENTATION = ExifTags.Base.Orientation
SHORT, LONG = 3, 4  # types of values in EXIF
METHODS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
METADATA = ("exif", "Raw profile type exif", "XML:com.adobe.xmp", "xmp")  # where an orientation may stand


def upright(image: Image.Image) -> Image.Image:
    """A copy of a picture, turned by its EXIF orientation; a damaged EXIF block without one is ignored."""
    try:
        stated, turned = image.getexif().get(ORIENTATION), ImageOps.exif_transpose(image)
    except MemoryError:
        raise
    except Exception:  # the block is free-form bytes, and its parser raises nearly anything
        stated, turned = None, None
    if turned is not None and stated in range(1, 9):
        return turned
    method = METHODS.get(_orientation(image.info.get("exif")))
    if method is None:
        return image.copy() if turned is None else turned
    turned = image.transpose(method)
    for key in METADATA:  # it would be turned again
        turned.info.pop(key, None)
    return turned


def _orientation(block: object) -> int:
    """The orientation in the bytes of an EXIF block, 1 to 8, read without regard to its other tags; 1 without one."""
    if not isinstance(block, bytes):
        return 1
    block = block.removeprefix(b"Exif\x00\x00")
    order = "little" if block[:2] == b"II" else "big"
    first = int.from_bytes(block[4:8], order)
    for number in range(int.from_bytes(block[first : first + 2], order)):
        entry = block[first + 2 + 12 * number : first + 14 + 12 * number]
        if len(entry) == 12 and int.from_bytes(entry[:2], order) == ORIENTATION:
            # Some programs write a short number and call it a long one.
            kind, short = int.from_bytes(entry[2:4], order), int.from_bytes(entry[8:10], order)
            value = int.from_bytes(entry[8:12], order) if kind == LONG else short
            value = value if value in range(1, 9) else short
            return value if kind in (SHORT, LONG) and value in range(1, 9) else 1
    return 1
