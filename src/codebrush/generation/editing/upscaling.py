"""A picture and an upscaler in, the picture two or four times as large out: in tiles, and with its transparency.

A network of scale 2 serves both sizes, going twice for the larger; what one of scale 4 makes is reduced by half for the
smaller. Tiles are cut out with all around them that the network looks at, so that no seam has to be blended: the
picture is the one that the network would make in one piece, but for rounding.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from codebrush.data.images import MAX_PIXELS, WITH_PROFILE, read_manifest, to_pil, to_tensor
from codebrush.errors import ImageError, PackError, UsageError
from codebrush.generation.manifest import damaged, torch_threads, versions
from codebrush.generation.result import Result
from codebrush.models.upscaler import Upscaler, reduce
from codebrush.pack.pack import Pack
from codebrush.progress import Progress

SCALES = (2, 4)
TILE = 192  # pixels a side
MANIFEST_FIELD = "upscaled"


def check_scale(scale: int) -> None:
    """Raises UsageError for a scale that no upscaler goes to."""
    if scale not in SCALES:
        raise UsageError(f"the scale must be {' or '.join(map(str, SCALES))}, not {scale}")


def check_size(width: int, height: int, scale: int) -> None:
    """Raises ImageError for a picture that would become too large to be opened again, or that has no pixels."""
    if not width * height:
        raise ImageError("it has no pixels")
    if width * height * scale**2 > MAX_PIXELS:
        raise ImageError(
            f"{width} x {height} would become {scale * width} x {scale * height}, over the limit of {MAX_PIXELS:,} "
            "pixels: take a smaller picture or scale"
        )


@torch.no_grad()
def upscale_tensor(model: Upscaler, images: Tensor, scale: int) -> Tensor:
    """Images (B, 3, H, W) in [0, 1] -> (B, 3, scale H, scale W), clamped, in one piece."""
    reached = 1
    while reached < scale:
        images = model(images).clamp(0, 1)
        reached *= model.config.scale
    return reduce(images, reached // scale) if reached > scale else images


def margin_of(model: Upscaler, scale: int) -> int:
    """How many pixels around a tile `upscale_tensor` looks at."""
    margin, reached = 0, 1
    while reached < scale:
        margin += -(-model.config.reach // reached)
        reached *= model.config.scale
    return margin + (reached > scale)  # to reduce takes another


def upscale_picture(
    model: Upscaler, picture: Image.Image, scale: int = 2, progress: Progress | None = None, tile: int = TILE
) -> Image.Image:
    """`picture` of any mode -> RGB, or RGBA where it has transparency, `scale` times as wide and high.

    Beside the two pictures themselves no more memory is taken than a `tile` needs. `progress` is called with the tiles
    that are done and all. Raises UsageError for another scale than 2 or 4 and ImageError for a size out of bounds.
    """
    check_scale(scale)
    width, height = picture.size
    check_size(width, height, scale)
    transparent = picture.has_transparency_data
    source = bled(picture.convert("RGBA")) if transparent else picture.convert("RGB")
    large = Image.new(source.mode, (scale * width, scale * height))
    corners = [(left, top) for top in range(0, height, tile) for left in range(0, width, tile)]
    margin = margin_of(model, scale)
    for done, (left, top) in enumerate(corners, 1):
        right, bottom = min(left + tile, width), min(top + tile, height)
        around = (max(0, left - margin), max(0, top - margin), min(width, right + margin), min(height, bottom + margin))
        made = _upscale_tile(model, source.crop(around), scale)
        x, y = scale * (left - around[0]), scale * (top - around[1])
        inside = made.crop((x, y, x + scale * (right - left), y + scale * (bottom - top)))
        large.paste(inside, (scale * left, scale * top))
        if progress is not None:
            progress(done, len(corners))
    if picture.mode in WITH_PROFILE and "icc_profile" in picture.info:
        large.info["icc_profile"] = picture.info["icc_profile"]
    return large


def _upscale_tile(model: Upscaler, tile: Image.Image, scale: int) -> Image.Image:
    device = model.last_layer.device
    colours = to_pil(upscale_tensor(model, to_tensor(tile)[None].to(device), scale)[0])
    if tile.mode != "RGBA":
        return colours
    alpha = tile.getchannel("A")
    lowest, highest = alpha.getextrema()
    if lowest == highest:
        colours.putalpha(int(lowest))  # pyright: ignore[reportArgumentType]
    else:
        opacity = _upscale_alpha(model, to_tensor(alpha)[None].to(device), scale)
        colours.putalpha(to_pil(opacity[0]).getchannel("R"))
    return colours


def _upscale_alpha(model: Upscaler, alpha: Tensor, scale: int) -> Tensor:
    """Opacity as a grey picture (1, 3, H, W) -> (1, 3, scale H, scale W), within the range of what lies around each
    pixel, so that no hole comes into what is opaque and no haze around it."""
    made = upscale_tensor(model, alpha, scale).mean(1, keepdim=True).expand(-1, 3, -1, -1)
    highest = F.max_pool2d(alpha, 3, stride=1, padding=1)
    lowest = -F.max_pool2d(-alpha, 3, stride=1, padding=1)
    low, high = (F.interpolate(bound, scale_factor=scale, mode="nearest") for bound in (lowest, highest))
    return torch.maximum(torch.minimum(made, high), low)


def bled(picture: Image.Image) -> Image.Image:
    """An RGBA picture whose wholly transparent pixels have the colours of what is visible near them.

    What colour they have in the file, mostly black, would otherwise fringe what lies beside them. Colours come down a
    pyramid of ever smaller pictures, each pixel of which is the mean of four, weighed by their opacity.
    """
    pyramid = [picture]
    while max(pyramid[-1].size) > 1:
        pyramid.append(pyramid[-1].reduce(2))
    colours = pyramid[-1].convert("RGB")
    for level in reversed(pyramid[:-1]):
        colours = colours.resize(level.size, Image.Resampling.BILINEAR)
        visible = level.getchannel("A").point(lambda opacity: 255 if opacity else 0)
        colours.paste(level.convert("RGB"), mask=visible)
    colours.putalpha(picture.getchannel("A"))
    return colours


class Enlarger:
    """The upscaler of a pack, on its device, with what manifests say of it."""

    def __init__(self, model: Upscaler, pack: Pack):
        self.model, self.pack = model, pack

    def result(self, result: Result, scale: int) -> Result:
        """A result with its picture `scale` times as large. Score, codes and latent stay those of what was drawn."""
        image = upscale_picture(self.model, result.image, scale)
        return replace(result, image=image, manifest=with_upscaling(result.manifest, self.pack, scale, image.size))

    def results(self, scale: int) -> Callable[[Iterable[Result]], list[Result]]:
        """What enlarges several. Raises UsageError for a scale that no upscaler goes to."""
        check_scale(scale)
        return lambda results: [self.result(result, scale) for result in results]

    def again(self, result: Result, manifest: Mapping[str, Any]) -> Result:
        """A result that was drawn again, enlarged as its `manifest` says, with as many threads."""
        with torch_threads(manifest["threads"]):
            for scale in upscalings(manifest, self.pack):
                result = self.result(result, scale)
        return result


def with_upscaling(manifest: Mapping[str, Any], pack: Pack, scale: int, size: tuple[int, int]) -> dict[str, Any]:
    """The manifest of a picture that was then enlarged to `size` by the upscaler of `pack`."""
    step = {"scale": scale, "pack": pack.name, "upscaler": pack.hash_of("upscaler")}
    done = manifest.get(MANIFEST_FIELD, [])
    if not isinstance(done, list):
        raise damaged(TypeError(f"{MANIFEST_FIELD} is no list"))
    return {**manifest, "size": list(size), MANIFEST_FIELD: [*done, step]}


def enlarged_manifest(path: Path, pack: Pack, scale: int, size: tuple[int, int]) -> dict[str, Any]:
    """The manifest of the picture in a file, enlarged: what the file says of itself, if anything, and what was done."""
    try:
        manifest = read_manifest(path)
    except ImageError:  # it does not say how it was made, or is no PNG
        manifest = {"method": "upscale", "source": path.name, "versions": versions()}
    return with_upscaling(manifest, pack, scale, size)


def as_drawn(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """The manifest of the picture before it was enlarged."""
    return {name: value for name, value in manifest.items() if name != MANIFEST_FIELD}


def upscalings(manifest: Mapping[str, Any], pack: Pack) -> list[int]:
    """The scales by which a manifest's picture was enlarged, one after the other.

    Raises PackError where another upscaler than that of `pack` did it, ImageError where the manifest is damaged.
    """
    try:
        steps = [(step["scale"], str(step["upscaler"])) for step in manifest.get(MANIFEST_FIELD, [])]
        if not all(type(scale) is int and scale in SCALES for scale, _ in steps):
            raise ValueError(f"a scale that is none of {SCALES}")
    except (KeyError, TypeError, ValueError) as error:
        raise damaged(error) from error
    for _, theirs in steps:
        if not pack.has("upscaler") or theirs != pack.hash_of("upscaler"):
            raise PackError(f"enlarged by an upscaler ({theirs[:12]}) that the pack '{pack.name}' does not have")
    return [scale for scale, _ in steps]
