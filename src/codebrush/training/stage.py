"""What a stage of training is: everything the program has to know about a model in order to train it.

Each file of `tasks/` that trains a model subclasses `Stage` and exports one instance as STAGE. `registry.STAGES` lists
them, and the command line, recipes, the plan of a time budget and the training of packs go by that list.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np
from PIL import Image

from codebrush.errors import TrainingError
from codebrush.models.pretrained import PretrainedModel
from codebrush.pack.members import Member, member_of
from codebrush.pack.pack import Pack
from codebrush.text.tokenizer import Tokenizer
from codebrush.training.dataset import Captioned, SourceConfig, load_captioned
from codebrush.training.engine.loop_config import LoopConfig
from codebrush.training.engine.task import Hooks, TrainingTask
from codebrush.training.forgetting import GateConfig
from codebrush.training.guards import Guard, memory_guard
from codebrush.training.streamed import Streamed

MANY = 200  # pictures, from which on some are held out of a training within a budget
GRID = 8  # codes along a side, at least; the pictures of packs trained within a budget are multiples of it
Model = TypeVar("Model", bound=PretrainedModel)


@dataclass(frozen=True)
class StagePlan:
    """Everything a run of a stage is decided by. `recipe` is the stage's own dataclass, `facts` says what it was
    trained on.

    `replay` (a general set trained on beside the new one), `decoys` (pictures that match no text, see `decoy_loss`) and
    `gate` (a set that must not be forgotten) are only for stages that set `replays`.
    """

    stage: str
    recipe: Any
    loop: LoopConfig
    facts: dict[str, Any] = field(default_factory=dict)
    replay: SourceConfig | None = None
    gate: GateConfig | None = None
    decoys: SourceConfig | None = None

    @property
    def image_size(self) -> int:
        """The side of the pictures that the recipe asks for, in pixels; 0 if it leaves that open."""
        return getattr(self.recipe, "target_size", 0) or getattr(self.recipe, "image_size", 0)


@dataclass
class Materials:
    """What a stage is trained with: the pictures, and what earlier stages made.

    `tokenizers` and `models` are by member name; "clip" is the tokenizer of prompts and captions. `codes` (N, h * w)
    and `latents` (N, d, h, w) are those of the pictures, `draw` makes a preview of a painter, `extras` are entries of
    pack.json beside those that every pack has.
    """

    data: Captioned | Streamed
    tokenizers: dict[str, Tokenizer]
    models: dict[str, PretrainedModel] = field(default_factory=dict)
    codes: np.ndarray | None = None
    latents: np.ndarray | None = None
    draw: Callable[["Materials", Any], Image.Image | None] | None = None
    replay: Captioned | None = None
    gate: Captioned | None = None
    decoys: Captioned | None = None
    extras: dict[str, Any] = field(default_factory=dict)

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer of prompts and captions."""
        return self.tokenizers["clip"]

    @property
    def image_size(self) -> int:
        """The side of the pictures, in pixels."""
        return self.data.size

    @property
    def stored(self) -> Captioned:
        """The pictures as a table on disk. Raises TrainingError if they are streamed."""
        if isinstance(self.data, Streamed):
            raise TrainingError(f"this stage reads all of its pictures ahead: {self.data.unstreamed}")
        return self.data

    def find(self, model: type[Model]) -> Model | None:
        """The model of a class that an earlier stage made; None if there is none."""
        found = self.models.get(member_of(model).name)
        return found if isinstance(found, model) else None

    def need(self, model: type[Model]) -> Model:
        """The model of a class that an earlier stage made. Raises TrainingError if there is none."""
        return needed(self.find(model), member_of(model).name)


def needed(part: Any, name: str) -> Any:
    """`part`, unless it is None. Raises TrainingError that asks for the folder of an earlier stage."""
    if part is None:
        raise TrainingError(f"this stage needs the {name} of an earlier one: name a folder that holds it")
    return part


def resized(plan: StagePlan, materials: Materials, cache: Path) -> Materials:
    """The materials with pictures of the size that the plan asks for."""
    if plan.image_size in (0, materials.image_size):
        return materials
    return replace(
        materials, data=load_captioned(materials.stored.source, plan.image_size, cache, materials.stored.weight)
    )


@dataclass(frozen=True)
class ModelSize:
    """A candidate for a time budget: a recipe, its batch size, and how many pictures it must see to be worth it."""

    name: str
    recipe: Any
    batch_size: int
    examples: int

    def least(self, started: bool) -> int:
        """The pictures that must be seen for a network of any use: fewer where it is `started` from a trained one."""
        return self.examples // (200 if started else 2)


