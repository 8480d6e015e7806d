"""Trains a CLIP on captioned pictures: its recipe, its task, and its stage."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from codebrush.conversion.tokenizers import tokenizer_of
from codebrush.errors import TrainingError
from codebrush.models.clip import CLIP, MAX_LOGIT_SCALE, CLIPConfig
from codebrush.models.encoders.bag_of_words import BagOfWordsConfig
from codebrush.models.encoders.image_encoder import ImageEncoderConfig
from codebrush.models.encoders.modified_resnet import ModifiedResNetConfig
from codebrush.models.encoders.text_encoder import TextEncoderConfig
from codebrush.models.encoders.text_transformer import TextTransformerConfig
from codebrush.models.encoders.vision_transformer import VisionTransformerConfig
from codebrush.pack.members import MEMBERS
from codebrush.text.token_table import token_table
from codebrush.text.tokenizer import Tokenizer
from codebrush.training.dataset import Captioned, CaptionTokens, Joined, load_captioned
from codebrush.training.engine.optimizer import make_adamw
from codebrush.training.engine.task import ComparesRows, Hooks, Objective
from codebrush.training.field_types import Count, Part, Rate, Share, Weight, Whole
from codebrush.training.fine_tuning import ReplayedRows, replayed_rows
from codebrush.training.forgetting import ForgettingGate, ZeroShot
from codebrush.training.stage import GRID, Materials, ModelSize, Stage, StagePlan
from codebrush.training.streamed import Streamed, caption_tokens
from codebrush.training.tasks.augmentation import (
    Augmentation,
    change_appearance,
    draw_affine,
    draw_appearance,
    draw_warp,
    move,
)
from codebrush.training.tasks.clip_diagnostics import CLIPDiagnostics, clashing_share
from codebrush.training.tasks.contrastive_loss import TextLikeness, contrastive_loss, own_share, sigmoid_loss
from codebrush.training.tasks.decoys import decoy_loss, fit_bias
from codebrush.training.tasks.layer_decay import layer_decay
from codebrush.warned import warn


@dataclass(frozen=True)
class CLIPRecipe:
    """Sizes and settings of a CLIP and its training.

    With `token_table` the text tower's token vectors start from the distilled table. Unless `train_tokens` is set they
    are not trained, so that words in no caption keep their place among words that are in one.

    `architecture` "openai" is one that OpenAI's and Hugging Face's code can open: a vision transformer with a class
    token (or a resnet), a causal text tower read at its end token, without the distilled table, and QuickGELU.

    `texts` captions of other rows are additional negatives for each picture in the softmax loss: if there are many more
    concepts than rows in a batch, hard pairs rarely meet in one. A bag of words encodes thousands of them quickly. Each
    process draws as many for its own pictures.
    `soft_share` of the target goes to texts of similar meaning (see `TextLikeness`), measured by the distilled table.

    The sizes are those of a fresh CLIP; one that training starts from keeps its own. For such a start, `lock` freezes
    one encoder ("image" is locked-image tuning, Zhai et al. 2022), `layer_decay` slows layers far from the output (see
    `layer_decay`), and `replay_share` of every batch comes from the recipe's replay set.

    `decoys_per_batch` pictures of the recipe's `decoys` are added to every batch, over all processes: pictures that
    guidance by another CLIP made and that match no text, so that this one is not deceived by them (see
    `decoy_loss`).
    """

    architecture: Literal["codebrush", "openai"] = "codebrush"
    image_size: Count = 64
    image: Literal["vit", "resnet"] = "vit"
    patch_size: Count = 8
    width: Count = 256
    layers: Count = 6
    heads: Count = 4
    blocks: tuple[Count, Count, Count, Count] = (2, 2, 2, 2)  # of the resnet's stages
    text: Literal["transformer", "bag"] = "transformer"
    text_width: Count = 256
    text_layers: Count = 4
    text_heads: Count = 4
    embed_dim: Count = 256
    loss: Literal["softmax", "sigmoid"] = "softmax"
    texts: Whole = 0
    soft_share: Share = 0.0
    soft_temperature: Part = 0.1
    token_table: bool = True
    train_tokens: bool = False
    dropout: Share = 0.0
    learning_rate: Rate = 1e-3
    weight_decay: Weight = 0.1
    lock: Literal["none", "image", "text"] = "none"
    layer_decay: Part = 1.0
    replay_share: Share = 0.0
    decoys_per_batch: Whole = 0
    augmentation: Augmentation = Augmentation(shift=0.08, zoom=0.15, turn=10)

    def __post_init__(self) -> None:
        if self.texts and self.loss != "softmax":
            raise ValueError("texts are additional negatives of the softmax loss: set loss: softmax, or texts: 0")
        if self.soft_share and not (self.token_table and self.loss == "softmax"):
            raise ValueError("soft_share needs token_table: true and the softmax loss")
        if self.decoys_per_batch and self.loss != "sigmoid":
            raise ValueError("decoys_per_batch needs the sigmoid loss: set loss: sigmoid, or decoys_per_batch: 0")


def make_clip(recipe: CLIPRecipe, tokenizer: Tokenizer) -> CLIP:
    """A fresh CLIP for a tokenizer. Raises TrainingError for a recipe whose text tower does not suit the tokenizer."""
    r, openai = recipe, recipe.architecture == "openai"
    table = token_table() if r.token_table and not openai else None
    pictures: dict[str, Any] = (
        {"resize_mode": "crop"} if openai else {"image_mean": (0.5,) * 3, "image_std": (0.5,) * 3}
    )
    token_width = 0 if table is None else table.shape[1]
    clip = CLIP.from_config(CLIPConfig(_image(r), _text(r, tokenizer, token_width), **pictures))
    if r.loss == "sigmoid":  # starting values of Zhai et al. 2023, section 3.2
        clip.log_scale.data.fill_(float(np.log(10.0)))
        clip.logit_bias.data.fill_(-10.0)
    if table is not None:
        if len(table) != tokenizer.vocab_size:
            raise TrainingError("the token table goes with the wordpiece tokenizer: set token_table: false for bpe")
        # The table's vectors are about fifty long; the trunk starts from values of about one.
        clip.text_encoder.token_embedding.weight.data.copy_(table / table.std())
    return clip


def _image(r: CLIPRecipe) -> ImageEncoderConfig:
    if r.image == "resnet":
        return ModifiedResNetConfig(r.image_size, r.width, r.blocks, r.heads, r.embed_dim)
    openai = r.architecture == "openai"
    return VisionTransformerConfig(
        r.image_size,
        r.patch_size,
        r.width,
        r.layers,
        r.heads,
        r.embed_dim,
        pooling="class" if openai else "mean",
        activation="quick_gelu" if openai else "gelu",
        dropout=r.dropout,
    )


def _text(r: CLIPRecipe, tokenizer: Tokenizer, token_width: int) -> TextEncoderConfig:
    """The text tower's config; its token vectors are `token_width` wide, or as wide as the tower if that is 0."""
    openai = r.architecture == "openai"
    if r.text == "bag":
        if openai:
            raise TrainingError("recipe.architecture openai has no bag of words: set recipe.text: transformer")
        return BagOfWordsConfig(
            tokenizer.vocab_size,
            tokenizer.context_length,
            token_width or r.text_width,
            r.embed_dim,
            tokenizer.pad_id,
            tuple({token for token in (tokenizer.start_id, tokenizer.end_id) if token is not None}),
        )
    # OpenAI's code pools at the largest token id, which is the end token only if that comes last in the vocabulary.
    last = tokenizer.end_id == tokenizer.vocab_size - 1
    return TextTransformerConfig(
        vocab_size=tokenizer.vocab_size,
        context_length=tokenizer.context_length,
        width=r.text_width,
        layers=r.text_layers,
        heads=r.text_heads,
        embed_dim=r.embed_dim,
        pad_id=tokenizer.pad_id,
        end_id=tokenizer.end_id,
        causal=openai,
        pooling="mean" if not openai else "argmax" if last else "end",
        activation="quick_gelu" if openai else "gelu",
        token_width=token_width,
        dropout=r.dropout,
    )


