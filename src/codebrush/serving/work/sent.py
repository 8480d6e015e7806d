"""The pictures that were sent with a job's request, within a limit on all of them together."""

from collections.abc import Sequence

from PIL import Image

from codebrush.data.decoding.images import decode_image, size_of
from codebrush.errors import ImageError
from codebrush.generation.editing.upscaling import UNNAMED
from codebrush.serving.job import Job

TOGETHER = 4  # times the pixels that one may have, for all pictures of a request


def sent_picture(job: Job, name: str, keep_mode: bool = True) -> Image.Image:
    """A picture in the job's folder. Raises ImageError if it is none, or too large."""
    return decode_image(_content(job, name), keep_mode=keep_mode, max_pixels=job.request["max_pixels"])


def sent_pictures(job: Job, names: Sequence[str], keep_mode: bool = True, copies: int = 1) -> list[Image.Image]:
    """Pictures in the job's folder, of each of which `copies` times as many pixels are made.

    Raises:
        ImageError: if one is none or too large, or they have too many pixels together: a file of few kilobytes may
            hold millions.
    """
    _check_together(job, [size_of(_content(job, name)) for name in names], copies)
    pictures: list[Image.Image] = []
    for name in names:
        pictures.append(sent_picture(job, name, keep_mode))
        # counted again: the page of a file that is shown may be larger than the first one, whose size it states
        _check_together(job, [picture.size for picture in pictures], copies)
    return pictures


def _check_together(job: Job, sizes: Sequence[tuple[int, int]], copies: int) -> None:
    most, total = TOGETHER * job.request["max_pixels"], copies * sum(width * height for width, height in sizes)
    if total > most:
        made = "what is made of the pictures has" if copies > 1 else "the pictures have"
        raise ImageError(f"{made} {total:,} pixels together, more than {most:,}: send fewer at a time")


def called(job: Job, name: str) -> str:
    """What the caller calls a picture in the job's folder, if they said it."""
    return job.request.get("names", {}).get(name) or UNNAMED


def called_apart(job: Job, names: Sequence[str]) -> list[str]:
    """What the caller calls each of several pictures; equal names are numbered."""
    found: list[str] = []
    for first in (called(job, name) for name in names):
        text, number = first, 1
        while text in found:
            number += 1
            text = f"{first} ({number})"
        found.append(text)
    return found


def _content(job: Job, name: str) -> bytes:
    return (job.folder / name).read_bytes()
