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
    """Pictures in the job's folder, of each of which so many `copies` are made.

    Raises:
        ImageError: if one is none or too large, or they have too many pixels together: a file of few kilobytes may
            state millions.
    """
    most = TOGETHER * job.request["max_pixels"]
    total = copies * sum(width * height for width, height in (size_of(_content(job, name)) for name in names))
    if total > most:
        copied = f", each {copies} times," if copies > 1 else ""
        raise ImageError(
            f"the pictures{copied} have {total:,} pixels together, more than {most:,}: send fewer at a time"
        )
    return [sent_picture(job, name, keep_mode) for name in names]


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
