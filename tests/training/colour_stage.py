"""A model that no part of the program knows, with all that makes it a stage and a member of packs, in one file.

It predicts the mean colour of the pictures of a text from CLIP's embedding of the text, or from the mean of the token
vectors that a captioner has for it.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from codebrush.models.captioner import Captioner
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
    captioner: bool = False
    learning_rate: Rate = 1e-2


class ColourTask:
    def __init__(
        self, network: Colour, recipe: ColourRecipe, reader: CLIP | Captioner, data: Captioned, tokens: CaptionTokens
    ):
        self.reader, self.data, self.tokens, self.examples = reader, data, tokens, len(data)
        self.networks: dict[str, nn.Module] = {"colour": network}
        self.optimizers: dict[str, torch.optim.Optimizer] = {"colour": make_adamw([network], recipe.learning_rate)}
        self.frozen: list[nn.Module] = [reader]

    def batch(self, rows: np.ndarray, rng: np.random.Generator) -> dict[str, Tensor]:
        return {"images": self.data.images(rows), "tokens": self.tokens.draw(rows, rng)}

    def objectives(self, batch: dict[str, Tensor], step: int) -> Iterator[Objective]:
        with torch.no_grad():
            if isinstance(self.reader, CLIP):
                texts = self.reader.encode_text(batch["tokens"])
            else:
                texts = self.reader.token_embedding(batch["tokens"]).mean(1)
        wanted = batch["images"].float().mean((2, 3)) / 255
        yield Objective("colour", (self.networks["colour"](texts) - wanted).square().mean(), {})

    def preview(self, network: nn.Module) -> None:
        return None


class ColourStage(Stage):
    member = Member("colour", "colour model", Colour, "train one with codebrush train colour", misfits)
    recipe = ColourRecipe

    def make(self, plan: StagePlan, materials: Materials) -> Colour:
        captioner = plan.recipe.captioner
        width = materials.need(Captioner).config.width if captioner else materials.need(CLIP).embed_dim
        return Colour(ColourConfig(width, plan.recipe.width))

    def task(self, network: Colour, plan: StagePlan, materials: Materials) -> ColourTask:
        captioner = plan.recipe.captioner
        reader = materials.need(Captioner) if captioner else materials.need(CLIP)
        tokens = CaptionTokens(materials.data, materials.tokenizers["captioner" if captioner else "clip"])
        return ColourTask(network, plan.recipe, reader, materials.data, tokens)


STAGE = ColourStage()
