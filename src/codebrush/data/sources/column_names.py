"""The names under which columns of captions, pictures, row names and addresses are looked for, the likeliest first."""

from collections.abc import Sequence

CAPTION_COLUMNS = (
    "captions",
    "caption",
    "text",
    "txt",
    "texts",
    "prompt",
    "sentence",
    "description",
    "alt",
    "alt_text",
    "title",
)
# of the files of pictures
PATH_COLUMNS = (
    "file_name",
    "image",
    "image_path",
    "path",
    "file",
    "filename",
    "filepath",
    "img",
    "image_name",
    "image_file",
    "image_filename",
    "img_name",
    "img_path",
    "file_path",
)
NAME_COLUMNS = ("file_name", "image", "path", "id", "__key__", "key")  # how a row is called in messages

# of a list of addresses to download
URL_COLUMNS = ("url", "URL", "image_url", "link", "uri")
URL_CAPTION_COLUMNS = ("caption", "text", "TEXT", "alt", "alt_text", "title")


def usual_columns(names: Sequence[str], columns: Sequence[str]) -> list[str]:
    """Those of `columns` that have one of the usual `names` (see `column_called`), the likeliest first."""
    found = (column_called(name, columns) for name in names)
    return [column for column in found if column is not None]


def column_called(name: str, columns: Sequence[str]) -> str | None:
    """The column of this name, else the first that differs from it in capitals alone, else None."""
    if name in columns:
        return name
    return next((column for column in columns if column.lower() == name.lower()), None)
