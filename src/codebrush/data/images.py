"""Reads picture files, converts pictures and tensors, and writes PNG files with a manifest of how they were made.

Decoding trusts no file: whatever is wrong with it is one `ImageError` with the reason. Only a lack of memory, which is
not the file's fault, stays a MemoryError.
"""

import io
import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps, PngImagePlugin, UnidentifiedImageError

from codebrush.errors import ImageError
from codebrush.files import atomic_file, write_errors

MAX_PIXELS = 89_478_485  # a quarter of a gigabyte as RGB; above it Pillow warns
WITH_PROFILE = ("RGB", "RGBA", "P")  # modes whose colour profile is also right after conversion to RGB
Image.init()  # Image.open(formats=...) knows loaded plug-ins only
WANTED_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "ICO", "PPM", "JPEG2000")
FORMATS = tuple(name for name in WANTED_FORMATS if name in Image.OPEN)  # AVIF is missing in some builds
EXTENSIONS = frozenset(
    (".png", ".jpg", ".jpeg", ".jfif", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".ico", ".ppm")
)
MANIFEST_KEY = "codebrush"
Picture = Image.Image | str | Path  # a picture in memory, or its file

# What Pillow warns of (many pixels, odd metadata) is refused or handled below. Set once for the whole process, because
# pictures are decoded in threads, where warnings.catch_warnings has no effect.
for _category in (UserWarning, RuntimeWarning):
    warnings.filterwarnings("ignore", category=_category, module=r"PIL\.")


def decode_image(source: bytes | str | Path | Image.Image, keep_mode: bool = False) -> Image.Image:
    """Read a picture from bytes, a path or a Pillow image as RGB, upright, with transparency over white.

    Of an animation the first frame is taken. Palette, grey, CMYK, 16-bit and float pictures are converted; with
    `keep_mode` those of up to 8 bits a channel keep their mode, palette and transparency.

    Raises:
        ImageError: if the picture is missing, damaged, of a format not in `FORMATS`, or has more than `MAX_PIXELS`
            pixels. Names the file if there is one.
    """
    if isinstance(source, str | Path):
        try:
            return _decode_stream(Path(source), keep_mode)
        except ImageError as error:
            raise ImageError(f"{source}: {error}") from error
    return _decode_stream(io.BytesIO(source) if isinstance(source, bytes) else source, keep_mode)


def picture_list(pictures: Picture | Sequence[Picture]) -> list[Picture]:
    """`pictures` as a list, also when a single one is given."""
    return [pictures] if isinstance(pictures, Image.Image | str | Path) else list(pictures)


def _decode_stream(source: io.BytesIO | Path | Image.Image, keep_mode: bool) -> Image.Image:
    try:
        if isinstance(source, Image.Image):
            return _loaded(source, keep_mode)
        with Image.open(source, formats=FORMATS) as image:
            return _loaded(image, keep_mode)
    except (ImageError, MemoryError):
        raise
    except UnidentifiedImageError:
        raise ImageError(f"not a picture of a known kind ({', '.join(FORMATS)})") from None
    except FileNotFoundError:
        raise ImageError("no such file") from None
    except Image.DecompressionBombError:
        raise ImageError(f"over the limit of {MAX_PIXELS:,} pixels") from None
    except Exception as error:  # damaged files make the decoders raise nearly anything
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise ImageError(f"cannot be decoded: {' '.join(reason.split())}") from error


def _loaded(image: Image.Image, keep_mode: bool) -> Image.Image:
    if image.width * image.height > MAX_PIXELS:
        raise ImageError(f"{image.width} x {image.height} is over the limit of {MAX_PIXELS:,} pixels")
    image.load()
    image = _upright(image)
    if image.mode.startswith(("I", "F")):
        return _deep_to_rgb(image)
    if keep_mode:
        return image.copy()
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB") if image.mode != "RGB" else image.copy()


def _upright(image: Image.Image) -> Image.Image:
    """The picture rotated by its EXIF orientation; a damaged EXIF block is ignored."""
    try:
        return ImageOps.exif_transpose(image)
    except MemoryError:
        raise
    except Exception:  # the block is free-form bytes, and its parser raises nearly anything
        return image


def _deep_to_rgb(image: Image.Image) -> Image.Image:
    """Convert 16-bit integers (0 to 65535) and floats (0 to 1) to 8 bits; of other ranges white is unknown."""
    values = np.asarray(image, dtype=np.float64)  # (H, W)
    white = 1.0 if image.mode.startswith("F") else 65535.0
    if not np.isfinite(values).all() or values.min() < 0 or values.max() > white:
        raise ImageError(f"mode {image.mode} with values beyond 0 to {white:g}; save it with 8 bits a channel")
    grey = np.rint(values * (255.0 / white)).astype(np.uint8)
    return Image.fromarray(grey).convert("RGB")


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


def read_manifest(path: str | Path) -> dict[str, Any]:
    """Read the manifest that `save_png` wrote into a picture.

    Raises:
        ImageError: if the file cannot be read or has no manifest.
    """
    try:
        with Image.open(path, formats=("PNG",)) as image:
            text = getattr(image, "text", {}).get(MANIFEST_KEY)
    except UnidentifiedImageError:
        raise ImageError(f"{path}: not a PNG, so it cannot say how it was made") from None
    except Exception as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ImageError(f"{path}: cannot be read: {' '.join(reason.split())}") from error
    if text is None:
        raise ImageError(f"{path}: does not say how it was made (no {MANIFEST_KEY} text in it)")
    try:
        manifest = json.loads(text)
    except ValueError:
        manifest = None
    if not isinstance(manifest, dict):
        raise ImageError(f"{path}: its {MANIFEST_KEY} text is damaged")
    return manifest
