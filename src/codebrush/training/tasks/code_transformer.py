"""Trains a code transformer, which draws the codes of a picture from text, on stored codes of captioned pictures."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from codebrush.data.sources.caption_templates import Template
from codebrush.data.stored_codes import encode_once
from codebrush.errors import TrainingError
from codebrush.models.clip import CLIP
from codebrush.models.code_transformer import UNKNOWN, CodeTransformer, CodeTransformerConfig
from codebrush.models.condition import Condition
from codebrush.models.vqgan import VQGAN
from codebrush.pack.members import MEMBERS
from codebrush.pack.pack import Pack, text_condition
from codebrush.text.tokenizer import Tokenizer
from codebrush.training.dataset import Captioned
from codebrush.training.engine.optimizer import make_adamw
from codebrush.training.engine.parts import mean_weights, totals
from codebrush.training.engine.sharding import untouched
from codebrush.training.engine.task import Objective
from codebrush.training.field_types import Count, Rate, Share, Weight
from codebrush.training.stage import GRID, Materials, ModelSize, Stage, StagePlan, halvings, needed
from codebrush.training.tasks.code_loss import code_likeness, code_loss
from codebrush.training.tasks.code_noise import add_code_noise, hide_codes
from codebrush.training.tasks.conditions import GIVEN, SOURCE, ConditionShares, given_rows, image_embeddings, with_bank


@dataclass(frozen=True)
class TransformerRecipe(ConditionShares):
    """Sizes and settings of a code transformer and its training.

    The prefix holds `text_length` text tokens and, with `pooled_text`, CLIP's embedding of the whole text (that of a
    bag of words adds nothing to its tokens). With `modulation` the pooled embeddings also shift, scale and gate every
    block of the network. `block` is the side of the square of codes that is one step of the long transformer (see
    `CodeTransformerConfig`).

    `code_noise` is the largest share of the codes read that are replaced by random ones, while the right ones have to
    be predicted; each picture's share is drawn between 0 and it. Without it a small collection is memorised code by
    code, the text is hardly used, and a drawing that leaves a memorised path does not return to one.

    A `masked` network learns to predict codes that are hidden, wherever they are, from all others (MaskGIT, Chang et
    al. 2022): of each picture the cosine of a random angle. It fills holes as it is, and has no `hole_share`.

    With `soft_codes` above 0 similar codes count as right as well, more so for higher values (see `code_likeness`), and
    have similar embeddings in a fresh network. Neighbours in a large codebook hardly differ, and which of them the
    encoder chose is not worth learning.
    """

    width: Count = 256
    layers: Count = 8
    heads: Count = 4
    block: Count = 1
    block_layers: Count = 1
    text_length: Count = 24
    pooled_text: bool = True
    modulation: bool = False
    masked: bool = False
    dropout: Share = 0.1
    condition_dropout: Share = 0.1
    label_smoothing: Share = 0.0
    soft_codes: Weight = 0.0
    code_noise: Share = 0.0
    learning_rate: Rate = 1e-3
    weight_decay: Weight = 0.05

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.masked and self.hole_share:
            raise ValueError("a masked network fills holes as it is: set hole_share to 0")


def make_code_transformer(
    recipe: TransformerRecipe, clip: CLIP, codebook_size: int, grid: tuple[int, int]
) -> CodeTransformer:
    """A fresh network that reads the text features and the pooled embedding of `clip`."""
    return CodeTransformer(
        CodeTransformerConfig(
            codebook_size=codebook_size,
            grid=grid,
            width=recipe.width,
            layers=recipe.layers,
            heads=recipe.heads,
            block=recipe.block,
            block_layers=recipe.block_layers,
            text_features=clip.config.text.feature_width,
            text_length=min(recipe.text_length, clip.text_encoder.config.context_length),
            text_embedding=clip.embed_dim if recipe.pooled_text else 0,
            image_embedding=clip.embed_dim if recipe.image_share else 0,
            source_codes=recipe.from_source,
            aligned_source=recipe.from_source,
            modulation=recipe.modulation,
            masked=recipe.masked,
            condition_dropout=recipe.condition_dropout,
            dropout=recipe.dropout,
        )
    )


def start_from_codebook(transformer: CodeTransformer, codebook: Tensor) -> None:
    """Start the input and output embeddings from a codebook (K, d), so that similar codes have similar embeddings."""
    spread = (codebook - codebook.mean(0)) / codebook.std(0).mean()  # (K, d), of about unit variance
    for weight in (transformer.code_embedding.weight, transformer.head.weight):
        projection = torch.randn(codebook.shape[1], weight.shape[1]) * (0.02 * codebook.shape[1] ** -0.5)
        weight.data.copy_(spread @ projection)


def with_conditions(transformer: CodeTransformer, recipe: TransformerRecipe, clip: CLIP) -> CodeTransformer:
    """`transformer` with the conditions that the recipe's shares need; from text alone it draws as before.

    Raises:
        TrainingError: if it reads classes, has no start token, or reads embeddings of another CLIP; if it is not
            masked as the recipe asks, or is masked and the recipe has holes.
    """
    config = transformer.config
    if recipe.masked and not config.masked:
        raise TrainingError(
            "the code transformer to begin from draws code after code: set masked to false, or begin from none"
        )
    if config.masked and recipe.hole_share:
        raise TrainingError(
            "the code transformer to begin from is masked and fills holes as it is: set hole_share to 0"
        )
    if recipe.modulation and not config.modulation and config.labels:
        raise TrainingError(
            "the code transformer to begin from reads classes, and no text modulates it: set modulation to false"
        )
    if (recipe.image_share or recipe.from_source) and (config.labels or not config.start_token):
        raise TrainingError(
            "the code transformer to begin from reads classes, or has no start token, and cannot learn to draw from "
            "pictures: set image_share, hole_share and pair_share to 0"
        )
    if recipe.image_share and config.image_embedding not in (0, clip.embed_dim):
        raise TrainingError(
            f"the code transformer to begin from reads embeddings of {config.image_embedding}, the CLIP makes "
            f"{clip.embed_dim}: name the CLIP that it was trained with"
        )
    wanted = replace(
        config,
        modulation=config.modulation or recipe.modulation,
        text_embedding=config.text_embedding or (clip.embed_dim if recipe.modulation else 0),
        image_embedding=config.image_embedding or (clip.embed_dim if recipe.image_share else 0),
        source_codes=config.source_codes or recipe.from_source,
        aligned_source=config.aligned_source or recipe.from_source,
    )
    if wanted == config:
        return transformer
    grown = CodeTransformer(wanted)
    old, new = transformer.state_dict(), grown.state_dict()
    slots = dict(zip([*(name for name, _ in config.conditions), "start"], _slots(old, config), strict=True))
    positions, place = new["prefix_positions"], 0
    for name, length in [*wanted.conditions, ("start", int(wanted.start_token))]:
        if name in slots:
            positions[place : place + length] = slots[name]
        place += length
    if wanted.modulation and not config.modulation:
        grown.transformer.open_gates()
        new.update({name: value for name, value in grown.state_dict().items() if ".modulation." in name})
    grown.load_state_dict({**new, **old, "prefix_positions": positions})
    return grown


def _slots(state: dict[str, Tensor], config: CodeTransformerConfig) -> tuple[Tensor, ...]:
    lengths = [*(length for _, length in config.conditions), int(config.start_token)]
    return state["prefix_positions"].split(lengths)


def translation_of(recipe: TransformerRecipe, data: Captioned) -> dict[str, Any] | None:
    """What pack.json says about a network that learned pairs under one template with one column: the template, with
    {style} in place of the column, and the styles in the column. None for any other network."""
    templates = [Template.parse(text) for text in recipe.pair_captions]
    if not recipe.pair_share or len(templates) != 1 or len(templates[0].columns) != 1:
        return None
    (column,) = templates[0].columns
    cells = {data.source.cell(row, column) for row in data.pixels.rows}
    styles = sorted(cell for cell in cells if isinstance(cell, str) and cell.strip())
    return {"text": templates[0].text.replace("{" + column + "}", "{style}"), "styles": styles} if styles else None


class CodeTransformerTask:
    """Next-code prediction on stored codes; see `TrainingTask`."""

    def __init__(
        self,
        transformer: CodeTransformer,
        recipe: TransformerRecipe,
        clip: CLIP,
        data: Captioned,
        codes: np.ndarray,  # (N, h * w), any integer type
        tokenizer: Tokenizer,
        draw: Callable[[nn.Module], Image.Image | None] | None = None,
        vqgan: VQGAN | None = None,
    ):
        """`vqgan` encodes pictures with holes and gives the codebook for `soft_codes`, if the recipe asks for them."""
        self.recipe, self.clip, self.codes, self.draw, self.vqgan = recipe, clip, codes, draw, vqgan
        self.config, self.order = transformer.config, transformer.order
        self.conditions = recipe.sampler(data, codes, self.config.grid, tokenizer)
        self.examples = len(data)
        self.networks: dict[str, nn.Module] = {"transformer": transformer}
        self.optimizers: dict[str, torch.optim.Optimizer] = {
            "transformer": make_adamw([transformer], recipe.learning_rate, recipe.weight_decay, betas=(0.9, 0.95))
        }
        self.frozen: list[nn.Module] = [clip, *([vqgan] if vqgan is not None else [])]
        self.likeness: Tensor | None = None
        if recipe.soft_codes:
            assert vqgan is not None
            self.likeness = code_likeness(vqgan.quantizer.vectors.detach(), recipe.soft_codes)
        # what no row uses gets no gradient, and other processes would wait for it
        if self.config.source_codes:
            transformer.nulls["source_codes"].requires_grad_(recipe.from_source)
        if transformer.align is not None:
            transformer.align.requires_grad_(recipe.from_source)

    def batch(self, rows: np.ndarray, rng: np.random.Generator) -> dict[str, Tensor]:
        """Codes int64 (B, N), what each picture is drawn from, by the names of `SampledConditions`, and the number of
        codes that are learned (see `totals`); of a masked network those are the hidden ones."""
        codes = torch.from_numpy(self.codes[rows].astype(np.int64))
        batch = {"codes": codes, **vars(self.conditions.draw(rows, rng))}
        if self.config.masked:
            batch["learned"] = hide_codes(codes, torch.Generator().manual_seed(int(rng.integers(2**62))))
        return {**batch, "totals": totals(len(rows), int(batch["learned"].sum()))}

    def objectives(self, batch: dict[str, Tensor], step: int) -> Iterator[Objective]:
        """Cross-entropy of every code given those before it; for rows with a hole, of the codes in the hole; with a
        masked network, of those that are hidden."""
        network, condition, logits, targets = self.networks["transformer"], self._condition(batch), [], []
        order = self.order.to(batch["codes"].device)
        seen = order if self.config.masked else order[:-1]
        read = add_code_noise(
            self._before(batch, condition)[:, seen], self.recipe.code_noise, self.config.codebook_size
        )
        learned = batch["learned"][:, order]
        if self.config.masked:
            read = read.masked_fill(learned, UNKNOWN)
        for rows in self._rows_of_one_length(batch):
            given = condition.rows(rows)
            if not bool(batch["present"][rows, SOURCE].any()):
                given = replace(given, source_codes=None, source_mask=None)
            own = learned[rows]
            logits.append(network(read[rows], given)[own])  # (L, K)
            targets.append(batch["codes"][rows][:, order][own])
        predicted, codes = torch.cat(logits), torch.cat(targets)
        accuracy = (predicted.detach().argmax(-1) == codes).float().mean()
        if self.likeness is not None:
            self.likeness = self.likeness.to(codes.device)
        (weight,) = mean_weights(batch["totals"], learned.sum())
        loss = weight * code_loss(predicted, codes, self.recipe.label_smoothing, self.likeness)
        _, holed, paired = given_rows(batch)
        if self.recipe.from_source and holed.start == paired.stop:  # a part whose rows have no source
            loss = loss + untouched(network)
        yield Objective("transformer", loss, {"accuracy": weight * accuracy})

    def _before(self, batch: dict[str, Tensor], condition: Condition) -> Tensor:
        """The codes (B, N) that the network reads. For pictures with a hole those outside it are the codes of the
        picture with the hole filled in, as in editing: the picture's own codes would give away what was there."""
        if condition.source_codes is None:
            return batch["codes"]
        _, holed, _ = given_rows(batch)
        codes = batch["codes"].clone()
        codes[holed] = torch.where(batch["shown"][holed], condition.source_codes[holed], codes[holed])
        return codes

    def _rows_of_one_length(self, batch: dict[str, Tensor]) -> list[Tensor]:
        """The rows with a source, and those without, whose prefixes are shorter; the split is the same in every
        process."""
        _, holed, paired = given_rows(batch)
        rows = torch.arange(len(batch["codes"]), device=batch["codes"].device)
        parts = [rows[holed.start : paired.stop], torch.cat([rows[: holed.start], rows[paired.stop :]])]
        return [part for part in parts if len(part)]

    @torch.no_grad()
    def _condition(self, batch: dict[str, Tensor]) -> Condition:
        condition = text_condition(self.clip, batch["tokens"], self.config)
        if not (self.config.image_embedding or self.config.source_codes):
            return condition
        present = batch["present"]
        if self.config.image_embedding:
            embedding = image_embeddings(self.clip, batch["images"], len(present))
            condition = replace(condition, image_embedding=embedding)
        if self.config.source_codes:
            source = torch.zeros_like(batch["codes"])
            _, holed, paired = given_rows(batch)
            source[paired] = batch["source"][paired]
            if holed.start < holed.stop:
                assert self.vqgan is not None
                with torch.autocast(source.device.type, enabled=False):  # the codes that editing would give
                    source[holed] = self.vqgan.quantize(self.vqgan.encode(batch["holed"][holed]))[1].flatten(1)
            condition = replace(condition, source_codes=source, source_mask=batch["shown"])
        return replace(condition, present=present[:, [GIVEN.index(name) for name, _ in self.config.conditions]])

    def preview(self, network: nn.Module) -> Image.Image | None:
        """The picture that `draw` makes with the network."""
        return self.draw(network) if self.draw is not None else None


