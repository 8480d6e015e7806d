"""Trains a captioner: a network that reads CLIP's features of a picture and writes captions and answers."""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from codebrush.data.synthetic.shapes import SceneObject
from codebrush.errors import TrainingError
from codebrush.models.captioner import Captioner, CaptionerConfig, patch_features
from codebrush.models.clip import CLIP
from codebrush.models.encoders.modified_resnet import ModifiedResNet
from codebrush.models.encoders.vision_transformer import VisionTransformer
from codebrush.pack.members import MEMBERS
from codebrush.text.tokenizer import Tokenizer
from codebrush.training.dataset import Captioned
from codebrush.training.engine.optimizer import make_adamw
from codebrush.training.engine.parts import mean_weights, totals
from codebrush.training.engine.sharding import untouched
from codebrush.training.engine.task import Objective
from codebrush.training.field_types import Count, Rate, Share, Weight, Whole
from codebrush.training.guards import PATIENCE, Fault, Guard, History, lasts, looked_at
from codebrush.training.stage import Materials, ModelSize, Stage, StagePlan, needed
from codebrush.training.tasks.augmentation import Augmentation, draw_affine, move
from codebrush.training.tasks.captioner_pairs import QA, AskRule, CaptionPairs, make_vocabulary, scene_pairs
from codebrush.training.tasks.patch_labels import (
    PARTS,
    UNKNOWN,
    label_patches,
    named_cells,
    patch_label_loss,
    place_loss,
)

MOST_PATCHES = 256  # in front of the text: of a finer grid, the next coarser is read
PLACE_WEIGHT = 0.5
LOOKED_AT = 16  # pictures whose captions are looked at during a run
MOST_ALIKE = 0.8  # share of captions that repeat themselves, or are equal, above which it is a fault


@dataclass(frozen=True)
class CaptionerRecipe:
    """Sizes and settings of a captioner and its training.

    `segments` captions and questions are read with each picture. `scene_share` of every batch are drawn scenes in any
    palette with questions about them, new ones at each step; `practice_share` of those are practice scenes, whose
    objects are much alike and whose questions ask where they are. In the first `patch_label_steps`, which are quick,
    only the labels of patches (see `patch_labels`) are learned.
    """

    width: Count = 192
    layers: Count = 4
    heads: Count = 4
    vocab_size: Count = 2048
    context_length: Count = 32
    stem: Whole = 96
    segments: Count = 6
    scene_share: Share = 0.0
    practice_share: Share = 0.0
    patch_label_steps: Whole = 0
    questions: tuple[AskRule, ...] = ()
    dropout: Share = 0.0
    learning_rate: Rate = 1e-3
    weight_decay: Weight = 0.05
    augmentation: Augmentation = Augmentation(shift=0.05, zoom=0.1, turn=5)


