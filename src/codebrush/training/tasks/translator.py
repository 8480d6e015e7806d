"""Trains a translator on pictures of the same things in several styles: from a picture to the same in another style."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from PIL import Image
from pydantic import Field
from torch import Tensor, nn

from codebrush.data.contact_sheet import contact_sheet
from codebrush.data.decoding.images import to_pil
from codebrush.data.sources.filters import is_empty
from codebrush.errors import DataError, TrainingError
from codebrush.models.clip import CLIP
from codebrush.models.perceptual import CLIPPerceptual
from codebrush.models.translator import Translator, TranslatorConfig
from codebrush.pack.members import MEMBERS
from codebrush.pack.pack import Pack
from codebrush.training.dataset import Captioned, evenly
from codebrush.training.engine.optimizer import make_adamw
from codebrush.training.engine.task import Objective
from codebrush.training.field_types import Count, Rate, Weight, Whole
from codebrush.training.stage import Materials, Stage, StagePlan, resized
from codebrush.training.tasks.augmentation import Augmentation, draw_affine, move
from codebrush.training.tasks.psnr import psnr

PREVIEWED = 6


@dataclass(frozen=True)
class TranslatorRecipe:
    """Sizes and settings. `style_column` holds each row's style; rows of a group show the same thing. Pictures are
    `image_size` pixels wide; 0 means the size of the pack that the CLIP is from, or the size that the CLIP reads.

    `pixel`, `perceptual` and `likeness` are the weights of the losses: the mean absolute and squared error, the
    distance in CLIP's feature maps, and one minus the cosine of CLIP's embeddings. Both pictures of a pair are
    augmented alike.
    """

    style_column: str = "style"
    image_size: Whole = 0
    channels: Count = 24
    multipliers: Annotated[tuple[Count, ...], Field(min_length=1)] = (1, 2, 4, 4)
    pixel: Rate = 1.0
    perceptual: Weight = 0.1
    likeness: Weight = 0.2
    learning_rate: Rate = 1.5e-3
    weight_decay: Weight = 0.01
    augmentation: Augmentation = Augmentation(shift=0.06, zoom=0.1, turn=5, mirror=0.5)


def styles_of(data: Captioned, column: str) -> list[str]:
    """Each row's style, "" if it has none. Raises DataError if there is no such column."""
    there = data.source.schema.names
    if column not in there:
        raise DataError(f"{data.source.origin}: recipe.style_column is {column}; there are {', '.join(there)}")
    cells = [data.source.cell(row, column) for row in data.pixels.rows]
    return ["" if is_empty(cell) else str(cell).strip() for cell in cells]


def learned_styles(recipe: TranslatorRecipe, data: Captioned) -> tuple[str, ...]:
    """The styles of the rows, sorted. Raises TrainingError if there are fewer than two."""
    styles = tuple(sorted(set(styles_of(data, recipe.style_column)) - {""}))
    if len(styles) < 2:
        raise TrainingError(f"the column {recipe.style_column} holds fewer than two styles: name another")
    return styles


def make_translator(recipe: TranslatorRecipe, data: Captioned) -> Translator:
    """A fresh translator to the styles of the rows."""
    return Translator(TranslatorConfig(learned_styles(recipe, data), recipe.channels, recipe.multipliers))


