"""A request and models in; a guided run out, that is iterated step by step and may lie in a folder to be resumed.

run.json                       the request, the pack, versions and device
losses.jsonl                   one line a step
pictures/000020_00.png         picture 0 after 20 steps, and its latent and codes:
latents/000020_00.safetensors
picture_00.png                 picture 0 at the end; what it was made by is in it
state.pt                       what a run that was stopped goes on from
"""

import json
import os
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from safetensors.torch import load_file, save_file
from torch import Tensor

from codebrush.data.images import decode_image, read_manifest, save_png, stack, to_pil
from codebrush.errors import CodebrushError, PackError, UsageError
from codebrush.generation.guided.decoder_tiling import DecodePlan
from codebrush.generation.guided.guidance import Guidance, MemoryPlan, State, Step, decode_to_show
from codebrush.generation.guided.guided_task import Models, Request, check_files, make_task, picture_size, prompt_parts
from codebrush.generation.guided.memory import plan_memory
from codebrush.generation.guided.videos import interpolate_latents, write_video
from codebrush.generation.result import Result
from codebrush.generation.sampling.reranking import best_first, clip_scores

RUN_FILE, STATE_FILE, LOSSES_FILE, LOCK_FILE = "run.json", "state.pt", "losses.jsonl", ".lock"
SAVE_EVERY = 20  # steps between states on disk, which a killed run goes on from


def read_run(folder: str | Path) -> dict[str, Any]:
    """What run.json of a run says. Raises CodebrushError where `folder` holds no run."""
    path = Path(folder) / RUN_FILE
    try:
        run = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(run, dict) or not isinstance(run["pack"]["source"], str):
            raise ValueError("not the run of a pack")
    except FileNotFoundError:
        raise CodebrushError(f"{folder} holds no guided run: there is no {RUN_FILE} in it") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CodebrushError(f"{path} is damaged ({error}): begin a new run") from error
    return run


