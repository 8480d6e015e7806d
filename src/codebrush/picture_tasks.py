"""`PictureTasks`: what a loaded pack says of pictures and texts, and the pictures that it makes without a prompt."""

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import overload

import torch
from PIL import Image
from torch import Tensor

from codebrush.data.decoding.images import AnyPicture, decode_image, is_several, picture_list, picture_of, stack, to_pil
from codebrush.data.picture_fitting import Fit, embed_views, unit_range, views_for
from codebrush.data.preprocess import pixels_for
from codebrush.data.text_embedding import embed_texts
from codebrush.errors import PackError
from codebrush.generation.editing.canvas import whole_canvas
from codebrush.generation.editing.upscaling import upscale_picture
from codebrush.generation.sampling.sampler import BATCH, batches
from codebrush.generation.transparent_ground import with_transparent_ground
from codebrush.loaded_pack import LoadedPack
from codebrush.progress import Progress
from codebrush.text.reading import readable, warn_unread
from codebrush.understanding.answer_confidence import FILE, AnswerConfidence
from codebrush.understanding.attribution import Method
from codebrush.understanding.captioning import Answer, Caption, CaptionPipeline
from codebrush.understanding.classification import ZeroShotClassifier, pack_temperature
from codebrush.understanding.explaining import ExplainedPicture, LastPicture, explain_picture
from codebrush.warned import formerly


