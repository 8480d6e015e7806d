"""Trains a flow transformer, which draws a picture's latent from noise and text, on stored latents of pictures."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from codebrush.data.stored_codes import latents_once
from codebrush.errors import TrainingError
from codebrush.models.clip import CLIP
from codebrush.models.condition import Condition
from codebrush.models.flow_transformer import FlowTransformer, FlowTransformerConfig
from codebrush.models.vqgan import VQGAN
from codebrush.pack.members import MEMBERS
from codebrush.pack.pack import Pack, text_condition
from codebrush.text.tokenizer import Tokenizer
from codebrush.training.dataset import Captioned, evenly
from codebrush.training.engine.optimizer import make_adamw
from codebrush.training.engine.task import Objective
from codebrush.training.field_types import Count, Rate, Share, Weight
from codebrush.training.stage import Materials, ModelSize, Stage, StagePlan, needed
from codebrush.training.tasks.conditions import GIVEN, ConditionShares, given_rows, image_embeddings, with_bank

MEASURED = 4096  # latents of which mean and deviation are taken


@dataclass(frozen=True)
class FlowRecipe(ConditionShares):
    """Sizes and settings of a flow transformer and its training.

    The prefix holds `text_length` text tokens and, with `pooled_text`, the blocks are modulated by CLIP's embedding of
    the whole text. `stem` is the number of channels of the convolutions before and behind the transformer.

    Times are drawn from a logit-normal distribution with mean `time_mean` and deviation `time_deviation` (Esser et al.
    2024, eq. 19): a higher mean trains more on noisy latents, where the layout is decided.
    """

    width: Count = 320
    layers: Count = 8
    heads: Count = 5
    patch: Count = 2
    stem: Count = 64
    text_length: Count = 16
    pooled_text: bool = True
    dropout: Share = 0.0
    condition_dropout: Share = 0.1
    time_mean: float = 0.0
    time_deviation: Weight = 1.0
    learning_rate: Rate = 1e-3
    weight_decay: Weight = 0.01


def make_flow_transformer(
    recipe: FlowRecipe, clip: CLIP, vqgan: VQGAN, grid: tuple[int, int], latents: np.ndarray
) -> FlowTransformer:
    """A fresh network for the latents (N, d, h, w) of `vqgan`, whose mean and deviation it keeps."""
    network = FlowTransformer(
        FlowTransformerConfig(
            latent_channels=vqgan.config.code_dim,
            grid=grid,
            width=recipe.width,
            layers=recipe.layers,
            heads=recipe.heads,
            patch=recipe.patch,
            stem=recipe.stem,
            unit_latents=vqgan.config.unit_latents,
            text_features=clip.config.text.feature_width,
            text_length=min(recipe.text_length, clip.text_encoder.config.context_length),
            text_embedding=clip.embed_dim if recipe.pooled_text else 0,
            image_embedding=clip.embed_dim if recipe.image_share else 0,
            source=recipe.from_source,
            condition_dropout=recipe.condition_dropout,
            dropout=recipe.dropout,
        )
    )
    sample = network.normalise(torch.from_numpy(latents[evenly(len(latents), MEASURED)].astype(np.float32)))
    network.deviation.copy_(sample.std(dim=(0, 2, 3)).clamp(min=1e-6))
    network.mean.copy_(sample.mean(dim=(0, 2, 3)))
    return network


class FlowTask:
    """Learns the velocity of stored latents on their way to noise; see `TrainingTask`."""

    def __init__(
        self,
        flow: FlowTransformer,
        recipe: FlowRecipe,
        clip: CLIP,
        data: Captioned,
        latents: np.ndarray,  # (N, d, h, w)
        tokenizer: Tokenizer,
        draw: Callable[[nn.Module], Image.Image | None] | None = None,
        vqgan: VQGAN | None = None,
    ):
        """`vqgan` encodes pictures with holes, if the recipe asks for them."""
        self.recipe, self.clip, self.latents, self.draw, self.vqgan = recipe, clip, latents, draw, vqgan
        self.config = flow.config
        self.conditions = recipe.sampler(data, latents, self.config.grid, tokenizer)
        self.examples = len(data)
        self.networks: dict[str, nn.Module] = {"flow": flow}
        self.optimizers: dict[str, torch.optim.Optimizer] = {
            "flow": make_adamw([flow], recipe.learning_rate, recipe.weight_decay, betas=(0.9, 0.95))
        }
        self.frozen: list[nn.Module] = [clip, *([vqgan] if vqgan is not None else [])]
        self.normalise = flow.normalise

    def batch(self, rows: np.ndarray, rng: np.random.Generator) -> dict[str, Tensor]:
        """Latents float32 (B, d, h, w), and what each picture is drawn from, by the names of `SampledConditions`."""
        latents = torch.from_numpy(self.latents[rows].astype(np.float32))
        return {"latents": latents, **vars(self.conditions.draw(rows, rng))}

    def objectives(self, batch: dict[str, Tensor], step: int) -> Iterator[Objective]:
        """The mean squared error of the velocity at a random time of each row."""
        recipe, device = self.recipe, batch["latents"].device
        x = self.normalise(batch["latents"])
        times = torch.randn(len(x), device=device) * recipe.time_deviation + recipe.time_mean
        time = times.sigmoid().to(x.dtype)  # (B,)
        noise, share = torch.randn_like(x), time[:, None, None, None]
        noisy = torch.lerp(x, noise, share)
        velocity = self.networks["flow"](noisy, time, self._condition(batch))
        yield Objective("flow", F.mse_loss(velocity.float(), noise - x), {})

    @torch.no_grad()
    def _condition(self, batch: dict[str, Tensor]) -> Condition:
        condition = text_condition(self.clip, batch["tokens"], self.config)
        present, count = batch["present"], len(batch["latents"])
        if self.config.image_embedding:
            condition = replace(condition, image_embedding=image_embeddings(self.clip, batch["images"], count))
        if self.config.source:
            source = torch.zeros_like(batch["latents"])
            _, holed, paired = given_rows(batch)
            source[paired] = batch["source"][paired]
            if holed.start < holed.stop:
                assert self.vqgan is not None
                with torch.autocast(source.device.type, enabled=False):  # the latents that editing would give
                    source[holed] = self.vqgan.encode(batch["holed"][holed])
            condition = replace(condition, source_latent=source, source_mask=batch["shown"])
        names = ["source_latent" if name == "source_codes" else name for name in GIVEN]
        return replace(condition, present=present[:, [names.index(name) for name in self.config.conditions]])

    def preview(self, network: nn.Module) -> Image.Image | None:
        """Pictures drawn by the network."""
        return self.draw(network) if self.draw is not None else None


class FlowStage(Stage):
    """Trains the flow transformer of a pack."""

    member = MEMBERS["flow"]
    recipe = FlowRecipe
    bound_to = ("clip", "vqgan")
    share = 0.28
    by_heart = "raise recipe.dropout, add pictures, or train for fewer steps"

    def make(self, plan: StagePlan, materials: Materials) -> FlowTransformer:
        """A fresh network for the latents of the VQGAN, over the whole picture."""
        clip, vqgan = materials.need(CLIP), materials.need(VQGAN)
        grid = vqgan.code_grid(materials.image_size)
        return make_flow_transformer(plan.recipe, clip, vqgan, grid, needed(materials.latents, "latents"))

    def grow(self, start: FlowTransformer, plan: StagePlan, materials: Materials) -> FlowTransformer:
        """`start` itself. Raises TrainingError if it lacks a condition that the recipe's shares need."""
        recipe, config = plan.recipe, start.config
        wanted = {"image_share": config.image_embedding, "hole_share": config.source, "pair_share": config.source}
        missing = [name for name, there in wanted.items() if getattr(recipe, name) and not there]
        if missing:
            raise TrainingError(
                f"the flow transformer to begin from has no place for what {missing[0]} needs: set it to 0"
            )
        return start

    def task(self, network: FlowTransformer, plan: StagePlan, materials: Materials) -> FlowTask:
        """The training on the stored latents of the pictures."""
        recipe, draw = plan.recipe, materials.draw
        return FlowTask(
            network,
            recipe,
            materials.need(CLIP),
            materials.stored,
            needed(materials.latents, "latents"),
            materials.tokenizer,
            None if draw is None else lambda network: draw(materials, network),
            materials.need(VQGAN) if recipe.hole_share else None,
        )

    def precompute(self, materials: Materials, cache: Path) -> Materials:
        """The materials with the latents of all pictures."""
        vqgan = materials.find(VQGAN)
        if vqgan is None:
            return materials
        return replace(materials, latents=latents_once(vqgan, materials.stored.pixels, cache))

    def placeholders(self, materials: Materials) -> Materials:
        """The materials with latents that are all zero."""
        vqgan = materials.need(VQGAN)
        shape = (len(materials.stored), vqgan.config.code_dim, *vqgan.code_grid(materials.image_size))
        return replace(materials, latents=np.zeros(shape, np.float16))

    def finish(
        self, network: FlowTransformer, plan: StagePlan, materials: Materials, seconds: float | None
    ) -> Materials:
        """The materials with a bank of pictures if it reads picture embeddings."""
        return with_bank(materials, seconds) if network.config.image_embedding else materials

    def sizes(self, image_size: int) -> Sequence[ModelSize]:
        """Three sizes, which also learn to vary pictures and to fill holes."""
        return [
            ModelSize("small", _sized_recipe(128, 4, 32, 2e-3), 32, 300_000),
            ModelSize("medium", _sized_recipe(256, 6, 64, 1e-3), 64, 1_000_000),
            ModelSize("large", _sized_recipe(384, 10, 64, 6e-4), 128, 4_000_000),
        ]

    def adapt(self, recipe: Any, materials: Materials, start: Any, wordpiece: bool) -> Any:
        """The recipe without the conditions that the network to begin from has no place for."""
        if start is None:
            return recipe
        there = {"image_share": bool(start.config.image_embedding), "hole_share": start.config.source}
        return replace(recipe, **{share: getattr(recipe, share) * known for share, known in there.items()})

    def picture_size(self, models: Mapping[str, Any], pack: Pack | None) -> int:
        """The size of the VQGAN's pictures."""
        return models["vqgan"].config.image_size if "vqgan" in models else super().picture_size({}, pack)


def _sized_recipe(width: int, layers: int, stem: int, learning_rate: float) -> FlowRecipe:
    return FlowRecipe(
        width=width,
        layers=layers,
        heads=width // 64,
        stem=stem,
        learning_rate=learning_rate,
        image_share=0.15,
        hole_share=0.15,
    )


STAGE = FlowStage()
