"""A picture and a text in; which pixels answered to the text and to each of its words out.

A map is of a direction in CLIP's space: for the text, from the empty text to it; for a word, from the text without
the word to the whole. What the sentence says anyway drops out of the difference, and what the word adds stays.
"""

from dataclasses import dataclass
from itertools import product
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from codebrush.errors import PromptError, UsageError
from codebrush.models.clip import CLIP
from codebrush.models.image_encoder import ModifiedResNet, VisionTransformer
from codebrush.progress import Progress
from codebrush.text.tokenizer import Tokenizer
from codebrush.understanding.grad_cam import class_activation
from codebrush.understanding.occlusion import encode, occlusion
from codebrush.understanding.relevance import TINY, attention_relevance

Method = Literal["auto", "gradient", "occlusion"]
METHODS = ("auto", "gradient", "occlusion")
ROWS = 4  # directions explained together: each holds a pass through the image tower in memory
MOVE = 10  # a picture is moved by its side over this


@dataclass(frozen=True)
class Word:
    """One word, by how much it raises the cosine of the picture with the text, and its map (H, W), 0 or more."""

    word: str
    gain: float
    heat: Tensor


@dataclass(frozen=True)
class Explanation:
    """The maps (H, W) of a text and its words on the picture that the encoder reads, and how they were made.

    `score` is the cosine of picture and text. `direction` (E,) is the text's unit vector.
    """

    method: str
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
) -> Explanation:
    """Explain the cosine of one image (3, H, W) in [0, 1] and a text, taken literally.

    A text longer than the encoder reads loses the words beyond, with a warning. Raises PromptError for one without
    words, UsageError for an unknown method.
    """
    words = read_words(tokenizer, text)
    chosen = choose_method(clip, method)
    texts, directions = text_directions(clip, tokenizer, words)
    maps = heat_maps(clip, image, directions, chosen, progress)  # (1 + W, H, W)
    cosines = (encode(clip, image[None]) @ texts.T)[0]  # (1 + W): of the text, and of the text without each word
    gains = (cosines[0] - cosines[1:]).tolist()
    found = [Word(*row) for row in zip(words, gains, maps[1:], strict=True)]
    return Explanation(chosen, float(cosines[0]), maps[0], found, texts[0])


def read_words(tokenizer: Tokenizer, text: str) -> list[str]:
    """The words of a text, as spaces part them, that the encoder reads whole; of one endless word, that word.

    Warns where there are more. A text without words is a PromptError.
    """
    words = text.split()
    if not words:
        raise PromptError("the text is empty: say in words what should be found in the picture")
    tokenizer(" ".join(words))
    few = words[: tokenizer.context_length]  # each is a token or more
    beginnings = [" ".join(few[: count + 1]) for count in range(len(few))]
    room = tokenizer.context_length - 1 - (tokenizer.start_id is not None)
    whole = sum(len(ids) <= room for ids in tokenizer.ids(beginnings))
    return few[: max(whole, 1)]


def choose_method(clip: CLIP, method: str) -> str:
    """ "gradient" or "occlusion"; "auto" is the gradient wherever the encoder is one whose gradients are known."""
    if method not in METHODS:
        raise UsageError(f"method must be one of {', '.join(METHODS)}, not {method}")
    known = isinstance(clip.image_encoder, VisionTransformer | ModifiedResNet)
    if method == "gradient" and not known:
        raise UsageError("this pack's image encoder is of no kind with a gradient method: use --method occlusion")
    return method if method != "auto" else "gradient" if known else "occlusion"


@torch.no_grad()
def text_directions(clip: CLIP, tokenizer: Tokenizer, words: list[str]) -> tuple[Tensor, Tensor]:
    """Unit vectors of the text and of it without each word, (1 + W, E), and the directions of text and words."""
    without = [" ".join([*words[:place], *words[place + 1 :]]) for place in range(len(words))]
    tokens = tokenizer([" ".join(words), *without, ""]).to(clip.log_scale.device)
    vectors = clip.encode_text(tokens)  # (W + 2, E)
    return vectors[:-1], vectors[0] - torch.cat([vectors[-1:], vectors[1:-1]])


def heat_maps(clip: CLIP, image: Tensor, directions: Tensor, method: str, progress: Progress | None = None) -> Tensor:
    """Maps (K, H, W), 0 or more, of one image (3, H, W) for directions (K, E).

    By gradients the picture is read nine times, moved by a tenth of its side each way, and the maps are moved back
    and averaged: the grid of patches leaves no mark, places within one of its cells are told apart, and what the edge
    of the picture does to an encoder counts for less. What was moved out of sight is as hot as the edge beside it.
    """
    if method == "occlusion":
        return occlusion(clip, image, directions, progress)
    read = attention_relevance if isinstance(clip.image_encoder, VisionTransformer) else class_activation
    height, width = image.shape[-2:]
    step = max(1, height // MOVE)
    padded = F.pad(image[None], (step,) * 4, mode="replicate")  # (1, 3, H + 2 step, W + 2 step)
    total = image.new_zeros(len(directions), height, width)
    places = list(product((0, step, 2 * step), repeat=2))
    for number, (top, left) in enumerate(places):
        moved = padded[..., top : top + height, left : left + width]  # (1, 3, H, W)
        found = torch.cat([read(clip, moved.expand(len(part), -1, -1, -1), part) for part in directions.split(ROWS)])
        maps = F.interpolate(found[:, None], (height, width), mode="bilinear")  # (K, 1, H, W)
        back = F.pad(maps / maps.amax((2, 3), keepdim=True).clamp(min=TINY), (step,) * 4, mode="replicate")[:, 0]
        down, right = 2 * step - top, 2 * step - left
        total += back[:, down : down + height, right : right + width]
        if progress is not None:
            progress(number + 1, len(places))
    return total / len(places)