class PictureTasks(LoadedPack):
    """The tasks of `Codebrush` that take pictures or texts to embed, compare, describe or enlarge.

    Where a method takes pictures, one or several may be given.
    """

    @torch.no_grad()
    def embed_text(self, texts: str | Sequence[str]) -> Tensor:
        """Texts, taken literally, as unit vectors (B, E) float32."""
        texts = [texts] if isinstance(texts, str) else list(texts)
        return embed_texts(self.clip, self.tokenizer, texts, BATCH)

    @torch.no_grad()
    def embed_images(self, images: AnyPicture | Sequence[AnyPicture], fit: Fit | None = None) -> Tensor:
        """Pictures as unit vectors (B, E) float32, fitted to what the CLIP reads as `views_for` does.

        `fit` is "crop", "pad", "squeeze" or "tiles"; None is what the CLIP was trained with.

        Raises:
            ImageError: if a picture cannot be read.
            UsageError: if `fit` is none of these.
        """
        vectors = [embed_views(self.clip, views) for _, views in self._view_batches(images, fit)]
        return torch.cat(vectors) if vectors else torch.zeros(0, self.clip.embed_dim)

    @torch.no_grad()
    def reconstruct(self, images: AnyPicture | Sequence[AnyPicture]) -> list[Image.Image]:
        """Each picture's middle, at the pack's size, encoded to VQGAN's codes and decoded again.

        The ground of a transparent picture is transparent again (see `with_transparent_ground`).
        """
        made: list[Image.Image] = []
        for pixels in self._vqgan_batches(images):
            quantised, _ = self.vqgan.quantize(self.vqgan.encode(pixels))
            made += [to_pil(image) for image in self.vqgan.decode(quantised)]
        grounds = [whole_canvas(picture).before(self.pack.image_size) for picture in picture_list(images)]
        pairs = zip(made, grounds, strict=True)
        return [picture if ground is None else with_transparent_ground(picture, ground) for picture, ground in pairs]

    @overload
    def score(self, images: AnyPicture, text: str) -> float: ...

    @overload
    def score(self, images: Sequence[AnyPicture], text: str) -> list[float]: ...

    @formerly(image="images")
    def score(self, images: AnyPicture | Sequence[AnyPicture], text: str) -> float | list[float]:
        """How well a picture fits a text, taken literally: the cosine of their embeddings, -1 to 1.

        Of several pictures a list, in their order.
        """
        cosines = (self.embed_images(images) @ self.embed_text([text])[0]).tolist()
        return cosines if is_several(images) else cosines[0]

    def classify(
        self,
        images: AnyPicture | Sequence[AnyPicture],
        labels: Sequence[str],
        none: bool = False,
        fit: Fit | None = None,
    ) -> list[list[tuple[str, float]]]:
        """For each picture the labels, with `none` also "none of these", with their probabilities, likeliest first; see
        `ZeroShotClassifier`. `fit` is as in `embed_images`. Labels of which the pack reads nothing are left out with a
        warning.

        Raises:
            PromptError: if so few labels can be read that there is nothing to choose between.
            UsageError: if the labels are too few, or one is empty or given twice.
            ImageError: if a picture cannot be read.
        """
        temperature = pack_temperature(self.pack.info)
        classifier = ZeroShotClassifier(
            self.clip, self.tokenizer, labels, temperature=temperature, none=none, known=self.known_texts
        )
        return classifier.classify(picture_list(images), fit)

    @cached_property
    def reader(self) -> CaptionPipeline:
        """The pack's captioner on this device, with its tokenizer and the CLIP that ranks its captions."""
        captioner, words = self.on_device(self.pack.captioner), self.pack.captioner_tokenizer
        folder = self.pack.member("captioner")
        confidence = AnswerConfidence.load(folder)
        if confidence is not None and confidence.width != captioner.config.width:
            raise PackError(f"{folder / FILE} was made for another captioner: remove it, or install the pack again")
        return CaptionPipeline(self.clip, self.tokenizer, captioner, words, confidence, self.known_texts)

    def caption(
        self,
        images: AnyPicture | Sequence[AnyPicture],
        n: int = 1,
        method: str = "beam",
        seed: int = 0,
        first: int = 0,
        fit: Fit | None = None,
    ) -> list[list[Caption]]:
        """For each picture `n` captions, best first by CLIP score; see `CaptionPipeline.caption`.

        `first` is the index of the first picture, for the random streams of the method "sample". `fit` is as in
        `embed_images`; with "tiles" captions are written for each tile, and scored by it.

        Raises:
            UsageError: if an option is out of its range.
            PackError: if the pack has no captioner.
            ImageError: if a picture cannot be read.
        """
        found: list[list[Caption]] = []
        for batch, views in self._view_batches(images, fit):
            if fit != "tiles":
                pixels = unit_range(torch.cat(views).to(self.device))  # (B, 3, S, S)
                found += self.reader.caption(pixels, n, method, seed, first=first + batch.start)
                continue
            for number, parts in zip(batch, views, strict=True):
                tiles = unit_range(parts.to(self.device))  # (T, 3, S, S)
                found.append(self.reader.caption_tiles(tiles, n, method, seed, first=first + number))
        return found

    @overload
    def ask(self, images: AnyPicture, question: str, threshold: float | None = None) -> Answer: ...

    @overload
    def ask(self, images: Sequence[AnyPicture], question: str, threshold: float | None = None) -> list[Answer]: ...

    @formerly(image="images")
    def ask(
        self, images: AnyPicture | Sequence[AnyPicture], question: str, threshold: float | None = None
    ) -> Answer | list[Answer]:
        """The answer to a question, "I don't know" below the confidence `threshold`; see `CaptionPipeline.ask`.

        Of several pictures a list, in their order.
        """
        question = readable(question, self.reader.caption_tokenizer)
        warn_unread([question], self.reader.caption_tokenizer)
        seen = (pixels_for(self.clip, [picture]).to(self.device) for picture in picture_list(images))
        answers = [self.reader.ask(pixels, [question], threshold)[0] for pixels in seen]
        return answers if is_several(images) else answers[0]

    @cached_property
    def _last_explained(self) -> LastPicture:
        """The picture that was explained last: texts are often tried on one picture after another."""
        return LastPicture()

    @overload
    def explain(
        self, image: AnyPicture, text: str, method: Method = "auto", progress: Progress | None = None
    ) -> ExplainedPicture: ...

    @overload
    def explain(
        self, image: AnyPicture, text: Sequence[str], method: Method = "auto", progress: Progress | None = None
    ) -> list[ExplainedPicture]: ...

    def explain(
        self, image: AnyPicture, text: str | Sequence[str], method: Method = "auto", progress: Progress | None = None
    ) -> ExplainedPicture | list[ExplainedPicture]:
        """Which pixels of a picture match a text and its words, and whether it shows what the text says; see
        `explain_picture`. Of several texts a list, in their order."""
        texts = [text] if isinstance(text, str) else list(text)
        last = self._last_explained
        found = explain_picture(self.clip, self.tokenizer, picture_of(image), texts, method, progress, last)
        return found[0] if isinstance(text, str) else found

    def upscale(
        self, images: AnyPicture | Sequence[AnyPicture], scale: int = 2, progress: Progress | None = None
    ) -> list[Image.Image]:
        """Pictures 2 or 4 times as wide and high, with their transparency; see `upscale_picture`."""
        model = self.enlarger.model
        pictures = (decode_image(image, keep_mode=True) for image in picture_list(images))
        return [upscale_picture(model, picture, scale, progress) for picture in pictures]

    def _view_batches(
        self, images: AnyPicture | Sequence[AnyPicture], fit: Fit | None
    ) -> Iterator[tuple[range, list[Tensor]]]:
        """Batches of pictures as CLIP sees them: which they are, and the views (T, 3, S, S) uint8 of each."""
        pictures = picture_list(images)
        for batch in batches(len(pictures)):
            yield batch, [views_for(self.clip, pictures[number], fit) for number in batch]

    def _vqgan_batches(self, images: AnyPicture | Sequence[AnyPicture]) -> Iterator[Tensor]:
        """Batches (B, 3, S, S) of the middles of `images` at the pack's size."""
        pictures = picture_list(images)
        for batch in batches(len(pictures)):
            size, some = self.pack.image_size, pictures[batch.start : batch.stop]
            yield stack([decode_image(picture, wanted=size) for picture in some], size).to(self.device)
