"""Pictures and their captions in; how well each picture fits them, by a CLIP, out."""

from collections.abc import Sequence

import torch
from PIL import Image

from codebrush.data.images import resize_square
from codebrush.data.preprocess import clip_resize, pixels_for
from codebrush.models.clip import CLIP
from codebrush.text.tokenizer import Tokenizer

BATCH = 64  # pictures or texts at a time, which bounds the memory


class ClipScorer:
    """A CLIP as the judge of captions."""

    def __init__(self, clip: CLIP, tokenizer: Tokenizer) -> None:
        self._clip, self._tokenizer = clip, tokenizer

    def fitted(self, image: Image.Image) -> Image.Image:
        """All that the CLIP sees of an RGB picture: a small square, which may wait in memory to be scored."""
        size, way = self._clip.image_size, self._clip.config.fit
        return resize_square(image, size) if way == "plain" else clip_resize(image, size, crop=way == "crop")

    @torch.inference_mode()
    def __call__(self, pictures: Sequence[Image.Image], captions: Sequence[Sequence[str]]) -> list[float]:
        """For each of B `fitted` pictures the best cosine with one of its captions, -1 to 1."""
        clip, device = self._clip, self._clip.log_scale.device
        texts = list(dict.fromkeys(text for own in captions for text in own))
        places = {text: number for number, text in enumerate(texts)}
        images = torch.cat(
            [
                clip.encode_image(pixels_for(clip, pictures[i : i + BATCH]).to(device))
                for i in range(0, len(pictures), BATCH)
            ]
        )  # (B, E)
        words = torch.cat(
            [clip.encode_text(self._tokens(texts[i : i + BATCH]).to(device)) for i in range(0, len(texts), BATCH)]
        )  # (T, E)
        cosines = (images @ words.T).tolist()  # (B, T)
        return [max(row[places[text]] for text in own) for row, own in zip(cosines, captions, strict=True)]

    def _tokens(self, texts: Sequence[str]) -> torch.Tensor:
        return self._tokenizer(texts, on_long="truncate")  # (T, L); web captions are long too often to tell of each
