"""The captions, and the questions with their answers, that a captioner is trained on: of rows and of drawn scenes.

A pair is a question and its answer; a caption is the answer to the empty question.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from codebrush.data.sources.caption_templates import Template
from codebrush.data.sources.filters import Clause, parse_clause
from codebrush.data.synthetic.questions import Question, scene_questions
from codebrush.data.synthetic.shapes import Scene, scene
from codebrush.data.synthetic.varied_scenes import PALETTE, Alike, VariedScene, scene_captions, varied_scene
from codebrush.text.tokenizer import Tokenizer, train_bpe
from codebrush.training.dataset import Captioned

SAMPLED_SCENES = 2000  # whose captions and questions the vocabulary is made from
FIXED_SCENES, FIXED_PRACTICE = 0.3, 0.15  # shares of scenes and practice scenes drawn as `codebrush data shapes` does
PRACTISED: tuple[Alike | None, ...] = ("shape", "shape", "colour", None)  # what the objects of practice scenes share
SERIES = 1_000_000  # of fixed scenes, from which training draws; those beyond are never seen in training
LATE = ("position", "relation")  # kinds of questions that are learned last
CAPTION_SHARE = 0.35  # of the texts about a picture that also has questions
STORED = "questions"  # a column with a row's own questions, as `codebrush data shapes` writes it
QA = tuple[str, str]  # the question ("" for a caption) and its answer


@dataclass(frozen=True)
class AskRule:
    """A rule that makes questions from the columns of a source. `ask` and `answer` are templates like "{label}".

    With `yes_if`, conditions like "group in animals, plants", the answer is yes for rows that meet all of them and no
    for the others. With `contrast`, a column, half of the questions take that column's value from another row, and
    their answer is no.

    Raises:
        ValueError: unless it has an `ask` and exactly one of `answer`, `yes_if` and `contrast`.
    """

    ask: tuple[str, ...]
    answer: str = ""
    yes_if: tuple[str, ...] = ()
    contrast: str = ""

    def __post_init__(self) -> None:
        if not self.ask or sum(map(bool, (self.answer, self.yes_if, self.contrast))) != 1:
            raise ValueError("a question needs 'ask' and one of 'answer', 'yes_if' and 'contrast'")


class CaptionPairs:
    """Captions of a source's rows, and the questions that rules or the rows themselves ask.

    Cells are read from the source's Arrow table when they are needed, so rows take no memory here.
    """

    def __init__(self, rules: Sequence[AskRule], data: Captioned):
        self.data, self.rules = data, rules
        self.stored = STORED in data.source.schema.names

    @cached_property
    def _parsed(self) -> list[tuple[AskRule, list[Template], Template | None, list[Clause]]]:
        return [
            (
                rule,
                [Template.parse(text) for text in rule.ask],
                Template.parse(rule.answer) if rule.answer else None,
                [parse_clause(text) for text in rule.yes_if],
            )
            for rule in self.rules
        ]

    def _cell(self, row: int, column: str) -> Any:
        return self.data.source.cell(self.data.pixels.rows[row], column)

    def _cells(self, row: int, changed: Mapping[str, Any]) -> Callable[[str], Any]:
        return lambda column: changed[column] if column in changed else self._cell(row, column)

    def questions(self, row: int, rng: np.random.Generator) -> list[QA]:
        """All that can be asked about a row, each rule in one of its wordings."""
        cell = self._cells(row, {})
        found = stored_pairs(cell(STORED) or ()) if self.stored else []
        for rule, asks, answer, clauses in self._parsed:
            ask = asks[int(rng.integers(len(asks)))]
            if answer is not None:
                answers, asked = answer.fill(cell), ask.fill(cell)
                if answers and asked:
                    found.append((_one(asked, rng), _one(answers, rng)))
            elif clauses:
                meets = all(self._meets(row, clause) for clause in clauses)
                found += [(text, "yes" if meets else "no") for text in ask.fill(cell)[:1]]
            else:
                other = self._cell(int(rng.integers(len(self.data))), rule.contrast)
                true = rng.random() < 0.5 or other == cell(rule.contrast)
                asked = ask.fill(cell if true else self._cells(row, {rule.contrast: other}))
                if asked:
                    found.append((_one(asked, rng), "yes" if true else "no"))
        return found

    def _meets(self, row: int, clause: Clause) -> bool:
        there = clause.column in self.data.source.schema.names
        return clause.keeps(self._cell(row, clause.column) if there else None)

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


def stored_pairs(cell: Sequence[dict[str, str]]) -> list[QA]:
    """The questions in a row's own column."""
    return [(each["ask"], each["answer"]) for each in cell if each.get("ask") and each.get("answer")]


def scene_pairs(
    rng: np.random.Generator, size: int = 64, practice: bool = False
) -> tuple[VariedScene | Scene, list[QA]]:
    """A drawn scene, `size` pixels square, and its caption followed by questions about it in random order.

    A `practice` scene asks only questions of the LATE kinds, and mostly holds objects that only colour and shape
    together tell apart.
    """
    fixed = rng.random() < (FIXED_PRACTICE if practice else FIXED_SCENES)
    count = int(rng.integers(2, 7)) if practice else None
    alike = PRACTISED[int(rng.integers(len(PRACTISED)))] if practice else None
    series, index = (int(number) for number in rng.integers(SERIES, size=2))
    drawn = scene(series, index, size, count) if fixed else varied_scene(rng, size, count, alike)

    def asked() -> list[Question]:
        return scene_questions(drawn.objects, drawn.background, size, tuple(PALETTE), rng)

    late = [question for question in asked() + asked() if question.kind in LATE] if practice else []
    pairs = [(question.ask, question.answer) for question in late or asked()]
    return drawn, [("", scene_captions(drawn.objects, rng)), *_shuffled(pairs, rng)]


def make_vocabulary(pairs: CaptionPairs, scenes: bool, vocab_size: int, context_length: int) -> Tokenizer:
    """A BPE tokenizer trained on all that the captioner will read and write, with `scenes` also on drawn ones."""

    def texts() -> Iterator[str]:
        rng = np.random.default_rng(0)
        for row in range(len(pairs.data)):
            yield from (text for pair in pairs.every(row, rng) for text in pair if text)
        for _ in range(SAMPLED_SCENES if scenes else 0):
            yield from (text for pair in scene_pairs(rng)[1] for text in pair if text)

    return train_bpe(texts(), vocab_size, context_length)


def _one(texts: Sequence[str], rng: np.random.Generator) -> str:
    return texts[int(rng.integers(len(texts)))]


def _shuffled(pairs: Sequence[QA], rng: np.random.Generator) -> list[QA]:
    return [pairs[number] for number in rng.permutation(len(pairs))]
