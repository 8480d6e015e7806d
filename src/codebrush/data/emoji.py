"""Draws the emoji of an installed colour font, with their names, as a folder that `open_source` reads.

The names are those of the `emoji` package, which follow Unicode's.
"""

import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from codebrush.data.fonts import FONT_FOLDERS
from codebrush.data.sources.metadata import write_metadata
from codebrush.errors import DataError, UsageError
from codebrush.files import atomic_folder, from_home
from codebrush.progress import Progress

FONT_NAMES = ("NotoColorEmoji*.ttf", "Apple Color Emoji.ttc", "seguiemj.ttf", "*[Ee]moji*.[ot]t[fc]")
FONT_SIZES = (109, 160, 136, 128, 96, 64)  # a bitmap font has one size only: Noto's first, then Apple's
REMEDY = "install one (on Debian and Ubuntu: apt-get install fonts-noto-color-emoji) or name one with --font"
SKIN_TONES = {
    "\U0001f3fb": "light",
    "\U0001f3fc": "medium-light",
    "\U0001f3fd": "medium",
    "\U0001f3fe": "medium-dark",
    "\U0001f3ff": "dark",
}
VARIATION = "\ufe0f"  # selects the coloured form; left out of file names
UNASSIGNED = "\U0010fffd"  # in no font, so it is drawn as a missing emoji is


@dataclass(frozen=True)
class Emoji:
    """One emoji: its characters, English label and hexcode (lower case, no variation selector).

    `concept` is the hexcode without skin tones; `skin_tone` is None, a tone, or several joined by +.
    """

    text: str
    label: str
    hexcode: str
    concept: str
    skin_tone: str | None


def write_emoji(
    folder: str | Path,
    size: int = 128,
    font: str | Path | None = None,
    limit: int | None = None,
    progress: Progress | None = None,
) -> int:
    """Draw every emoji that the font has, `size` pixels square over white, into a new folder.

    Without `font` an installed one is looked for. `limit` stops after that many pictures. Returns how many were
    written: emoji that the font lacks, draws empty or draws as several glyphs are left out.

    Raises:
        UsageError: if `size` is below 8 or `limit` below 1.
        DataError: if there is no colour-emoji font, or the folder exists and is not empty.
        CodebrushError: if the folder cannot be written.
    """
    if size < 8 or (limit is not None and limit < 1):
        raise UsageError("an emoji needs a size of at least 8 pixels and a limit of at least 1")
    path = Path(from_home(font)) if font is not None else find_font()
    emoji_font = EmojiFont(path)
    wanted = list(known_emoji())
    rows = []
    with atomic_folder(folder) as part:
        (part / "images").mkdir()
        for done, each in enumerate(wanted, start=1):
            picture = emoji_font.draw(each.text)
            if picture is not None:
                name = f"images/{each.hexcode}.png"
                picture.resize((size, size), Image.Resampling.LANCZOS).save(part / name)
                facts = {key: value for key, value in asdict(each).items() if key != "text"}
                rows.append({"file_name": name, **facts, "font": path.stem})
            if progress is not None:
                progress(done, len(wanted))
            if limit is not None and len(rows) == limit:
                break
        write_metadata(part, rows)
    return len(rows)


def find_font(folders: Iterable[str] = FONT_FOLDERS) -> Path:
    """The first installed colour-emoji font.

    Raises:
        DataError: if there is none; says how to install one.
    """
    places = [Path(os.path.expanduser(folder)) for folder in folders]
    for pattern in FONT_NAMES:
        for place in places:
            found = sorted(place.rglob(pattern)) if place.is_dir() else []
            if found:
                return found[0]
    raise DataError(f"no colour-emoji font found; {REMEDY}")


def known_emoji() -> Iterator[Emoji]:
    """Every fully-qualified emoji of Unicode, in the order of the hexcodes."""
    from emoji import EMOJI_DATA, STATUS

    found = []
    for text, facts in EMOJI_DATA.items():
        if facts["status"] != STATUS["fully_qualified"]:
            continue
        tones = [SKIN_TONES[character] for character in text if character in SKIN_TONES]
        bare = "".join(character for character in text if character not in SKIN_TONES)
        label = _label(text, facts["en"])
        found.append(Emoji(text, label, _hexcode(text), _hexcode(bare), "+".join(tones) or None))
    return iter(sorted(found, key=lambda each: each.hexcode))


def _hexcode(text: str) -> str:
    return "-".join(f"{ord(character):x}" for character in text if character != VARIATION)


def _label(text: str, name: str) -> str:
    """ ":waving_hand_dark_skin_tone:" as "waving hand: dark skin tone"; a country's name as "flag: ..."."""
    words = name.strip(":").replace("_", " ")
    words = re.sub(r" ((?:medium-)?(?:light|dark)|medium) skin tone", r", \1 skin tone", words)
    words = words.replace(", ", ": ", 1) if "skin tone" in words else words
    return f"flag: {words}" if all("\U0001f1e6" <= character <= "\U0001f1ff" for character in text) else words


class EmojiFont:
    """Draws single emoji with one font, in squares of one size."""

    def __init__(self, path: Path):
        self.font = _open_font(path)
        left, top, right, bottom = self.font.getbbox("\U0001f600")  # a plain face fills the square
        self.side = round(max(right - left, bottom - top))
        self.offset = ((self.side - right - left) / 2, (self.side - bottom - top) / 2)
        self.missing = self._ink(UNASSIGNED)
        face = self.draw("\U0001f600")
        if face is None or np.ptp(np.asarray(face, dtype=np.int16), axis=-1).max() < 32:
            raise DataError(f"{path}: draws no coloured emoji; {REMEDY}")

    def draw(self, text: str) -> Image.Image | None:
        """The emoji over white; None if the font lacks it or draws several glyphs side by side."""
        if self.font.getlength(text) > 1.5 * self.side:
            return None
        ink = self._ink(text)
        if ink.getchannel("A").getbbox() is None or ink == self.missing:
            return None
        white = Image.new("RGBA", ink.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, ink).convert("RGB")

    def _ink(self, text: str) -> Image.Image:
        canvas = Image.new("RGBA", (self.side, self.side), (255, 255, 255, 0))
        ImageDraw.Draw(canvas).text(self.offset, text, font=self.font, fill="black", embedded_color=True)
        return canvas


def _open_font(path: Path) -> ImageFont.FreeTypeFont:
    reason = "not a font"
    for size in FONT_SIZES:
        try:
            return ImageFont.truetype(str(path), size)
        except OSError as error:
            reason = str(error)
    raise DataError(f"{path}: cannot be used as a font ({reason}); {REMEDY}")
