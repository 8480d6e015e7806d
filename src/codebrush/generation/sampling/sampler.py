"""A prompt and options in; the code transformer's pictures of it, best first by CLIP, out.

The way of a prompt: text tokens -> CLIP's text features -> the code transformer's codes -> VQGAN's picture
-> CLIP's score, by which the best are kept. Edits come the same way, with other conditions.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from codebrush.data.images import MAX_PIXELS, decode_image, stack, to_pil
from codebrush.errors import PackError, PromptError, UsageError
from codebrush.generation.manifest import check_origin, damaged, origin, read_origin, torch_threads
from codebrush.generation.options import DrawOptions, checked_option, parse_size
from codebrush.generation.result import Result
from codebrush.generation.sampling.canvas import Picture
from codebrush.generation.sampling.decoding import Known, draw_codes, draw_large, picture_uniforms
from codebrush.generation.sampling.reranking import best_first, clip_scores
from codebrush.models.clip import CLIP
from codebrush.models.code_transformer import CodeTransformer
from codebrush.models.condition import Condition
from codebrush.models.vqgan import VQGAN
from codebrush.pack.pack import Pack, text_condition
from codebrush.progress import Progress
from codebrush.text.prompts import parse_prompt
from codebrush.text.tokenizer import Tokenizer

# What `generate` does when neither the caller nor the pack's own "defaults" say otherwise.
DEFAULT_CFG = 3.0
DEFAULT_TEMPERATURE = 1.0
DEFAULT_TOP_K = 0
DEFAULT_TOP_P = 1.0
DEFAULT_MIN_P = 0.0
CANDIDATES_PER_PICTURE = 4  # drawn and scored for each picture that is asked for

BATCH = 32  # pictures drawn or read together; a replay needs the same


def batches(count: int) -> list[range]:
    """0 to `count` in parts of BATCH."""
    return [range(first, min(first + BATCH, count)) for first in range(0, count, BATCH)]


def draw_options(pack: Pack, given: Mapping[str, Any]) -> DrawOptions:
    """Options from what is `given` (None: not), the pack's own "defaults", and ours."""
    values: dict[str, Any] = {
        "n": None,
        "seed": None,
        "cfg": DEFAULT_CFG,
        "temperature": DEFAULT_TEMPERATURE,
        "top_k": DEFAULT_TOP_K,
        "top_p": DEFAULT_TOP_P,
        "min_p": DEFAULT_MIN_P,
    }
    own = pack.info.get("defaults", {})
    try:
        values |= {name: checked_option(name, own[name]) for name in values if name in own}
    except UsageError as error:
        raise PackError(f"{pack.folder}: among its defaults, {error}") from error
    values |= {name: value for name, value in given.items() if value is not None}
    if "rerank" not in values:
        values["rerank"] = CANDIDATES_PER_PICTURE * checked_option("n", values["n"])
    return DrawOptions(**values)


def checked_sampling(given: Mapping[str, Any]) -> dict[str, Any]:
    """What shapes a drawing that is not one of words alone. Raises UsageError for anything else."""
    unknown = sorted(set(given) - {"cfg", "temperature", "top_k", "top_p", "min_p", "rerank"})
    if unknown:
        raise UsageError(f"{unknown[0]} is no option of an edit or an interpolation")
    return dict(given)


def embed(clip: CLIP, pack: Pack, pictures: Sequence[Picture]) -> Tensor:
    """Pictures or their files -> unit vectors (B, E), of the squares in their middles at the pack's size."""
    seen = stack([decode_image(picture) for picture in pictures], pack.image_size)
    return clip.encode_image(seen.to(clip.log_scale.device))


@dataclass(frozen=True)
class Drawing:
    """A prompt made ready: its parts as conditions and as unit embeddings (P, E), with their weights.

    `known` codes stay as they are; `without` is the condition that guidance leads away from, None: nothing. `judged`
    makes of a picture that was drawn what CLIP scores, `finish` what is kept; `about` is what the manifest says of it.
    """

    prompt: str
    options: DrawOptions
    conditions: list[tuple[Condition, float]]
    texts: Tensor
    weights: list[float]
    known: Known | None = None
    without: Condition | None = None
    bias: Tensor | None = None  # (N, K): what is added to the logits of each place
    judged: Callable[[Image.Image], Image.Image] = lambda picture: picture
    finish: Callable[[Image.Image], Image.Image] = lambda picture: picture
    about: Mapping[str, Any] = field(default_factory=lambda: {"method": "sample"})


