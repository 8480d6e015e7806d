"""`Result`: a picture that was made, with its score, its codes and the manifest that says how to make it again.

`Gallery`: a list of them. Notebooks show the pictures of both.
"""

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, SupportsIndex, TypeVar, overload

from PIL import Image
from torch import Tensor

from codebrush.data.contact_sheet import contact_sheet

T = TypeVar("T")
MOST_SHOWN = 64  # pictures of a gallery in a notebook


@dataclass(frozen=True, eq=False, repr=False)
class Result:
    """A finished picture. `manifest` says how to make it again; `codebrush.generation.manifest` lists its keys.

    `score` is by the pack's CLIP, which may have guided the picture or chosen among candidates. `judged` is by the
    pack's scorer, which took no part, and `verdict` what that means: "likely", "unsure" or "unlikely" to show the
    prompt. Both are None if the pack has no scorer, or the picture has no prompt.
    """

    image: Image.Image
    score: float  # CLIP's cosine with the prompt, -1 to 1
    codes: Tensor  # (h, w) int64
    latent: Tensor  # (d, h, w), as it was decoded
    manifest: dict[str, Any]
    judged: float | None = None  # the scorer's cosine with the prompt, -1 to 1
    verdict: str | None = None

    @property
    def rank(self) -> float:
        """What pictures are sorted by: the scorer's cosine, or without one CLIP's."""
        return self.score if self.judged is None else self.judged

    def __repr__(self) -> str:
        seed, index = self.manifest.get("seed"), self.manifest.get("index")
        size = f"{self.image.width}x{self.image.height}"
        return f"<Result {size}, {self.says}, seed {seed}, index {index}>"

    def _repr_png_(self) -> bytes:
        return _png(self.image)

    @property
    def caption(self) -> str:
        """What a contact sheet says below the picture: its index and score."""
        return f"{self.manifest['index']:02d}: {self.says}"

    @property
    def says(self) -> str:
        """How well it fits the prompt, and by whose measure."""
        if self.judged is None:
            return f"CLIP {self.score:.3f}"
        return f"scorer {self.judged:.3f}" if self.verdict is None else f"{self.verdict} ({self.judged:.3f})"


class Gallery(list[T]):
    """Results, or galleries of them, of which notebooks show the pictures; otherwise a list like any other."""

    @overload
    def __getitem__(self, index: SupportsIndex) -> T: ...

    @overload
    def __getitem__(self, index: slice) -> "Gallery[T]": ...

    def __getitem__(self, index: SupportsIndex | slice) -> Any:
        return Gallery(super().__getitem__(index)) if isinstance(index, slice) else super().__getitem__(index)

    @property
    def results(self) -> Iterator[Result]:
        """All results, those of the galleries in it among them, in their order."""
        for entry in self:
            if isinstance(entry, Gallery):
                yield from entry.results
            elif isinstance(entry, Result):
                yield entry

    def _repr_png_(self) -> bytes | None:
        shown = [result for result, _ in zip(self.results, range(MOST_SHOWN), strict=False)]
        return _png(sheet_of(shown)) if shown else None


def sheet_of(results: Sequence[Result]) -> Image.Image:
    """The contact sheet of some results, at least one."""
    return contact_sheet([result.image for result in results], [result.caption for result in results])


def _png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, format="PNG")
    return file.getvalue()
