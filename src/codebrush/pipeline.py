"""Read this first: a loaded pack, with every task as a method of `Codebrush`.

    brush = Codebrush.from_pretrained("emoji")
    results = brush.generate("a red apple", n=4, seed=0)     # best first
    results[0].image.save("apple.png")

A prompt becomes text tokens, CLIP's text features, the code transformer's codes and VQGAN's picture; CLIP scores it,
and the best are kept.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from codebrush.data.decoding.images import Picture, decode_image, picture_list, stack, to_pil
from codebrush.data.picture_fitting import Fit, embed_views, unit_range, views_for
from codebrush.data.preprocess import pixels_for
from codebrush.data.text_embedding import embed_texts
from codebrush.errors import UsageError
from codebrush.generation.editing.editing import STRENGTH, Edit, prepare_edit, translation_defaults
from codebrush.generation.editing.interpolation import Keyframe, frames_between, is_prompt
from codebrush.generation.editing.translation import translate_picture, uses_translator
from codebrush.generation.editing.upscaling import SCALES, upscale_picture
from codebrush.generation.guided.guided_request import GuidedRequest
from codebrush.generation.guided.guided_run import GuidedRun
from codebrush.generation.guided.run_folder import read_run
from codebrush.generation.manifest import before_upscaling, check_origin, read_upscalings
from codebrush.generation.options import SAMPLING
from codebrush.generation.result import Result
from codebrush.generation.sampling.sampler import BATCH, batches, checked_sampling, draw_options
from codebrush.loaded_pack import LoadedPack
from codebrush.methods import REPLAYS, Call, check_method, find_method, guidance_models, guided_run
from codebrush.pack.pack import open_pack
from codebrush.progress import Progress
from codebrush.text.reading import read_prompt, readable, warn_unread
from codebrush.understanding.captioning import ANSWER_THRESHOLD, Answer, Caption, CaptionPipeline
from codebrush.understanding.classification import ZeroShotClassifier, pack_temperature


class Codebrush(LoadedPack):
    """A loaded pack with every task as a short method. None of them computes gradients.

    A `Picture` is a Pillow image or the path of a file. What a user can get wrong raises a `CodebrushError`.
    """

    @classmethod
    def from_pretrained(cls, source: str | Path, device: str | torch.device | None = None) -> "Codebrush":
        """Open the pack `source`: a built-in name, a folder or a hub id. The weights are read at first use.

        `device` None is a GPU if there is one.

        Raises:
            PackError: if there is no such pack, or it is damaged.
            UsageError: if the device cannot be used.
        """
        return cls(open_pack(source), device)

    def generate(
        self,
        prompt: str,
        n: int = 4,
        seed: int = 0,
        *,
        method: str = "sample",
        cfg: float | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        rerank: int | None = None,
        upscale: int | None = None,
        progress: Progress | None = None,
        **options: Any,
    ) -> list[Result]:
        """Draw `n` pictures of `prompt`, best first by CLIP score.

        `method` is one of:

        - "sample": the code transformer draws `rerank` candidates (None: 4 n), each from the random stream of (seed,
          its index), and the best are kept. Its `options`: `size`, "WIDTHxHEIGHT" in pixels; above the pack's own size
          the codes are drawn through a moving window.
        - "flow": a flow transformer turns noise into the picture. Its `options`: those of `FlowSettings`, `size`, and
          those of `Retrieval`, with which it draws from the embedding of a fitting picture too (unCLIP).
        - "retrieve": as "sample", but from the embedding of a fitting picture too. Also takes the options of
          `Retrieval`.
        - "guide": CLIP's gradient changes a latent step by step (VQGAN-CLIP). Its `options` are those of `guide`.

        `cfg` is the scale of classifier-free guidance, 1 for none. `temperature` 0 takes the likeliest code; `top_k`,
        `top_p` and `min_p` are filters as in `codebrush.models.sampling.probabilities`. None takes the pack's default.
        `upscale` 2 or 4 enlarges the pictures afterwards. `progress` counts codes or steps. The same arguments give the
        same pixels on the same machine, versions and number of threads.

        Raises:
            PromptError: if the prompt cannot be read.
            UsageError: if an option is unknown, or a value out of its range.
            PackError: if the pack lacks what the method needs.
        """
        enlarge = self._enlarger_for(upscale)  # refuses a wrong scale before anything is drawn
        found = find_method(method, options)
        prompt = read_prompt(prompt, self.tokenizer)
        options = self._read_story(options)
        given = (cfg, temperature, top_k, top_p, min_p, rerank)
        sampling = {name: value for name, value in zip(SAMPLING, given, strict=True) if value is not None}
        return enlarge(found.generate(self, Call(prompt, n, seed, sampling, options, progress)))

    def guide(
        self,
        prompt: str,
        n: int = 1,
        seed: int = 0,
        *,
        folder: str | Path | None = None,
        preset: str | None = None,
        sampling: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> GuidedRun:
        """A VQGAN-CLIP run, to iterate: CLIP's gradient changes a latent step by step until its picture fits `prompt`.

            for step in brush.guide("a red circle", steps=100):
                print(step.step, step.losses["loss"])

        `options` are those of `codebrush.generation.guided.guide_options.GuideOptions`; the `preset` "notebook" sets
        what is not given to the classic notebook's values. `sampling` (cfg, temperature, rerank, ...) tunes the drawing
        that init "sample" starts from. With a `folder` the run is stored there and can be resumed.

        Raises:
            PromptError: if the prompt cannot be read.
            UsageError: if an option is unknown, or a value out of its range.
            ImageError: if a picture that an option names cannot be read.
        """
        prompt = read_prompt(prompt, self.tokenizer)
        options = self._read_story(options)
        return guided_run(self, prompt, n, seed, folder, preset, sampling, **options)

    def vary(self, picture: Picture, n: int = 4, seed: int = 0, **sampling: Any) -> list[Result]:
        """`n` pictures that CLIP finds similar to this one, best first.

        `sampling` (cfg, ..., rerank, upscale, progress) is as in `generate`.

        Raises:
            PackError: if the code transformer takes no image embedding.
            ImageError: if the picture cannot be read.
        """
        return self._edit(Edit("vary", picture), n, seed, sampling)

    def edit(
        self,
        picture: Picture,
        prompt: str = "",
        n: int = 4,
        seed: int = 0,
        *,
        strength: float | None = None,
        mask: Picture | None = None,
        box: tuple[int, int, int, int] | None = None,
        extend: Mapping[str, int] | None = None,
        **sampling: Any,
    ) -> list[Result]:
        """Redraw all or part of a picture under `prompt`, best first by CLIP score.

        A `mask` (white where the picture changes), a `box` (x, y, width, height) or `extend`, pixels to add by side
        ("left", "top", "right", "bottom"), choose the part to paint. The picture keeps its size, and outside that part
        its pixels, up to a narrow border. Without a prompt the part is filled with what fits the rest.

        Without any of these the square in the picture's middle is redrawn at the pack's size; `strength` (None: 0.6),
        above 0 and up to 1, is the share of its codes that are redrawn.

        Raises:
            PackError: if the code transformer cannot fill holes.
            UsageError: if options do not go together, or one is out of its range.
            PromptError: if the prompt cannot be read.
            ImageError: if the picture or the mask cannot be read.
        """
        if isinstance(prompt, str) and prompt.strip():
            prompt = read_prompt(prompt, self.tokenizer)
        if mask is None and box is None and not extend:
            return self._edit(
                Edit("edit", picture, prompt, STRENGTH if strength is None else strength), n, seed, sampling
            )
        if strength is not None:
            raise UsageError("strength is for redrawing a whole picture: leave it out with mask, box or extend")
        return self._edit(Edit("inpaint", picture, prompt, mask=mask, box=box, extend=extend or {}), n, seed, sampling)

    def translate(
        self,
        picture: Picture,
        style: str,
        n: int | None = None,
        seed: int | None = None,
        *,
        by: str | None = None,
        **sampling: Any,
    ) -> list[Result]:
        """The square in a picture's middle in another of the pack's styles, at the pack's size.

        `by` "translator" gives one picture, made by the pack's translator; "codes" draws `n` (None: 4), best first.
        None is the translator if the pack has one. `sampling` is as in `generate`.

        Raises:
            PackError: if the pack cannot translate.
            UsageError: if it does not know the style, or an option does not go with `by`.
            ImageError: if the picture cannot be read.
        """
        edit = Edit("translate", picture, style=style)
        if uses_translator(self.pack, by, {"n": n, "seed": seed, **sampling}):
            enlarge = self._enlarger_for(sampling.get("upscale"))
            return enlarge([translate_picture(self.pack, self.clip, self.vqgan, edit)])
        own = translation_defaults(self.pack) | {name: value for name, value in sampling.items() if value is not None}
        return self._edit(edit, 4 if n is None else n, seed or 0, own)

    def interpolate(
        self,
        keys: Sequence[Keyframe],
        frames: int = 24,
        seed: int = 0,
        *,
        through: str = "latents",
        progress: Progress | None = None,
        **sampling: Any,
    ) -> Iterator[Image.Image]:
        """`frames` pictures from the first prompt, picture or latent through each to the last; see `frames_between`."""
        keys = [read_prompt(str(key), self.tokenizer) if is_prompt(key) else key for key in keys]
        options = draw_options(self.pack, {**checked_sampling(sampling), "n": 1, "seed": seed})
        return frames_between(self.sampler, keys, options, frames, through, progress)

    def _edit(self, edit: Edit, n: int, seed: int, sampling: Mapping[str, Any]) -> list[Result]:
        given = dict(sampling)
        progress, enlarge = given.pop("progress", None), self._enlarger_for(given.pop("upscale", None))
        options = draw_options(self.pack, {**checked_sampling(given), "n": n, "seed": seed})
        return enlarge(self.sampler.best(prepare_edit(self.sampler, edit, options), progress))

    def resume(self, folder: str | Path) -> GuidedRun:
        """A guided run that was stopped; iterating it gives the same pixels as if it had not been.

        Raises:
            CodebrushError: if the folder holds no run, or its files are damaged.
            PackError: if it was made with another pack.
        """
        run = read_run(folder)
        check_origin(run, self.pack, self.device)
        return GuidedRun(GuidedRequest.from_json(run), guidance_models(self), folder, resume=True)

    def replay(self, manifest: Mapping[str, Any]) -> Result:
        """Make the picture of a `Result.manifest` again: the same pixels on the same machine and versions.

        The whole batch of the picture is drawn as it was, with as many threads. Warns if the device or a version
        differs.

        Raises:
            PackError: if the picture was made with another pack.
            ImageError: if the manifest is damaged, or a picture that it was made from has changed.
        """
        check_method(manifest)
        if read_upscalings(manifest, self.pack, SCALES):
            return self.enlarger.replay(self.replay(before_upscaling(manifest)), manifest)
        return REPLAYS[manifest["method"]](self, manifest)

    @torch.no_grad()
    def embed_text(self, texts: Sequence[str]) -> Tensor:
        """Texts, taken literally, as unit vectors (B, E) float32."""
        texts = [texts] if isinstance(texts, str) else list(texts)
        return embed_texts(self.clip, self.tokenizer, texts, BATCH)

    @torch.no_grad()
    def embed_images(self, images: Sequence[Picture], fit: Fit | None = None) -> Tensor:
        """Pictures as unit vectors (B, E) float32, fitted to what the CLIP reads as `views_for` does.

        `fit` is "crop", "pad", "squeeze" or "tiles"; None is what the CLIP was trained with.

        Raises:
            ImageError: if a picture cannot be read.
            UsageError: if `fit` is none of these.
        """
        vectors = [embed_views(self.clip, views) for _, views in self._view_batches(images, fit)]
        return torch.cat(vectors) if vectors else torch.zeros(0, self.clip.embed_dim)

    @torch.no_grad()
    def reconstruct(self, images: Sequence[Picture]) -> list[Image.Image]:
        """Each picture's middle, at the pack's size, encoded to VQGAN's codes and decoded again."""
        pictures = []
        for pixels in self._vqgan_batches(images):
            quantised, _ = self.vqgan.quantize(self.vqgan.encode(pixels))
            pictures += [to_pil(image) for image in self.vqgan.decode(quantised)]
        return pictures

    def score(self, image: Picture, text: str) -> float:
        """How well a picture fits a text, taken literally: the cosine of their embeddings, -1 to 1."""
        return float(self.embed_images([image])[0] @ self.embed_text([text])[0])

    def classify(
        self,
        images: Sequence[Picture],
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
        classifier = ZeroShotClassifier(self.clip, self.tokenizer, labels, temperature=temperature, none=none)
        return classifier.classify(picture_list(images), fit)

    @cached_property
    def reader(self) -> CaptionPipeline:
        """The pack's captioner on this device, with its tokenizer and the CLIP that ranks its captions."""
        captioner = self.on_device(self.pack.captioner)
        return CaptionPipeline(self.clip, self.tokenizer, captioner, self.pack.captioner_tokenizer)

    def caption(
        self,
        images: Sequence[Picture],
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

    def ask(self, image: Picture, question: str, threshold: float = ANSWER_THRESHOLD) -> Answer:
        """The answer to a question, "I don't know" below the confidence `threshold`; see `CaptionPipeline.ask`."""
        pixels = pixels_for(self.clip, [image]).to(self.device)
        question = readable(question, self.reader.caption_tokenizer)
        warn_unread([question], self.reader.caption_tokenizer)
        return self.reader.ask(pixels, [question], threshold)[0]

    def upscale(self, images: Sequence[Picture], scale: int = 2, progress: Progress | None = None) -> list[Image.Image]:
        """Pictures 2 or 4 times as wide and high, with their transparency; see `upscale_picture`."""
        model = self.enlarger.model
        pictures = (decode_image(image, keep_mode=True) for image in picture_list(images))
        return [upscale_picture(model, picture, scale, progress) for picture in pictures]

    def _read_story(self, options: dict[str, Any]) -> dict[str, Any]:
        """The options of guidance with the prompts of a story as they are read."""
        story = options.get("story")
        if not isinstance(story, list | tuple):
            return options
        return options | {"story": tuple(read_prompt(text, self.tokenizer) for text in story)}

    def _enlarger_for(self, scale: int | None) -> Callable[[Iterable[Result]], list[Result]]:
        """A function that enlarges results; None and 1 leave them as they are."""
        return list if scale is None or (scale == 1 and scale is not True) else self.enlarger.results(scale)

    def _view_batches(self, images: Sequence[Picture], fit: Fit | None) -> Iterator[tuple[range, list[Tensor]]]:
        """Batches of pictures as CLIP sees them: which they are, and the views (T, 3, S, S) uint8 of each."""
        pictures = picture_list(images)
        for batch in batches(len(pictures)):
            yield batch, [views_for(self.clip, pictures[number], fit) for number in batch]

    def _vqgan_batches(self, images: Sequence[Picture]) -> Iterator[Tensor]:
        """Batches (B, 3, S, S) of the middles of `images` at the pack's size."""
        pictures = picture_list(images)
        for batch in batches(len(pictures)):
            size, some = self.pack.image_size, pictures[batch.start : batch.stop]
            yield stack([decode_image(picture, wanted=size) for picture in some], size).to(self.device)