class TextMeanings:
    """The meanings of texts before any training on pictures: the mean of their tokens' rows of the distilled table."""

    def __init__(self, tokenizer: Tokenizer):
        self.table = token_table().clone()
        frame = (tokenizer.pad_id, tokenizer.start_id, tokenizer.end_id)
        self.table[[token for token in frame if token is not None]] = 0

    def __call__(self, tokens: Tensor) -> Tensor:
        """Unit vectors (B, d) of text tokens (B, T)."""
        self.table = self.table.to(tokens.device)
        return F.normalize(F.embedding(tokens, self.table).sum(1), dim=1)


class CLIPTask(ComparesRows):
    """Contrastive training of both towers, or of one; see `TrainingTask`."""

    def __init__(
        self,
        clip: CLIP,
        recipe: CLIPRecipe,
        data: Captioned | Streamed | Joined,
        tokenizer: Tokenizer,
        decoys: Captioned | None = None,
    ):
        self.recipe, self.data, self.clip = recipe, data, clip
        self.tokens = caption_tokens(data, tokenizer)
        self.decoys = decoys if recipe.decoys_per_batch else None
        self.decoy_tokens = None if self.decoys is None else CaptionTokens(self.decoys, tokenizer)
        self.examples = len(data)
        embedding = getattr(clip.text_encoder, "token_embedding", None)
        if embedding is not None:
            # A start whose token vectors are as wide as its trunk did not begin with the table.
            table = recipe.token_table and getattr(clip.text_encoder.config, "token_width", 0) > 0
            embedding.weight.requires_grad_(recipe.train_tokens or not table)
        clip.logit_bias.requires_grad_(recipe.loss == "sigmoid")
        locks: dict[str, list[nn.Module]] = {"none": [], "image": [clip.image_encoder], "text": [clip.text_encoder]}
        self.locked = locks[recipe.lock]
        for encoder in self.locked:
            encoder.requires_grad_(False)
        self.networks: dict[str, nn.Module] = {"clip": clip}
        self.optimizers: dict[str, torch.optim.Optimizer] = {
            "clip": make_adamw(
                [clip], recipe.learning_rate, recipe.weight_decay, rate_factor=layer_decay(recipe.layer_decay)
            )
        }
        self.frozen: list[nn.Module] = []
        self.meanings = TextMeanings(tokenizer) if recipe.soft_share else None

    def batch(self, rows: np.ndarray, rng: np.random.Generator) -> dict[str, Tensor]:
        """Pictures uint8 (B + D, 3, S, S), D of them decoys, how to change each, the tokens (B, T) of one caption each,
        and groups (B,)."""
        tokens, groups = self.tokens.draw(rows, rng), self.data.groups[rows]
        how, images = self.recipe.augmentation, self.data.images(rows)
        batch = {"tokens": tokens, "groups": torch.from_numpy(groups)}
        if self.decoys is not None and self.decoy_tokens is not None:
            count = own_share(self.recipe.decoys_per_batch, "decoys_per_batch")
            chosen = rng.integers(len(self.decoys), size=count)
            images = torch.cat([images, self.decoys.images(chosen)])
            batch["decoy_tokens"] = self.decoy_tokens.draw(chosen, rng)
        batch |= {
            "images": images,
            "clashing": torch.tensor(clashing_share(tokens.numpy(), groups)),
            "affine": draw_affine(len(images), how, rng),
            **draw_appearance(len(images), how, rng),
        }
        if (warp := draw_warp(len(images), how, rng)) is not None:
            batch["warp"] = warp
        if self.recipe.texts:
            others = rng.integers(self.examples, size=self.recipe.texts)
            batch["other_tokens"] = self.tokens.draw(others, rng)
            batch["other_groups"] = torch.from_numpy(self.data.groups[others])
        return batch

    def objectives(self, batch: dict[str, Tensor], step: int) -> Iterator[Objective]:
        """One contrastive loss over the whole batch."""
        for encoder in self.locked:  # the loop sets train mode, in which running statistics would change
            encoder.eval()
        with torch.no_grad():  # above its limit the temperature would get no gradient and stay there
            self.clip.log_scale.clamp_(max=math.log(MAX_LOGIT_SCALE) - 1e-5)
        moved = move(batch["images"].float() / 255, batch["affine"], batch.get("warp"))
        images = change_appearance(moved, batch)
        others, likeness, tokens, count = None, None, batch["tokens"], len(batch["tokens"])
        if self.recipe.texts:
            tokens = torch.cat([tokens, batch["other_tokens"]])
        if self.decoys is not None:
            tokens = torch.cat([tokens, batch["decoy_tokens"]])
        if self.meanings is not None:
            meanings = self.meanings(tokens)
            share, temperature = self.recipe.soft_share, self.recipe.soft_temperature
            likeness = TextLikeness(meanings[:count], meanings[count:], share, temperature)
        output = self.networks["clip"](images, tokens)
        scale, bias, decoys = output.logit_scale, output.logit_bias, (output.image[count:], output.text[count:])
        if self.recipe.texts:
            others = output.text[count:], batch["other_groups"]
        output = output._replace(image=output.image[:count], text=output.text[:count])
        if self.recipe.loss == "sigmoid":
            loss = sigmoid_loss(output.image, output.text, scale, bias, batch["groups"])
        else:
            loss = contrastive_loss(output.image, output.text, scale, batch["groups"], others, likeness)
        metrics: dict[str, Any] = {}
        if self.decoys is not None:
            loss = loss + decoy_loss(*decoys, output.text, scale, bias)
            metrics["decoy_cosine"] = (decoys[0] * decoys[1]).sum(1).detach().mean()
        cosines = output.image.detach() @ output.text.detach().T
        right = batch["groups"][cosines.argmax(1)] == batch["groups"]
        metrics |= {"accuracy": right.float().mean(), "logit_scale": scale, "clashing": batch["clashing"]}
        yield Objective("clip", loss, metrics)

    def preview(self, network: nn.Module) -> None:
        """CLIP draws nothing."""
        return None


