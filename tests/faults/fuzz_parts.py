"""What the targets of fuzzing share: readers of files, a small picture, and values in place of others."""

import io
import json
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

from PIL import Image

from codebrush.data.synthetic.shapes import scene

ROOT = Path(__file__).resolve().parents[1]
Made = tuple[Sequence[bytes], Callable[[bytes], object]]
PIXELS = 4_000_000  # the limit on pictures here: larger ones take time and memory as they may


def in_file(path: Path, read: Callable[[Path], object]) -> Callable[[bytes], object]:
    """A reader of files as one of bytes."""

    def written(data: bytes) -> object:
        path.write_bytes(data)
        return read(path)

    return written


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def png(**options: Any) -> bytes:
    file = io.BytesIO()
    scene(0, 1, 16).image.save(file, "PNG", **options)
    return file.getvalue()


def leaves(value: Any) -> Iterator[tuple[Any, Any]]:
    """Each place in nested lists and objects: what holds it, and its key or index."""
    for key in value if isinstance(value, dict) else range(len(value)):
        yield value, key
        if isinstance(value[key], dict | list):
            yield from leaves(value[key])


ODD: list[Any] = [
    None, True, -1, 0, 1, 2, 1.5, float("nan"), float("inf"), 10**30, "", "x", "../../etc/passwd", "\ud800", [], [1],
    [[]], {}, {"a": 1}, [None] * 3, "1",
]  # fmt: skip


def changed(value: Any, data: bytes) -> Any:
    """A copy of nested values in which some places hold others; the bytes choose them."""
    value, places = json.loads(json.dumps(value)), data[:12]
    for first, second in zip(places[::2], places[1::2], strict=False):
        found = list(leaves(value))
        if not found:
            break
        holder, key = found[(first * 7 + second) % len(found)]
        if second % 11 == 0:
            del holder[key]
        elif second % 11 == 1 and isinstance(holder, dict):
            holder[str(ODD[first % len(ODD)])] = holder.pop(key)
        else:
            holder[key] = deepcopy(ODD[first % len(ODD)])
    return value