@dataclass(frozen=True)
class Sampler:
    """A pack's models on one device, as drawing works with them."""

    pack: Pack
    clip: CLIP
    tokenizer: Tokenizer
    vqgan: VQGAN
    transformer: CodeTransformer
    device: torch.device

    def grid(self, options: DrawOptions) -> tuple[int, int]:
        """Rows and columns of codes of a picture of these options."""
        if not options.size:
            return self.transformer.config.grid
        width, height = parse_size(options.size)
        if width * height > MAX_PIXELS:
            raise UsageError(f"a picture of {options.size} pixels is too large: ask for less")
        return self.vqgan.code_grid((height, width))

    def embed(self, pictures: Sequence[Picture]) -> Tensor:
        """Pictures or their files -> unit vectors (B, E), of the squares in their middles at the pack's size: what the
        code transformer learned to draw from."""
        return embed(self.clip, self.pack, pictures)

    def encode(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Pixels (3, S, S) in [0, 1] -> their quantised latent (1, d, h, w) and codes (1, h, w)."""
        return self.vqgan.quantize(self.vqgan.encode(pixels[None].to(self.device)))

    def sample(self, prompt: str, options: DrawOptions, progress: Progress | None = None) -> list[Result]:
        """The best `options.n` of `options.rerank` pictures."""
        return self.best(self.prepare(prompt, options), progress)

    def best(self, drawing: Drawing, progress: Progress | None = None) -> list[Result]:
        """The best pictures of a drawing, finished."""
        best: list[Result] = []
        for batch in batches(drawing.options.rerank):
            best += self.draw(drawing, batch, progress)
            best = [best[index] for index in best_first([result.score for result in best])[: drawing.options.n]]
        return [_finished(result, drawing) for result in best]

    def replay(self, manifest: Mapping[str, Any], prepare: Callable[[DrawOptions], Drawing] | None = None) -> Result:
        """The picture of a manifest, from its whole batch drawn as it was then; `prepare` makes an edit ready again."""
        try:
            options = DrawOptions(seed=manifest["seed"], **manifest["options"])
        except (KeyError, TypeError, UsageError) as error:
            raise damaged(error) from error
        index, threads = read_origin(manifest, options.rerank)
        check_origin(manifest, self.pack, self.device)
        with torch_threads(threads):
            drawing = self.prepare(manifest["prompt"], options) if prepare is None else prepare(options)
            batch = next(batch for batch in batches(options.rerank) if index in batch)
            return _finished(self.draw(drawing, batch, None)[index - batch.start], drawing)

    @torch.no_grad()
    def prepare(self, prompt: str, options: DrawOptions) -> Drawing:
        """A prompt's parts as the code transformer and CLIP read them. Raises PromptError."""
        parts = parse_prompt(prompt).parts
        if any(part.stop is not None for part in parts):
            raise PromptError("a stop (text:weight:stop) is for guidance: leave it out, or ask for the method guide")
        texts, weights = [part.text for part in parts], [part.weight for part in parts]
        tokens = self.tokenizer(texts).to(self.device)  # (P, T)
        condition = text_condition(self.clip, tokens, self.transformer.config)
        rows = [condition.rows(slice(row, row + 1)) for row in range(len(parts))]
        embeddings = self.clip.encode_text(tokens)
        return Drawing(prompt, options, list(zip(rows, weights, strict=True)), embeddings, weights)

    @torch.no_grad()
    def draw(self, drawing: Drawing, batch: range, progress: Progress | None) -> list[Result]:
        """The candidates of one batch, in their order."""
        o, grid = drawing.options, self.grid(drawing.options)
        codes_each = grid[0] * grid[1]

        def count(step: int, steps: int) -> None:
            if progress is not None:
                done = codes_each * batch.start + codes_each * len(batch) * step // steps
                progress(done, codes_each * o.rerank)

        uniforms = picture_uniforms(o.seed, batch, codes_each)
        filters = {"temperature": o.temperature, "top_k": o.top_k, "top_p": o.top_p, "min_p": o.min_p}
        if grid == self.transformer.config.grid:
            kept = {"without": drawing.without, "known": drawing.known, "bias": drawing.bias}
            codes = draw_codes(
                self.transformer, drawing.conditions, uniforms, cfg=o.cfg, **filters, **kept, progress=count
            )
        else:
            codes = draw_large(
                self.transformer, drawing.conditions, uniforms, grid, cfg=o.cfg, **filters, progress=count
            )
        latent = self.vqgan.quantizer.look_up(codes)  # (B, d, h, w)
        pictures = [to_pil(image) for image in self.vqgan.decode(latent)]
        judged = [drawing.judged(picture) for picture in pictures]  # as saved: with 8 bits a channel
        seen = stack(judged, self.clip.image_size).to(self.device)
        scores = clip_scores(self.clip, seen, drawing.texts, drawing.weights).tolist()
        manifests = [self._manifest(drawing, index, score) for index, score in zip(batch, scores, strict=True)]
        return [Result(*row) for row in zip(pictures, scores, codes, latent, manifests, strict=True)]

    def _manifest(self, drawing: Drawing, index: int, score: float) -> dict[str, Any]:
        rows, columns = self.grid(drawing.options)
        return {
            **drawing.about,
            "prompt": drawing.prompt,
            "seed": drawing.options.seed,
            "index": index,
            "options": drawing.options.to_json(),
            "clip_score": score,
            "size": [columns * self.vqgan.factor, rows * self.vqgan.factor],
            **origin(self.pack, self.device),
        }


def _finished(result: Result, drawing: Drawing) -> Result:
    image = drawing.finish(result.image)
    return replace(result, image=image, manifest={**result.manifest, "size": list(image.size)})
