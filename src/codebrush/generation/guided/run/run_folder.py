"""The folder of a guided run: its lock, its losses, what is stored of each step, and the state it is resumed from.

run.json                       the request, the pack, versions and device
losses.jsonl                   one line a step
pictures/000020_00.png         picture 0 after 20 steps, and its latent and codes:
latents/000020_00.safetensors
picture_00.png                 picture 0 at the end, with its manifest, and its latent and codes:
picture_00.safetensors
state.pt                       what a stopped run is resumed from
"""

import json
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from codebrush.data.decoding.images import decode_image, read_manifest, save_png, to_pil
from codebrush.errors import CodebrushError, lacks_memory
from codebrush.files import atomic_file, held_alone, write_errors
from codebrush.generation.guided.guidance_state import State
from codebrush.generation.guided.guided_request import GuidedRequest
from codebrush.generation.guided.memory.plan import MemoryPlan
from codebrush.generation.manifest import read_judgement
from codebrush.generation.result import Result

RUN_FILE, STATE_FILE, LOSSES_FILE, LOCK_FILE = "run.json", "state.pt", "losses.jsonl", ".lock"


def read_run(folder: str | Path) -> dict[str, Any]:
    """The contents of a run's run.json. Raises CodebrushError if `folder` holds no run or the file is damaged."""
    path = Path(folder) / RUN_FILE
    try:
        run = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(run, dict) or not isinstance(run["pack"]["source"], str):
            raise ValueError("not the run of a pack")
        GuidedRequest.from_json(run)
    except FileNotFoundError:
        raise CodebrushError(f"{folder} holds no guided run: there is no {RUN_FILE} in it") from None
    except (ArithmeticError, AttributeError, OSError, LookupError, TypeError, ValueError) as error:
        raise CodebrushError(f"{path} is damaged ({error}): begin a new run") from error
    return run


@dataclass(frozen=True)
class Checkpoint:
    """What a stopped run goes on from. `batch` is the number of the batch; `state` is None before its first step."""

    batch: int
    events: list[str]  # of that batch so far
    plan: MemoryPlan
    state: State | None
    starts: dict[int, float]  # the scorer's score of what each finished picture started from