def feature_levels(encoder: VisionTransformer | ModifiedResNet) -> tuple[int, ...]:
    """The levels of an image tower that a captioner reads: the finest grid of up to MOST_PATCHES, and a later one."""
    if isinstance(encoder, VisionTransformer):
        layers = encoder.config.layers
        return tuple(dict.fromkeys((layers // 2, layers - 1)))
    side = encoder.config.image_size
    levels = [level for level in range(4) if (side // (4 << level)) ** 2 <= MOST_PATCHES]
    finest = next((level for level in levels if side // (4 << level) <= 8), levels[0])
    return tuple(level for level in (finest, finest + 1) if level < 4)


@torch.no_grad()
def read_patches(clip: CLIP, images: Tensor, levels: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Patch features (B, P, F) that `clip` makes of images (B, 3, H, W) in [0, 1], and the normalised pixels
    (B, 3, S, S) that it read; no gradient."""
    pixels = clip.normalise(images)
    return patch_features(clip.image_encoder, pixels, levels), pixels


def make_captioner(recipe: CaptionerRecipe, clip: CLIP, tokenizer: Tokenizer) -> Captioner:
    """A fresh captioner that reads the features of `clip` and writes tokens of `tokenizer`."""
    levels = feature_levels(clip.image_encoder)
    blank = torch.zeros(1, 3, clip.image_size, clip.image_size, device=clip.log_scale.device)
    features, _ = read_patches(clip, blank, levels)
    assert tokenizer.start_id is not None
    return Captioner(
        CaptionerConfig(
            vocab_size=tokenizer.vocab_size,
            context_length=tokenizer.context_length,
            width=recipe.width,
            layers=recipe.layers,
            heads=recipe.heads,
            patches=features.shape[1],
            feature_width=features.shape[2],
            levels=levels,
            image_size=clip.image_size,
            stem=recipe.stem,
            patch_labels=sum(PARTS) if recipe.scene_share else 0,
            places=math.isqrt(features.shape[1]) if recipe.scene_share else 0,
            pad_id=tokenizer.pad_id,
            start_id=tokenizer.start_id,
            end_id=tokenizer.end_id,
            dropout=recipe.dropout,
        )
    )


def with_heads(captioner: Captioner, recipe: CaptionerRecipe) -> Captioner:
    """`captioner`, with fresh heads for patch labels and places if the recipe has scenes and it has no such heads."""
    config = captioner.config
    heads = {"patch_labels": config.patch_labels, "places": config.places}
    if recipe.scene_share:
        heads = {"patch_labels": sum(PARTS), "places": math.isqrt(config.patches)}
    wanted = replace(config, **heads)
    if wanted == config:
        return captioner
    grown = Captioner(wanted)
    fresh = grown.state_dict()
    old = {name: value for name, value in captioner.state_dict().items() if value.shape == fresh[name].shape}
    grown.load_state_dict(fresh | old)
    return grown


def rows_of_tokens(pairs: Sequence[QA], tokenizer: Tokenizer, length: int) -> tuple[Tensor, Tensor]:
    """Tokens (n, length) int64 of pairs, `start question end answer end`, and which are learned, (n, length - 1) bool.

    The latter is True where the next token belongs to the answer. What is too long is cut, the question first.
    """
    ids = tokenizer.ids([text for pair in pairs for text in pair])
    tokens = torch.full((len(pairs), length), tokenizer.pad_id, dtype=torch.int64)
    learned = torch.zeros(len(pairs), length - 1, dtype=torch.bool)
    for row, (asked, answer) in enumerate(zip(ids[::2], ids[1::2], strict=True)):
        asked = asked[: max(0, length - 4)]
        whole = [tokenizer.start_id, *asked, tokenizer.end_id, *answer, tokenizer.end_id][:length]
        tokens[row, : len(whole)] = torch.tensor(whole)
        learned[row, len(asked) + 1 : len(whole) - 1] = True
    return tokens, learned


def cells_of_names(
    pairs: Sequence[QA],
    scenes: Sequence[tuple[Sequence[SceneObject], int]],
    side: int,
    tokenizer: Tokenizer,
    learned: Tensor,
) -> Tensor:
    """The cell of a `side` x `side` grid in which the object lies whose name ends at a token, (n, T) int64; UNKNOWN at
    all other tokens.

    The first rows are about `scenes`, each its objects and the picture's size; `learned` (n, T - 1) is that of
    `rows_of_tokens`.
    """
    cells = torch.full((len(pairs), learned.shape[1] + 1), UNKNOWN)
    spots: list[tuple[int, int, int, int]] = []  # row, where its text begins and where it was cut off, cell
    texts: list[str] = []  # up to where the name ends
    begins = (learned.int().argmax(1) + 1).tolist()  # of the answers
    for row, (about, pair, begin) in enumerate(zip(scenes, pairs, begins, strict=False)):
        for text, first, stop in zip(pair, (1, begin), (begin - 1, cells.shape[1]), strict=True):
            for end, cell in named_cells(text, *about, side):
                spots.append((row, first, stop, cell))
                texts.append(text[:end])
    for (row, first, stop, cell), ids in zip(spots, tokenizer.ids(texts), strict=True):
        if first + len(ids) <= stop:
            cells[row, first + len(ids) - 1] = cell
    return cells


class CaptionerTask:
    """Next-token prediction of captions and answers; see `TrainingTask`.

    Raises:
        TrainingError: if the captioner that training starts from has a smaller vocabulary than `tokenizer`.
    """

    def __init__(
        self, captioner: Captioner, recipe: CaptionerRecipe, clip: CLIP, data: Captioned, tokenizer: Tokenizer
    ):
        self.recipe, self.clip, self.data, self.tokenizer = recipe, clip, data, tokenizer
        self.config = captioner.config
        if tokenizer.vocab_size > captioner.config.vocab_size:
            raise TrainingError("the captioner that training starts from has another vocabulary than its tokenizer")
        self.pairs = CaptionPairs(recipe.questions, data)
        self.examples = len(data)
        self.networks: dict[str, nn.Module] = {"captioner": captioner}
        self.optimizers: dict[str, torch.optim.Optimizer] = {
            "captioner": make_adamw([captioner], recipe.learning_rate, recipe.weight_decay, betas=(0.9, 0.95))
        }
        self.frozen: list[nn.Module] = [clip]

    def batch(self, rows: np.ndarray, rng: np.random.Generator) -> dict[str, Tensor]:
        """Pictures uint8 (B, 3, H, W) and how to move them, the tokens (B, S, T) of each and which are learned
        (B, S, T - 1), the labels of patches (B, P, 3), the cells of named objects (B, S, T), and how many tokens,
        labels and objects are learned (see `totals`)."""
        segments, scenes = self.recipe.segments, round(self.recipe.scene_share * len(rows))
        images = self.data.images(rows)  # (B, 3, H, W)
        labels = torch.full((len(rows), self.config.patches, len(PARTS)), UNKNOWN)
        pairs: list[QA] = []
        about: list[tuple[Sequence[SceneObject], int]] = []
        side, size = math.isqrt(self.config.patches), images.shape[-1]
        for place in range(scenes):
            drawn, asked = scene_pairs(rng, size, place < round(self.recipe.practice_share * scenes))
            images[place] = torch.from_numpy(np.array(drawn.image)).permute(2, 0, 1)
            labels[place] = torch.from_numpy(label_patches(drawn.objects, size, side))
            pairs += [asked[number % len(asked)] for number in range(segments)]
            about += [(drawn.objects, size)] * segments
        for row in rows[scenes:]:
            pairs += self.pairs.draw(int(row), segments, rng)
        tokens, learned = rows_of_tokens(pairs, self.tokenizer, self.config.context_length)
        length = 2 + int(learned.any(0).nonzero().max())  # nothing after the last answer's end is learned
        tokens, learned = tokens[:, :length], learned[:, : length - 1]
        named = cells_of_names(pairs, about, side, self.tokenizer, learned)
        affine = draw_affine(len(rows), self.recipe.augmentation, rng)
        affine[:scenes] = draw_affine(1, Augmentation(), rng)  # where things are is part of the answer
        shape = (len(rows), segments)
        known = (each.sum() for each in (learned, labels != UNKNOWN, named != UNKNOWN))
        return {
            "images": images,
            "tokens": tokens.unflatten(0, shape),
            "learned": learned.unflatten(0, shape),
            "affine": affine,
            "labels": labels,
            "named": named.unflatten(0, shape),
            "totals": totals(len(rows), *map(int, known)),
        }

    def objectives(self, batch: dict[str, Tensor], step: int) -> Iterator[Objective]:
        """Cross-entropy of the tokens of captions and answers; of drawn scenes also of the labels of patches and the
        places of named objects. In the first `patch_label_steps` that of the labels alone."""
        images = move(batch["images"].float() / 255, batch["affine"])
        features, pixels = read_patches(self.clip, images, self.config.levels)
        tokens, learned, known = batch["tokens"], batch["learned"], batch["named"] != UNKNOWN
        counts = (each.sum() for each in (learned, batch["labels"] != UNKNOWN, known))
        of_words, of_labels, of_places = mean_weights(batch["totals"], *counts)
        if self.config.patch_labels and step < self.recipe.patch_label_steps:
            network = self.networks["captioner"]
            labels = network(features, None, pixels=pixels).patch_labels
            loss = of_labels * patch_label_loss(labels, batch["labels"]) + untouched(network)
            yield Objective("captioner", loss, {})
            return
        wanted = F.pad(learned, (0, 1))  # (B, S, T)
        named = known if self.config.places else None
        output = self.networks["captioner"](features, tokens, pixels=pixels, wanted=wanted, named=named)
        logits, right = output.logits.float(), tokens[..., 1:][learned]  # (n, K), (n,)
        loss = of_words * F.cross_entropy(logits, right)
        accuracy = of_words * (logits.detach().argmax(-1) == right).float().mean()
        figures = {"accuracy": accuracy, "words": loss.detach()}
        if output.patch_labels is not None:
            labelled = of_labels * patch_label_loss(output.patch_labels, batch["labels"])
            figures["sights"] = labelled.detach()
            loss = loss + labelled
        if output.places is not None:
            placed = of_places * place_loss(output.places, batch["named"][named])
            figures["places"] = placed.detach()
            loss = loss + PLACE_WEIGHT * placed
        yield Objective("captioner", loss, figures)

    def preview(self, network: nn.Module) -> None:
        """A captioner draws nothing."""
        return None


def repeats(words: Sequence[int]) -> bool:
    """Whether up to three words follow themselves twice or more, as in `a red a red a red`."""
    return any(
        list(words[place : place + size]) * 3 == list(words[place : place + 3 * size])
        for size in (1, 2, 3)
        for place in range(len(words) - 3 * size + 1)
    )


@torch.no_grad()
def write_captions(task: CaptionerTask, captioner: Captioner, rows: np.ndarray) -> list[list[int]]:
    """The tokens of the likeliest caption of each row, token by token; up to the end, or as many as there is room
    for."""
    tokenizer, config = task.tokenizer, captioner.config
    images = task.data.images(rows).to(captioner.device).float() / 255
    features, pixels = read_patches(task.clip, images, config.levels)
    begin = torch.tensor([[tokenizer.start_id, tokenizer.end_id]] * len(rows), device=captioner.device)
    logits, cache = captioner.prefill(captioner.with_stem(features, pixels), begin)
    chosen = [logits[:, -1].argmax(-1)]  # (B,) each
    for _ in range(config.context_length - begin.shape[1] - 1):
        chosen.append(captioner.step(chosen[-1][:, None], cache)[:, -1].argmax(-1))
    texts = torch.stack(chosen, 1).tolist()
    return [text[: text.index(tokenizer.end_id)] if tokenizer.end_id in text else text for text in texts]


def captioner_guard(task: CaptionerTask, rows: np.ndarray, after: int) -> Guard:
    """Looks at the captions of `rows`: whether they repeat themselves, or are one and the same for all pictures, as at
    first they do: only what is so later than step `after` is a fault."""

    def measure(network: nn.Module) -> dict[str, float]:
        assert isinstance(network, Captioner)
        texts = write_captions(task, network, rows)
        alike = max(Counter(map(tuple, texts)).values()) / len(texts)
        return {"repeating_captions": sum(map(repeats, texts)) / len(texts), "equal_captions": alike}

    def shows(values: History, name: str) -> bool:
        return values[-PATIENCE][0] > after and lasts(values, name, lambda share: share > MOST_ALIKE)

    learn = "lower recipe.learning_rate or raise recipe.dropout, and check the captions of the pictures"
    faults = [
        Fault(
            name,
            partial(shows, name=name),
            f"{what}: {learn}",
        )
        for name, what in (
            ("repeating_captions", "most captions repeat the same words again and again"),
            ("equal_captions", "nearly all pictures get the same caption"),
        )
    ]
    return Guard(measure, faults)


class CaptionerStage(Stage):
    """Trains the captioner of a pack."""

    member = MEMBERS["captioner"]
    recipe = CaptionerRecipe
    bound_to = ("clip",)
    share = 0.11
    renamed = (("drill", "practice_share"), ("looking", "patch_label_steps"))

    def make(self, plan: StagePlan, materials: Materials) -> Captioner:
        """A fresh captioner for the features of the CLIP and the stage's own vocabulary."""
        return make_captioner(plan.recipe, materials.need(CLIP), self._tokenizer(materials))

    def grow(self, start: Captioner, plan: StagePlan, materials: Materials) -> Captioner:
        """`start` with the heads that a recipe with scenes needs."""
        return with_heads(start, plan.recipe)

    def task(self, network: Captioner, plan: StagePlan, materials: Materials) -> CaptionerTask:
        """The training on captions and questions."""
        clip, tokenizer = materials.need(CLIP), self._tokenizer(materials)
        return CaptionerTask(network, plan.recipe, clip, materials.stored, tokenizer)

    def guard(self, plan: StagePlan, materials: Materials, task: CaptionerTask) -> Guard:
        """Whether captions repeat themselves."""
        return captioner_guard(task, looked_at(task.examples, plan.loop.held_out)[:LOOKED_AT], plan.loop.steps // 4)

    def _tokenizer(self, materials: Materials) -> Tokenizer:
        return needed(materials.tokenizers.get(self.name), "vocabulary")

    def prepare(self, plan: StagePlan, materials: Materials, cache: Path) -> Materials:
        """The materials with a vocabulary made from the captions and questions, unless they have one."""
        if self.name in materials.tokenizers:
            return materials
        recipe, pairs = plan.recipe, CaptionPairs(plan.recipe.questions, materials.stored)
        made = make_vocabulary(pairs, bool(recipe.scene_share), recipe.vocab_size, recipe.context_length)
        return replace(materials, tokenizers={**materials.tokenizers, self.name: made})

    def sizes(self, image_size: int) -> Sequence[ModelSize]:
        """Three sizes, from 2 layers to 6."""
        return [
            ModelSize("small", CaptionerRecipe(width=96, layers=2, vocab_size=1024, learning_rate=2e-3), 16, 20_000),
            ModelSize("medium", CaptionerRecipe(width=192, layers=4), 32, 100_000),
            ModelSize(
                "large", CaptionerRecipe(width=384, layers=6, vocab_size=4096, learning_rate=6e-4), 64, 1_000_000
            ),
        ]


STAGE = CaptionerStage()
