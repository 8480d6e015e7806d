"""A picture explained by a text: heat maps of which pixels match it, and whether the picture shows what it says."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from codebrush.data.decoding.images import Picture, decode_image, read_picture, resize_square
from codebrush.data.picture_fitting import embed_views, views_for
from codebrush.data.preprocess import clip_resize, pixels_for
from codebrush.data.text_embedding import embed_other_texts, embed_texts
from codebrush.models.clip import CLIP
from codebrush.progress import Progress, shares
from codebrush.text.tokenizer import Tokenizer
from codebrush.understanding.attribution import Explanation, Method, Word, explain_and_measure, places_of_content
from codebrush.understanding.faithfulness import Faithfulness
from codebrush.understanding.occlusion import Kept
from codebrush.understanding.overlay import PANEL, Panel, normalised_maps, overlay
from codebrush.understanding.presence import Presence, presences


@dataclass(frozen=True)
class ExplainedPicture:
    """What a picture has to do with a text.

    `maps` has the heat maps of the text and its words, `faithfulness` how true they are to the CLIP, and `presence`
    whether the picture shows what the text says. `view` is the part of the picture that the CLIP reads, `seen` its
    share of the picture, 0 to 1, and `frame` which frame or page of a file was read, None if it holds one picture.
    """

    text: str
    maps: Explanation
    faithfulness: Faithfulness
    presence: Presence
    view: Image.Image
    seen: float
    frame: int | None

    @property
    def doubt(self) -> str | None:
        """One line if the picture hardly shows what the text says, otherwise None."""
        return self.presence.doubt(self.text)

    @property
    def words(self) -> list[Word]:
        """The words that have a map of their own: none if the text is one word."""
        return self.maps.words if len(self.maps.words) > 1 else []

    @property
    def words_without_map(self) -> list[str]:
        """The stop words of the text, which show nothing in a picture."""
        words = self.maps.text.split()
        content = set(places_of_content(words))
        return [word for place, word in enumerate(words) if place not in content]

    @property
    def panels(self) -> list[Panel]:
        """The heat maps of the text and then of its words, each with a title and a note."""
        whole, *heats = normalised_maps([self.maps.heat, *(word.heat for word in self.words)])
        title = "the whole text" if self.words else self.maps.text
        each = zip(self.words, heats, strict=True)
        return [
            Panel(title, f"cosine {self.maps.score:.3f}", whole),
            *(Panel(word.word, f"adds {word.gain:+.3f}", heat) for word, heat in each),
        ]

    def overlays(self) -> list[Image.Image]:
        """The maps of `panels` over the picture in grey, from dark blue (coldest) to yellow (hottest)."""
        return [overlay(self.view, panel) for panel in self.panels]


class LastPicture:
    """What a CLIP saw of the last picture whatever the text was (see `Kept`), for further texts about it."""

    def __init__(self) -> None:
        self._pixels: Tensor | None = None
        self._kept: Kept = {}

    def kept_of(self, pixels: Tensor) -> Kept:
        """That of a picture (3, H, W), empty if it is another one than the last."""
        if self._pixels is None or not torch.equal(self._pixels, pixels):
            self._pixels, self._kept = pixels, {}
        return self._kept


def explain_picture(
    clip: CLIP,
    tokenizer: Tokenizer,
    picture: Picture,
    texts: Sequence[str],
    method: Method = "auto",
    progress: Progress | None = None,
    last: "LastPicture | None" = None,
) -> list[ExplainedPicture]:
    """Explain a picture by each of some texts, taken literally; see `explain_and_measure`.

    `last` is the picture of the call before; if it is this one, little of it is encoded again.

    Raises:
        PromptError: if a text has no words.
        UsageError: if the method is unknown, or is "gradient" and the image encoder has none.
        ImageError: if the picture cannot be read.
    """
    read = read_picture(picture, keep_mode=True, wanted=max(clip.image_shape))
    pixels = pixels_for(clip, [read.image])[0].to(clip.log_scale.device)  # (3, H, W)
    vector = embed_views(clip, [views_for(clip, read.image)])[0]  # (E,)
    vectors = embed_texts(clip, tokenizer, texts, 1, on_long="truncate")  # (T, E)
    shown = presences(vector, vectors, embed_other_texts(clip, tokenizer))
    view, seen = _view(clip, picture)
    kept, found = (LastPicture() if last is None else last).kept_of(pixels), []
    for text, presence, share in zip(texts, shown, shares(progress, len(texts)), strict=True):
        maps, measured = explain_and_measure(clip, tokenizer, pixels, text, method, share, kept)
        found.append(ExplainedPicture(text, maps, measured, presence, view, seen, read.frame))
    return found


def _view(clip: CLIP, picture: Picture) -> tuple[Image.Image, float]:
    """The part of the picture that the encoder reads, at the size of a panel, and its share of the picture, 0 to 1."""
    mode = clip.config.resize_mode
    plain, squeezed = mode == "plain", mode == "squeeze"
    whole = decode_image(picture, keep_mode=not plain, wanted=PANEL)
    height, width = clip.image_shape
    sides = whole.width * height, whole.height * width  # equal where the picture has the shape that the encoder reads
    seen = 1.0 if squeezed else round(min(sides) / max(sides), 3)
    longest = max(height, width)
    shape = round(PANEL * height / longest), round(PANEL * width / longest)
    return resize_square(whole, PANEL) if plain else clip_resize(whole, shape, crop=not squeezed), seen
