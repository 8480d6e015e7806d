"""Draws pictures of a prompt with a painter and sorts them, best first.

A prompt becomes text tokens, CLIP's text features, the painter's codes and VQGAN's picture; CLIP scores it, and so does
the pack's scorer, if there is one, by which the best are kept. Edits are drawn in the same way, from other conditions.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from codebrush.data.decoding.images import Picture, decode_image, stack, to_pil
from codebrush.errors import PackError, PromptError, UsageError
from codebrush.generation.manifest import drawn_manifest, read_drawn, resized_manifest
from codebrush.generation.options import (
    CANDIDATES_PER_PICTURE,
    DEFAULTS,
    FLOAT32,
    MASKED_STEPS,
    SAMPLING,
    DrawOptions,
    checked_option,
    did_you_mean,
)
from codebrush.generation.origin import check_origin, origin, torch_threads
from codebrush.generation.result import Result
from codebrush.generation.sampling.drawing import Drawing
from codebrush.generation.sampling.half_drawn import HalfDrawn, undrawn
from codebrush.generation.sampling.painters import Painter, is_masked
from codebrush.generation.sampling.reranking import best_first, clip_scores
from codebrush.generation.sampling.sizes import limited_size, retouches
from codebrush.generation.scoring import Scorer
from codebrush.models.clip import CLIP
from codebrush.models.vqgan import VQGAN
from codebrush.pack.pack import Pack, text_condition
from codebrush.progress import Preview, Progress
from codebrush.text.prompts import WeightedText, parse_prompt
from codebrush.text.tokenizer import Tokenizer

DECODED = 2  # pictures decoded together on a CPU
BATCH = 32  # pictures drawn or read together; a replay needs the same


def batches(count: int) -> list[range]:
    """The numbers below `count` in batches of BATCH."""
    return [range(first, min(first + BATCH, count)) for first in range(0, count, BATCH)]


def draw_options(pack: Pack, given: Mapping[str, Any], weights: str = FLOAT32) -> DrawOptions:
    """What is `given` and not None; else the pack's own "defaults", where they apply; else ours. The painter
    draws with `weights`.

    Raises:
        UsageError: if a given value is out of its range, or of no use to the painter.
        PackError: if a default of the pack is.
    """
    values: dict[str, Any] = {"n": None, "seed": None, **DEFAULTS}
    own = pack.info.get("defaults", {})
    try:
        values |= {name: checked_option(name, own[name]) for name in values if name in own}
    except UsageError as error:
        raise PackError(f"{pack.folder}: among its defaults, {error}") from error
    values |= {name: value for name, value in given.items() if value is not None}
    if given.get("retouch") is None and not retouches(pack, values.get("size", "")):  # a default that does not apply
        values["retouch"] = 0
    if "rerank" not in values:
        each = CANDIDATES_PER_PICTURE["flow" if "flow" in values else "sample"]
        values["rerank"] = each * checked_option("n", values["n"])
    if "flow" not in values and is_masked(pack):
        values.setdefault("steps", MASKED_STEPS)
    elif "steps" in values:
        raise UsageError("steps is for the methods flow and guide, and for masked code transformers: leave it out")
    return DrawOptions(**values, weights=weights)


def checked_sampling(
    given: Mapping[str, Any], of: str = "an edit or an interpolation", others: Iterable[str] = ()
) -> dict[str, Any]:
    """`given` as a dict. Raises UsageError if anything but the options in SAMPLING is in it; `of` says of what.

    `others` are the names of its other options, one of which may have been meant.
    """
    unknown = sorted(set(given) - set(SAMPLING))
    if unknown:
        hint = did_you_mean(unknown[0], {*SAMPLING, *others})
        raise UsageError(f"{unknown[0]} is not an option of {of}{hint}")
    return dict(given)


def embed(clip: CLIP, pack: Pack, pictures: Sequence[Picture]) -> Tensor:
    """Pictures -> unit vectors (B, E), each of the square in the picture's middle at the pack's size."""
    seen = stack([decode_image(picture, wanted=pack.image_size) for picture in pictures], pack.image_size)
    return clip.encode_image(seen.to(clip.log_scale.device))


@dataclass(frozen=True)
class Sampler:
    """Draws with a pack's models, which are all on `device`."""

    pack: Pack
    clip: CLIP
    tokenizer: Tokenizer
    vqgan: VQGAN
    painter: Painter
    device: torch.device
    scorer: Scorer | None = None

    def require_image_embedding(self, remedy: str = "train one with image_share") -> None:
        """Raises PackError, which ends in `remedy`, if the painter was not trained on image embeddings."""
        if not self.painter.config.image_embedding:
            raise PackError(f"this pack's {self.painter.label} takes no image embedding: {remedy}")

    def grid(self, options: DrawOptions) -> tuple[int, int]:
        """Rows and columns of codes in a picture. Raises UsageError if the options ask for an impossible size."""
        if not options.size:
            return self.painter.config.grid
        width, height = limited_size(options.size)
        return self.vqgan.code_grid((height, width))

    def embed(self, pictures: Sequence[Picture]) -> Tensor:
        """Pictures -> unit vectors (B, E), as the painter saw them in training."""
        return embed(self.clip, self.pack, pictures)

    def encode(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Pixels (3, S, S) in [0, 1] -> the quantised latent (1, d, h, w) and the codes (1, h, w)."""
        return self.vqgan.quantize(self.vqgan.encode(pixels[None].to(self.device)))

    def sample(self, prompt: str, options: DrawOptions, progress: Progress | None = None) -> list[Result]:
        """Draw `options.rerank` pictures of a prompt and keep the best `options.n`, best first."""
        return self.best(self.prepare(prompt, options), progress)

    def best(self, drawing: Drawing, progress: Progress | None = None) -> list[Result]:
        """Draw all candidates and keep the best, best first, finished."""
        best: list[Result] = []
        for batch in batches(drawing.options.rerank):
            best = _best(drawing, best + self.draw(drawing, batch, progress))
        return [_finished(result, drawing) for result in best]

    def shown(self, drawing: Drawing, preview: Preview | None, number: int) -> Drawing:
        """The drawing, whose pictures `preview` shows under this number while they are drawn."""
        if preview is None:
            return drawing
        show = partial(_show_as, preview, number)
        codes, known = undrawn(drawing.options.n, self.grid(drawing.options), self.device), drawing.known
        if known is not None:
            codes = torch.where(known.fixed, known.codes, codes)
        half = HalfDrawn(self.vqgan, [codes], replace(preview, show=show), drawing.finish)
        return replace(drawing, look=half.of(0))

    def finish(self, drawing: Drawing, codes: Tensor) -> list[Result]:
        """The best pictures of all candidates' `codes` (B, h, w) at the pack's own size, best first, finished; B is at
        most BATCH."""
        drawn = self._decoded(drawing, range(len(codes)), self.painter.config.grid, codes)
        return [_finished(result, drawing) for result in _best(drawing, drawn)]

    def replay(
        self,
        manifest: Mapping[str, Any],
        prepare: Callable[[DrawOptions], Drawing] | None = None,
        progress: Progress | None = None,
    ) -> Result:
        """The picture of a manifest, from its whole batch drawn as it was then; see `Codebrush.replay`.

        `prepare` makes the drawing from its options; None: from the manifest's prompt.
        """
        drawn = read_drawn(manifest)
        check_origin(manifest, self.pack, self.device)
        with torch_threads(drawn.threads):
            drawing = self.prepare(drawn.prompt, drawn.options) if prepare is None else prepare(drawn.options)
            batch = next(batch for batch in batches(drawn.options.rerank) if drawn.index in batch)
            return _finished(self.draw(drawing, batch, progress)[drawn.index - batch.start], drawing)

    def prepare(self, prompt: str, options: DrawOptions) -> Drawing:
        """A drawing of a prompt, read in the syntax of `parse_prompt`.

        Raises:
            PromptError: if the prompt cannot be read, or a part has a stop, which only guidance knows.
        """
        parts = parse_prompt(prompt).parts
        if any(part.stop is not None for part in parts):
            raise PromptError("a stop (text:weight:stop) is for guidance: leave it out, or use the method guide")
        return self._prepared(prompt, parts, options)

    def prepare_literal(self, text: str, options: DrawOptions) -> Drawing:
        """A drawing of a text that is taken literally: its colons and bars are text."""
        return self._prepared(text, [WeightedText(text)], options)

    @torch.no_grad()
    def _prepared(self, prompt: str, parts: Sequence[WeightedText], options: DrawOptions) -> Drawing:
        texts, weights = [part.text for part in parts], [part.weight for part in parts]
        tokens = self.tokenizer(texts).to(self.device)  # (P, T)
        condition = text_condition(self.clip, tokens, self.painter.config)
        rows = [condition.rows(slice(row, row + 1)) for row in range(len(parts))]
        embeddings = self.clip.encode_text(tokens)
        judged_by = None if self.scorer is None else self.scorer.embed(texts)
        entry, pairs = {"method": self.painter.method}, list(zip(rows, weights, strict=True))
        return Drawing(prompt, options, pairs, embeddings, weights, judged_by, entry=entry)

    @torch.no_grad()
    def draw(self, drawing: Drawing, batch: range, progress: Progress | None) -> list[Result]:
        """The candidates of one batch, in their order, not yet finished. `progress` counts codes.

        Raises:
            UsageError: if the options ask for a size that cannot be drawn, or an edit for another size than the pack's.
        """
        o, grid = drawing.options, self.grid(drawing.options)
        codes_each = grid[0] * grid[1]

        def count(step: int, steps: int) -> None:
            if progress is not None:
                done = codes_each * batch.start + codes_each * len(batch) * step // steps
                progress(done, codes_each * o.rerank)

        return self._decoded(drawing, batch, grid, self.painter.paint(drawing, batch, grid, count))

    @torch.no_grad()
    def _decoded(self, drawing: Drawing, batch: range, grid: tuple[int, int], codes: Tensor) -> list[Result]:
        """The candidates of one batch from their codes (B, h, w), scored, not yet finished."""
        latent = self.vqgan.quantizer.look_up(codes)  # (B, d, h, w)
        pictures = [to_pil(image) for part in decoded_together(latent) for image in self.vqgan.decode(part)]
        scored = [drawing.to_score(picture) for picture in pictures]  # as saved: with 8 bits a channel
        seen = stack(scored, self.clip.image_size).to(self.device)
        scores = clip_scores(self.clip, seen, drawing.texts, drawing.weights).tolist()
        size, about = [side * self.vqgan.factor for side in reversed(grid)], origin(self.pack, self.device)
        manifests = [
            drawn_manifest(drawing.entry, drawing.prompt, drawing.options, index, score, size, about)
            for index, score in zip(batch, scores, strict=True)
        ]
        results = [Result(*row) for row in zip(pictures, scores, codes, latent, manifests, strict=True)]
        if self.scorer is None or drawing.judged_by is None:
            return results
        return self.scorer.judge(results, scored, drawing.judged_by, drawing.weights)


def decoded_together(latent: Tensor) -> Sequence[Tensor]:
    """Latents (B, d, h, w) in the parts that are decoded together: on a CPU two, or three if their number is odd, which
    takes less memory than four and no more time; none is alone, as a single picture's convolutions round
    otherwise."""
    return latent.tensor_split(max(1, len(latent) // DECODED)) if latent.is_cpu else [latent]


def _show_as(preview: Preview, number: int, _: int, pictures: list[Image.Image]) -> None:
    preview.show(number, pictures)


def _best(drawing: Drawing, drawn: Sequence[Result]) -> list[Result]:
    return [drawn[index] for index in best_first([result.rank for result in drawn])[: drawing.options.n]]


def _finished(result: Result, drawing: Drawing) -> Result:
    image = drawing.finish(result.image)
    return replace(result, image=image, manifest=resized_manifest(result.manifest, image.size))
