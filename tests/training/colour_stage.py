"""A model that no part of the program knows, with all that makes it a stage and a member of packs, in one file.

It predicts the mean colour of the pictures of a text from CLIP's embedding of the text.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from codebrush.models.clip import CLIP
from codebrush.models.pretrained import PretrainedModel
from codebrush.pack.members import Member
from codebrush.training.dataset import Captioned, CaptionTokens
from codebrush.training.engine.optimizer import make_adamw
from codebrush.training.engine.task import Objective
from codebrush.training.field_types import Count, Rate
from codebrush.training.stage import Materials, Stage, StagePlan


@dataclass(frozen=True)
class ColourConfig:
    embed_dim: int
    width: int


class Colour(PretrainedModel):
    """Embeddings (B, E) of texts -> red, green and blue (B, 3) in [0, 1]."""

    config_class = ColourConfig

    def __init__(self, config: ColourConfig):
        super().__init__()
        self.config = config
        self.layers = nn.Sequential(nn.Linear(config.embed_dim, config.width), nn.GELU(), nn.Linear(config.width, 3))

    def forward(self, embeddings: Tensor) -> Tensor:
        return self.layers(embeddings).sigmoid()


def misfits(configs: Mapping[str, Any], image_size: int) -> Iterator[tuple[str, str]]:
    reads, made = configs["colour"].embed_dim, configs["clip"].text.embed_dim
    if reads != made:
        yield f"colour model reads embeddings of {reads}", f"CLIP makes {made}"


@dataclass(frozen=True)
class ColourRecipe:
    width: Count = 16
    learning_rate: Rate = 1e-2


class ColourTask:
    def __init__(self, network: Colour, recipe: ColourRecipe, clip: CLIP, data: Captioned, tokens: CaptionTokens):
        self.clip, self.data, self.tokens, self.examples = clip, data, tokens, len(data)
        self.networks: dict[str, nn.Module] = {"colour": network}
        self.optimizers: dict[str, torch.optim.Optimizer] = {"colour": make_adamw([network], recipe.learning_rate)}
        self.frozen: list[nn.Module] = [clip]

    def batch(self, rows: np.ndarray, rng: np.random.Generator) -> dict[str, Tensor]:
        return {"images": self.data.images(rows), "tokens": self.tokens.draw(rows, rng)}

    def objectives(self, batch: dict[str, Tensor], step: int) -> Iterator[Objective]:
        with torch.no_grad():
            texts = self.clip.encode_text(batch["tokens"])
        wanted = batch["images"].float().mean((2, 3)) / 255
        yield Objective("colour", (self.networks["colour"](texts) - wanted).square().mean(), {})

    def preview(self, network: nn.Module) -> None:
        return None


class ColourStage(Stage):
    member = Member("colour", "colour model", Colour, "train one with codebrush train colour", misfits)
    recipe = ColourRecipe
    reads = ("clip",)

    def make(self, plan: StagePlan, materials: Materials) -> Colour:
        return Colour(ColourConfig(materials.need(CLIP).embed_dim, plan.recipe.width))

    def task(self, network: Colour, plan: StagePlan, materials: Materials) -> ColourTask:
        tokens = CaptionTokens(materials.data, materials.tokenizer)
        return ColourTask(network, plan.recipe, materials.need(CLIP), materials.data, tokens)


STAGE = ColourStage()
