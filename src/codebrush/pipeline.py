"""Read this first: prompts or pictures in, pictures, embeddings, scores and labels out, from one loaded pack.

    brush = Codebrush.from_pretrained("emoji")
    results = brush.generate("a red apple", n=4, seed=0)     # best first
    results[0].image.save("apple.png")

The way of a prompt: text tokens -> CLIP's text features -> the code transformer's codes -> VQGAN's picture
-> CLIP's score, by which the best are kept.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import torch
from PIL import Image
from torch import Tensor, nn

from codebrush.data.images import decode_image, stack, to_pil
from codebrush.data.preprocess import pixels_for
from codebrush.errors import UsageError
from codebrush.generation.editing.editing import EDITS, STRENGTH, Edit, edited, translation_defaults
from codebrush.generation.editing.interpolation import Key, frames_between
from codebrush.generation.editing.translation import translated, translated_again, uses_translator
from codebrush.generation.editing.upscaling import Enlarger, as_drawn, upscale_picture, upscalings
from codebrush.generation.guided.guide_options import guide_options
from codebrush.generation.guided.guided_batch import GuidanceModels
from codebrush.generation.guided.guided_request import GuidedRequest, check_files, with_files
from codebrush.generation.guided.guided_run import GuidedRun
from codebrush.generation.guided.memory_plan import MemoryPlan
from codebrush.generation.guided.run_folder import read_run
from codebrush.generation.manifest import check_method, check_origin, damaged, origin, read_origin, torch_threads
from codebrush.generation.options import DrawOptions
from codebrush.generation.result import Result
from codebrush.generation.sampling.retrieval import Retrieval, retrieved, same_as
from codebrush.generation.sampling.sampler import Drawing, Sampler, batches, checked_sampling, draw_options
from codebrush.models.clip import CLIP
from codebrush.models.code_transformer import CodeTransformer
from codebrush.models.precision import usable_device
from codebrush.models.vqgan import VQGAN
from codebrush.pack.pack import Pack, open_pack
from codebrush.progress import Progress
from codebrush.text.prompts import parse_prompt
from codebrush.text.tokenizer import Tokenizer
from codebrush.understanding.captioning import ANSWER_THRESHOLD, Answer, Caption, CaptionPipeline
from codebrush.understanding.classification import ZeroShotClassifier, pack_temperature

RETRIEVAL = frozenset(("prior", "neighbours", "bank"))  # options of the method retrieve
Picture = Image.Image | str | Path
M = TypeVar("M", bound=nn.Module)


class Codebrush:
    """A loaded pack with every task as a short method. No method asks for gradients."""

    def __init__(self, pack: Pack, device: str | torch.device | None = None) -> None:
        self.pack = pack
        self.device = usable_device(device)

    @classmethod
    def from_pretrained(cls, source: str | Path, device: str | torch.device | None = None) -> "Codebrush":
        """The pack `source`: a built-in name, a folder or a hub id. `device` None is a GPU where there is one.

        Raises PackError where there is no such pack or it is damaged; the weights are read at first use.
        """
        return cls(open_pack(source), device)

    @cached_property
    def clip(self) -> CLIP:
        """The pack's CLIP on this device, frozen."""
        return self._placed(self.pack.clip)

    @cached_property
    def vqgan(self) -> VQGAN:
        """The pack's VQGAN on this device, frozen."""
        return self._placed(self.pack.vqgan)

    @cached_property
    def transformer(self) -> CodeTransformer:
        """The pack's code transformer on this device, frozen."""
        return self._placed(self.pack.transformer)

    @cached_property
    def sampler(self) -> Sampler:
        """What draws pictures with the code transformer."""
        return Sampler(self.pack, self.clip, self.tokenizer, self.vqgan, self.transformer, self.device)

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer of the pack's CLIP."""
        return self.pack.tokenizer

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
        upscale: int = 1,
        progress: Progress | None = None,
        **guidance: Any,
    ) -> list[Result]:
        """Draw `n` pictures of `prompt`, best first by CLIP's score.

        With the method "sample" the code transformer draws `rerank` candidates (None: 4 n), each from the random
        stream of (seed, its index), and the best are kept. `cfg` is the strength of classifier-free guidance (1:
        none), `temperature` 0 takes the likeliest code each time; `top_k`, `top_p` and `min_p` are filters as in
        `codebrush.models.sampling.probabilities`. None takes the pack's default. A `size` "WIDTHxHEIGHT" larger than
        the pack's own is drawn through a moving window (`draw_large`). With the method "retrieve" the embedding of a
        picture that fits is looked for first, with the options of `Retrieval`, and drawn from as well. With the method
        "guide" CLIP leads a latent, with the options of `guide`. `upscale` 2 or 4 enlarges what was drawn (`upscale`).
        `progress(done, in all)` is called as codes are drawn or steps taken. The same arguments give the same pixels on
        the same machine, versions and number of threads. Raises PromptError and UsageError.
        """
        enlarge = self.enlarger.results(upscale) if upscale != 1 else list  # told before anything is drawn
        given = {"cfg": cfg, "temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p}
        given |= {"rerank": rerank}
        if method == "guide":
            return enlarge(self._guide_to_the_end(prompt, n, seed, given, progress, guidance))
        if method not in ("sample", "retrieve"):
            raise UsageError(f"method must be sample, retrieve or guide, not {method}")
        given["size"] = guidance.pop("size", None)
        how = {name: guidance.pop(name) for name in RETRIEVAL & guidance.keys()} if method == "retrieve" else {}
        if guidance:
            raise UsageError(f"{next(iter(guidance))} is an option of guidance: ask for the method guide")
        options = draw_options(self.pack, {**given, "n": n, "seed": seed})
        drawing = self._retrieved(prompt, options, Retrieval(**how)) if method == "retrieve" else None
        return enlarge(self.sampler.best(drawing or self.sampler.prepare(prompt, options), progress))

    def _retrieved(self, prompt: str, options: DrawOptions, how: Retrieval) -> Drawing:
        find = self._placed(self.pack.bank).nearest if how.prior == "retrieval" and not how.bank else None
        if how.bank:
            from codebrush.search.bank import open_bank

            find = open_bank(how.bank, self.pack)
        prior = self._placed(self.pack.prior) if how.prior == "mlp" else None
        return retrieved(self.sampler, prompt, options, how, find, prior)

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
        """VQGAN-CLIP: a run that leads a latent until CLIP finds its picture close to `prompt`.

            for step in brush.guide("a red circle", steps=100):
                print(step.step, step.losses["loss"])

        `options` are those of `codebrush.generation.guided.guide_options.GuideOptions`; `preset` "notebook" takes the
        classic notebook's values for all that are not given. `sampling` (cfg, temperature, rerank, ...) shapes the
        start with init "sample". With a `folder` the run is stored there and can be resumed. Raises UsageError,
        PromptError and ImageError.
        """
        chosen = guide_options(options, preset, self.pack.info.get("guidance"))
        parse_prompt(prompt)
        drawing = draw_options(self.pack, {**(sampling or {}), "n": n, "seed": seed})
        if sampling and chosen.init != "sample":
            raise UsageError(f"{next(iter(sampling))} shapes what is sampled: leave it out, or give init sample")
        drawn = {name: value for name, value in drawing.to_json().items() if name != "n"}
        request = GuidedRequest(prompt, drawing.n, drawing.seed, chosen, drawn if chosen.init == "sample" else {})
        return GuidedRun(with_files(request), self._lent(), folder)

    def vary(self, picture: Picture, n: int = 4, seed: int = 0, **sampling: Any) -> list[Result]:
        """`n` pictures that CLIP finds like this one, best first.

        `sampling` (cfg, ..., rerank, upscale, progress) is as in `generate`. Raises PackError where the code
        transformer reads no picture's embedding, and ImageError.
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
        """Redraw a picture under `prompt`, best first by CLIP.

        With a `mask` (white where it changes), a `box` x, y, width, height or `extend`, pixels to be added by side
        ("left", "top", "right", "bottom"), only what is open is painted: the picture keeps its size, and its pixels but
        for a narrow border around. Without, the square in its middle is redrawn at the pack's size, and `strength`
        (None: 0.6), above 0 and up to 1, says how much of it. Without a prompt a hole is filled with what fits.
        Raises PackError where the code transformer fills no holes, UsageError, PromptError and ImageError.
        """
        if mask is None and box is None and not extend:
            return self._edit(
                Edit("edit", picture, prompt, STRENGTH if strength is None else strength), n, seed, sampling
            )
        if strength is not None:
            raise UsageError("strength is for a picture that is redrawn whole: what a mask leaves open is all drawn")
        return self._edit(Edit("inpaint", picture, prompt, mask=mask, box=box, extend=extend or {}), n, seed, sampling)

    def translate(
        self, picture: Picture, style: str, n: int | None = None, seed: int | None = None, *, by: str | None = None,
        **sampling: Any,
    ) -> list[Result]:  # fmt: skip
        """The square in a picture's middle in another of the pack's styles, as large as the pack draws.

        By the pack's "translator", where it has one: one picture. By "codes" `n` (None: 4) are drawn, best first; see
        `edit`. None is the translator where there is one. Raises UsageError for a style that the pack does not have.
        """
        edit = Edit("translate", picture, style=style)
        if uses_translator(self.pack, by, {"n": n, "seed": seed, **sampling}):
            results = [translated(self.pack, self.clip, self.vqgan, edit)]
            return self.enlarger.results(scale)(results) if (scale := sampling.get("upscale") or 1) != 1 else results
        own = translation_defaults(self.pack) | {name: value for name, value in sampling.items() if value is not None}
        return self._edit(edit, 4 if n is None else n, seed or 0, own)

    def interpolate(
        self,
        keys: Sequence[Key],
        frames: int = 24,
        seed: int = 0,
        *,
        through: str = "latents",
        progress: Progress | None = None,
        **sampling: Any,
    ) -> Iterator[Image.Image]:
        """The pictures on the way from one prompt, picture or latent through each to the last; see `frames_between`."""
        options = draw_options(self.pack, {**checked_sampling(sampling), "n": 1, "seed": seed})
        return frames_between(self.sampler, keys, options, frames, through, progress)

    def _edit(self, edit: Edit, n: int, seed: int, sampling: Mapping[str, Any]) -> list[Result]:
        given = dict(sampling)
        progress, upscale = given.pop("progress", None), given.pop("upscale", 1)
        enlarge = self.enlarger.results(upscale) if upscale != 1 else list  # told before anything is drawn
        options = draw_options(self.pack, {**checked_sampling(given), "n": n, "seed": seed})
        return enlarge(self.sampler.best(edited(self.sampler, edit, options), progress))

    def resume(self, folder: str | Path) -> GuidedRun:
        """A guided run that was stopped, to go on to the very pixels of an unbroken one."""
        run = read_run(folder)
        check_origin(run, self.pack, self.device)
        return GuidedRun(GuidedRequest.from_json(run), self._lent(), folder, resume=True)

    def replay(self, manifest: Mapping[str, Any]) -> Result:
        """Draw the picture of a `Result.manifest` again: the same pixels on the same machine and versions.

        The batch that it came from is drawn as it was then, with as many threads. Warns where the machine
        or a version differs. Raises PackError where this is another pack, ImageError where the manifest is
        damaged.
        """
        check_method(manifest)
        if upscalings(manifest, self.pack):
            return self.enlarger.again(self.replay(as_drawn(manifest)), manifest)
        method = manifest.get("method")
        if method == "guide":
            return self._replay_guided(manifest)
        if method in EDITS:
            try:
                edit = Edit.from_json(manifest)
            except (KeyError, TypeError, ValueError, UsageError) as error:
                raise damaged(error) from error
            if "translator" in manifest:
                return translated_again(self.pack, self.clip, self.vqgan, edit, manifest)
            return self.sampler.replay(manifest, lambda options: edited(self.sampler, edit, options))
        if method == "retrieve":
            try:
                how = Retrieval(**{name: manifest["retrieval"][name] for name in ("prior", "neighbours", "bank")})
            except (KeyError, TypeError, UsageError) as error:
                raise damaged(error) from error
            return self.sampler.replay(
                manifest, lambda o: same_as(self._retrieved(manifest["prompt"], o, how), manifest)
            )
        return self.sampler.replay(manifest)

    @torch.no_grad()
    def embed_text(self, texts: Sequence[str]) -> Tensor:
        """Texts, taken literally -> unit vectors (B, E) float32."""
        texts = [texts] if isinstance(texts, str) else list(texts)
        parts = [texts[batch.start : batch.stop] for batch in batches(len(texts))]
        vectors = [self.clip.encode_text(self.tokenizer(part).to(self.device)) for part in parts]
        return torch.cat(vectors) if vectors else torch.zeros(0, self.clip.embed_dim)

    @torch.no_grad()
    def embed_images(self, images: Sequence[Picture]) -> Tensor:
        """Pictures or their files -> unit vectors (B, E) float32. One that cannot be read is an ImageError."""
        vectors = [self.clip.encode_image(pixels) for _, pixels in self._seen(images)]
        return torch.cat(vectors) if vectors else torch.zeros(0, self.clip.embed_dim)

    @torch.no_grad()
    def reconstruct(self, images: Sequence[Picture]) -> list[Image.Image]:
        """Pictures through VQGAN's codes and back, cut to squares of the pack's size."""
        pictures = []
        for pixels in self._pixels(images, self.pack.image_size):
            quantised, _ = self.vqgan.quantize(self.vqgan.encode(pixels))
            pictures += [to_pil(image) for image in self.vqgan.decode(quantised)]
        return pictures

    def score(self, image: Picture, text: str) -> float:
        """How well a picture fits a text, taken literally: their cosine, -1 to 1."""
        return float(self.embed_images([image])[0] @ self.embed_text([text])[0])

    def classify(self, images: Sequence[Picture], labels: Sequence[str]) -> list[list[tuple[str, float]]]:
        """Each picture's labels with their probabilities, likeliest first; see `ZeroShotClassifier`."""
        temperature = pack_temperature(self.pack.info)
        classifier = ZeroShotClassifier(self.clip, self.tokenizer, labels, temperature=temperature)
        return classifier.classify([images] if isinstance(images, Image.Image | str | Path) else images)

    @cached_property
    def reader(self) -> CaptionPipeline:
        """The pack's captioner on this device, with its words and the CLIP that ranks what it writes."""
        return CaptionPipeline(self.clip, self.tokenizer, self._placed(self.pack.captioner), self.pack.words)

    def caption(
        self, images: Sequence[Picture], n: int = 1, method: str = "beam", seed: int = 0, first: int = 0
    ) -> list[list[Caption]]:
        """Each picture's captions, best first by CLIP score; see `CaptionPipeline.caption`.

        Raises PackError if the pack has no captioner.
        """
        found: list[list[Caption]] = []
        for batch, pixels in self._seen(images):
            found += self.reader.caption(pixels, n, method, seed, first=first + batch.start)
        return found

    def ask(self, image: Picture, question: str, threshold: float = ANSWER_THRESHOLD) -> Answer:
        """The answer to a question about a picture, or that it is not known; see `CaptionPipeline.ask`."""
        pixels = pixels_for(self.clip, [image]).to(self.device)
        return self.reader.ask(pixels, [question], threshold)[0]

    @cached_property
    def enlarger(self) -> Enlarger:
        """The pack's upscaler on this device. A pack without: PackError."""
        return Enlarger(self._placed(self.pack.upscaler), self.pack)

    def upscale(self, images: Sequence[Picture], scale: int = 2, progress: Progress | None = None) -> list[Image.Image]:
        """Pictures or their files, 2 or 4 times as wide and high, with their transparency; see `upscale_picture`."""
        images = [images] if isinstance(images, Image.Image | str | Path) else images
        model = self.enlarger.model
        return [upscale_picture(model, decode_image(image, keep_mode=True), scale, progress) for image in images]

    def _seen(self, images: Sequence[Picture]) -> Iterator[tuple[range, Tensor]]:
        """Batches of pictures as CLIP is shown them, (B, 3, S, S)."""
        images = [images] if isinstance(images, Image.Image | str | Path) else list(images)
        for batch in batches(len(images)):
            yield batch, pixels_for(self.clip, images[batch.start : batch.stop]).to(self.device)

    def _placed(self, model: M) -> M:
        return model.to(self.device).requires_grad_(False)

    def _pixels(self, images: Sequence[Picture], size: int) -> Iterator[Tensor]:
        """Batches (B, 3, size, size) of the centres of `images`."""
        images = [images] if isinstance(images, Image.Image | str | Path) else list(images)
        for batch in batches(len(images)):
            pictures = [decode_image(image) for image in images[batch.start : batch.stop]]
            yield stack(pictures, size).to(self.device)

    def _guide_to_the_end(
        self, prompt: str, n: int, seed: int, given: dict[str, Any], progress: Progress | None, options: dict[str, Any]
    ) -> list[Result]:
        run = self.guide(prompt, n, seed, sampling={k: v for k, v in given.items() if v is not None}, **options)
        for step in run:
            if progress is not None:
                progress(step.steps * step.pictures.start + step.step * len(step.pictures), step.steps * n)
        return run.results

    def _replay_guided(self, manifest: Mapping[str, Any]) -> Result:
        try:
            request = GuidedRequest.from_json(dict(manifest))
            plan = MemoryPlan.from_json(manifest["plan"])
        except (KeyError, TypeError, ValueError, UsageError) as error:
            raise damaged(error) from error
        index, threads = read_origin(manifest, request.n)
        check_origin(manifest, self.pack, self.device)
        check_files(request)
        with torch_threads(threads):
            return GuidedRun(request, self._lent()).only(index, plan)

    def _lent(self) -> GuidanceModels:
        """The models as guidance works with them."""
        drawn: list[Result] = []

        def sample(request: GuidedRequest, pictures: Sequence[int]) -> Tensor:
            """Latents (B, d, h, w) of the best pictures that the code transformer draws for the run's request."""
            if not drawn:
                options = DrawOptions(request.n, request.seed, **request.sampling)
                drawn.extend(self.sampler.sample(request.prompt, options))
            return torch.stack([drawn[index].latent for index in pictures])

        about = origin(self.pack, self.device)
        return GuidanceModels(self.vqgan, self.clip, self.tokenizer, self.pack.image_size, sample, about)
