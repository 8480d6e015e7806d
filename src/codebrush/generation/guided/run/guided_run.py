"""A guided run from request to finished pictures: iterated step by step, and resumed if it was stored in a folder."""

import itertools
from collections.abc import Generator
from contextlib import nullcontext
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from codebrush.data.decoding.images import decode_image, stack, to_pil
from codebrush.data.decoding.transparency import opacity
from codebrush.errors import PackError, UsageError
from codebrush.generation.guided.guidance import Guidance, Step, decode_to_show
from codebrush.generation.guided.guidance_state import State
from codebrush.generation.guided.guided_batch import GuidanceModels, make_batch, picture_size, prompt_parts
from codebrush.generation.guided.guided_request import GuidedRequest, check_files
from codebrush.generation.guided.memory.fitting import plan_memory
from codebrush.generation.guided.memory.plan import MemoryPlan
from codebrush.generation.guided.run.best_step import BestStep, kept_steps
from codebrush.generation.guided.run.run_film import film_frames
from codebrush.generation.guided.run.run_folder import Checkpoint, RunFolder, read_run
from codebrush.generation.latent_files import cover
from codebrush.generation.manifest import guided_manifest
from codebrush.generation.result import Result
from codebrush.generation.sampling.reranking import best_first, clip_scores
from codebrush.generation.transparent_ground import with_transparent_ground
from codebrush.generation.videos import write_video
from codebrush.progress import Progress

SAVE_EVERY = 20  # steps between checkpoints, from which a killed run goes on


