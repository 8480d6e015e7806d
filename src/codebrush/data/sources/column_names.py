"""The names under which columns of captions, pictures, row names and addresses are looked for, the likeliest first."""

CAPTION_COLUMNS = ("captions", "caption", "text", "txt", "texts", "prompt", "sentence", "description")
PATH_COLUMNS = (
    "file_name",
    "image",
    "image_path",
    "path",
    "file",
    "filename",
    "filepath",
    "img",
)  # pictures
NAME_COLUMNS = ("file_name", "image", "path", "id", "__key__", "key")  # how a row is called in messages

# of a list of addresses to download
URL_COLUMNS = ("url", "URL", "image_url", "link", "uri")
URL_CAPTION_COLUMNS = ("caption", "text", "TEXT", "alt", "alt_text", "title")
