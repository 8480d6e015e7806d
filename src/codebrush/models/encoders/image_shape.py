"""The size of the pictures that an image encoder reads."""

from torch import Tensor


def image_shape(size: int | tuple[int, int]) -> tuple[int, int]:
    """Height and width in pixels of a picture size: the side of a square, or (height, width) already."""
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def check_shape(pixels: Tensor, shape: tuple[int, int]) -> None:
    """Refuse pixels (B, 3, H, W) of another height or width than `shape`.

    Raises:
        ValueError: if H and W are not `shape`.
    """
    # other shapes with as many patches would pass, with the positions of the wrong places
    if pixels.shape[-2:] != shape:
        raise ValueError(f"this image encoder reads {shape[0]} x {shape[1]} pixels, got {tuple(pixels.shape[-2:])}")
