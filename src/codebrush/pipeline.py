"""Read this first: prompts or pictures in, pictures, embeddings, scores and labels out, from one loaded pack.

    brush = Codebrush.from_pretrained("emoji")
    results = brush.generate("a red apple", n=4, seed=0)     # best first
    results[0].image.save("apple.png")

The way of a prompt: text tokens -> CLIP's text features -> the code transformer's codes -> VQGAN's picture
-> CLIP's score, by which the best are kept.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import torch
from PIL import Image
from torch import Tensor, nn

from codebrush.data.images import decode_image, stack, to_pil
from codebrush.data.preprocess import pixels_for
from codebrush.errors import ImageError, PackError, PromptError, UsageError
from codebrush.generation.decoding import Progress, draw_codes, picture_uniforms
from codebrush.generation.guide_options import guide_options
from codebrush.generation.guided_run import GuidedRun, read_run
from codebrush.generation.guided_task import Models, Request, check_files, with_files
from codebrush.generation.options import DrawOptions, checked_option
from codebrush.generation.origin import check_origin, damaged, origin, read_origin, torch_threads
from codebrush.generation.reranking import best_first, clip_scores
from codebrush.generation.result import Result
from codebrush.models.clip import CLIP
from codebrush.models.code_transformer import CodeTransformer, Condition
from codebrush.models.vqgan import VQGAN
from codebrush.pack import Pack, open_pack, text_condition
from codebrush.text.prompts import parse_prompt
from codebrush.text.tokenizer import Tokenizer
from codebrush.understanding.captioning import SURE, Answer, Caption, Reader
from codebrush.understanding.classification import ZeroShotClassifier, pack_temperature

# What `generate` does when neither the caller nor the pack's own "defaults" say otherwise.
DEFAULT_CFG = 3.0
DEFAULT_TEMPERATURE = 1.0
DEFAULT_TOP_K = 0
DEFAULT_TOP_P = 1.0
DEFAULT_MIN_P = 0.0
CANDIDATES_PER_PICTURE = 4  # drawn and scored for each picture that is asked for

BATCH = 32  # pictures drawn or read together; a replay needs the same

Picture = Image.Image | str | Path
M = TypeVar("M", bound=nn.Module)


@dataclass(frozen=True)
class _Run:
    """A prompt made ready: its parts as conditions and as unit embeddings (P, E), with their weights."""

    prompt: str
    options: DrawOptions
    conditions: list[tuple[Condition, float]]
    texts: Tensor
    weights: list[float]


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
        progress: Progress | None = None,
        **guidance: Any,
    ) -> list[Result]:
        """Draw `n` pictures of `prompt`, best first by CLIP's score.

        With the method "sample" the code transformer draws `rerank` candidates (None: 4 n), each from the random
        stream of (seed, its index), and the best are kept. `cfg` is the strength of classifier-free guidance (1:
        none), `temperature` 0 takes the likeliest code each time; `top_k`, `top_p` and `min_p` are filters as in
        `codebrush.models.sampling.probabilities`. None takes the pack's default. With the method "guide" CLIP leads
        a latent, with the options of `guide`. `progress(done, in all)` is called as codes are drawn or steps taken.
        The same arguments give the same pixels on the same machine, versions and number of threads. Raises
        PromptError and UsageError.
        """
        given = {"cfg": cfg, "temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p}
        given |= {"rerank": rerank}
        if method == "guide":
            return self._guide_to_the_end(prompt, n, seed, given, progress, guidance)
        if method != "sample":
            raise UsageError(f"method must be sample or guide, not {method}")
        if guidance:
            raise UsageError(f"{next(iter(guidance))} is an option of guidance: ask for the method guide")
        if any(part.stop is not None for part in parse_prompt(prompt).parts):
            raise PromptError("a stop (text:weight:stop) is for guidance: leave it out, or ask for the method guide")
        return self._sample(prompt, self._options({**given, "n": n, "seed": seed}), progress)

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

        `options` are those of `codebrush.generation.guide_options.GuideOptions`; `preset` "notebook" takes the
        classic notebook's values for all that are not given. `sampling` (cfg, temperature, rerank, ...) shapes the
        start with init "sample". With a `folder` the run is stored there and can be resumed. Raises UsageError,
        PromptError and ImageError.
        """
        chosen = guide_options(options, preset, self.pack.info.get("guidance"))
        parse_prompt(prompt)
        drawing = self._options({**(sampling or {}), "n": n, "seed": seed})
        if sampling and chosen.init != "sample":
            raise UsageError(f"{next(iter(sampling))} shapes what is sampled: leave it out, or give init sample")
        drawn = {name: value for name, value in asdict(drawing).items() if name not in ("n", "seed")}
        request = Request(prompt, drawing.n, drawing.seed, chosen, drawn if chosen.init == "sample" else {})
        return GuidedRun(with_files(request), self._lent(), folder)

    def resume(self, folder: str | Path) -> GuidedRun:
        """A guided run that was stopped, to go on to the very pixels of an unbroken one."""
        run = read_run(folder)
        check_origin(run, self.pack, self.device)
        return GuidedRun(Request.from_json(run), self._lent(), folder, resume=True)

    def replay(self, manifest: Mapping[str, Any]) -> Result:
        """Draw the picture of a `Result.manifest` again: the same pixels on the same machine and versions.

        The batch that it came from is drawn as it was then, with as many threads. Warns where the machine
        or a version differs. Raises PackError where this is another pack, ImageError where the manifest is
        damaged.
        """
        method = manifest.get("method")
        if method == "guide":
            return self._replay_guided(manifest)
        if method != "sample":
            raise ImageError(f"the picture was made by the method {method!r}, which cannot be replayed here")
        try:
            options = DrawOptions(seed=manifest["seed"], **manifest["options"])
        except (KeyError, TypeError, UsageError) as error:
            raise damaged(error) from error
        index, threads = read_origin(manifest, options.rerank)
        check_origin(manifest, self.pack, self.device)
        with torch_threads(threads):
            run = self._prepare(manifest["prompt"], options)
            batch = next(batch for batch in _batches(options.rerank) if index in batch)
            return self._draw(run, batch, None)[index - batch.start]

    @torch.no_grad()
    def embed_text(self, texts: Sequence[str]) -> Tensor:
        """Texts, taken literally -> unit vectors (B, E) float32."""
        texts = [texts] if isinstance(texts, str) else list(texts)
        parts = [texts[batch.start : batch.stop] for batch in _batches(len(texts))]
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
    def reader(self) -> Reader:
        """The pack's captioner on this device, with its words and the CLIP that ranks what it writes."""
        return Reader(self.clip, self.tokenizer, self._placed(self.pack.captioner), self.pack.words)

    def caption(
        self, images: Sequence[Picture], n: int = 1, method: str = "beam", seed: int = 0, first: int = 0
    ) -> list[list[Caption]]:
        """Each picture's captions, best first by CLIP; see `Reader.caption`. A pack without captioner: PackError."""
        found: list[list[Caption]] = []
        for batch, pixels in self._seen(images):
            found += self.reader.caption(pixels, n, method, seed, first=first + batch.start)
        return found

    def ask(self, image: Picture, question: str, threshold: float = SURE) -> Answer:
        """The answer to a question about a picture, or that it is not known; see `Reader.ask`."""
        pixels = pixels_for(self.clip, [image]).to(self.device)
        return self.reader.ask(pixels, [question], threshold)[0]

    def _seen(self, images: Sequence[Picture]) -> Iterator[tuple[range, Tensor]]:
        """Batches of pictures as CLIP is shown them, (B, 3, S, S)."""
        images = [images] if isinstance(images, Image.Image | str | Path) else list(images)
        for batch in _batches(len(images)):
            yield batch, pixels_for(self.clip, images[batch.start : batch.stop]).to(self.device)

    def _placed(self, model: M) -> M:
        return model.to(self.device).requires_grad_(False)

    def _pixels(self, images: Sequence[Picture], size: int) -> Iterator[Tensor]:
        """Batches (B, 3, size, size) of the centres of `images`."""
        images = [images] if isinstance(images, Image.Image | str | Path) else list(images)
        for batch in _batches(len(images)):
            pictures = [decode_image(image) for image in images[batch.start : batch.stop]]
            yield stack(pictures, size).to(self.device)

    def _sample(self, prompt: str, options: DrawOptions, progress: Progress | None = None) -> list[Result]:
        run = self._prepare(prompt, options)
        best: list[Result] = []
        for batch in _batches(options.rerank):
            best += self._draw(run, batch, progress)
            best = [best[index] for index in best_first([result.score for result in best])[: options.n]]
        return best

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
            request = Request.from_json(dict(manifest))
            plan = dict(manifest["plan"])
        except (KeyError, TypeError, ValueError, UsageError) as error:
            raise damaged(error) from error
        index, threads = read_origin(manifest, request.n)
        check_origin(manifest, self.pack, self.device)
        check_files(request)
        with torch_threads(threads):
            return GuidedRun(request, self._lent()).only(index, plan)

    def _lent(self) -> Models:
        """The models as guidance works with them."""
        drawn: list[Result] = []

        def sample(request: Request, pictures: Sequence[int]) -> Tensor:
            """Latents (B, d, h, w) of the best pictures that the code transformer draws for the run's request."""
            if not drawn:
                drawn.extend(self._sample(request.prompt, DrawOptions(request.n, request.seed, **request.sampling)))
            return torch.stack([drawn[index].latent for index in pictures])

        about = origin(self.pack, self.device)
        return Models(self.vqgan, self.clip, self.tokenizer, self.pack.image_size, sample, about)

    def _options(self, given: Mapping[str, Any]) -> DrawOptions:
        values: dict[str, Any] = {
            "n": None,
            "seed": None,
            "cfg": DEFAULT_CFG,
            "temperature": DEFAULT_TEMPERATURE,
            "top_k": DEFAULT_TOP_K,
            "top_p": DEFAULT_TOP_P,
            "min_p": DEFAULT_MIN_P,
        }
        own = self.pack.info.get("defaults", {})
        try:
            values |= {name: checked_option(name, own[name]) for name in values if name in own}
        except UsageError as error:
            raise PackError(f"{self.pack.folder}: among its defaults, {error}") from error
        values |= {name: value for name, value in given.items() if value is not None}
        if "rerank" not in values:
            values["rerank"] = CANDIDATES_PER_PICTURE * checked_option("n", values["n"])
        return DrawOptions(**values)

    @torch.no_grad()
    def _prepare(self, prompt: str, options: DrawOptions) -> _Run:
        parts = parse_prompt(prompt).parts
        texts, weights = [part.text for part in parts], [part.weight for part in parts]
        tokens = self.tokenizer(texts).to(self.device)  # (P, T)
        condition = text_condition(self.clip, tokens, self.transformer.config)
        rows = [condition.rows(slice(row, row + 1)) for row in range(len(parts))]
        embeddings = self.clip.encode_text(tokens)
        return _Run(prompt, options, list(zip(rows, weights, strict=True)), embeddings, weights)

    @torch.no_grad()
    def _draw(self, run: _Run, batch: range, progress: Progress | None) -> list[Result]:
        """The candidates of one batch, in their order."""
        o, codes_each = run.options, self.transformer.config.code_count

        def count(step: int, steps: int) -> None:
            if progress is not None:
                done = codes_each * batch.start + codes_each * len(batch) * step // steps
                progress(done, codes_each * o.rerank)

        codes = draw_codes(
            self.transformer,
            run.conditions,
            picture_uniforms(o.seed, batch, codes_each),
            cfg=o.cfg,
            temperature=o.temperature,
            top_k=o.top_k,
            top_p=o.top_p,
            min_p=o.min_p,
            progress=count,
        )
        latent = self.vqgan.quantizer.look_up(codes)  # (B, d, h, w)
        pictures = [to_pil(image) for image in self.vqgan.decode(latent)]
        seen = stack(pictures, self.clip.image_size).to(self.device)  # scored as saved: with 8 bits a channel
        scores = clip_scores(self.clip, seen, run.texts, run.weights).tolist()
        manifests = [self._manifest(run, index, score) for index, score in zip(batch, scores, strict=True)]
        return [Result(*row) for row in zip(pictures, scores, codes, latent, manifests, strict=True)]

    def _manifest(self, run: _Run, index: int, score: float) -> dict[str, Any]:
        size = self.pack.image_size
        return {
            "method": "sample",
            "prompt": run.prompt,
            "seed": run.options.seed,
            "index": index,
            "options": {name: value for name, value in asdict(run.options).items() if name != "seed"},
            "clip_score": score,
            "size": [size, size],
            **origin(self.pack, self.device),
        }


def _batches(count: int) -> list[range]:
    return [range(first, min(first + BATCH, count)) for first in range(0, count, BATCH)]


def usable_device(device: str | torch.device | None) -> torch.device:
    """`device`, or where None a GPU where there is one. A UsageError for one that is not here."""
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UsageError(f"the device '{device}' cannot be used here ({reason}): try cpu") from error
    return torch.device(device)
