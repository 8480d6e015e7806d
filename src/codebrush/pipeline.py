"""Read this first: a loaded pack, with every task as a method of `Codebrush`.

    brush = Codebrush.from_pretrained("emoji")
    results = brush.generate("a red apple", n=4, seed=0)     # best first
    results[0].image.save("apple.png")

A prompt becomes text tokens, CLIP's text features, the code transformer's codes and VQGAN's picture; CLIP scores it,
and the best are kept.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from codebrush.data.decoding.images import AnyPicture, Picture, is_several, picture_list, picture_of
from codebrush.errors import PromptError, UsageError
from codebrush.generation.advice import warn_of_failure, warn_of_words
from codebrush.generation.editing.canvas import warn_of_square
from codebrush.generation.editing.edit_options import edit_options, edit_painter
from codebrush.generation.editing.editing import Edit, checked_edits, translation_defaults
from codebrush.generation.editing.interpolation import Keyframe, frames_between, is_prompt
from codebrush.generation.editing.translation import translate_picture, uses_translator
from codebrush.generation.editing.upscaling import Enlarge, as_drawn, drawing_before, enlarged
from codebrush.generation.guided.guided_request import GuidedRequest
from codebrush.generation.guided.run.guided_run import GuidedRun
from codebrush.generation.guided.run.run_folder import read_run
from codebrush.generation.options import CODE_FILTERS, SAMPLING
from codebrush.generation.origin import check_origin
from codebrush.generation.result import Gallery, Result
from codebrush.generation.sampling.painters import usual_painter
from codebrush.generation.sources import Sources
from codebrush.generation.wording import worded
from codebrush.methods import (
    Call,
    Method,
    edit_drawing,
    edit_guidance,
    find_method,
    guided_run,
    replayed,
    seeds_of,
)
from codebrush.pack.pack import open_pack
from codebrush.picture_tasks import PictureTasks
from codebrush.progress import Preview, Progress, shares
from codebrush.text.reading import read_prompt
from codebrush.warned import numbered


class Codebrush(PictureTasks):
    """A loaded pack with every task as a short method. None of them computes gradients.

    A picture is a Pillow image, the path of a file or a `Result`; a method that takes one takes several, too, and then
    returns a list with what it returns for one. What is made of a transparent picture has a transparent ground too (see
    `with_transparent_ground`). What a user can get wrong raises a `CodebrushError`.
    """

    @classmethod
    def from_pretrained(
        cls, source: str | Path, device: str | torch.device | None = None, weights: str = "auto"
    ) -> "Codebrush":
        """Open the pack `source`: a built-in name, a folder or a hub id. The weights are read at first use.

        `device` and `weights` are as in `LoadedPack`. Raises PackError if there is no such pack, or it is damaged.
        """
        return cls(open_pack(source), device, weights)

    def generate(
        self,
        prompt: str | Sequence[str],
        n: int = 4,
        seed: int | Sequence[int] = 0,
        *,
        style: str | None = None,
        negative_prompt: str | None = None,
        method: str | None = None,
        cfg: float | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        retouch: int | None = None,
        rerank: int | None = None,
        upscale: int | None = None,
        progress: Progress | None = None,
        preview: Preview | None = None,
        **options: Any,
    ) -> Gallery[Any]:
        """Draw `n` pictures of `prompt`, best first (see `Result.rank`); of a list of prompts a list of such lists.

        Each of several prompts is drawn as if alone, bit for bit, with its own `seed` if these are a list; the method
        "sample" draws small ones together, which saves time; it and "flow" show a `preview` of half-drawn pictures.

        `style` is one of `pack.styles`, worded as in its training; of what `negative_prompt` says less will show.
        `method` is one of these; None is the pack's usual painter, one of the first two.

        - "sample": the code transformer draws `rerank` candidates (None: 4 n; a flow: 2 n), each from the random
          stream of (seed, its index). Its `options`: `size`, "WIDTHxHEIGHT" in pixels, above the pack's own drawn
          through a moving window; `steps` of a masked code transformer (None: 12).
        - "flow": a flow transformer turns noise into the picture. Its `options`: those of `FlowSettings`, `size`, those
          of `Retrieval` (unCLIP), and `clip_guidance`, the scale of `FlowGuidance`, with the options that it names.
        - "retrieve": as "sample", but from the embedding of a fitting picture too, with the options of `Retrieval`.
        - "guide": CLIP's gradient changes a latent step by step (VQGAN-CLIP). Its `options` are those of `guide`.

        `cfg` is the scale of classifier-free guidance, 1 for none. `temperature` 0 takes the likeliest code; `top_k`,
        `top_p` and `min_p` are filters as in `codebrush.models.sampling.probabilities`; `retouch` is how often the
        least likely codes are drawn again, all others in view. None is the pack's default. `upscale` 2 or 4 enlarges
        the pictures. The same arguments give the same pixels on the same machine, versions and number of threads.

        Raises:
            PromptError: if the prompt cannot be read.
            UsageError: if an option is unknown, or a value out of its range.
            PackError: if the pack lacks what the method needs.
        """
        enlarge = self._enlarger_for(upscale)  # refuses a wrong scale before anything is drawn
        method = usual_painter(self.pack) if method is None else method
        found, texts = find_method(method, options), _prompts(prompt, options)
        words = {"style": style, "negative_prompt": negative_prompt}
        prompts = [worded(self.pack, text, **words) for text in numbered(texts)]
        options = self._read_story(options, words)
        given = (cfg, temperature, top_k, top_p, min_p, retouch, rerank)
        sampling = {name: value for name, value in zip(SAMPLING, given, strict=True) if value is not None}
        progress, rest = drawing_before(enlarge, progress)
        each = zip(prompts, seeds_of(seed, len(prompts)), shares(progress, len(prompts)), strict=True)
        calls = [Call(text, n, own, sampling, options, share) for text, own, share in each]
        drawn = enlarged(enlarge, [*self._advised(found, calls, progress, preview)], rest)
        return drawn[0] if isinstance(prompt, str) else Gallery(drawn)

    def _advised(
        self, method: Method, calls: Sequence[Call], progress: Progress | None, preview: Preview | None
    ) -> Iterator[list[Result]]:
        """Draw, with warnings of words that the pack hardly knows and of pictures that show nothing likely."""
        for call in numbered(calls):
            warn_of_words(self.pack, call.prompt)
        if method.together is not None and (len(calls) > 1 or preview is not None):
            drawn = iter(method.together(self, calls, progress, preview))
        else:
            drawn = (method.generate(self, call) for call in calls)
        for call, results in numbered(zip(calls, drawn, strict=True)):
            warn_of_failure(self.pack, call.prompt, results)
            yield results

    def guide(
        self,
        prompt: str,
        n: int = 1,
        seed: int = 0,
        *,
        style: str | None = None,
        negative_prompt: str | None = None,
        folder: str | Path | None = None,
        preset: str | None = None,
        sampling: Mapping[str, Any] | None = None,
        frames: int = 0,
        **options: Any,
    ) -> GuidedRun:
        """A VQGAN-CLIP run, to iterate: CLIP's gradient changes a latent step by step until its picture fits `prompt`.

            for step in brush.guide("a red circle", steps=100):
                print(step.step, step.losses["loss"])

        `options` are those of `codebrush.generation.guided.guide_options.GuideOptions`; the `preset` "notebook" sets
        what is not given to the classic notebook's values. `sampling` (cfg, temperature, rerank, ...) tunes the drawing
        that init "sample" starts from. With a `folder` the run is stored there and can be resumed, with about so many
        `frames` of each picture at least for a video. `style` and `negative_prompt` are as in `generate`.

        Raises:
            PromptError: if the prompt cannot be read.
            UsageError: if an option is unknown, or a value out of its range.
            ImageError: if a picture that an option names cannot be read.
        """
        words = {"style": style, "negative_prompt": negative_prompt}
        prompt, options = worded(self.pack, prompt, **words), self._read_story(options, words)
        warn_of_words(self.pack, prompt)
        return guided_run(self, prompt, n, seed, folder, preset, sampling, frames, **options)

    def vary(
        self,
        picture: AnyPicture | Sequence[AnyPicture],
        n: int = 4,
        seed: int = 0,
        *,
        method: str | None = None,
        strength: float | None = None,
        **sampling: Any,
    ) -> Gallery[Any]:
        """`n` pictures that CLIP finds similar to this one, best first.

        `method` is "sample", drawn by the code transformer, or "flow"; None is the pack's usual one. A flow keeps the
        less of the square in the picture's middle, the higher `strength` is (None: 0.7); 1 leaves what CLIP sees of it.
        `sampling` (cfg, ..., upscale, progress; of a flow `clip_guidance`, `FlowSettings`) is as in `generate`.

        Raises:
            UsageError: if an option is unknown, or a value out of its range.
            PackError: if the painter takes no image embedding.
            ImageError: if the picture cannot be read.
        """
        return self._edited(picture, partial(Edit, "vary", strength=strength), self.vary, n, seed, sampling, method)

    def edit(
        self,
        picture: AnyPicture | Sequence[AnyPicture],
        prompt: str = "",
        n: int = 4,
        seed: int = 0,
        *,
        style: str | None = None,
        negative_prompt: str | None = None,
        method: str | None = None,
        strength: float | None = None,
        mask: AnyPicture | None = None,
        box: tuple[int, int, int, int] | None = None,
        extend: Mapping[str, int] | None = None,
        **sampling: Any,
    ) -> Gallery[Any]:
        """Redraw all or part of a picture under `prompt`, best first (see `Result.rank`).

        A `mask` (white where the picture changes), a `box` (x, y, width, height) or `extend`, pixels to add by side
        ("left", "top", "right", "bottom"), choose the part to paint. The picture keeps its size, and outside that part
        its pixels, up to a narrow border. Without a prompt the part is filled with what fits the rest.

        Without any of these the square in the picture's middle is redrawn at the pack's size; `strength` (None: 0.6),
        above 0 and up to 1, is the share of its codes that are redrawn, or with a flow the time to which it is noised.
        With a flow a part takes it too (None: 1, which leaves nothing of what was there). `style` and `negative_prompt`
        are as in `generate`, `method` and `sampling` as in `vary`.

        Raises:
            PackError: if the code transformer cannot fill holes.
            UsageError: if options do not go together, or one is out of its range.
            PromptError: if the prompt cannot be read.
            ImageError: if the picture or the mask cannot be read.
        """
        if isinstance(prompt, str) and prompt.strip():
            prompt = worded(self.pack, prompt, style, negative_prompt)
            warn_of_words(self.pack, prompt)
        elif style is not None or negative_prompt is not None:
            raise UsageError("a style and a negative prompt are for pictures that are drawn under a prompt: give one")
        if mask is None and box is None and not extend:
            self._warn_of_square(picture, "choose a part with mask or box to keep its size")
            edit = partial(Edit, "edit", prompt=prompt, strength=strength)
            return self._edited(picture, edit, self.edit, n, seed, sampling, method)
        if strength is not None and edit_painter(self.pack, method) != "flow":
            raise UsageError("strength is for redrawing a whole picture, or a part by the method flow: leave it out")
        mask = None if mask is None else picture_of(mask)
        edit = partial(Edit, "inpaint", prompt=prompt, mask=mask, box=box, extend=extend or {}, strength=strength)
        return self._edited(picture, edit, self.edit, n, seed, sampling, method)

    def translate(
        self,
        picture: AnyPicture | Sequence[AnyPicture],
        style: str,
        n: int | None = None,
        seed: int | None = None,
        *,
        by: str | None = None,
        **sampling: Any,
    ) -> Gallery[Any]:
        """The square in a picture's middle in another of the pack's styles, at the pack's size.

        `by` "translator" gives one picture, made by the pack's translator; "codes" and "flow" draw `n` (None: 4), best
        first. None is the first of them that the pack has. `sampling` is as in `vary`.

        Raises:
            PackError: if the pack cannot translate.
            UsageError: if it does not know the style, or an option does not go with `by`.
            ImageError: if the picture cannot be read.
        """
        if uses_translator(self.pack, by, {"n": n, "seed": seed, **sampling}):
            enlarge = self._enlarger_for(sampling.get("upscale"))
            edits = [Edit("translate", one, style=style) for one in picture_list(picture)]
            drawn = [[translate_picture(self.pack, self.clip, self.vqgan, each)] for each in edits]
            made = _as_given(picture, enlarged(enlarge, drawn, sampling.get("progress")))
            self._warn_of_square(picture, "upscale enlarges it")
            return made
        method = edit_painter(self.pack, None if by is None else {"codes": "sample"}.get(by, by))
        own = translation_defaults(self.pack)
        if method == "flow":
            own = {name: value for name, value in own.items() if name not in CODE_FILTERS}
        own |= {name: value for name, value in sampling.items() if value is not None}
        edit = partial(Edit, "translate", style=style)
        made = self._edited(picture, edit, self.translate, 4 if n is None else n, seed or 0, own, method)
        self._warn_of_square(picture, "upscale enlarges it")
        return made

    def interpolate(
        self,
        keys: Sequence[AnyPicture | Tensor],
        frames: int = 24,
        seed: int = 0,
        *,
        through: str = "latents",
        method: str | None = None,
        progress: Progress | None = None,
        **sampling: Any,
    ) -> Iterator[Image.Image]:
        """`frames` pictures from the first prompt, picture or latent through each to the last; see `frames_between`.

        `method` and `sampling` are as in `vary`; through noise only a flow goes.
        """
        if isinstance(keys, str) or not isinstance(keys, Iterable):
            raise UsageError(f"give a list of at least two prompts, pictures or latents to go between, not {keys!r}")
        given: list[Keyframe] = [key if isinstance(key, Tensor) else picture_of(key) for key in keys]
        given = [read_prompt(str(key), self.tokenizer) if is_prompt(key) else key for key in given]
        painter = edit_painter(self.pack, "flow" if method is None and through == "noise" else method)
        known = signature(self.interpolate).parameters
        options = edit_options(self.pack, painter, sampling, 1, seed, known, self.weights_of(painter))
        return frames_between(self.painter_sampler(painter), given, options, frames, through, progress)

    def _edited(
        self,
        picture: AnyPicture | Sequence[AnyPicture],
        edit: Callable[[Picture], Edit],
        task: Callable[..., Any],
        n: int,
        seed: int,
        sampling: Mapping[str, Any],
        method: str | None,
    ) -> Gallery[Any]:
        """The results of `edit` of a picture, for the method `task`; of several a gallery with those of each."""
        given, painter = dict(sampling), edit_painter(self.pack, method)
        preview, enlarge = given.pop("preview", None), self._enlarger_for(given.pop("upscale", None))
        progress, rest = drawing_before(enlarge, given.pop("progress", None))
        edits = checked_edits([edit(one) for one in picture_list(picture)], self.pack.image_size)
        guidance = edit_guidance(self.pack, painter, given.pop("clip_guidance", None))
        known = signature(task).parameters
        options = edit_options(self.pack, painter, given, n, seed, known, self.weights_of(painter))
        sampler = self.painter_sampler(painter)
        drawings = (edit_drawing(self, sampler, each, options, guidance) for each in edits)
        turns = enumerate(zip(drawings, shares(progress, len(edits)), strict=True))
        best = [sampler.best(sampler.shown(drawing, preview, number), share) for number, (drawing, share) in turns]
        return _as_given(picture, enlarged(enlarge, best, rest))

    def resume(self, folder: str | Path) -> GuidedRun:
        """A guided run that was stopped; iterating it gives the same pixels as if it had not been.

        Raises:
            CodebrushError: if the folder holds no run, or its files are damaged.
            PackError: if it was made with another pack.
        """
        run = read_run(folder)
        check_origin(run, self.pack, self.device)
        return GuidedRun(GuidedRequest.from_json(run), self.guidance_models(), folder, resume=True)

    def replay(
        self,
        manifest: Mapping[str, Any],
        sources: AnyPicture | Sequence[AnyPicture] = (),
        *,
        named_files: bool = True,
        progress: Progress | None = None,
    ) -> Result:
        """Make the picture of a `Result.manifest` again: the same pixels on the same machine and versions.

        The whole batch of the picture is drawn as it was, with as many threads. Warns if the device or a version
        differs. `sources` are pictures and masks that it was made from and that are not in the files which it names;
        checksums tell them. With `named_files` False those files are not opened: for the manifest of a stranger.

        Raises:
            PackError: if the picture was made with another pack.
            ImageError: if the manifest is damaged, or a picture that it was made from has changed or is missing.
        """
        return replayed(self, manifest, Sources(tuple(picture_list(sources)), named_files), progress)

    def _warn_of_square(self, pictures: AnyPicture | Sequence[AnyPicture], remedy: str) -> None:
        for picture in picture_list(pictures):
            warn_of_square(picture, self.pack.image_size, remedy)

    def _read_story(self, options: dict[str, Any], words: dict[str, str | None]) -> dict[str, Any]:
        """The options of guidance with the prompts of a story as they are drawn; `words` are as in `worded`."""
        story = options.get("story")
        if not isinstance(story, list | tuple):
            return options
        return options | {"story": tuple(worded(self.pack, text, **words) for text in story)}

    def _enlarger_for(self, scale: int | None) -> Enlarge:
        """A function that enlarges results; None and 1 leave them as they are."""
        return as_drawn if scale is None or (scale == 1 and scale is not True) else self.enlarger.results(scale)


def _prompts(given: str | Sequence[str], options: Mapping[str, Any]) -> Sequence[str]:
    """The prompts of `generate`. Raises PromptError if there are none, UsageError for several in one folder."""
    texts = [given] if isinstance(given, str) else given
    if not isinstance(texts, list | tuple) or not texts:
        raise PromptError(f"give a prompt, or a list of them, not {given!r}")
    if len(texts) > 1 and options.get("folder") is not None:
        raise UsageError("a folder holds the run of one prompt: leave it out, or give the prompts one by one")
    return texts


def _as_given(pictures: AnyPicture | Sequence[AnyPicture], drawn: list[Gallery[Any]]) -> Gallery[Any]:
    """What was drawn of one picture; of several a gallery with what was drawn of each."""
    return Gallery(drawn) if is_several(pictures) else drawn[0]
