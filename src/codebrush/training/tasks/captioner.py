"""A CLIP, captioned pictures and questions about them -> a captioner that writes captions and answers."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from codebrush.data.sources.caption_templates import Template
from codebrush.data.sources.filters import parse_clause
from codebrush.data.synthetic.questions import Question, scene_questions
from codebrush.data.synthetic.shapes import Scene, SceneObject, scene
from codebrush.data.synthetic.varied_scenes import PALETTE, Alike, VariedScene, scene_captions, varied_scene
from codebrush.errors import TrainingError
from codebrush.models.captioner import Captioner, CaptionerConfig, patch_features
from codebrush.models.clip import CLIP
from codebrush.models.image_encoder import ModifiedResNet, VisionTransformer
from codebrush.text.tokenizer import Tokenizer, train_bpe
from codebrush.training.dataset import Captioned
from codebrush.training.engine.loop import Objective
from codebrush.training.engine.optimizer import make_adamw
from codebrush.training.field_types import Count, Rate, Share, Weight, Whole
from codebrush.training.tasks.augmentation import Augmentation, draw_affine, move
from codebrush.training.tasks.patch_labels import PARTS, UNKNOWN, named_cells, patch_sights, place_loss, sight_loss

MOST_PATCHES = 256  # in front of the words: of a finer grid, the next coarser is read
SAMPLED_SCENES = 2000  # whose words the vocabulary is made of
FIXED_SCENES, FIXED_DRILLS = 0.3, 0.15  # of drawn scenes and of drills are those of `codebrush data shapes`
DRILLED: tuple[Alike | None, ...] = ("shape", "shape", "colour", None)
SERIES = 1_000_000  # of fixed scenes are drawn from; those beyond are never seen in training
LATE = ("position", "relation")  # kinds of questions that are learned last
PLACE_WEIGHT = 0.5
CAPTION_SHARE = 0.35  # of the rows about a picture that also has questions
STORED = "questions"  # a column that holds a row's own questions, as `codebrush data shapes` writes it
QA = tuple[str, str]  # what is asked ("" for a caption) and what is right


@dataclass(frozen=True)
class AskRule:
    """Questions that the columns of a source answer. `ask` and `answer` are templates like "{label}".

    With `yes_if`, conditions like "group in animals, plants", the answer is yes where a row meets all of them and no
    where it does not. With `contrast`, a column, half of the questions take that column's value from another row, and
    the answer is no.
    """

    ask: tuple[str, ...]
    answer: str = ""
    yes_if: tuple[str, ...] = ()
    contrast: str = ""

    def __post_init__(self) -> None:
        if not self.ask or sum(map(bool, (self.answer, self.yes_if, self.contrast))) != 1:
            raise ValueError("a question needs 'ask' and one of 'answer', 'yes_if' and 'contrast'")


@dataclass(frozen=True)
class CaptionerRecipe:
    """Sizes and settings. `segments` captions and questions are read with each picture. `scene_share` of every batch
    are drawn scenes of any palette with questions about them, new ones at each step, and `drill` of those hold a few
    much alike and ask where they are; in the first `looking` steps, which are quick, nothing but what lies where is
    learned."""

    width: Count = 192
    layers: Count = 4
    heads: Count = 4
    vocab_size: Count = 2048
    context_length: Count = 32
    stem: Whole = 96
    segments: Count = 6
    scene_share: Share = 0.0
    drill: Share = 0.0
    looking: Whole = 0
    questions: tuple[AskRule, ...] = ()
    dropout: Share = 0.0
    learning_rate: Rate = 1e-3
    weight_decay: Weight = 0.05
    augmentation: Augmentation = Augmentation(shift=0.05, zoom=0.1, turn=5)


def feature_levels(encoder: VisionTransformer | ModifiedResNet) -> tuple[int, ...]:
    """Which of an image tower's features a captioner reads: a fine grid that is not too long, and what lies behind."""
    if isinstance(encoder, VisionTransformer):
        layers = encoder.config.layers
        return tuple(dict.fromkeys((layers // 2, layers - 1)))
    side = encoder.config.image_size
    levels = [level for level in range(4) if (side // (4 << level)) ** 2 <= MOST_PATCHES]
    finest = next((level for level in levels if side // (4 << level) <= 8), levels[0])
    return tuple(level for level in (finest, finest + 1) if level < 4)


@torch.no_grad()
def read_patches(clip: CLIP, images: Tensor, levels: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Images (B, 3, H, W) in [0, 1] -> patch features (B, P, F) of `clip` and the pixels (B, 3, S, S) that it saw,
    without gradient."""
    pixels = clip.normalise(images)
    return patch_features(clip.image_encoder, pixels, levels), pixels


def make_captioner(recipe: CaptionerRecipe, clip: CLIP, words: Tokenizer) -> Captioner:
    """A fresh captioner for the features of `clip` and a vocabulary."""
    levels = feature_levels(clip.image_encoder)
    blank = torch.zeros(1, 3, clip.image_size, clip.image_size, device=clip.log_scale.device)
    features, _ = read_patches(clip, blank, levels)
    assert words.start_id is not None
    return Captioner(
        CaptionerConfig(
            vocab_size=words.vocab_size,
            context_length=words.context_length,
            width=recipe.width,
            layers=recipe.layers,
            heads=recipe.heads,
            patches=features.shape[1],
            feature_width=features.shape[2],
            levels=levels,
            image_size=clip.image_size,
            stem=recipe.stem,
            sights=sum(PARTS) if recipe.scene_share else 0,
            places=math.isqrt(features.shape[1]) if recipe.scene_share else 0,
            pad_id=words.pad_id,
            start_id=words.start_id,
            end_id=words.end_id,
            dropout=recipe.dropout,
        )
    )


def with_heads(captioner: Captioner, recipe: CaptionerRecipe) -> Captioner:
    """`captioner`, with fresh heads for what a recipe with scenes asks of patches and names, where it has none."""
    config = captioner.config
    sights, places = (sum(PARTS), math.isqrt(config.patches)) if recipe.scene_share else (config.sights, config.places)
    if (config.sights, config.places) == (sights, places):
        return captioner
    grown = Captioner(replace(config, sights=sights, places=places))
    fresh = grown.state_dict()
    old = {name: value for name, value in captioner.state_dict().items() if value.shape == fresh[name].shape}
    grown.load_state_dict(fresh | old)
    return grown


def make_words(recipe: CaptionerRecipe, data: Captioned) -> Tokenizer:
    """A vocabulary for all that the captioner will read and write."""
    asker, rng = Asker(recipe, data), np.random.default_rng(0)
    texts = [text for row in range(len(data)) for pair in asker.every(row, rng) for text in pair if text]
    if recipe.scene_share:
        for _ in range(SAMPLED_SCENES):
            texts += [text for pair in scene_pairs(rng)[1] for text in pair if text]
    return train_bpe(texts, recipe.vocab_size, recipe.context_length)


def scene_pairs(rng: np.random.Generator, size: int = 64, drill: bool = False) -> tuple[VariedScene | Scene, list[QA]]:
    """A drawn scene of `size` pixels square, and its caption with questions about it, in random order; a `drill` asks
    about LATE kinds alone, and mostly holds shapes that only colour and shape together tell apart."""
    fixed = rng.random() < (FIXED_DRILLS if drill else FIXED_SCENES)
    count = int(rng.integers(2, 7)) if drill else None
    alike = DRILLED[int(rng.integers(len(DRILLED)))] if drill else None
    series, index = (int(number) for number in rng.integers(SERIES, size=2))
    drawn = scene(series, index, size, count) if fixed else varied_scene(rng, size, count, alike)

    def asked() -> list[Question]:
        return scene_questions(drawn.objects, drawn.background, size, tuple(PALETTE), rng)

    late = [question for question in asked() + asked() if question.kind in LATE] if drill else []
    pairs = [(question.ask, question.answer) for question in late or asked()]
    return drawn, [("", scene_captions(drawn.objects, rng)), *_shuffled(pairs, rng)]


def stored_pairs(cell: Sequence[dict[str, str]]) -> list[QA]:
    """The questions in a row's own column."""
    return [(each["ask"], each["answer"]) for each in cell if each.get("ask") and each.get("answer")]


class Asker:
    """Captions of a source's rows, and the questions that a recipe's rules or the rows themselves ask."""

    def __init__(self, recipe: CaptionerRecipe, data: Captioned):
        self.data, self.rules = data, recipe.questions
        self.rows = [data.source.row(number) for number in data.pixels.rows]
        self.stored = STORED in self.rows[0]

    @cached_property
    def _parsed(self) -> list[tuple[AskRule, list[Template], Template | None, list]]:
        return [
            (
                rule,
                [Template.parse(text) for text in rule.ask],
                Template.parse(rule.answer) if rule.answer else None,
                [parse_clause(text) for text in rule.yes_if],
            )
            for rule in self.rules
        ]

    def questions(self, row: int, rng: np.random.Generator) -> list[QA]:
        """What can be asked about a row, each rule in one of its forms."""
        cells = self.rows[row]
        found = stored_pairs(cells[STORED]) if self.stored and cells[STORED] else []
        for rule, asks, answer, clauses in self._parsed:
            ask = asks[int(rng.integers(len(asks)))]
            if answer is not None:
                answers = answer.fill(_cell(cells))
                asked = ask.fill(_cell(cells))
                if answers and asked:
                    found.append((_one(asked, rng), _one(answers, rng)))
            elif clauses:
                meets = all(clause.keeps(cells.get(clause.column)) for clause in clauses)
                found += [(text, "yes" if meets else "no") for text in ask.fill(_cell(cells))[:1]]
            else:
                other = self.rows[int(rng.integers(len(self.rows)))][rule.contrast]
                true = rng.random() < 0.5 or other == cells[rule.contrast]
                asked = ask.fill(_cell(cells if true else {**cells, rule.contrast: other}))
                if asked:
                    found.append((_one(asked, rng), "yes" if true else "no"))
        return found

    def every(self, row: int, rng: np.random.Generator) -> list[QA]:
        """All captions of a row and its questions."""
        return [*(("", caption) for caption in self.data.captions(row)), *self.questions(row, rng)]

    def draw(self, row: int, count: int, rng: np.random.Generator) -> list[QA]:
        """`count` of a row's captions and questions."""
        captions: list[QA] = [("", caption) for caption in self.data.captions(row)]
        questions = _shuffled(self.questions(row, rng), rng)
        wanted = count if not questions else max(1, round(CAPTION_SHARE * count))
        chosen = [captions[int(rng.integers(len(captions)))] for _ in range(wanted)] + questions
        return [chosen[number % len(chosen)] for number in range(count)]


def _cell(values: dict):
    return values.__getitem__


def _one(texts: Sequence[str], rng: np.random.Generator) -> str:
    return texts[int(rng.integers(len(texts)))]


def _shuffled(pairs: Sequence[QA], rng: np.random.Generator) -> list[QA]:
    return [pairs[number] for number in rng.permutation(len(pairs))]


def rows_of_tokens(pairs: Sequence[QA], words: Tokenizer, length: int) -> tuple[Tensor, Tensor]:
    """Pairs -> tokens (n, length) int64, `start question end answer end`, and (n, length - 1) True where the next
    token is the answer's. What is too long is cut, question first."""
    ids = words.ids([text for pair in pairs for text in pair])
    tokens = torch.full((len(pairs), length), words.pad_id, dtype=torch.int64)
    told = torch.zeros(len(pairs), length - 1, dtype=torch.bool)
    for row, (asked, answer) in enumerate(zip(ids[::2], ids[1::2], strict=True)):
        asked = asked[: max(0, length - 4)]
        whole = [words.start_id, *asked, words.end_id, *answer, words.end_id][:length]
        tokens[row, : len(whole)] = torch.tensor(whole)
        told[row, len(asked) + 1 : len(whole) - 1] = True
    return tokens, told


def cells_of_names(
    pairs: Sequence[QA], scenes: Sequence[tuple[Sequence[SceneObject], int]], side: int, words: Tokenizer, told: Tensor
) -> Tensor:
    """For each token of `pairs` the cell of a `side` x `side` grid that the name it ends lies in, (n, T) int64, or
    UNKNOWN.

    The first rows are about `scenes`, each its objects and the picture's size; `told` (n, T - 1) is that of
    `rows_of_tokens`.
    """
    cells = torch.full((len(pairs), told.shape[1] + 1), UNKNOWN)
    spots: list[tuple[int, int, int, int]] = []  # row, where its text begins and where it was cut off, cell
    texts: list[str] = []  # up to where the name ends
    begins = (told.int().argmax(1) + 1).tolist()  # of the answers
    for row, (about, pair, begin) in enumerate(zip(scenes, pairs, begins, strict=False)):
        for text, first, stop in zip(pair, (1, begin), (begin - 1, cells.shape[1]), strict=True):
            for end, cell in named_cells(text, *about, side):
                spots.append((row, first, stop, cell))
                texts.append(text[:end])
    for (row, first, stop, cell), ids in zip(spots, words.ids(texts), strict=True):
        if first + len(ids) <= stop:
            cells[row, first + len(ids) - 1] = cell
    return cells


class CaptionerTask:
    """Next-word prediction of captions and answers; see `codebrush.training.engine.loop.Task`."""

    def __init__(self, captioner: Captioner, recipe: CaptionerRecipe, clip: CLIP, data: Captioned, words: Tokenizer):
        self.recipe, self.clip, self.data, self.words = recipe, clip, data, words
        self.config = captioner.config
        if words.vocab_size > captioner.config.vocab_size:
            raise TrainingError("the captioner that training starts from has another vocabulary than its tokenizer")
        self.asker = Asker(recipe, data)
        self.examples = len(data)
        self.networks: dict[str, nn.Module] = {"captioner": captioner}
        self.optimizers: dict[str, torch.optim.Optimizer] = {
            "captioner": make_adamw([captioner], recipe.learning_rate, recipe.weight_decay, betas=(0.9, 0.95))
        }
        self.frozen: list[nn.Module] = [clip]

    def batch(self, rows: np.ndarray, rng: np.random.Generator) -> dict[str, Tensor]:
        """Pictures uint8 (B, 3, H, W), tokens (B, S, T) of each, where they tell (B, S, T - 1), how to move them, what
        patches lie in (B, P, 3) and where names are (B, S, T)."""
        segments, scenes = self.recipe.segments, round(self.recipe.scene_share * len(rows))
        images = self.data.images(rows)  # (B, 3, H, W)
        sights = torch.full((len(rows), self.config.patches, len(PARTS)), UNKNOWN)
        pairs: list[QA] = []
        about: list[tuple[Sequence[SceneObject], int]] = []
        side, size = math.isqrt(self.config.patches), images.shape[-1]
        for place in range(scenes):
            drawn, asked = scene_pairs(rng, size, place < round(self.recipe.drill * scenes))
            images[place] = torch.from_numpy(np.array(drawn.image)).permute(2, 0, 1)
            sights[place] = torch.from_numpy(patch_sights(drawn.objects, size, side))
            pairs += [asked[number % len(asked)] for number in range(segments)]
            about += [(drawn.objects, size)] * segments
        for row in rows[scenes:]:
            pairs += self.asker.draw(int(row), segments, rng)
        tokens, told = rows_of_tokens(pairs, self.words, self.config.context_length)
        length = 2 + int(told.any(0).nonzero().max())  # nothing after the last word is learned
        tokens, told = tokens[:, :length], told[:, : length - 1]
        named = cells_of_names(pairs, about, side, self.words, told)
        affine = draw_affine(len(rows), self.recipe.augmentation, rng)
        affine[:scenes] = draw_affine(1, Augmentation(), rng)  # where things are is part of the answer
        shape = (len(rows), segments)
        return {
            "images": images,
            "tokens": tokens.unflatten(0, shape),
            "told": told.unflatten(0, shape),
            "affine": affine,
            "sights": sights,
            "named": named.unflatten(0, shape),
        }

    def objectives(self, batch: dict[str, Tensor], step: int) -> Iterator[Objective]:
        """Cross-entropy of every word that tells something, given the picture and the words before it; of drawn scenes
        also of what each patch lies in and where names are, in the first steps of what patches lie in alone."""
        images = move(batch["images"].float() / 255, batch["affine"])
        features, pixels = read_patches(self.clip, images, self.config.levels)
        tokens, told = batch["tokens"], batch["told"]
        if self.config.sights and step < self.recipe.looking:
            network = self.networks["captioner"]
            sights = network(features, tokens[..., :0], pixels=pixels).sights
            unused = sum(parameter.sum() for parameter in network.parameters())  # each process waits for all gradients
            yield Objective("captioner", sight_loss(sights, batch["sights"]) + 0 * unused, {})
            return
        wanted = F.pad(told, (0, 1))  # (B, S, T)
        named = batch["named"] != UNKNOWN if self.config.places else None
        output = self.networks["captioner"](features, tokens, pixels=pixels, wanted=wanted, named=named)
        logits, right = output.logits.float(), tokens[..., 1:][told]  # (n, K), (n,)
        loss = F.cross_entropy(logits, right)
        figures = {"accuracy": (logits.detach().argmax(-1) == right).float().mean(), "words": loss.detach()}
        if output.sights is not None:
            seen = sight_loss(output.sights, batch["sights"])
            figures["sights"] = seen.detach()
            loss = loss + seen
        if output.places is not None:
            found = place_loss(output.places, batch["named"][named])
            figures["places"] = found.detach()
            loss = loss + PLACE_WEIGHT * found
        yield Objective("captioner", loss, figures)

    def preview(self, network: nn.Module) -> None:
        """A captioner draws nothing."""
        return None