class CodeTransformerStage(Stage):
    """Trains the code transformer of a pack."""

    member = MEMBERS["transformer"]
    recipe = TransformerRecipe
    bound_to = ("clip", "vqgan")
    optional = False
    share = 0.28
    by_heart = "raise recipe.code_noise or recipe.dropout, add pictures, or train for fewer steps"

    def make(self, plan: StagePlan, materials: Materials) -> CodeTransformer:
        """A fresh network for the codes of the VQGAN, over the whole picture."""
        clip, vqgan = materials.need(CLIP), materials.need(VQGAN)
        grid = vqgan.code_grid(materials.image_size)
        transformer = make_code_transformer(plan.recipe, clip, vqgan.codebook_size, grid)
        if plan.recipe.soft_codes:
            start_from_codebook(transformer, vqgan.quantizer.vectors.detach())
        return transformer

    def grow(self, start: CodeTransformer, plan: StagePlan, materials: Materials) -> CodeTransformer:
        """`start` with the conditions that the recipe's shares need."""
        return with_conditions(start, plan.recipe, materials.need(CLIP))

    def task(self, network: CodeTransformer, plan: StagePlan, materials: Materials) -> CodeTransformerTask:
        """The training on the stored codes of the pictures."""
        recipe, draw = plan.recipe, materials.draw
        return CodeTransformerTask(
            network,
            recipe,
            materials.need(CLIP),
            materials.stored,
            needed(materials.codes, "codes"),
            materials.tokenizer,
            None if draw is None else lambda network: draw(materials, network),
            materials.need(VQGAN) if recipe.hole_share or recipe.soft_codes else None,
        )

    def precompute(self, materials: Materials, cache: Path) -> Materials:
        """The materials with the codes of all pictures."""
        vqgan = materials.find(VQGAN)
        return (
            materials if vqgan is None else replace(materials, codes=encode_once(vqgan, materials.stored.pixels, cache))
        )

    def placeholders(self, materials: Materials) -> Materials:
        """The materials with codes that are all the same."""
        height, width = materials.need(VQGAN).code_grid(materials.image_size)
        return replace(materials, codes=np.zeros((len(materials.stored), height * width), np.uint16))

    def picture_size(self, models: Mapping[str, Any], pack: Pack | None) -> int:
        """The size of the VQGAN's pictures."""
        return models["vqgan"].config.image_size if "vqgan" in models else super().picture_size({}, pack)

    def sizes(self, image_size: int) -> Sequence[ModelSize]:
        """Three sizes, which also learn to vary pictures and to fill holes; grids from 16 x 16 codes on use blocks."""
        block = 2 if (image_size >> halvings(image_size)) >= 2 * GRID else 1
        return [
            ModelSize("small", _sized_recipe(128, 4, 4, 2e-3, block), 32, 20_000),
            ModelSize("medium", _sized_recipe(256, 8, 4, 1e-3, block), 64, 150_000),
            ModelSize("large", _sized_recipe(512, 12, 8, 6e-4, block), 128, 1_500_000),
        ]

    def adapt(self, recipe: Any, materials: Materials, start: Any, wordpiece: bool) -> Any:
        """The recipe without holes if the network to begin from is masked and fills them as it is."""
        return replace(recipe, hole_share=0.0) if start is not None and start.config.masked else recipe

    def finish(
        self, network: CodeTransformer, plan: StagePlan, materials: Materials, seconds: float | None
    ) -> Materials:
        """The materials with the styles that it learned, and with a bank of pictures if it reads picture embeddings."""
        translation = {"translation": translation_of(plan.recipe, materials.stored)}
        materials = replace(materials, extras={**materials.extras, **translation})
        return with_bank(materials, seconds) if network.config.image_embedding else materials


def _sized_recipe(width: int, layers: int, heads: int, learning_rate: float, block: int) -> TransformerRecipe:
    return TransformerRecipe(
        width=width,
        layers=layers,
        heads=heads,
        block=block,
        learning_rate=learning_rate,
        image_share=0.15,
        hole_share=0.15,
    )


STAGE = CodeTransformerStage()
