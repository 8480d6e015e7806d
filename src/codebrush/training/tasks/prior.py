"""Trains a prior, which predicts from CLIP's embedding of a text the embedding of a picture that fits it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from codebrush.models.clip import CLIP
from codebrush.models.prior import Prior, PriorConfig
from codebrush.pack.members import MEMBERS
from codebrush.text.tokenizer import Tokenizer
from codebrush.training.dataset import Captioned
from codebrush.training.engine.optimizer import make_adamw
from codebrush.training.engine.task import ComparesRows, Objective
from codebrush.training.field_types import Count, Rate, Share, Weight
from codebrush.training.stage import Materials, ModelSize, Stage, StagePlan
from codebrush.training.streamed import Streamed, caption_tokens
from codebrush.training.tasks.contrastive_loss import gather, row_numbers

SHARPNESS = 20.0  # factor on the cosines in the softmax over the pictures of a batch


@dataclass(frozen=True)
class PriorRecipe:
    """Sizes and settings. `noise` is added to the texts' unit vectors; without it few captions are memorised.

    `contrast` is the weight of the contrastive loss over the pictures of a batch, beside the cosine loss.
    """

    width: Count = 512
    layers: Count = 2
    noise: Share = 0.1
    contrast: Weight = 0.5
    learning_rate: Rate = 1e-3
    weight_decay: Weight = 0.05


def make_prior(recipe: PriorRecipe, clip: CLIP) -> Prior:
    """A fresh prior in the space of `clip`, which at first returns the text's own embedding."""
    return Prior(PriorConfig(clip.embed_dim, recipe.width, recipe.layers))


class PriorTask(ComparesRows):
    """Predicts the embedding of a caption's picture; see `TrainingTask`."""

    def __init__(self, prior: Prior, recipe: PriorRecipe, clip: CLIP, data: Captioned | Streamed, tokenizer: Tokenizer):
        self.recipe, self.clip, self.data = recipe, clip, data
        self.tokens = caption_tokens(data, tokenizer)
        self.examples = len(data)
        self.networks: dict[str, nn.Module] = {"prior": prior}
        self.optimizers: dict[str, torch.optim.Optimizer] = {
            "prior": make_adamw([prior], recipe.learning_rate, recipe.weight_decay)
        }
        self.frozen: list[nn.Module] = [clip]

    def batch(self, rows: np.ndarray, rng: np.random.Generator) -> dict[str, Tensor]:
        """Pictures uint8 (B, 3, S, S), the tokens (B, T) of one caption each, noise (B, E) and groups (B,)."""
        noise = rng.standard_normal((len(rows), self.clip.embed_dim), dtype=np.float32) / self.clip.embed_dim**0.5
        return {
            "images": self.data.images(rows),
            "tokens": self.tokens.draw(rows, rng),
            "noise": torch.from_numpy(noise),
            "groups": torch.from_numpy(self.data.groups[rows]),
        }

    def objectives(self, batch: dict[str, Tensor], step: int) -> Iterator[Objective]:
        """One minus the cosine with the caption's picture, and a softmax loss over the pictures of other groups."""
        with torch.no_grad():
            pictures = self.clip.encode_image(batch["images"].float() / 255)  # (B, E)
            texts = self.clip.encode_text(batch["tokens"])
            texts = F.normalize(texts + self.recipe.noise * batch["noise"], dim=-1)
        predicted = self.networks["prior"](texts)
        cosines, own = (predicted * pictures).sum(-1), row_numbers(predicted)
        # another picture of the same thing would not be wrong
        others = (batch["groups"][:, None] == gather(batch["groups"])).scatter(1, own[:, None], False)
        logits = (SHARPNESS * predicted.float() @ gather(pictures).T).masked_fill(others, -torch.inf)
        contrast = F.cross_entropy(logits, own)
        loss = (1 - cosines).mean() + self.recipe.contrast * contrast
        yield Objective("prior", loss, {"cosine": cosines.detach().mean()})

    def preview(self, network: nn.Module) -> None:
        """A prior draws nothing."""
        return None


class PriorStage(Stage):
    """Trains the prior of a pack."""

    member = MEMBERS["prior"]
    recipe = PriorRecipe
    bound_to = ("clip",)
    share = 0.02
    streams = True

    def make(self, plan: StagePlan, materials: Materials) -> Prior:
        """A fresh prior for the embeddings of the CLIP."""
        return make_prior(plan.recipe, materials.need(CLIP))

    def task(self, network: Prior, plan: StagePlan, materials: Materials) -> PriorTask:
        """The training on captions and their pictures."""
        return PriorTask(network, plan.recipe, materials.need(CLIP), materials.data, materials.tokenizer)

    def sizes(self, image_size: int) -> Sequence[ModelSize]:
        """Two sizes; a prior is small beside the other models."""
        return [
            ModelSize("small", PriorRecipe(width=256), 64, 10_000),
            ModelSize("large", PriorRecipe(width=1024), 256, 1_000_000),
        ]


STAGE = PriorStage()