class CLIPStage(Stage):
    """Trains the CLIP of a pack."""

    member = MEMBERS["clip"]
    recipe = CLIPRecipe
    optional = False
    share = 0.21
    streams = True
    replays = True
    sets_image_size = True

    def make(self, plan: StagePlan, materials: Materials) -> CLIP:
        """A fresh CLIP for the tokenizer. Raises TrainingError for a recipe that locks an encoder, which would be
        untrained."""
        if plan.recipe.lock != "none":
            raise TrainingError(f"recipe.lock: the {plan.recipe.lock} encoder is untrained: name a start with --from")
        return make_clip(plan.recipe, materials.tokenizer)

    def grow(self, start: CLIP, plan: StagePlan, materials: Materials) -> CLIP:
        """The start; for the sigmoid loss with a scale and a bias that suit its cosines, if it has none."""
        if plan.recipe.loss == "sigmoid" and not start.logit_bias:
            fit_bias(start, materials.data, materials.tokenizer)
        return start

    def task(self, network: CLIP, plan: StagePlan, materials: Materials) -> CLIPTask:
        """The training on the new set, and on the replayed one if the plan has one."""
        data = materials.data
        if plan.recipe.texts and isinstance(data, Streamed):
            raise TrainingError(f"recipe.texts draws captions of all rows: set it to 0, or {data.unstreamed}")
        rows = data if materials.replay is None else Joined(materials.stored, materials.replay)
        return CLIPTask(network, plan.recipe, rows, materials.tokenizer, materials.decoys)

    def hooks(self, plan: StagePlan, materials: Materials, folder: Path) -> Hooks:
        """The rows of two sets if one is replayed, remarks on the log, and the gate if the plan has one."""
        recipe, loop, data, replay = plan.recipe, plan.loop, materials.data, materials.replay
        rows, check, result = None, None, None
        if replay is not None:
            count = replayed_rows(recipe.replay_share, loop.batch_size)
            rows = ReplayedRows(Joined(materials.stored, replay), count, loop.batch_size, loop.seed).of_step
        if plan.gate is not None and materials.gate is not None:
            measure = ZeroShot(materials.gate, materials.tokenizer)
            gate = ForgettingGate(plan.gate, measure, folder, loop.last)
            check, result = gate.check, gate.result
        diagnostics = CLIPDiagnostics(
            loop.batch_size,
            len(data) + len(replay or ()),
            recipe.loss,
            loop.warmup_steps,
            texts=recipe.texts,
            by_recipe="budget_seconds" not in plan.facts,
        )
        return Hooks(rows, remarks=diagnostics.remarks, check=check, result=result)

    def prepare(self, plan: StagePlan, materials: Materials, cache: Path) -> Materials:
        """The materials with the replayed set, the decoys and the gate's, decoded at the size of the first."""
        sources = {"replay": plan.replay, "decoys": plan.decoys, "gate": plan.gate and plan.gate.source}
        sets = {
            name: load_captioned(source.open(), materials.image_size, cache, source.weight)
            for name, source in sources.items()
            if source is not None
        }
        return replace(materials, **sets)

    def tokenizer_beside(self, start: CLIP, folder: Path) -> Tokenizer:
        """The tokenizer of `start`. Raises PackError if a published CLIP has none that fits beside it."""
        return tokenizer_of(start, folder)

    def adapt_to_start(self, plan: StagePlan, start: CLIP) -> StagePlan:
        """The plan with the picture size of the start, which reads no other."""
        size = start.image_size
        if plan.recipe.image_size == size:
            return plan
        warn(f"pictures are {size} x {size}, as the CLIP of --from reads them")
        return replace(plan, recipe=replace(plan.recipe, image_size=size))

    def sizes(self, image_size: int) -> Sequence[ModelSize]:
        """Three sizes: ResNets if the pictures are large enough for their stride, otherwise vision transformers."""
        return [
            ModelSize("small", _sized_recipe(image_size, 16, 128, 2, 128), 128, 20_000),
            ModelSize("medium", _sized_recipe(image_size, 32, 256, 4, 256), 256, 100_000),
            ModelSize("large", _sized_recipe(image_size, 64, 384, 6, 384), 512, 1_000_000),
        ]

    def adapt(self, recipe: CLIPRecipe, materials: Materials, start: CLIP | None, wordpiece: bool) -> CLIPRecipe:
        """The recipe with the distilled table if the tokenizer is the wordpiece one, whose tokens the table is for."""
        return replace(recipe, token_table=wordpiece)


def _sized_recipe(image_size: int, channels: int, text_width: int, text_layers: int, embed_dim: int) -> CLIPRecipe:
    patches = image_size < 64 or image_size % 32 > 0  # the ResNet's stride of 32 leaves too little of a small picture
    return CLIPRecipe(
        image_size=image_size,
        image="vit" if patches else "resnet",
        patch_size=image_size // GRID,
        width=channels * 8 if patches else channels,
        heads=4,
        layers=4,
        text_width=text_width,
        text_layers=text_layers,
        embed_dim=embed_dim,
    )


STAGE = CLIPStage()
