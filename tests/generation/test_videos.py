"""Videos are read back as they were written: frames, sizes, rates and colours."""

import sys
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image, ImageSequence

from codebrush.errors import CodebrushError, UsageError
from codebrush.generation.videos import write_video

COLOURS = [(255, 0, 0), (0, 200, 0), (20, 40, 250), (250, 220, 10), (128, 128, 128), (255, 255, 255), (0, 0, 0)]


def plain_frames(size: tuple[int, int] = (48, 32)) -> list[Image.Image]:
    return [Image.new("RGB", size, colour) for colour in COLOURS]


def mean_colours(frames: list[Image.Image]) -> np.ndarray:
    return np.array([np.asarray(frame.convert("RGB"), dtype=float).mean((0, 1)) for frame in frames])


def read_mp4(path: Path) -> tuple[list[Image.Image], float]:
    with av.open(str(path)) as container:
        (stream,) = container.streams
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        return [frame.to_image() for frame in container.decode(stream)], float(stream.average_rate)


def test_an_mp4_has_the_frames_their_size_rate_and_colours(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a:b %d.MP4"
    write_video(iter(plain_frames()), path, fps=12.5)
    frames, rate = read_mp4(path)
    assert (len(frames), rate) == (len(COLOURS), 12.5)
    assert {frame.size for frame in frames} == {(48, 32)}
    assert np.abs(mean_colours(frames) - COLOURS).max() < 4
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_an_mp4_is_even_and_of_the_first_frames_size(tmp_path: Path) -> None:
    write_video([Image.new("RGB", size) for size in ((33, 17), (64, 64), (2, 90))], tmp_path / "x.mp4")
    frames, rate = read_mp4(tmp_path / "x.mp4")
    assert [frame.size for frame in frames] == [(34, 18)] * 3
    assert rate == 10


@pytest.mark.parametrize(("name", "off"), [("x.gif", 1), ("x.webp", 4)])
def test_pillow_reads_back_what_it_wrote(name: str, off: float, tmp_path: Path) -> None:
    frames = [*plain_frames((33, 17)), Image.new("L", (50, 50), 77)]
    write_video(iter(frames), tmp_path / name, fps=8)
    with Image.open(tmp_path / name) as video:
        read = [frame.copy() for frame in ImageSequence.Iterator(video)]
        assert (video.format, video.info["loop"]) == (name[2:].upper(), 0)
        assert video.info["duration"] in (120, 125)  # a gif counts hundredths
    assert [frame.size for frame in read] == [(33, 17)] * len(frames)
    assert np.abs(mean_colours(read) - [*COLOURS, (77, 77, 77)]).max() <= off
    assert [file.name for file in tmp_path.iterdir()] == [name]


def test_a_fast_gif_keeps_a_length_that_browsers_show(tmp_path: Path) -> None:
    write_video(plain_frames(), tmp_path / "x.gif", fps=100)
    with Image.open(tmp_path / "x.gif") as video:
        assert video.info["duration"] == 20


@pytest.mark.parametrize("name", ["x.mp4", "x.gif", "x.webp"])
def test_what_cannot_be_written_is_one_line_and_leaves_what_was_there(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_text("before")
    with pytest.raises(UsageError, match="at least one picture"):
        write_video([], path)
    with pytest.raises(UsageError, match="fps must be"):
        write_video(plain_frames(), path, fps=float("nan"))

    def failing() -> Iterator[Image.Image]:
        yield from plain_frames()
        raise OSError(28, "No space left on device")

    with pytest.raises(CodebrushError, match=rf"cannot write .*{name}: No space left on device; free space"):
        write_video(failing(), path)
    with pytest.raises(CodebrushError, match="cannot write"):
        write_video(plain_frames(), path / name)  # below a file
    assert path.read_text() == "before"
    assert [file.name for file in tmp_path.iterdir()] == [name]


def test_another_suffix_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"must end in \.mp4, \.gif, \.webp, not .*x\.avi"):
        write_video(plain_frames(), tmp_path / "x.avi")


def test_without_pyav_an_mp4_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(CodebrushError, match=r'pip install "codebrush\[video\]"'):
        write_video(plain_frames(), tmp_path / "x.mp4")
    write_video(plain_frames(), tmp_path / "x.gif")