def halvings(image_size: int) -> int:
    """How often a VQGAN within a budget halves pictures of `image_size` pixels: 1 to 3 times, GRID codes at least."""
    return min(3, max(1, int(math.log2(image_size // GRID))))


class Stage(ABC):
    """How one member of a pack is trained. `registry` names the earlier members that it reads."""

    member: ClassVar[Member]
    recipe: ClassVar[type]  # a frozen dataclass with its settings
    optional: ClassVar[bool] = True  # whether the recipes of a pack may leave it out
    share: ClassVar[float] = 0.0  # of a time budget; 0: trained only where a recipe asks for it
    served_first: ClassVar[bool] = False  # whether it gets what it needs of a budget before the others
    start_rate: ClassVar[float] = (
        0.3  # within a budget: learning rate of a trained network, as a share of a fresh one's
    )
    bound_to: ClassVar[tuple[str, ...]] = ()  # members whose outputs it learned: beside others it is of no use
    by_heart: ClassVar[str] = ""  # what to do where it learns its pictures by heart; "": it cannot
    streams: ClassVar[bool] = False  # whether it can train on pictures that are streamed
    replays: ClassVar[bool] = False  # whether its plan may have `replay` and `gate`
    sets_image_size: ClassVar[bool] = False  # whether the pictures of a pack are as large as its recipe says
    renamed: ClassVar[tuple[tuple[str, str], ...]] = ()  # fields of the recipe: earlier and present name

    @property
    def name(self) -> str:
        """Its name in recipes, folders and on the command line."""
        return self.member.name

    @abstractmethod
    def make(self, plan: StagePlan, materials: Materials) -> PretrainedModel:
        """A fresh network."""

    def grow(self, start: Any, plan: StagePlan, materials: Materials) -> PretrainedModel:
        """The network to train when training begins from `start`."""
        return start

    @abstractmethod
    def task(self, network: Any, plan: StagePlan, materials: Materials) -> TrainingTask:
        """What the training loop runs."""

    def hooks(self, plan: StagePlan, materials: Materials, folder: Path) -> Hooks:
        """What the stage adds to the loop of a run in `folder`."""
        return Hooks()

    def guard(self, plan: StagePlan, materials: Materials, task: Any) -> Guard | None:
        """What is measured during a run to notice faults that its loss does not show."""
        return memory_guard(task, plan.loop.held_out, plan.loop.batch_size, self.by_heart) if self.by_heart else None

    def held_out(self, pictures: int) -> int:
        """How many of the `pictures` a training within a budget does not train on but measures."""
        return min(64, pictures // 25) if self.by_heart and pictures >= MANY else 0

    def check(self, plan: StagePlan, materials: Materials) -> None:
        """Raises TrainingError or DataError for a plan that would fail only after hours of earlier stages."""
        return

    def precompute(self, materials: Materials, cache: Path) -> Materials:
        """The materials with what any plan of this stage needs of the earlier models."""
        return materials

    def placeholders(self, materials: Materials) -> Materials:
        """The materials with something like what `precompute` makes, at no cost, to time steps with."""
        return materials

    def prepare(self, plan: StagePlan, materials: Materials, cache: Path) -> Materials:
        """The materials with what this plan needs: pictures of its size, other sets, a vocabulary."""
        return materials

    def tokenizer_beside(self, start: Any, folder: Path) -> Tokenizer | None:
        """The stage's own tokenizer from the folder of the model `start`; None for a stage that has none."""
        return Tokenizer.from_pretrained(folder) if self.member.tokenizer_misfits else None

    def picture_size(self, models: Mapping[str, Any], pack: Pack | None) -> int:
        """The side of the pictures of a stage trained alone whose recipe leaves it open, in pixels.

        `models` are those given to it by name, `pack` the one that its CLIP is in.
        """
        clip, vqgan = models.get("clip"), models.get("vqgan")
        return clip.image_size if clip is not None else vqgan.config.image_size if vqgan is not None else 64

    def adapt_to_start(self, plan: StagePlan, start: Any) -> StagePlan:
        """The plan of a stage trained alone, changed where `start` decides a setting."""
        return plan

    def sizes(self, image_size: int) -> Sequence[ModelSize]:
        """The candidates for a time budget, smallest first, for square pictures of `image_size` pixels."""
        return ()

    def adapt(self, recipe: Any, materials: Materials, start: Any, wordpiece: bool) -> Any:
        """A candidate's recipe, changed to fit the pictures, the network to begin from, and the kind of tokenizer."""
        return recipe

    def finish(self, network: Any, plan: StagePlan, materials: Materials, seconds: float | None) -> Materials:
        """The materials with what a pack has beside the trained network, made within `seconds` if there is a budget."""
        return materials

    def unfit(self, start: Any, image_size: int) -> str:
        """Why a network with the config `start` is no good beginning for pictures of this size; "" if it is one."""
        return ""
