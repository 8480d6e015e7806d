"""Chooses the frame of an animation, or the page of a file of several, by which the file is judged.

Animations often fade in from black or start transparent. The frame is the first one that is not of one colour.
"""

from PIL import Image

from codebrush.data.decoding.large_pictures import MAX_REDUCED_PIXELS, check_pixels
from codebrush.data.decoding.transparency import contrast, flattened, opacity
from codebrush.errors import ImageError

WITH_FRAMES = ("GIF", "PNG", "WEBP", "TIFF", "AVIF")  # the other formats hold sizes, layers or views of one picture
MAX_FRAMES = 256  # that are looked at
FAINT = 16  # levels of 255: a frame whose pixels differ by less counts as one colour while another shows more


def choose_frame(image: Image.Image, max_pixels: int | None = None) -> int | None:
    """Bring an opened file to the frame to judge it by and load it. Returns its number; None for a single picture.

    If no frame shows more than a faint difference, it is the one with the largest, and the first if all are plain.
    """
    image.load()
    if image.format not in WITH_FRAMES or not _is_animated(image):
        return None
    best, most = 0, _shown(image)
    number, pixels = 0, image.width * image.height
    while most < FAINT and number + 1 < MAX_FRAMES and pixels < MAX_REDUCED_PIXELS:
        number += 1
        try:
            image.seek(number)
            check_pixels(image, max_pixels=max_pixels)
            image.load()
        except MemoryError:
            raise
        except (EOFError, ImageError):
            break
        except Exception:  # a damaged frame makes the decoders raise nearly anything; what came before it counts
            break
        pixels += image.width * image.height
        if (shown := _shown(image)) > most:
            best, most = number, shown
    if image.tell() != best:
        image.seek(best)
        image.load()
    return best


def _is_animated(image: Image.Image) -> bool:
    try:
        return getattr(image, "n_frames", 1) > 1
    except MemoryError:
        raise
    except Exception:  # counting reads on in a file that may be damaged there
        return False


def _shown(image: Image.Image) -> int:
    """How much a frame shows, 0 to 255; of a deep one only whether it is of one colour."""
    if image.mode.startswith(("I", "F")):
        return 255 if contrast(image) else 0
    alpha = opacity(image)
    return max(contrast(flattened(image)), 0 if alpha is None else contrast(alpha))
