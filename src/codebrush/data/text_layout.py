"""Fits text into a width in pixels: breaks it between words into lines, and cuts what is too long."""

from PIL import ImageFont

Font = ImageFont.ImageFont | ImageFont.FreeTypeFont


def wrapped(text: str, font: Font, width: int, most: int | None = None) -> list[str]:
    """Break `text` between words into lines of at most `width` pixels; a longer word is cut by `cut`.

    With `most` there are at most that many lines, of which the last is cut.
    """
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= width or not lines[-1]:
            lines[-1] = longer
        else:
            lines.append(word)
    if most is not None and len(lines) > most:
        lines = [*lines[: most - 1], " ".join(lines[most - 1 :])]
    return [cut(line, font, width) for line in lines]


def cut(line: str, font: Font, width: int) -> str:
    """`line`, or as much of its beginning as fits into `width` pixels with an ellipsis behind it."""
    if font.getlength(line) <= width:
        return line
    while line and font.getlength(line + "...") > width:
        line = line[:-1]
    return line.rstrip() + "..."
