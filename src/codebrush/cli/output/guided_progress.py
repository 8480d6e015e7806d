"""Shows the progress of a guided run on stderr: a bar and small pictures on a terminal, plain lines elsewhere."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from codebrush.data.decoding.images import to_pil

if TYPE_CHECKING:
    from rich_pixels import Pixels

    from codebrush.generation.guided.guidance import Step

PICTURE_COLUMNS, PICTURE_ROWS = 32, 24  # characters; each shows two pixels, one above the other
RATE_PERIOD = 600.0  # seconds over which the rate is measured: a step of a large picture may take a minute


@contextmanager
def step_display(pictures: int, console: Console | None = None) -> Iterator["StepDisplay"]:
    """A display to be called with each step of a run that makes this many `pictures`; by default on stderr."""
    console = Console(stderr=True) if console is None else console
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[figures]}"),
        TimeRemainingColumn(),
    )
    shown = console.is_terminal
    with Progress(
        *columns, console=console, transient=True, disable=not shown, speed_estimate_period=RATE_PERIOD
    ) as bar:
        yield StepDisplay(bar, pictures)


class StepDisplay:
    """Shows each step on a bar; above it prints the steps that are kept, with their pictures on a colour terminal."""

    def __init__(self, bar: Progress, pictures: int):
        self.bar, self.pictures = bar, pictures
        self.task = bar.add_task("preparing", total=None, figures="")
        self.seen: range | None = None

    def __call__(self, step: "Step") -> None:
        if step.pictures != self.seen:
            self.seen = step.pictures
            self.bar.reset(self.task, total=step.steps, description=self._description(), figures="")
        self.bar.update(self.task, completed=step.step)
        figures = f"loss {step.losses['loss']:.3f}{self._rate()}"
        self.bar.update(self.task, figures=figures)
        for event in step.events:
            self._print(f"step {step.step}: {event}")
        if step.note:
            self._print(f"step {step.step}: {step.note}")
        if step.shown:
            self._show(step)

    def _show(self, step: "Step") -> None:
        console = self.bar.console
        if console.is_terminal and console.color_system and not (console.no_color or console.options.ascii_only):
            pictures = [to_pil(image) for image in step.images()]
            console.print(small_pictures(pictures, console.width), end="")
        of = f"{self._description()}  " if self.pictures > len(step.pictures) else ""
        losses = f"loss {step.losses['loss']:.3f}  similarity {step.losses['similarity']:.3f}"
        self._print(f"{of}step {step.step}/{step.steps}  {losses}{self._rate()}")

    def _description(self) -> str:
        if self.seen is None or self.pictures == len(self.seen):
            return "guiding"
        first, last = self.seen.start + 1, self.seen.stop
        return f"picture {first}{f'-{last}' if last > first else ''} of {self.pictures}"

    def _rate(self) -> str:
        rate = self.bar.tasks[0].speed
        return "" if not rate else f"  {rate:.{1 if rate >= 1 else 2}f} steps/s"

    def _print(self, line: str) -> None:
        self.bar.console.print(Text(line), soft_wrap=True)


def small_pictures(pictures: Sequence[Image.Image], columns: int) -> "Pixels":
    """As many of `pictures`, all of one size, as fit side by side into `columns` characters; at least the first."""
    from rich_pixels import Pixels

    tiles = [picture.convert("RGBA") for picture in pictures]
    for tile in tiles:
        tile.thumbnail((min(PICTURE_COLUMNS, columns), 2 * PICTURE_ROWS))
    width, height = tiles[0].size
    count = max(1, (columns + 1) // (width + 1))
    strip = Image.new("RGBA", (min(count, len(tiles)) * (width + 1) - 1, height + height % 2))  # transparent
    for place, tile in enumerate(tiles[:count]):
        strip.paste(tile, (place * (width + 1), 0))
    return Pixels.from_image(strip)
