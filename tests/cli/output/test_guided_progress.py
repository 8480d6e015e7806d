"""Pictures drawn with characters, and the progress of a guided run on a terminal and in a pipe."""

import io
import re
import time
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from rich.console import Console

from codebrush.cli.output.guided_progress import PICTURE_COLUMNS, PICTURE_ROWS, small_pictures, step_display
from codebrush.cli.output.printing import progress_bar
from codebrush.generation.guided.guidance import Step


class DrawnStep(Step):
    """A step with fixed pictures (B, 3, 16, 16), red above and blue below."""

    def images(self) -> torch.Tensor:
        images = torch.zeros(len(self.pictures), 3, 16, 16)
        images[:, 0, :8] = 1
        images[:, 2, 8:] = 1
        return images


def step(number: int, shown: bool = False, pictures: range = range(1), events: tuple[str, ...] = ()) -> Step:
    losses = {"loss": 1 / number, "similarity": 0.25}
    return DrawnStep(number, 40, pictures, losses, shown, events, guidance=None)  # pyright: ignore[reportArgumentType]


def terminal(width: int = 80, **settings: object) -> Console:
    settings = {"force_terminal": True, "color_system": "truecolor", "no_color": False, **settings}
    return Console(file=io.StringIO(), width=width, _environ={}, legacy_windows=False, **settings)


def written(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def drawn_rows(pictures: list[Image.Image], columns: int = 80) -> list[str]:
    """Lines of characters without their colours."""
    console = terminal(columns)
    console.print(small_pictures(pictures, columns), end="")
    return re.sub(r"\x1b\[[\d;]*m", "", written(console)).removesuffix("\n").split("\n")


def test_a_picture_is_drawn_in_its_colours() -> None:
    picture = Image.new("RGB", (2, 2), (250, 10, 20))
    picture.paste((1, 2, 3), (0, 1, 2, 2))
    console = terminal()
    console.print(small_pictures([picture], 80), end="")
    assert written(console) == "\x1b[38;2;1;2;3;48;2;250;10;20m▄\x1b[0m" * 2 + "\n"


@pytest.mark.parametrize(
    ("size", "across", "down"),
    [
        ((64, 64), 32, 16),
        ((1000, 500), 32, 8),
        ((200, 4000), 2, PICTURE_ROWS),
        ((20, 7), 20, 4),
        ((1, 1), 1, 1),
        ((5000, 1), 32, 1),
    ],
)
def test_a_picture_is_small_and_keeps_its_shape(size: tuple[int, int], across: int, down: int) -> None:
    rows = drawn_rows([Image.new("RGB", size, "red")])
    assert {len(row) for row in rows} == {across}
    assert len(rows) == down
    assert across <= PICTURE_COLUMNS


def test_as_many_pictures_stand_side_by_side_as_fit() -> None:
    pictures = [Image.new("RGB", (64, 64), "red")] * 5
    assert len(drawn_rows(pictures[:2])[0]) == 32 + 1 + 32
    assert len(drawn_rows(pictures)[0]) == 32 + 1 + 32
    assert len(drawn_rows(pictures, 1000)[0]) == 5 * 33 - 1
    assert len(drawn_rows(pictures, 20)[0]) == 20


def test_a_pipe_gets_a_plain_line_at_each_step_that_is_kept() -> None:
    console = Console(file=io.StringIO(), width=20, _environ={})
    with step_display(1, console) as show:
        for number in range(1, 5):
            show(step(number, shown=number % 2 == 0, events=("memory ran out",) if number == 3 else ()))
    lines = written(console).splitlines()
    assert len(lines) == 3
    figures = r"loss 0\.500  similarity 0\.250  \d+\.\d+ steps/s"
    assert re.fullmatch(rf"step 2/40  {figures}", lines[0])
    assert lines[1] == "step 3: memory ran out"
    assert lines[2].startswith("step 4/40  loss 0.250  ")


def test_the_rate_counts_only_the_steps_of_this_process() -> None:
    console = Console(file=io.StringIO(), _environ={})
    with step_display(1, console) as show:
        show(step(30, shown=True))
        time.sleep(0.1)
        show(step(31, shown=True))
    first, second = written(console).splitlines()
    assert first == "step 30/40  loss 0.033  similarity 0.250"
    assert 0 < float(second.split()[-2]) <= 10  # one step in a tenth of a second, not 31


def test_batches_are_numbered() -> None:
    console = Console(file=io.StringIO(), _environ={})
    with step_display(3, console) as show:
        show(step(40, shown=True, pictures=range(2)))
        show(step(40, shown=True, pictures=range(2, 3)))
    assert [line.split("  ")[0] for line in written(console).splitlines()] == ["picture 1-2 of 3", "picture 3 of 3"]


def test_a_terminal_gets_a_bar_and_pictures() -> None:
    console = terminal()
    with step_display(1, console) as show:
        show(step(1))
        show(step(2, shown=True))
        assert written(console).count("▄") == 16 * 8
        assert "38;2;0;0;255" in written(console)
        show.bar.refresh()
    text = re.sub(r"\x1b\[[\d;?]*[a-zA-Z]", "", written(console))
    assert "step 2/40  loss 0.500  similarity 0.250" in text
    assert re.search(r"guiding .* 2/40 loss 0\.500 .* \d:\d\d:\d\d", text)


@pytest.mark.parametrize("settings", [{"no_color": True}, {"color_system": None}])
def test_a_terminal_without_colours_gets_no_pictures(settings: dict[str, object]) -> None:
    console = terminal(**settings)
    with step_display(1, console) as show:
        show(step(2, shown=True))
    assert "step 2/40" in written(console)
    assert "▄" not in written(console)


@pytest.mark.parametrize(
    ("rate", "said"),
    [
        (1.0, "codebrush: drawing takes about 100 seconds more\n"),
        (0.1, "codebrush: drawing takes about 17 minutes more\n"),
        (8.0, ""),
    ],
)
def test_what_takes_long_is_announced_once(
    rate: float, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = iter(range(1000))
    monkeypatch.setattr("codebrush.cli.output.printing.time", SimpleNamespace(monotonic=lambda: float(next(clock))))
    with progress_bar("drawing") as progress:
        for second in range(90):
            progress(round(10 * rate * second), 1030)
    assert capsys.readouterr().err == said
