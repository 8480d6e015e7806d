"""Tables of figures as plain text and as Markdown, and the page that they are written into."""

import re
from dataclasses import dataclass

Cell = str | float | int


@dataclass(frozen=True)
class Table:
    """One table of the plan; `name` is what the page marks its place with."""

    name: str
    title: str
    header: tuple[str, ...]
    rows: list[tuple[Cell, ...]]

    def cells(self) -> list[list[str]]:
        return [[value if isinstance(value, str) else number(value) for value in row] for row in self.rows]

    def text(self) -> str:
        lines = [list(self.header), *self.cells()]
        widths = [max(len(line[column]) for line in lines) for column in range(len(self.header))]
        padded = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in lines]
        return "\n".join([self.title, *(line.rstrip() for line in padded)])

    def markdown(self) -> str:
        lines = [self.header, ["---"] * len(self.header), *self.cells()]
        return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def number(value: float) -> str:
    """Three digits, and commas from a thousand on."""
    if value == 0 or abs(value) >= 99.5:
        return f"{float(f'{value:.3g}'):,.0f}" if abs(value) >= 1000 else f"{value:.0f}"
    return f"{value:.3g}" if abs(value) >= 0.001 else f"{value:.1e}"


def percent(share: float) -> str:
    return f"{share:.1%}" if abs(share) < 0.1 else f"{share:.0%}"


def written(page: str, made: list[Table]) -> str:
    """The page with each table between its marks."""
    for table in made:
        mark, end = f"<!-- table: {table.name} -->", "<!-- end of table -->"
        pattern = re.compile(re.escape(mark) + ".*?" + re.escape(end), re.DOTALL)
        text = f"{mark}\n\n{table.markdown()}\n\n{end}"
        if not pattern.search(page):
            raise SystemExit(f"the page has no place for the table '{table.name}'; add {mark} and {end} to it")
        page = pattern.sub(lambda _, text=text: text, page)
    return page