class GuidedRun:
    """A guided run. Iterate to take its steps; afterwards `results` holds its pictures, best first.

    With a `folder` everything is stored there as it comes, and a run that stopped before its end, in whatever way, is
    gone on with by giving the same folder with `resume`: the pixels are those of an unbroken run.
    """

    def __init__(
        self, request: Request, models: Models, folder: str | Path | None = None, *, resume: bool = False
    ) -> None:
        picture_size(request, models)  # a wrong size is told before anything is written
        self.request, self.models = request, models
        self.folder = None if folder is None else Path(folder).absolute()
        self.paths: dict[int, Path] = {}
        self._results: dict[int, Result] = {}
        self._group = 0
        self._state: State | None = None
        self._plan: MemoryPlan | None = None
        self._lines = 0  # of losses.jsonl, as of the stored state
        self._events: list[str] = []
        self._begun = resume  # whether run.json is ours
        if self.folder is not None:
            self._open_folder(self.folder, resume)

    @property
    def groups(self) -> list[range]:
        """The pictures that are guided side by side."""
        n, each = self.request.n, self.request.options.batch_size
        return [range(first, min(first + each, n)) for first in range(0, n, each)]

    @property
    def results(self) -> list[Result]:
        """The finished pictures, best first by CLIP's score."""
        results = [self._results[index] for index in sorted(self._results)]
        return [results[index] for index in best_first([result.score for result in results])]

    def __iter__(self) -> Generator[Step]:
        with self._locked():
            self._truncate_losses()
            for group in range(self._group, len(self.groups)):
                yield from self._guide(group)

    @contextmanager
    def _locked(self) -> Generator[None]:
        """No other process may write in the folder meanwhile; one that a refused run leaves empty is removed."""
        if self.folder is None:
            yield
            return
        with _told(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.folder / LOCK_FILE, timeout=0)
        try:
            lock.acquire()
        except Timeout:
            raise CodebrushError(f"another process is at work in {self.folder}: wait for it, or stop it") from None
        try:
            self._check_free(self.folder)
            yield
        finally:
            if not (self.folder / RUN_FILE).exists():
                (self.folder / LOCK_FILE).unlink(missing_ok=True)
                with suppress(OSError):
                    self.folder.rmdir()
            lock.release()

    def only(self, index: int, plan: dict[str, Any]) -> Result:
        """Picture `index` alone with those beside it, as the stored `plan` of its manifest was: for a replay."""
        group = next(number for number, pictures in enumerate(self.groups) if index in pictures)
        self._plan = MemoryPlan(plan["micro_batch"], DecodePlan(**plan["decode"]))
        for _ in self._guide(group):
            pass
        return self._results[index]

    def write_video(self, path: str | Path, fps: float = 10, between: int = 0) -> Path:
        """The stored steps as a video (.mp4, .gif or .webp), with `between` frames decoded from latents in between.

        The pictures of a batch follow one another. Raises UsageError where the run has no folder.
        """
        if self.folder is None:
            raise UsageError("a video is made of what a run stores: give the run a folder")
        frames = (frame for index in range(self.request.n) for frame in self._frames(index, between))
        write_video(frames, path, fps)
        return Path(path)

    def _frames(self, index: int, between: int) -> Iterator[Any]:
        assert self.folder is not None
        plan, options = self._plan or MemoryPlan(1), self.request.options
        files = sorted((self.folder / "latents").glob(f"*_{index:02d}.safetensors"))
        latents = [load_file(file)["latent"] for file in files]
        for number, latent in enumerate(latents):
            pair = latents[number : number + 2]
            alike = len(pair) == 2 and pair[0].shape == pair[1].shape  # not across a stage of growth
            part = interpolate_latents(torch.stack(pair), between)[:-1] if alike else latent[None]
            for frame in part.to(self.models.device):
                image = to_pil(decode_to_show(self.models.vqgan, frame[None], plan, options)[0])
                yield image if image.size == self._size else image.resize(self._size)

    @property
    def _size(self) -> tuple[int, int]:
        height, width = picture_size(self.request, self.models)
        return width, height

    def _guide(self, group: int) -> Generator[Step]:
        pictures = self.groups[group]
        task = make_task(self.request, self.models, pictures)
        if self._plan is None:
            self._plan = plan_memory(task)
        guidance = Guidance(task, self._plan, self._state)
        self._write_run()
        if self._state is None:
            self._save_state(group, guidance.snapshot())
        try:
            for step in guidance.steps():
                self._plan = guidance.plan
                self._record(step, guidance, group)
                yield step
        finally:
            if guidance.settled:
                self._state = guidance.snapshot()  # so that to iterate again is to go on
                self._save_state(group, self._state)
        self._finish(group, guidance)

    def _write_run(self) -> None:
        """Say what is made here, once nothing speaks against making it."""
        if self.folder is None or self._begun:
            return
        self._begun = True
        run = {"format": 1, **self.request.to_json(), **self.models.about}
        with _told(self.folder):
            _write_beside(
                self.folder / RUN_FILE, lambda part: part.write_text(json.dumps(run, indent=2) + "\n", "utf-8")
            )

    def _record(self, step: Step, guidance: Guidance, group: int) -> None:
        guidance.settled = False  # until the step is wholly stored, no state may say that it is
        self._write(step, guidance, group)
        guidance.settled = True

    def _write(self, step: Step, guidance: Guidance, group: int) -> None:
        self._events += step.events
        if self.folder is None:
            return
        line: dict[str, Any] = {"step": step.step, **step.losses}
        if len(self.groups) > 1:
            line = {"group": group, **line}
        if step.events:
            line["events"] = step.events
        with _told(self.folder), (self.folder / LOSSES_FILE).open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        self._lines += 1
        if step.shown:
            self._store(step)
        if step.shown or step.step % SAVE_EVERY == 0:
            self._save_state(group, guidance.snapshot())

    def _store(self, step: Step) -> None:
        """The pictures and latents of a shown step, under its number."""
        assert self.folder is not None
        (latent, codes), images = step.latent(), step.images()
        for row, index in enumerate(step.pictures):
            name = f"{step.step:06d}_{index:02d}"
            save_png(to_pil(images[row]), self.folder / "pictures" / f"{name}.png")
            _save_tensors(self.folder / "latents" / f"{name}.safetensors", {"latent": latent[row], "codes": codes[row]})

    @torch.no_grad()
    def _finish(self, group: int, guidance: Guidance) -> None:
        latent, codes = guidance.shown()
        pictures = [to_pil(image) for image in guidance.decode(latent)]
        scores = self._scores(pictures)
        for row, index in enumerate(guidance.task.pictures):
            manifest = self._manifest(index, scores[row], guidance)
            self._results[index] = Result(pictures[row], scores[row], codes[row].cpu(), latent[row].cpu(), manifest)
            if self.folder is not None:
                self.paths[index] = self.folder / f"picture_{index:02d}.png"
                tensors = {"latent": latent[row], "codes": codes[row]}
                _save_tensors(self.folder / f"picture_{index:02d}.safetensors", tensors)
                save_png(pictures[row], self.paths[index], manifest)
        self._group, self._state = group + 1, None
        self._save_state(group + 1, None)

    def _scores(self, pictures: list[Any]) -> list[float]:
        clip, parts = self.models.clip, prompt_parts(self.request)
        texts = clip.encode_text(self.models.tokenizer([part.text for part in parts]).to(self.models.device))
        seen = stack(pictures, clip.image_size).to(self.models.device)  # scored as saved: with 8 bits a channel
        return clip_scores(clip, seen, texts, [part.weight for part in parts]).tolist()

    def _manifest(self, index: int, score: float, guidance: Guidance) -> dict[str, Any]:
        return {
            "method": "guide", **self.request.to_json(), "index": index, "clip_score": score,
            "size": list(self._size), "steps": guidance.state.step, "plan": asdict(guidance.plan),
            "events": self._events, **self.models.about,
        }  # fmt: skip

    def _open_folder(self, folder: Path, resume: bool) -> None:
        if resume:
            self._load(folder)
            return
        self._check_free(folder)

    def _check_free(self, folder: Path) -> None:
        if not self._begun and (folder / RUN_FILE).exists():
            raise CodebrushError(f"{folder} holds a run already: go on with it by --resume, or name another folder")

    def _load(self, folder: Path) -> None:
        """What the folder's state says; a run that was killed before its first state begins at the beginning."""
        run = read_run(folder)
        if run["pack"]["hash"] != self.models.about["pack"]["hash"]:
            raise PackError(f"{folder} was made with another pack '{run['pack']['name']}': name it with --pack")
        check_files(self.request)
        if not (folder / STATE_FILE).exists():
            return
        try:
            stored = torch.load(folder / STATE_FILE, map_location=self.models.device, weights_only=True)
            self._group, self._lines, self._events = stored["group"], stored["lines"], stored["events"]
            plan = stored["plan"]
            self._plan = MemoryPlan(plan["micro_batch"], DecodePlan(**plan["decode"]))
            self._state = None if stored["state"] is None else State(**stored["state"])
            for index in [index for group in self.groups[: self._group] for index in group]:
                self._reload(folder, index)
        except CodebrushError:
            raise
        except Exception as error:  # a damaged archive makes torch raise nearly anything
            reason = f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"
            raise CodebrushError(f"{folder / STATE_FILE} is damaged ({reason}): begin a new run") from error

    def _reload(self, folder: Path, index: int) -> None:
        path = folder / f"picture_{index:02d}.png"
        tensors, manifest = load_file(path.with_suffix(".safetensors")), read_manifest(path)
        score = manifest["clip_score"]
        self._results[index] = Result(decode_image(path), score, tensors["codes"], tensors["latent"], manifest)
        self.paths[index] = path

    def _truncate_losses(self) -> None:
        """Lines beyond the stored state are of steps that will be taken again."""
        if self.folder is None or not (self.folder / LOSSES_FILE).exists():
            return
        path = self.folder / LOSSES_FILE
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)[: self._lines]
        with _told(self.folder):
            _write_beside(path, lambda part: part.write_text("".join(lines), "utf-8"))

    def _save_state(self, group: int, state: State | None) -> None:
        if self.folder is None:
            return
        assert self._plan is not None
        stored = {
            "group": group, "lines": self._lines, "events": list(self._events), "plan": asdict(self._plan),
            "state": None if state is None else vars(replace(state)),
        }  # fmt: skip
        with _told(self.folder):
            _write_beside(self.folder / STATE_FILE, lambda part: torch.save(stored, part))


def _save_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    with _told(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        stored = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        _write_beside(path, lambda part: save_file(stored, part))


def _write_beside(path: Path, write: Any) -> None:
    part = path.with_name(path.name + ".part")
    try:
        write(part)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


class _told:
    """A context in which a file that cannot be written is one line that names its folder."""

    def __init__(self, folder: Path):
        self.folder = folder

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if isinstance(error, OSError):
            reason = error.strerror or str(error)
            raise CodebrushError(f"cannot write in {self.folder}: {reason}; free space there or name another folder")