class TranslatorTask:
    """Predicts a picture from one of the same thing in another style; see `TrainingTask`.

    Raises:
        TrainingError: if the start lacks a style of the rows, there are no pairs, or the pictures do not suit its size.
    """

    def __init__(self, translator: Translator, recipe: TranslatorRecipe, clip: CLIP, data: Captioned):
        self.recipe, self.clip, self.data = recipe, clip, data
        number = {style: place for place, style in enumerate(translator.config.styles)} | {"": -1}
        named = styles_of(data, recipe.style_column)
        if new := sorted(set(named) - set(number)):
            raise TrainingError(f"the translator to begin from does not know the style '{new[0]}': train a fresh one")
        self.styles = np.array([number[style] for style in named])
        order, counts = np.argsort(data.groups, kind="stable"), np.bincount(data.groups)
        self.members = np.split(order, counts.cumsum()[:-1])  # the rows of each group
        self.targets = np.flatnonzero([len(self._others(row)) > 0 for row in range(len(data))])
        if not len(self.targets):
            raise TrainingError("no two rows of a group have different styles: name source.group (--group)")
        if data.pixels.pixels.shape[1] % translator.config.factor:
            raise TrainingError(f"pictures must be multiples of {translator.config.factor} pixels wide")
        self.perceptual = CLIPPerceptual(clip)
        self.examples = len(self.targets)
        self.networks: dict[str, nn.Module] = {"translator": translator}
        optimizer = make_adamw([translator], recipe.learning_rate, recipe.weight_decay, (0.9, 0.99))
        self.optimizers: dict[str, torch.optim.Optimizer] = {"translator": optimizer}
        self.frozen: list[nn.Module] = [clip, self.perceptual]
        self.shown = self.batch(evenly(self.examples, PREVIEWED), np.random.default_rng(0))

    def _others(self, row: int) -> np.ndarray:
        """The rows that show the same thing in other styles."""
        if self.styles[row] < 0:
            return np.empty(0, dtype=np.int64)
        members = self.members[self.data.groups[row]]
        return members[(self.styles[members] >= 0) & (self.styles[members] != self.styles[row])]

    def batch(self, rows: np.ndarray, rng: np.random.Generator) -> dict[str, Tensor]:
        """Source and target pictures, uint8 (B, 3, S, S) each, the targets' styles (B,), and how to move both."""
        targets = self.targets[rows]
        sources = np.array([rng.choice(self._others(row)) for row in targets])
        return {
            "images": self.data.images(sources),
            "wanted": self.data.images(targets),
            "styles": torch.from_numpy(self.styles[targets]),
            "affine": draw_affine(len(rows), self.recipe.augmentation, rng),
        }

    def objectives(self, batch: dict[str, Tensor], step: int) -> Iterator[Objective]:
        """The distance between made and target pictures, in pixels and in CLIP's features and embeddings."""
        r = self.recipe
        images, wanted = (move(batch[name].float() / 255, batch["affine"]) for name in ("images", "wanted"))
        made = self.networks["translator"](images, batch["styles"]).float()
        apart = self.perceptual(made, wanted).mean()
        loss = r.pixel * ((made - wanted).abs().mean() + 2 * (made - wanted).square().mean()) + r.perceptual * apart
        reached, untouched = psnr(made, wanted, each=True), psnr(images, wanted, each=True)
        metrics = {"psnr": reached, "gain": reached - untouched, "perceptual": apart}
        if r.likeness:
            with torch.no_grad():
                target = self.clip.encode_image(wanted)
            alike = (self.clip.encode_image(made) * target).sum(-1).mean()
            loss, metrics["likeness"] = loss + r.likeness * (1 - alike), alike
        yield Objective("translator", loss, metrics)

    @torch.no_grad()
    def preview(self, network: nn.Module) -> Image.Image:
        """Some pictures in three rows: sources, translations, targets."""
        device = next(network.parameters()).device
        images, wanted = (self.shown[name].float() / 255 for name in ("images", "wanted"))
        made = network(images.to(device), self.shown["styles"].to(device)).float().cpu().clamp(0, 1)
        return contact_sheet([to_pil(image) for row in (images, made, wanted) for image in row], columns=len(images))


class TranslatorStage(Stage):
    """Trains the translator of a pack, if a recipe names the column of styles."""

    member = MEMBERS["translator"]
    recipe = TranslatorRecipe

    def make(self, plan: StagePlan, materials: Materials) -> Translator:
        """A fresh translator to the styles of the rows."""
        return make_translator(plan.recipe, materials.stored)

    def task(self, network: Translator, plan: StagePlan, materials: Materials) -> TranslatorTask:
        """The training on pairs of pictures of the same thing."""
        return TranslatorTask(network, plan.recipe, materials.need(CLIP), materials.stored)

    def check(self, plan: StagePlan, materials: Materials) -> None:
        """Reports a missing column, or one without styles, before the other stages are trained."""
        learned_styles(plan.recipe, materials.stored)

    def prepare(self, plan: StagePlan, materials: Materials, cache: Path) -> Materials:
        """The materials with pictures of the recipe's size."""
        return resized(plan, materials, cache)

    def picture_size(self, models: Mapping[str, Any], pack: Pack | None) -> int:
        """The picture size of the pack that the CLIP is from."""
        return super().picture_size(models, pack) if pack is None else pack.image_size


STAGE = TranslatorStage()
