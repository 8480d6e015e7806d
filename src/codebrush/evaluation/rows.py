"""Reads captioned pictures in batches, skipping those that cannot be read, and embeds pictures, texts and labels."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from PIL import Image
from torch import Tensor

from codebrush.data import text_embedding
from codebrush.data.preprocess import pixels_for
from codebrush.data.sources.caption_templates import Template
from codebrush.data.sources.captioned_images import CaptionedImages
from codebrush.data.sources.filters import is_empty
from codebrush.errors import DataError, ImageError
from codebrush.models.clip import CLIP
from codebrush.progress import Progress
from codebrush.text.tokenizer import Tokenizer

BATCH = 64  # pictures or texts at once, which bounds the memory


@dataclass
class Reading:
    """One pass over `source`: `rows` collects the rows that could be read, `skipped` the others with the reason."""

    source: CaptionedImages
    progress: Progress | None = None
    rows: list[int] = field(default_factory=list)
    skipped: list[dict[str, str]] = field(default_factory=list)

    def batches(self, wanted: int) -> Iterator[list[Image.Image]]:
        """Yield the readable pictures in order, up to `BATCH` at once; of large ones a reduced copy whose shorter side
        has more than `wanted` pixels. Raises DataError if there are none, or at the first other with `strict`.
        """
        total = len(self.source)
        for start in range(0, total, BATCH):
            pictures = []
            for row in range(start, min(start + BATCH, total)):
                try:
                    pictures.append(self.source.image(row, wanted))
                except ImageError as error:
                    name = self.source.name(row)
                    reason = str(error).removeprefix(f"{name}: ")
                    self.source.unread.stop_if_strict(name, reason)
                    self.skipped.append({"path": name, "reason": reason})
                else:
                    self.rows.append(row)
            if pictures:
                yield pictures
            if self.progress is not None:
                self.progress(min(start + BATCH, total), total)
        if not self.rows:
            first = self.skipped[0]
            raise DataError(
                f"{self.source.origin}: none of its {total} pictures can be read; {first['path']}: {first['reason']}"
            )


@torch.no_grad()
def embed_rows(clip: CLIP, reading: Reading) -> Tensor:
    """Unit embeddings (N, E) of the readable pictures, on the CPU; their rows are then in `reading.rows`."""
    device, batches = clip.log_scale.device, reading.batches(max(clip.image_shape))
    return torch.cat([clip.encode_image(pixels_for(clip, some).to(device)).cpu() for some in batches])


@torch.no_grad()
def embed_texts(clip: CLIP, tokenizer: Tokenizer, texts: Sequence[str]) -> Tensor:
    """Unit embeddings (T, E), on the CPU, of texts that are taken literally and truncated if they are too long."""
    return text_embedding.embed_texts(clip, tokenizer, texts, BATCH, on_long="truncate").cpu()


def row_labels(source: CaptionedImages, column: str) -> list[str | None]:
    """The label of each row, from `column`; None if its cell is empty.

    With braces it is a template (see `caption_templates`), such as "{colour} {shape}". If the source has no column of
    the name in braces, captions that read like the template give the labels, which stand where the braces are: the
    label of "a photo of an owl." is "owl" by "a photo of a {label}".

    Raises:
        DataError: if there is no such column, or it holds lists or nothing, or no caption reads like the template.
    """
    if "{" in column:
        return _labels_by_template(source, Template.parse(column))
    known = source.schema.names
    if column not in known:
        raise DataError(f"{source.origin}: no column {column} with labels; the columns are {', '.join(known)}")
    cells = [source.cell(row, column) for row in range(len(source))]
    if any(isinstance(cell, list | dict) for cell in cells):
        raise DataError(
            f"{source.origin}: the column {column} holds several values a row: name a column with one label a row"
        )
    labels = [None if is_empty(cell) else str(cell).strip() for cell in cells]
    if not any(labels):
        raise DataError(f"{source.origin}: the column {column} is empty: name a column with labels")
    return labels


def _labels_by_template(source: CaptionedImages, template: Template) -> list[str | None]:
    known, rows = source.schema.names, range(len(source))
    if set(template.columns) <= set(known):
        filled = [template.fill(lambda column, row=row: source.cell(row, column)) for row in rows]
        labels = [texts[0] if texts else None for texts in filled]
    elif len(template.columns) == 1:
        pattern = _pattern(template)
        found = [next(filter(None, map(pattern.fullmatch, source.captions(row))), None) for row in rows]
        labels = [None if match is None else match[1].strip() for match in found]
    else:
        missing = ", ".join(name for name in template.columns if name not in known)
        raise DataError(f"{source.origin}: no column {missing} for the label; the columns are {', '.join(known)}")
    if not any(labels):
        raise DataError(f'{source.origin}: no caption reads like "{template.text}", and it has no such column')
    return labels


def _pattern(template: Template) -> re.Pattern[str]:
    """What captions of a template with one column look like: in any case, with any blanks, "a" or "an", and with or
    without a full stop."""
    before, after = (re.escape(" ".join(part.split())) for part in re.split(r"\{[^}]*\}", template.text))
    before, after = (re.sub(r"\ban?\b", "an?", part).replace("\\ ", r"\s+") for part in (before, after))
    return re.compile(rf"\s*{before}\s*(.+?)\s*{after}\s*\.?\s*", re.IGNORECASE)
