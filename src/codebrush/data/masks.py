"""How a mask's file is read, for editing and guidance alike: white is where the picture may change."""

from PIL import Image

from codebrush.data.decoding.images import Picture, decode_image
from codebrush.data.decoding.transparency import BLACK, flattened

LEAST_WHITE = 128  # the lowest grey level of a mask that counts as white


def mask_layer(mask: Picture) -> Image.Image:
    """A mask as grey levels (mode L); its transparent pixels count as black, so that paint on a clear layer is a mask.

    Raises:
        ImageError: if it cannot be read.
    """
    return flattened(decode_image(mask, keep_mode=True), BLACK).convert("L")
