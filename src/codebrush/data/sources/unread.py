"""Counts and names what was met in a source and not read, so that nothing is left out without a word."""

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from codebrush.errors import DataError, without_secrets
from codebrush.warned import warn

NOUNS = frozenset(("file", "folder", "link", "table", "picture", "pipe", "socket", "device", "member", "shard"))
MOST_NAMED = 5  # items that are named one by one for one reason; the others are counted
MOST_REASONS = 10
QUIET = frozenset(
    ("hidden file", "hidden folder", "file of the operating system", "report of codebrush")
)  # in the report, but not worth a line


@dataclass
class Unread:
    """What one source holds that was not read.

    `named` are single items with a reason, `counted` are numbers of items of a kind, like "file of the kind .heic", and
    `notes` tell of what was read in another form than it was written. With `strict` the first item that is named, not
    one that is counted, ends the reading.
    """

    origin: str
    strict: bool = False
    named: list[tuple[str, str]] = field(default_factory=list)
    counted: Counter[str] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)

    def empty(self) -> "Unread":
        """One for the same source without what was noted so far, which may be long, to be sent to another process."""
        return Unread(self.origin, self.strict)

    def name(self, item: str, reason: str) -> None:
        """Name an item that cannot be read.

        Raises:
            DataError: with `strict`.
        """
        self.stop_if_strict(item, reason)
        self.named.append((without_secrets(item), without_secrets(reason)))

    def stop_if_strict(self, item: str, reason: str) -> None:
        """With `strict`, end the reading at an item that cannot be read. Called by itself for pictures that cannot be
        decoded, which commands list as skipped.

        Raises:
            DataError: with `strict`.
        """
        if self.strict:
            raise DataError(f"{item}: {reason}")

    def count(self, kind: str, items: int = 1) -> None:
        """Count items of a kind that is not read; `kind` is in the singular, its first noun takes the plural's s."""
        if items:
            self.counted[without_secrets(kind)] += items

    def note(self, text: str) -> None:
        """Say once how something was read that could have been read in another way."""
        text = without_secrets(text)
        if text not in self.notes:
            self.notes.append(text)

    @property
    def lines(self) -> list[str]:
        """What a command prints of it, a line each, without the name of the program."""
        from codebrush.data.decoding.picture_formats import remedies  # with Pillow, which --help does not need

        lines = first_of_each_reason(self.named)
        kinds = [amount(kind, number) for kind, number in sorted(self.counted.items()) if kind not in QUIET]
        if kinds:
            verb = "was" if sum(n for kind, n in self.counted.items() if kind not in QUIET) == 1 else "were"
            said = [f"{enumeration(kinds)} {verb} not read", *remedies(self.counted)]
            lines.append(f"{self.origin}: {'; '.join(said)}")
        lines += [f"{self.origin}: {note}" for note in self.notes]
        return [without_secrets(line) for line in lines]  # of the origin, which was given as it is

    def warn(self) -> None:
        """Warn of what was not read, a line each."""
        for line in self.lines:
            warn(line)

    @property
    def report(self) -> dict[str, Any]:
        """The same for --json."""
        return {
            "named": [{"path": item, "reason": reason} for item, reason in self.named],
            "counted": dict(sorted(self.counted.items())),
            "notes": list(self.notes),
        }


def first_of_each_reason(named: Iterable[tuple[str, str]]) -> list[str]:
    """A line for each item and why it was not read, but a number in place of all beyond `MOST_NAMED` of one reason.

    Reasons that differ in numbers alone are one; beyond `MOST_REASONS` there is a line for the rest.
    """
    groups: dict[str, list[tuple[str, str]]] = {}
    for item, reason in named:
        groups.setdefault(re.sub(r"\d+", "0", reason), []).append((item, reason))
    lines: list[str] = []
    for items in [*groups.values()][:MOST_REASONS]:
        lines += [f"{item}: {reason}" for item, reason in items[:MOST_NAMED]]
        if len(items) > MOST_NAMED:
            lines.append(f"{len(items) - MOST_NAMED:,} more like the last: {items[MOST_NAMED - 1][1]}")
    rest = sum(len(items) for items in [*groups.values()][MOST_REASONS:])
    return [*lines, f"{rest:,} more for other reasons; --json lists all"] if rest else lines


def amount(kind: str, number: int) -> str:
    """1, "linked folder" -> 1 linked folder; 12, "file of the kind .heic" -> 12 files of the kind .heic."""
    if number == 1:
        return f"1 {kind}"
    words = kind.split()
    place = next((place for place, word in enumerate(words) if word in NOUNS), len(words) - 1)
    words[place] += "s"
    return f"{number:,} {' '.join(words)}".replace(" that is ", " that are ")


def enumeration(parts: list[str]) -> str:
    """a, b and c."""
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
