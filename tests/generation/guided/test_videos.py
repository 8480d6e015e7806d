"""Videos are read back as they were written, latents between others lie on the arc, and the camera moves exactly."""

import sys
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image, ImageSequence
from torch import Tensor

from codebrush.data.images import to_pil
from codebrush.errors import CodebrushError, UsageError
from codebrush.generation.guided.videos import interpolate_latents, move_camera, write_video

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
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(CodebrushError, match=r"pip install 'codebrush\[video\]'"):
        write_video(plain_frames(), tmp_path / "x.mp4")
    write_video(plain_frames(), tmp_path / "x.gif")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_latents_between_lie_on_the_arc(dtype: torch.dtype) -> None:
    latents = torch.randn(3, 5, 2, 4, dtype=dtype)
    found = interpolate_latents(latents, 3)
    assert found.shape == (9, 5, 2, 4)
    assert torch.equal(found[::4], latents)
    lengths = found.norm(dim=1)  # (9, h, w): evenly from one to the next
    torch.testing.assert_close(lengths[1:4], torch.stack([torch.lerp(*lengths[[0, 4]], t) for t in (0.25, 0.5, 0.75)]))
    steps = torch.nn.functional.cosine_similarity(found[:4], found[1:5], dim=1).clamp(-1, 1).arccos()
    whole = torch.nn.functional.cosine_similarity(latents[0], latents[1], dim=0).arccos()
    torch.testing.assert_close(steps, (whole / 4).expand(4, -1, -1), rtol=1e-3, atol=1e-4)


def test_an_arc_without_a_direction_is_a_line() -> None:
    a = torch.tensor([[1.0, 1.0, 0.0, 2.0], [0.0, 0.0, 0.0, 0.0]])[:, None]  # (2, 1, 4): four cells
    b = torch.tensor([[1.0, -1.0, 3.0, 4.0], [0.0, 0.0, 0.0, 0.0]])[:, None]
    middle = interpolate_latents(torch.stack([a, b]), 1)[1]
    torch.testing.assert_close(middle, torch.tensor([[1.0, 0.0, 1.5, 3.0], [0.0, 0.0, 0.0, 0.0]])[:, None])


def test_nothing_lies_between_nothing() -> None:
    latents = torch.randn(3, 2, 2, 2)
    assert torch.equal(interpolate_latents(latents, 0), latents)
    assert torch.equal(interpolate_latents(latents[:1], 5), latents[:1])
    with pytest.raises(UsageError, match="between must be"):
        interpolate_latents(latents, -1)


@pytest.fixture
def images() -> Tensor:
    return torch.rand(2, 3, 24, 40)


@pytest.mark.parametrize("size", [(24, 40), (7, 5), (600, 1024)])
def test_a_camera_that_does_not_move_sees_the_same(size: tuple[int, int]) -> None:
    images = torch.rand(1, 3, *size)
    torch.testing.assert_close(move_camera(images, 1, (0, 0), 0), images, rtol=0, atol=1e-6)


def test_a_pan_moves_by_whole_pixels_and_repeats_the_border(images: Tensor) -> None:
    moved = move_camera(images, pan=(3, -2))
    assert moved.dtype == torch.float32
    rows, columns = torch.arange(24).sub(2).clamp(0, 23), torch.arange(40).add(3).clamp(0, 39)
    torch.testing.assert_close(moved, images[:, :, rows][:, :, :, columns], rtol=0, atol=1e-6)


def test_a_zoom_of_two_doubles_the_middle() -> None:
    across = torch.linspace(0, 1, 32).expand(1, 3, 32, 32)
    moved = move_camera(across, zoom=2)
    torch.testing.assert_close(moved.diff(dim=-1), across.diff(dim=-1) / 2, rtol=0, atol=1e-6)
    square = torch.zeros(1, 3, 32, 32)
    square[:, :, 12:20, 12:20] = 1
    assert float(move_camera(square, zoom=2).sum()) == pytest.approx(4 * 192)
    assert float(move_camera(square, zoom=0.5).sum()) == pytest.approx(192 / 4)


def test_a_camera_that_turns_clockwise_sees_its_right_below() -> None:
    picture = torch.zeros(1, 3, 20, 30)
    picture[:, :, 13:, 13:17] = 1  # below the middle
    seen = move_camera(picture, roll=90)
    assert float(seen[0, 0, 10, 20]) == pytest.approx(1)  # to the right
    assert float(seen[0, 0, 10, 10]) == pytest.approx(0)
    there = move_camera(seen, roll=-90)
    torch.testing.assert_close(there[..., 2:-2, 7:-7], picture[..., 2:-2, 7:-7], rtol=0, atol=1e-5)


def test_what_the_camera_sees_stays_in_range(images: Tensor) -> None:
    seen = move_camera(images.round(), 1.3, (0.5, 0.25), 20)
    assert seen.min() >= 0
    assert seen.max() <= 1
    assert to_pil(seen[0]).size == (40, 24)