class GuidedRun:
    """A guided run. Iterate to take its steps; afterwards `results` holds its pictures, best first.

    With a `folder` everything is stored there as the run goes on. A run that was stopped before its end, in whatever
    way, is continued by giving the same folder with `resume`; the pixels are those of an uninterrupted run.

    Raises:
        UsageError: if the size of the pictures is not possible.
        CodebrushError: if the folder holds another run, or with `resume` none, or it is damaged.
    """

    def __init__(
        self, request: GuidedRequest, models: GuidanceModels, folder: str | Path | None = None, *, resume: bool = False
    ) -> None:
        height, width = picture_size(request, models)  # a wrong size is refused before anything is written
        self.request, self.models = request, models
        self.paths: dict[int, Path] = {}
        self._size = width, height
        self._results: dict[int, Result] = {}
        self._number = 0  # of the batch that is guided next
        self._state: State | None = None
        self._plan: MemoryPlan | None = None
        self._events: list[str] = []  # of the batch so far
        self.steps_taken = 0  # of the finished batches, at most
        self.starts: dict[int, float] = {}  # the scorer's score of what each finished picture started from
        self._folder = None if folder is None else RunFolder(folder, resume=resume)
        if self._folder is not None:
            if resume:
                self._load(self._folder)
            else:
                self._folder.check_free()

    @property
    def batches(self) -> list[range]:
        """The pictures that are guided together."""
        n, each = self.request.n, self.request.options.batch_size
        return [range(first, min(first + each, n)) for first in range(0, n, each)]

    @property
    def can_be_resumed(self) -> bool:
        """Whether the run has begun in a folder."""
        return self._folder is not None and self._folder.holds_run

    @property
    def results(self) -> list[Result]:
        """The finished pictures, best first by the scorer, or by CLIP if the pack has none."""
        results = [self._results[index] for index in sorted(self._results)]
        return [results[index] for index in best_first([result.rank for result in results])]

    def __iter__(self) -> Generator[Step]:
        with nullcontext() if self._folder is None else self._folder.locked():
            if self._folder is not None:
                self._folder.truncate_losses()
            for number in range(self._number, len(self.batches)):
                yield from self._guide(number)

    def only(self, index: int, plan: MemoryPlan, steps: int | None = None, progress: Progress | None = None) -> Result:
        """Picture `index`, guided together with its batch by the `plan` of its manifest: for a replay.

        `steps` are those that it took if the scorer chose the step; then the scorer is not asked again.
        """
        number = next(number for number, pictures in enumerate(self.batches) if index in pictures)
        self._plan = plan
        for step in self._guide(number, steps):
            if progress is not None:
                progress(step.step, steps or step.steps)
        return self._results[index]

    def write_video(self, path: str | Path, fps: float = 10, between: int | None = 0) -> Path:
        """Write the stored steps as a video (.mp4, .gif or .webp), with `between` interpolated frames between two.

        `between` None is as many as the film of a picture needs to last `FILM_SECONDS`. It ends with the picture that
        is kept. The pictures of the run follow one another.

        Raises:
            UsageError: if the run has no folder.
        """
        if self._folder is None:
            raise UsageError("a video is made from stored steps: give the run a folder")
        plan, options = self._plan or MemoryPlan(1), self.request.options

        def decode(latent: Tensor) -> Tensor:
            return decode_to_show(self.models.vqgan, latent.to(self.models.device), plan, options)

        films = (film_frames(self._film(index), between, fps, decode, self._size) for index in sorted(self._results))
        write_video(itertools.chain.from_iterable(films), path, fps)
        return Path(path)

    def _film(self, index: int) -> list[Tensor]:
        """The stored latents of a picture, up to the step that is kept, and last the one that is kept."""
        assert self._folder is not None
        kept, stored = self._results[index].manifest["steps"], self._folder.step_latents(index)
        until = {step: latent for step, latent in stored.items() if step < kept or not kept}
        return [*until.values(), self._results[index].latent]

    def _guide(self, number: int, until: int | None = None) -> Generator[Step]:
        """Take the steps of a batch, up to `until`, and finish its pictures; with `until` the scorer is not asked."""
        batch = make_batch(self.request, self.models, self.batches[number])
        if self._plan is None:
            self._plan = plan_memory(batch)
        guidance = Guidance(batch, self._plan, self._state)
        best = self._best_step(guidance) if until is None else None
        if self._folder is not None:  # not before, as nothing may be left of a run that is refused
            self._folder.begin({**self.request.to_json(), **self.models.about})
        if self._state is None:
            self._events = []
            if best is not None and best.due:
                best.look()
            self._record_start(guidance)
            self._save_checkpoint(number, guidance.snapshot())
        try:
            for step in guidance.steps(until):
                self._plan = guidance.plan
                guidance.settled = False  # until the step is wholly stored, no checkpoint may say that it is
                step = step if best is None else best.after(step)
                self._record(step, guidance, number)
                guidance.settled = True
                yield step
        finally:
            if guidance.settled:
                self._state = guidance.snapshot()  # so that iterating again goes on
                self._save_checkpoint(number, self._state)
        self._finish(number, guidance)

    def _best_step(self, guidance: Guidance) -> BestStep | None:
        if self.request.options.keep != "best":
            return None
        if self.models.scorer is None:
            raise UsageError("keep best needs a pack with a scorer: keep the last step")
        return BestStep(self.models.scorer, *self._judged_by, guidance)

    @cached_property
    def _judged_by(self) -> tuple[Tensor, list[float]]:
        """The parts of the prompt as the scorer embeds them, (P, E), and their weights."""
        assert self.models.scorer is not None
        parts = prompt_parts(self.request)
        return self.models.scorer.embed([part.text for part in parts]), [part.weight for part in parts]

    def _record_start(self, guidance: Guidance) -> None:
        """Store the pictures that the run starts from as those of step 0, if any steps are stored."""
        if self._folder is not None and self.request.options.show_every:
            latent, codes = guidance.shown()
            self._folder.save_step(0, guidance.batch.pictures, latent, codes, guidance.decode(latent).clamp(0, 1))

    def _record(self, step: Step, guidance: Guidance, number: int) -> None:
        self._events += step.events
        if self._folder is None:
            return
        line: dict[str, Any] = {"step": step.step, **step.losses}
        if len(self.batches) > 1:
            line = {"group": number, **line}
        if step.scores:
            line["scorer"] = step.scores
        if step.events:
            line["events"] = step.events
        if step.note:
            line["note"] = step.note
        self._folder.add_losses(line)
        if step.shown:
            self._folder.save_step(step.step, step.pictures, *step.latent(), step.images())
        if step.shown or step.step % SAVE_EVERY == 0:
            self._save_checkpoint(number, guidance.snapshot())

    @torch.no_grad()
    def _finish(self, number: int, guidance: Guidance) -> None:
        state = guidance.state
        latent, codes = guidance.shown() if state.kept is None else guidance.kept(state.kept)
        steps = kept_steps(state, len(latent))
        pictures = [to_pil(image) for image in guidance.decode(latent)]
        results = [
            Result(picture, score, codes[row].cpu(), latent[row].detach().cpu(), manifest)
            for row, (picture, score) in enumerate(zip(pictures, self._scores(pictures), strict=True))
            for manifest in [self._manifest(guidance.batch.pictures[row], score, steps[row], guidance)]
        ]
        if self.models.scorer is not None:
            results = self.models.scorer.judge(results, pictures, *self._judged_by)
        if self._ground is not None:
            results = [replace(result, image=with_transparent_ground(result.image, self._ground)) for result in results]
        self.steps_taken = max(self.steps_taken, state.step)
        for row, result in enumerate(results):
            index = guidance.batch.pictures[row]
            self._results[index] = result
            if state.kept is not None:
                self.starts[index] = state.first_scores[row]
            if self._folder is not None:
                self._folder.save_result(index, result)
                self.paths[index] = self._folder.picture_path(index)
        self._number, self._state = number + 1, None
        self._save_checkpoint(number + 1, None)

    @cached_property
    def _ground(self) -> Image.Image | None:
        """The picture that the run starts from, RGBA and as large as its pictures, by which they become transparent;
        None if they do not."""
        start = self.request.start if self.request.transparency == "kept" else None
        alpha = None if start is None else opacity(decode_image(start, keep_mode=True))
        if start is None or alpha is None:
            return None
        width, height = self._size
        before = to_pil(cover(decode_image(start), (height, width)))
        before.putalpha(to_pil(cover(alpha, (height, width))).getchannel("R"))
        return before

    def _scores(self, pictures: list[Image.Image]) -> list[float]:
        clip, parts = self.models.clip, prompt_parts(self.request)
        texts = clip.encode_text(self.models.tokenizer([part.text for part in parts]).to(self.models.device))
        pixels = stack(pictures, clip.image_size).to(self.models.device)  # scored as saved: with 8 bits a channel
        return clip_scores(clip, pixels, texts, [part.weight for part in parts]).tolist()

    def _manifest(self, index: int, score: float, steps: int, guidance: Guidance) -> dict[str, Any]:
        return guided_manifest(
            self.request.to_json(),
            index,
            score,
            self._size,
            steps,
            asdict(guidance.plan),
            list(self._events),
            self.models.about,
        )

    def _load(self, folder: RunFolder) -> None:
        """Go on from the folder's checkpoint; a run that was killed before its first one starts again."""
        run = read_run(folder.path)
        if run["pack"]["hash"] != self.models.about["pack"]["hash"]:
            raise PackError(f"{folder.path} was made with another pack '{run['pack']['name']}': name it with --pack")
        check_files(self.request)
        checkpoint = folder.load_checkpoint(self.models.device)
        if checkpoint is None:
            return
        self._number, self._state = checkpoint.batch, checkpoint.state
        self._plan, self._events, self.starts = checkpoint.plan, checkpoint.events, checkpoint.starts
        self.steps_taken = folder.steps_taken()
        for index in itertools.chain.from_iterable(self.batches[: self._number]):
            self._results[index] = folder.load_result(index)
            self.paths[index] = folder.picture_path(index)

    def _save_checkpoint(self, number: int, state: State | None) -> None:
        if self._folder is not None:
            assert self._plan is not None
            self._folder.save_checkpoint(Checkpoint(number, self._events, self._plan, state, self.starts))
