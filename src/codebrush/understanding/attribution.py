"""Explains a CLIP score: which pixels of a picture raise its cosine with a text, and with each word of the text.

Each map is for a direction in CLIP's space. For the whole text that is its vector minus the empty text's; for a word,
the text's vector minus that of the text without the word. What every text has in common cancels out of the difference.
Stop words like "a" have no map: what they add shows nothing in a picture.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from codebrush.data.curation.phrases import STOP_WORDS
from codebrush.errors import PromptError, UsageError
from codebrush.models.clip import CLIP
from codebrush.models.encoders.modified_resnet import ModifiedResNet
from codebrush.models.encoders.vision_transformer import VisionTransformer
from codebrush.progress import Progress
from codebrush.text.reading import readable, warn_unread
from codebrush.text.tokenizer import Tokenizer
from codebrush.understanding.faithfulness import Faithfulness, faithfulness
from codebrush.understanding.grad_cam import class_activation_maps
from codebrush.understanding.occlusion import Kept, encode_in_batches, occlusion_maps
from codebrush.understanding.relevance import TINY, attention_relevance

Method = Literal["auto", "gradient", "occlusion"]
METHODS = ("auto", "gradient", "occlusion")
DIRECTIONS_AT_ONCE = 4  # each holds a pass through the image encoder in memory
_PUNCTUATION = ".,;:!?\"'()[]"
SHIFT_PARTS = 10  # the picture is shifted by its side divided by this


@dataclass(frozen=True)
class Word:
    """One word of a text, with the punctuation beside it.

    `gain` is how much the word raises the cosine of picture and text; `heat` is its map (H, W), values 0 or more.
    """

    word: str
    gain: float
    heat: Tensor


@dataclass(frozen=True)
class Explanation:
    """The heat maps (H, W), values 0 or more, of a text and its words over what the encoder reads.

    `text` is what was read of the text, and `words` are those that are no stop words, or all if there are no others.
    `method` is "gradient" or "occlusion", `score` the cosine of picture and text, `direction` the text's unit vector
    (E,).
    """

    method: str
    text: str
    score: float
    heat: Tensor
    words: list[Word]
    direction: Tensor


def explain(
    clip: CLIP,
    tokenizer: Tokenizer,
    image: Tensor,
    text: str,
    method: Method = "auto",
    progress: Progress | None = None,
    kept: Kept | None = None,
) -> Explanation:
    """Explain the cosine of one image (3, H, W) in [0, 1] with a text, taken literally.

    A text longer than the encoder's context is cut after the last word that fits, with a warning. `kept` is filled with
    what the CLIP sees of the picture whatever the text is, and used for further texts.

    Raises:
        PromptError: if the text has no words.
        UsageError: if the method is unknown, or is "gradient" and the image encoder has none.
    """
    words = readable_words(tokenizer, text)
    chosen = choose_method(clip, method)
    places = places_of_content(words)
    texts, directions = text_directions(clip, tokenizer, words, places)
    maps = heat_maps(clip, image, directions, chosen, progress, kept)  # (1 + W, H, W)
    cosines = (encode_in_batches(clip, image[None]) @ texts.T)[0]  # (1 + W): the text, and the text without each word
    gains = (cosines[0] - cosines[1:]).tolist()
    explained = [Word(*row) for row in zip((words[place] for place in places), gains, maps[1:], strict=True)]
    return Explanation(chosen, " ".join(words), float(cosines[0]), maps[0], explained, texts[0])


def explain_and_measure(
    clip: CLIP,
    tokenizer: Tokenizer,
    image: Tensor,
    text: str,
    method: Method = "auto",
    progress: Progress | None = None,
    kept: Kept | None = None,
) -> tuple[Explanation, Faithfulness]:
    """`explain`, and how faithful the map of the whole text is to the encoder.

    With "auto", occlusion also replaces a gradient whose map of this picture is no better than random ones.
    """
    kept = {} if kept is None else kept
    found = explain(clip, tokenizer, image, text, method, progress, kept)
    measured = faithfulness(clip, image, found.direction, found.heat, progress, kept)
    if method == "auto" and found.method == "gradient" and not all(measured.better_than_random.values()):
        return explain_and_measure(clip, tokenizer, image, text, "occlusion", progress, kept)
    return found, measured


def readable_words(tokenizer: Tokenizer, text: str) -> list[str]:
    """The words of `text`, split at spaces, that fit whole into the encoder's context; at least the first one.

    Warns if some do not fit. Raises PromptError if there are no words.
    """
    words = readable(text, tokenizer).split()
    if not words:
        raise PromptError("the text is empty: say in words what to look for in the picture")
    warn_unread(words, tokenizer)
    tokenizer(" ".join(words))  # warns about a text that is too long
    few = words[: tokenizer.context_length]  # each is a token or more
    beginnings = [" ".join(few[: count + 1]) for count in range(len(few))]
    room = tokenizer.context_length - 1 - (tokenizer.start_id is not None)
    fitting = sum(len(ids) <= room for ids in tokenizer.ids(beginnings))
    return few[: max(fitting, 1)]


def places_of_content(words: list[str]) -> list[int]:
    """The places in `words` of those that are no stop words; all places if there are no others."""
    places = [place for place, word in enumerate(words) if word.strip(_PUNCTUATION).lower() not in STOP_WORDS]
    return places or list(range(len(words)))


def choose_method(clip: CLIP, method: str) -> str:
    """ "gradient" or "occlusion"; "auto" is the gradient for a VisionTransformer, else occlusion: gradients of the
    built-in ModifiedResNet were measured to be hardly better than chance (docs/log.md).

    Raises UsageError for another method, and for "gradient" unless the encoder is one of these two.
    """
    if method not in METHODS:
        raise UsageError(f"method must be one of {', '.join(METHODS)}, not {method}")
    has_gradient = isinstance(clip.image_encoder, VisionTransformer | ModifiedResNet)
    if method == "gradient" and not has_gradient:
        raise UsageError("there is no gradient method for this pack's image encoder: use --method occlusion")
    if method != "auto":
        return method
    return "gradient" if isinstance(clip.image_encoder, VisionTransformer) else "occlusion"


@torch.no_grad()
def text_directions(clip: CLIP, tokenizer: Tokenizer, words: list[str], places: Sequence[int]) -> tuple[Tensor, Tensor]:
    """The vectors to explain, each (1 + W, E), for the W words at `places`: unit vectors of the text and of the text
    without each word, and the directions of the text and of each word (see the top of the file)."""
    without = [" ".join([*words[:place], *words[place + 1 :]]) for place in places]
    tokens = tokenizer([" ".join(words), *without, ""]).to(clip.log_scale.device)
    vectors = clip.encode_text(tokens)  # (W + 2, E)
    return vectors[:-1], vectors[0] - torch.cat([vectors[-1:], vectors[1:-1]])


def heat_maps(
    clip: CLIP,
    image: Tensor,
    directions: Tensor,
    method: str,
    progress: Progress | None = None,
    kept: Kept | None = None,
) -> Tensor:
    """Maps (K, H, W), values 0 or more, of one image (3, H, W) in [0, 1] for directions (K, E).

    The gradient method reads the picture nine times, shifted by a tenth of its side in each direction, shifts the maps
    back and averages them. That removes the grid of patches, resolves places within one patch, and weakens the
    artefacts that encoders have at the picture's edge. Parts that a shift moves out of the picture get the heat of the
    edge.
    """
    if method == "occlusion":
        return occlusion_maps(clip, image, directions, progress, kept)
    maps_of = attention_relevance if isinstance(clip.image_encoder, VisionTransformer) else class_activation_maps
    height, width = image.shape[-2:]
    step = max(1, height // SHIFT_PARTS)
    padded = F.pad(image[None], (step,) * 4, mode="replicate")  # (1, 3, H + 2 step, W + 2 step)
    total = image.new_zeros(len(directions), height, width)
    places = list(product((0, step, 2 * step), repeat=2))
    for number, (top, left) in enumerate(places):
        moved = padded[..., top : top + height, left : left + width]  # (1, 3, H, W)
        parts = directions.split(DIRECTIONS_AT_ONCE)
        coarse = torch.cat([maps_of(clip, moved.expand(len(part), -1, -1, -1), part) for part in parts])  # (K, h, w)
        maps = F.interpolate(coarse[:, None], (height, width), mode="bilinear")  # (K, 1, H, W)
        back = F.pad(maps / maps.amax((2, 3), keepdim=True).clamp(min=TINY), (step,) * 4, mode="replicate")[:, 0]
        down, right = 2 * step - top, 2 * step - left
        total += back[:, down : down + height, right : right + width]
        if progress is not None:
            progress(number + 1, len(places))
    return total / len(places)