class RunFolder:
    """Stores a guided run. Every file but the losses appears whole or not at all.

    Methods that write raise a CodebrushError if they cannot.
    """

    def __init__(self, path: str | Path, *, resume: bool) -> None:
        self.path = Path(path).absolute()
        self._begun = resume  # whether the run.json there is this run's
        self._lines = 0  # of the losses, as of the last checkpoint that was loaded or the last line that was added

    @property
    def holds_run(self) -> bool:
        """Whether a run began in the folder, so that it can be resumed."""
        return (self.path / RUN_FILE).exists()

    def check_free(self) -> None:
        """Raise a CodebrushError if the folder holds another run."""
        if not self._begun and self.holds_run:
            raise CodebrushError(f"{self.path} holds a run already: go on with it by --resume, or name another folder")

    @contextmanager
    def locked(self) -> Generator[None]:
        """Keep other processes from writing here. A folder in which no run began is removed at the end.

        Raises:
            CodebrushError: if another process holds the lock, or the folder holds another run.
        """
        try:
            with held_alone(self.path, self.path / LOCK_FILE):
                self.check_free()
                yield
        finally:
            with suppress(OSError):  # unless it is empty
                self.path.rmdir()

    def begin(self, run: Mapping[str, Any]) -> None:
        """Write run.json, unless it is there already."""
        if not self._begun:
            self._begun = True
            text = json.dumps({"format": 1, **run}, indent=2) + "\n"
            self._write(RUN_FILE, lambda part: part.write_text(text, encoding="utf-8"))

    def add_losses(self, line: Mapping[str, Any]) -> None:
        """Append a line to losses.jsonl."""
        with self._writing(), (self.path / LOSSES_FILE).open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        self._lines += 1

    def steps_taken(self) -> int:
        """The most steps that a batch has taken, by the losses; 0 without any."""
        path = self.path / LOSSES_FILE
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        return max((json.loads(line)["step"] for line in text.splitlines()[: self._lines]), default=0)

    def truncate_losses(self) -> None:
        """Drop the lines after the checkpoint, whose steps will be taken again."""
        path = self.path / LOSSES_FILE
        if path.exists():
            lines = path.read_text(encoding="utf-8").splitlines(keepends=True)[: self._lines]
            self._write(LOSSES_FILE, lambda part: part.write_text("".join(lines), encoding="utf-8"))

    def save_step(self, step: int, pictures: Sequence[int], latent: Tensor, codes: Tensor, images: Tensor) -> None:
        """Store the images, latents and codes of some pictures after a step, under its number."""
        for row, index in enumerate(pictures):
            name = f"{step:06d}_{index:02d}"
            save_png(to_pil(images[row]), self.path / "pictures" / f"{name}.png")
            self._save_tensors(f"latents/{name}.safetensors", {"latent": latent[row], "codes": codes[row]})

    def step_latents(self, index: int) -> dict[int, Tensor]:
        """The latents (d, h, w) of picture `index` by the stored step after which they were, in order."""
        files = sorted((self.path / "latents").glob(f"*_{index:02d}.safetensors"))
        return {int(file.name.split("_")[0]): load_file(file)["latent"] for file in files}

    def picture_path(self, index: int) -> Path:
        """Where picture `index` lies when it is finished."""
        return self.path / f"picture_{index:02d}.png"

    def save_result(self, index: int, result: Result) -> None:
        """Store a finished picture with its manifest, latent and codes."""
        path = self.picture_path(index)
        self._save_tensors(f"{path.stem}.safetensors", {"latent": result.latent, "codes": result.codes})
        save_png(result.image, path, result.manifest)

    def load_result(self, index: int) -> Result:
        """A finished picture. Raises CodebrushError if a file is missing or damaged."""
        path = self.picture_path(index)
        try:
            tensors, manifest = load_file(path.with_suffix(".safetensors")), read_manifest(path)
            image, score = decode_image(path, keep_mode=True), manifest["clip_score"]
            return Result(image, score, tensors["codes"], tensors["latent"], manifest, *read_judgement(manifest))
        except Exception as error:
            if isinstance(error, CodebrushError) or lacks_memory(error):
                raise
            raise _damaged(path, error) from error

    def save_checkpoint(self, checkpoint: Checkpoint) -> None:
        """Store what the run goes on from if it is stopped now."""
        stored = {
            "group": checkpoint.batch, "lines": self._lines, "events": checkpoint.events,
            "plan": asdict(checkpoint.plan), "state": None if checkpoint.state is None else vars(checkpoint.state),
            "starts": checkpoint.starts,
        }  # fmt: skip
        self._write(STATE_FILE, lambda part: torch.save(stored, part))

    def load_checkpoint(self, device: torch.device) -> Checkpoint | None:
        """What the run goes on from; None if it was stopped before it stored anything.

        Raises:
            CodebrushError: if the file is damaged.
        """
        path = self.path / STATE_FILE
        if not path.exists():
            return None
        try:
            stored = torch.load(path, map_location=device, weights_only=True)
            self._lines = stored["lines"]
            state = None if stored["state"] is None else State(**stored["state"])
            batch, plan = stored["group"], MemoryPlan.from_json(stored["plan"])
            return Checkpoint(batch, self._events_of(batch), plan, state, stored.get("starts", {}))
        except Exception as error:  # a damaged archive makes torch raise nearly anything
            if lacks_memory(error):
                raise
            raise _damaged(path, error) from error

    def _events_of(self, batch: int) -> list[str]:
        """The events of a batch by the losses so far. (Earlier versions stored those of other batches with them.)"""
        path = self.path / LOSSES_FILE
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        lines = [json.loads(line) for line in text.splitlines()[: self._lines]]
        return [event for line in lines if line.get("group", 0) == batch for event in line.get("events", ())]

    def _save_tensors(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        stored = {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
        self._write(name, lambda part: save_file(stored, part))

    def _write(self, name: str, write: Callable[[Path], Any]) -> None:
        with self._writing(), atomic_file(self.path / name) as part:
            write(part)

    def _writing(self) -> AbstractContextManager[None]:
        return write_errors(f"in {self.path}")


def _damaged(path: Path, error: Exception) -> CodebrushError:
    reason = f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"
    return CodebrushError(f"{path} is damaged ({reason}): begin a new run")
