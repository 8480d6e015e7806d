"""Pictures in, a video file out; latents in, those between them too; and a camera that moves over pictures."""

import importlib.util
import itertools
import math
import os
from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from codebrush.errors import CodebrushError, UsageError

SUFFIXES = (".mp4", ".gif", ".webp")
CRF = "18"  # x264's constant quality: hardly to be told from the pictures themselves
WEBP_QUALITY = 90
SHORTEST_GIF_FRAME = 2  # hundredths of a second: browsers show one that is shorter five times as long
BT709 = 1  # the number of this colour space in H.264's tables of matrices, primaries and transfer curves
PARALLEL = 1e-6  # below this angle, or this close to opposite, an arc between two vectors has no direction


def check_video(path: str | Path) -> None:
    """UsageError where no video is written under such a name, CodebrushError where what writes it is missing."""
    suffix = Path(path).suffix.lower()
    if suffix not in SUFFIXES:
        raise UsageError(f"a video's name must end in {', '.join(SUFFIXES)}, not {path}")
    if suffix == ".mp4" and importlib.util.find_spec("av") is None:
        raise CodebrushError("mp4 videos need PyAV: pip install 'codebrush[video]', or choose gif or webp")


def write_video(frames: Iterable[Image.Image], path: str | Path, fps: float = 10) -> None:
    """Write `frames` as a video, whole or not at all: .mp4 (H.264), or .gif and .webp, which repeat for ever.

    Every frame is brought to the size of the first; in an mp4 that is made even, as its colours need. Frames are
    taken one by one for an mp4. Makes the folder. Raises UsageError for another suffix, a rate that is no number above
    0, or no frame; CodebrushError where PyAV is missing or the file cannot be written.
    """
    path = Path(path)
    check_video(path)
    if not 0 < fps < math.inf:
        raise UsageError(f"fps must be a number above 0, not {fps}")
    frames = iter(frames)
    first = next(frames, None)
    if first is None:
        raise UsageError("a video needs at least one picture")
    write = _write_mp4 if path.suffix.lower() == ".mp4" else _write_with_pillow
    part = path.with_name(f"{path.name}.part").absolute()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            write(itertools.chain([first], frames), first.size, part, path.suffix.lower(), fps)
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)
    except OSError as error:
        reason = error.strerror or str(error)
        raise CodebrushError(f"cannot write {path}: {reason}; free space there or name another file") from error


def _write_with_pillow(frames: Iterator[Image.Image], size: tuple[int, int], part: Path, suffix: str, fps: float):
    sized = (_sized(frame, size) for frame in frames)
    if suffix == ".webp":
        next(sized).save(
            part, "WEBP", save_all=True, append_images=sized, duration=round(1000 / fps), loop=0, quality=WEBP_QUALITY
        )
        return
    hundredths = max(SHORTEST_GIF_FRAME, round(100 / fps))
    next(sized).save(part, "GIF", save_all=True, append_images=sized, duration=10 * hundredths, loop=0)


def _write_mp4(frames: Iterator[Image.Image], size: tuple[int, int], part: Path, suffix: str, fps: float) -> None:
    import av
    from av.video.reformatter import ColorRange, Colorspace

    even = (size[0] + size[0] % 2, size[1] + size[1] % 2)
    try:
        # The index at the front lets a browser play the file while it loads.
        with av.open(str(part), "w", format="mp4", options={"movflags": "+faststart"}) as container:
            stream = container.add_stream("libx264", Fraction(fps).limit_denominator(1000), options={"crf": CRF})
            stream.width, stream.height = even
            stream.pix_fmt = "yuv420p"  # the one that every player knows
            context = stream.codec_context
            context.colorspace = context.color_primaries = context.color_trc = BT709
            context.color_range = ColorRange.MPEG
            for frame in frames:
                picture = av.VideoFrame.from_image(_sized(frame, even))
                picture = picture.reformat(format="yuv420p", dst_colorspace=Colorspace.ITU709)
                container.mux(stream.encode(picture))
            container.mux(stream.encode())
    except av.FFmpegError as error:
        raise OSError(error.errno or 0, error.strerror or str(error)) from error


def _sized(frame: Image.Image, size: tuple[int, int]) -> Image.Image:
    rgb = frame.convert("RGB")
    return rgb if rgb.size == size else rgb.resize(size, Image.Resampling.BICUBIC)


def interpolate_latents(latents: Tensor, between: int) -> Tensor:
    """Latents (F, d, h, w) with `between` more from each to the next: (F + (F - 1) * between, d, h, w).

    The vector of a cell turns along the arc to the next one (Shoemake 1985) and its length changes evenly, so that
    none is shorter than those that the decoder knows. The given latents are among the result unchanged.
    """
    if between < 0:
        raise UsageError(f"between must be a whole number from 0, not {between}")
    if not between or len(latents) < 2:
        return latents
    shares = torch.arange(1, between + 1, device=latents.device, dtype=latents.dtype) / (between + 1)
    pairs = itertools.pairwise(latents)
    parts = [torch.cat([a[None], _arc(a, b, shares)]) for a, b in pairs]  # (1 + between, d, h, w) each
    return torch.cat([*parts, latents[-1:]])


def _arc(a: Tensor, b: Tensor, shares: Tensor) -> Tensor:
    """Points at `shares` (S,) of the way from a to b, both (d, h, w), cell by cell: (S, d, h, w)."""
    share = shares[:, None, None, None]
    lengths = a.norm(dim=0, keepdim=True), b.norm(dim=0, keepdim=True)  # (1, h, w)
    unit_a, unit_b = F.normalize(a, dim=0), F.normalize(b, dim=0)
    angle = 2 * torch.atan2((unit_a - unit_b).norm(dim=0), (unit_a + unit_b).norm(dim=0))  # (h, w), exact near 0 and pi
    straight = torch.lerp(a, b, share)  # (S, d, h, w)
    direction = (torch.sin((1 - share) * angle) * unit_a + torch.sin(share * angle) * unit_b) / torch.sin(angle)
    curved = direction * torch.lerp(*lengths, share)
    level = (angle < PARALLEL) | (angle > math.pi - PARALLEL) | (lengths[0][0] == 0) | (lengths[1][0] == 0)
    return torch.where(level, straight, curved)


@torch.no_grad()
def move_camera(images: Tensor, zoom: float = 1.0, pan: tuple[float, float] = (0, 0), roll: float = 0.0) -> Tensor:
    """What a camera sees of images (B, 3, H, W) in [0, 1] once it has moved, of the same shape and range.

    It moves `pan` pixels right and down, turns clockwise by `roll` degrees and comes nearer by the factor `zoom`, so
    that what is seen moves left and up, turns back and grows. Beyond the border its pixels are repeated. One bilinear
    resampling, as a bicubic one would ring at each move; whole pixels are kept as they are.
    """
    height, width = images.shape[-2:]
    cos, sin = math.cos(math.radians(roll)) / zoom, math.sin(math.radians(roll)) / zoom
    affine = [
        [cos, -sin * height / width, 2 * pan[0] / width],
        [sin * width / height, cos, 2 * pan[1] / height],
    ]
    # In double precision, which not every accelerator has, a whole pixel stays a whole pixel in large pictures too.
    pixels = images.double() if images.device.type in ("cpu", "cuda") else images.cpu().double()
    matrix = pixels.new_tensor(affine).expand(len(images), -1, -1)  # (B, 2, 3)
    grid = F.affine_grid(matrix, list(images.shape), align_corners=False)  # (B, H, W, 2)
    moved = F.grid_sample(pixels, grid, mode="bilinear", padding_mode="border", align_corners=False)
    return moved.to(images)
