"""Keeps Gradio to files that were uploaded, or that the page put beside uploads.

Gradio takes any object with a path or an address in it, wherever it stands in what an event is sent or answers, for a
file to read, copy, decode or fetch. What is sent is looked at before Gradio sees it; what is answered may have come
from a picture's manifest, and is checked where Gradio would take the file.
"""

import os
from functools import wraps
from typing import Any

from gradio.blocks import Block
from gradio.exceptions import InvalidPathError
from gradio.utils import get_upload_folder


def is_upload(path: str) -> bool:
    """Whether a path, wherever links lead it, is that of a file among the uploads."""
    folder = os.path.join(os.path.realpath(get_upload_folder()), "")
    return "\0" not in path and os.path.realpath(path).startswith(folder)


def names_other_file(value: Any) -> bool:
    """Whether somewhere in a JSON value there is a file that is no upload, or one that is written into its address,
    which Gradio would decode by itself."""
    waiting = [value]
    while waiting:
        each = waiting.pop()
        if isinstance(each, dict):
            path, address = each.get("path"), each.get("url")
            if isinstance(path, str) and not is_upload(path):
                return True
            if isinstance(address, str) and (not isinstance(path, str) or address.strip().lower().startswith("data:")):
                return True
            waiting += each.values()
        elif isinstance(each, list):
            waiting += each
    return False


def keep_to_uploads() -> None:
    """From now on Gradio takes no other file in this process, and fetches none."""
    at_once, later = Block.move_resource_to_block_cache, Block.async_move_resource_to_block_cache
    if hasattr(at_once, "__wrapped__"):
        return

    @wraps(at_once)
    def move(self: Block, url_or_file_path: Any) -> str | None:
        return at_once(self, _checked(url_or_file_path))

    @wraps(later)
    async def async_move(self: Block, url_or_file_path: Any) -> str | None:
        return await later(self, _checked(url_or_file_path))

    Block.move_resource_to_block_cache = move
    Block.async_move_resource_to_block_cache = async_move


def _checked(path: Any) -> Any:
    if path is not None and not is_upload(str(path)):
        raise InvalidPathError("this file was not uploaded")
    return path
