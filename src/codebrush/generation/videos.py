"""Writes pictures as a video file: mp4 (H.264 by PyAV), gif or webp."""

import itertools
import math
from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path

from PIL import Image

from codebrush.data.decoding.transparency import flattened
from codebrush.errors import UsageError
from codebrush.files import atomic_file, write_errors
from codebrush.optional import require

SUFFIXES = (".mp4", ".gif", ".webp")
CRF = "18"  # x264's constant quality: visually close to lossless
WEBP_QUALITY = 90
SHORTEST_GIF_FRAME = 2  # hundredths of a second: browsers show one that is shorter five times as long
BT709 = 1  # the number of this colour space in H.264's tables of matrices, primaries and transfer curves


def video_path(video: str, folder: Path, name: str = "video") -> Path:
    """The file of a `video` that is one of mp4, gif and webp, called `name` in `folder`, or the name of a file."""
    suffix = f".{video.lower().lstrip('.')}"
    return folder / f"{name}{suffix}" if suffix in SUFFIXES else Path(video)


def check_video(path: str | Path) -> None:
    """Check that a video can be written to a file of this name.

    Raises:
        UsageError: if the suffix is not one of `SUFFIXES`.
        CodebrushError: if an .mp4 is asked for and PyAV is not installed.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in SUFFIXES:
        raise UsageError(f"a video's name must end in {', '.join(SUFFIXES)}, not {path}")
    if suffix == ".mp4":
        require("av", "mp4 videos need", ", or choose gif or webp")


def write_video(frames: Iterable[Image.Image], path: str | Path, fps: float = 10) -> None:
    """Write `frames` as a video, whole or not at all: .mp4 (H.264), or .gif and .webp, which repeat forever.

    Every frame is laid over white and resized to the size of the first; for an mp4 that is rounded up to even numbers,
    as its colour subsampling needs. For an mp4 the frames are consumed one by one. The folder is made if it does not
    exist.

    Raises:
        UsageError: if the suffix is unknown, `fps` is not a finite number above 0, or there is no frame.
        CodebrushError: if PyAV is missing or the file cannot be written.
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
    with write_errors(path, other="file"), atomic_file(path.absolute()) as part:
        write(itertools.chain([first], frames), first.size, part, path.suffix.lower(), fps)


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
    rgb = flattened(frame)
    return rgb if rgb.size == size else rgb.resize(size, Image.Resampling.BICUBIC)
