"""Enlarges pictures two or four times with the pack's upscaler: tile by tile, and with their transparency.

A network of scale 2 serves both sizes, and runs twice for the larger; the output of one of scale 4 is reduced by half
for the smaller. A tile is cut out with all the pixels around it that its output depends on, so there are no seams to
blend: the picture is the one that the network would make in one piece, up to rounding.
"""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from codebrush.data.decoding.images import MAX_PIXELS, WITH_PROFILE, read_manifest, to_pil, to_tensor
from codebrush.errors import ImageError, UsageError
from codebrush.generation.manifest import damage_reported, foreign_manifest, read_upscalings, upscaled_manifest
from codebrush.generation.origin import torch_threads
from codebrush.generation.result import Gallery, Result
from codebrush.models.upscaler import Upscaler, reduce
from codebrush.pack.pack import Pack
from codebrush.progress import Progress, parts, shares

SCALES = (2, 4)
TILE = 192  # pixels a side, before enlarging
DRAWN, ENLARGED = 9, 1  # shares of the time: a drawing and its enlargement
UNNAMED = "a picture that was sent"  # what the manifest calls one that came to a server without a name


def check_scale(scale: int) -> None:
    """Raises UsageError if `scale` is not one of SCALES."""
    if isinstance(scale, bool) or scale not in SCALES:
        raise UsageError(f"the scale must be {' or '.join(map(str, SCALES))}, not {scale}")


def check_size(width: int, height: int, scale: int) -> None:
    """Raises ImageError if the picture has no pixels, or would become too large to be opened again."""
    if not width * height:
        raise ImageError("the picture has no pixels")
    if width * height * scale**2 > MAX_PIXELS:
        raise ImageError(
            f"{width} x {height} would become {scale * width} x {scale * height}, over the limit of {MAX_PIXELS:,} "
            "pixels: use a smaller picture or scale"
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
    """How many pixels around a tile the output of `upscale_tensor` depends on."""
    margin, reached = 0, 1
    while reached < scale:
        margin += -(-model.config.reach // reached)
        reached *= model.config.scale
    return margin + (reached > scale)  # reducing reads one more


def upscale_picture(
    model: Upscaler, picture: Image.Image, scale: int = 2, progress: Progress | None = None, tile: int = TILE
) -> Image.Image:
    """`picture`, of any mode, `scale` times as wide and high: RGB, or RGBA if it has transparency.

    Needs memory for the two pictures and one `tile`. `progress` counts tiles.

    Raises:
        UsageError: if `scale` is not one of SCALES.
        ImageError: if the picture is empty, or would become too large.
    """
    check_scale(scale)
    width, height = picture.size
    check_size(width, height, scale)
    transparent = picture.has_transparency_data
    source = fill_transparent(picture.convert("RGBA")) if transparent else picture.convert("RGB")
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
    """Opacity as a grey picture (1, 3, H, W) -> (1, 3, scale H, scale W).

    Values stay within the range of the pixels around them, so that nothing opaque gets a hole or a halo.
    """
    made = upscale_tensor(model, alpha, scale).mean(1, keepdim=True).expand(-1, 3, -1, -1)
    highest = F.max_pool2d(alpha, 3, stride=1, padding=1)
    lowest = -F.max_pool2d(-alpha, 3, stride=1, padding=1)
    low, high = (F.interpolate(bound, scale_factor=scale, mode="nearest") for bound in (lowest, highest))
    return torch.maximum(torch.minimum(made, high), low)


def fill_transparent(picture: Image.Image) -> Image.Image:
    """An RGBA picture whose fully transparent pixels take the colours of the visible ones near them.

    The colours that the file has there, mostly black, would show as a fringe once enlarged. They are filled from a
    pyramid of smaller pictures, each pixel the mean of four, weighted by opacity.
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


class Enlarge(Protocol):
    """A function that enlarges results."""

    def __call__(self, results: Sequence[Result], progress: Progress | None = None) -> list[Result]: ...


def as_drawn(results: Sequence[Result], progress: Progress | None = None) -> list[Result]:
    """The results at the size that they were drawn at."""
    return list(results)


def drawing_before(enlarge: Enlarge, progress: Progress | None) -> tuple[Progress | None, Progress | None]:
    """The progress of what is drawn before `enlarge`, and that of enlarging it."""
    if enlarge is as_drawn:
        return progress, None
    drawing, enlarging = parts(progress, (DRAWN, ENLARGED))
    return drawing, enlarging


def enlarged(
    enlarge: Enlarge, drawn: Sequence[Sequence[Result]], progress: Progress | None = None
) -> list[Gallery[Result]]:
    """What was drawn of each of several prompts or pictures, enlarged."""
    turns = zip(drawn, shares(progress, len(drawn)), strict=True)
    return [Gallery(enlarge(results, share)) for results, share in turns]


class Enlarger:
    """Enlarges results with a pack's upscaler, `model`, and records it in their manifests."""

    def __init__(self, model: Upscaler, pack: Pack):
        self.model, self.pack = model, pack

    def result(self, result: Result, scale: int, progress: Progress | None = None) -> Result:
        """A result with its picture `scale` times as large; score, codes and latent stay those of the drawn one."""
        image = upscale_picture(self.model, result.image, scale, progress)
        return replace(result, image=image, manifest=upscaled_manifest(result.manifest, scale, image.size, self.pack))

    def results(self, scale: int) -> Enlarge:
        """A function that enlarges several results. Raises UsageError if `scale` is not one of SCALES."""
        check_scale(scale)

        def enlarge(results: Sequence[Result], progress: Progress | None = None) -> list[Result]:
            turns = zip(results, shares(progress, len(results)), strict=True)
            return [self.result(result, scale, share) for result, share in turns]

        return enlarge

    def replay(self, result: Result, manifest: Mapping[str, Any], progress: Progress | None = None) -> Result:
        """A result that was drawn again, enlarged as its `manifest` says, with as many threads."""
        scales = read_upscalings(manifest, self.pack, SCALES)
        with torch_threads(manifest["threads"]):
            for scale, share in zip(scales, shares(progress, len(scales)), strict=True):
                result = self.result(result, scale, share)
        return result


def not_replayed(manifest: Mapping[str, Any]) -> ImageError:
    """The error line for a manifest that `file_manifest` made of a file which did not say how it was made.

    Raises:
        ImageError: if the manifest is damaged.
    """
    with damage_reported():
        source, scales = str(manifest["source"]), [step["scale"] for step in manifest["upscaled"]]
        again = ", then of what comes of it with ".join(f"--scale {scale}" for scale in scales)
    if source == UNNAMED:
        remedy = f"enlarge the file that was sent again, codebrush upscale FILE {again}"
    else:
        remedy = f"enlarge that file again, codebrush upscale {shlex.quote(source)} {again}"
    return ImageError(f"enlarged from {source}, which does not say how it was made, so it cannot be replayed: {remedy}")


def file_manifest(path: Path, scale: int, size: tuple[int, int], pack: Pack, name: str | None = None) -> dict[str, Any]:
    """The manifest of the picture in a file, enlarged to `size`: the one in the file, if any, and what was done. `name`
    is what the user calls the file; None: by its own name."""
    try:
        manifest = read_manifest(path)
    except ImageError:  # it does not say how it was made, or is no PNG
        manifest = foreign_manifest(name or path.name)
    return upscaled_manifest(manifest, scale, size, pack)
