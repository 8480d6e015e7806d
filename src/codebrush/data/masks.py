"""How a mask's file is read, for editing and guidance alike: white is where the picture may change."""

from PIL import Image

from codebrush.data.decoding.images import Picture, decode_image
from codebrush.data.decoding.transparency import BLACK, flattened, opacity
from codebrush.errors import ImageError

LEAST_WHITE = 128  # the lowest grey level of a mask that counts as white


def mask_layer(mask: Picture) -> Image.Image:
    """A mask as grey levels (mode L); its transparent pixels count as black, so that paint on a clear layer is a mask.

    Raises:
        ImageError: if it cannot be read.
    """
    return flattened(decode_image(mask, keep_mode=True), BLACK).convert("L")


def white_where_clear(mask: Image.Image) -> Image.Image:
    """A mask as OpenAI's API has them, transparent where the picture changes, as one that is white there (mode L).

    Half-transparent pixels count as what they are nearer to.

    Raises:
        ImageError: if it has no transparency.
    """
    alpha = opacity(mask)
    if alpha is None:
        raise ImageError("the mask has no transparency: make the part that is to change transparent")
    return alpha.point([255 if level < LEAST_WHITE else 0 for level in range(256)])
