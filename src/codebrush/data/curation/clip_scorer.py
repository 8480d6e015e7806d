"""Scores with a CLIP how well pictures fit their captions."""

from collections.abc import Sequence

import torch
from PIL import Image

from codebrush.data.decoding.images import resize_square
from codebrush.data.preprocess import clip_resize, pixels_for
from codebrush.data.text_embedding import embed_texts
from codebrush.models.clip import CLIP
from codebrush.text.tokenizer import Tokenizer

BATCH = 64  # pictures or texts at a time, which bounds the memory


class ClipScorer:
    """Scores pictures by their cosine with their captions."""

    def __init__(self, clip: CLIP, tokenizer: Tokenizer) -> None:
        self._clip, self._tokenizer = clip, tokenizer

    def to(self, device: str | torch.device) -> "ClipScorer":
        """The scorer on another device."""
        self._clip = self._clip.to(device)
        return self

    def thumbnail(self, image: Image.Image) -> Image.Image:
        """What the CLIP sees of an RGB picture, at its input size, small enough to wait in memory."""
        clip, mode = self._clip, self._clip.config.resize_mode
        if mode == "plain":
            return resize_square(image, clip.image_size)
        return clip_resize(image, clip.image_shape, crop=mode == "crop")

    @torch.inference_mode()
    def __call__(self, pictures: Sequence[Image.Image], captions: Sequence[Sequence[str]]) -> list[float]:
        """For each of B thumbnails the highest cosine with one of its captions, -1 to 1."""
        clip, device = self._clip, self._clip.log_scale.device
        texts = list(dict.fromkeys(text for own in captions for text in own))
        places = {text: number for number, text in enumerate(texts)}
        images = torch.cat(
            [
                clip.encode_image(pixels_for(clip, pictures[i : i + BATCH]).to(device))
                for i in range(0, len(pictures), BATCH)
            ]
        )  # (B, E)
        # (T, E); no warning: many web captions are too long
        embeddings = embed_texts(clip, self._tokenizer, texts, BATCH, on_long="truncate")
        cosines = (images @ embeddings.T).tolist()  # (B, T)
        return [max(row[places[text]] for text in own) for row, own in zip(cosines, captions, strict=True)]
