"""Calibrates the answers of the built-in captioner, so that it says "I don't know", and measures how often it does.

    python recipes/emoji/answer_confidence.py emoji DATA --out src/codebrush/packs/emoji/captioner
    python recipes/emoji/answer_confidence.py emoji DATA --measure

DATA is a folder with emoji.parquet, icons.parquet and cifar10-mini.parquet. Questions of the kinds that the captioner
was trained on, and of others, are asked about its own scenes and emoji and about icons, photographs and drawings. Three
weights learn to answer by CLIP whether a picture shows what is named, and a small network learns from the captioner's
state and from these whether an answer is right (`codebrush.understanding.answer_confidence`). The weights learn from
val emoji, the network also from scenes of one seed, val icons and train photographs; measured are scenes of another
seed, test emoji and icons, test photographs, crops of two large photographs (scikit-learn's), and other questions.
"""

import argparse
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow.parquet as pq
import torch
import torch.nn.functional as F
from ask_scenes import fixed_scenes, varied_scenes
from confidence_questions import Asked, pictures, rules
from torch import Tensor

from codebrush.data.preprocess import pixels_for
from codebrush.pipeline import Codebrush
from codebrush.understanding.answer_confidence import (
    THRESHOLD,
    THRESHOLD_WITHOUT,
    AnswerConfidence,
    Naming,
    plain,
)
from codebrush.understanding.question_kinds import fits_question
from codebrush.understanding.text_decoding import DecodedText, greedy_decode

HIDDEN, STEPS, RATE, DECAY = 16, 400, 0.01, 3e-3


class Named(NamedTuple):
    """What CLIP says of a thing that a question names: the cosine with the picture and the `Presence.level`."""

    cosine: float
    level: float


class Answered(NamedTuple):
    """What the captioner answered, with its state (D,) and, where the question names a thing, what CLIP says."""

    asked: Asked
    caption: str
    decoded: DecodedText
    state: Tensor
    named: Named | None

    def by(self, network: AnswerConfidence) -> "Judged":
        """The guess with the features of its confidence."""
        odds = 0.0 if self.named is None or network.naming is None else network.naming.odds(*self.named)
        guess = self.caption if self.named is None else "yes" if odds >= 0 else "no"
        return Judged(self.asked, guess, network.features(self.state, self.decoded, odds))


class Judged(NamedTuple):
    """A guess with the features of its confidence (F,)."""

    asked: Asked
    guess: str
    features: Tensor

    @property
    def is_right(self) -> bool:
        """Whether the guess is one of the right answers."""
        return self.asked.answer is not None and self.guess in self.asked.answer.split(", ")


@torch.no_grad()
def answers(brush: Codebrush, part: str, data: Path, blank: AnswerConfidence) -> list[Answered]:
    """All questions with the captioner's guesses; those with equally long prompts are decoded together."""
    reader, waiting = brush.reader, {}
    for picture, asked in pictures(part, data):
        pixels = pixels_for(brush.clip, [picture])
        (features,) = reader._features(pixels)
        for each in asked:
            prompt, thing = reader._prompt(each.question), blank.named_thing(each.question)
            named = None if thing is None else Named(*reader.presence_of(pixels[0], thing))
            waiting.setdefault(len(prompt), []).append((features, prompt, each, named))
    found = []
    for group in waiting.values():
        for start in range(0, len(group), 64):
            some = group[start : start + 64]
            rows, prompts = (torch.stack([each[place] for each in some]) for place in (0, 1))
            states = reader.captioner.state(rows, prompts)  # (B, D)
            decoded = greedy_decode(reader.captioner, rows, prompts)
            for (_, _, each, named), state, text in zip(some, states, decoded, strict=True):
                found.append(Answered(each, reader.caption_tokenizer.decode(text.tokens), text, state, named))
    return found


def untrained(data: Path) -> AnswerConfidence:
    """What is known without training: the words, names and questions that the captioner was trained on."""
    words, things, names = set[str](), set[str](), set[str]()
    for _, asked in fixed_scenes(300, 32) + varied_scenes(500, 32):
        words |= {word for each in asked for word in re.findall(r"\w+", each.ask.lower())}
    for rule in rules():
        words |= {word for ask in rule.ask for word in re.findall(r"\w+", re.sub(r"\{.*?\}", "", ask.lower()))}
    table = pq.read_table(data / "emoji.parquet", columns=["label", "style", "split"])
    for row in table.to_pylist():
        if row["split"] == "train":
            things |= set(re.findall(r"\w+", f"{row['label']} {row['style']}".lower()))
            names.add(plain(row["label"]))
    questions = frozenset(plain(ask) for rule in rules() for ask in rule.ask if "{" not in ask)
    naming = Naming(torch.zeros(3), frozenset(names), questions)
    return AnswerConfidence(frozenset(words), frozenset(things), {}, naming)


def naming_weights(found: Sequence[Answered]) -> Tensor:
    """The weights (3,) of CLIP's answers: a logistic regression of "yes" on what it says of the things in emoji."""
    emoji = [each for each in found if each.asked.source == "emoji" and each.asked.answer in ("yes", "no")]
    pairs = [(each.named, each.asked.answer) for each in emoji if each.named is not None]
    told = torch.tensor([[*named, 1.0] for named, _ in pairs])  # (N, 3)
    targets = torch.tensor([float(answer == "yes") for _, answer in pairs])
    weights = torch.zeros(3, requires_grad=True)
    optimizer = torch.optim.LBFGS([weights], max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.binary_cross_entropy_with_logits(told @ weights, targets)
        loss.backward()
        return loss

    optimizer.step(closure)
    right = ((told @ weights > 0) == (targets > 0)).float().mean()
    print(f"{len(pairs)} questions that name a thing, {right:.1%} right by CLIP with the weights {weights.tolist()}")
    return weights.detach()


def learn(answered: Sequence[Answered], blank: AnswerConfidence) -> AnswerConfidence:
    """Train the network on the questions that get as far as it: known words, and a guess of the right kind."""
    assert blank.naming is not None
    blank = replace(blank, naming=replace(blank.naming, weights=naming_weights(answered)))
    found = [each.by(blank) for each in answered]
    kept = [
        each
        for each in found
        if not blank.unknown_words(each.asked.question) and fits_question(each.asked.question, each.guess)
    ]
    features = torch.stack([each.features for each in kept])  # (N, F)
    targets = torch.tensor([float(each.is_right) for each in kept])
    mean, scale = features.mean(0), features.std(0).clamp(min=1e-6)
    scaled = (features - mean) / scale
    torch.manual_seed(0)
    inner, outer = torch.nn.Linear(scaled.shape[1], HIDDEN), torch.nn.Linear(HIDDEN, 1)
    parameters = [*inner.parameters(), *outer.parameters()]
    optimizer = torch.optim.Adam(parameters, RATE)
    for _ in range(STEPS):
        logits = outer(torch.relu(inner(scaled)))[:, 0]
        size = sum(each.square().sum() for each in (inner.weight, outer.weight))
        loss = F.binary_cross_entropy_with_logits(logits, targets) + DECAY * size
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    print(f"learned from {len(kept)} of {len(found)} answers, {targets.mean():.1%} right; loss {loss.item():.3f}")
    layers = {
        "hidden": inner.weight,
        "hidden_bias": inner.bias,
        "output": outer.weight[0],
        "output_bias": outer.bias[0],
    }
    tensors = {"mean": mean, "scale": scale} | {name: value.detach().clone() for name, value in layers.items()}
    return replace(blank, tensors=tensors)


def report(answered: Sequence[Answered], network: AnswerConfidence) -> None:
    """How often it says "I don't know", before (by its own probability) and now, and how much it loses."""
    print("| questions | asked | right | now, right | now, wrong | don't know before | now |")
    print("|---|---|---|---|---|---|---|")
    groups: dict[str, list[Judged]] = {}
    for each in (each.by(network) for each in answered):
        groups.setdefault(f"{each.asked.kind} on {each.asked.source}", []).append(each)
    for name, members in groups.items():
        before = np.array([each.features[0].exp().item() < THRESHOLD_WITHOUT for each in members])
        sure = network.confidence(torch.stack([each.features for each in members])) >= THRESHOLD
        now = np.array(
            [
                not is_sure
                or bool(network.unknown_words(each.asked.question))
                or not fits_question(each.asked.question, each.guess)
                for each, is_sure in zip(members, sure.tolist(), strict=True)
            ]
        )
        right = np.array([each.is_right for each in members])
        shares = (right.mean(), (right & ~now).mean(), (~right & ~now).mean(), before.mean(), now.mean())
        print(f"| {name} | {len(members)} | {' | '.join(f'{share:.1%}' for share in shares)} |")


def main() -> None:
    """See the top of the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pack")
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, help="the captioner's folder")
    parser.add_argument("--measure", action="store_true")
    options = parser.parse_args()
    brush = Codebrush.from_pretrained(options.pack, "cpu")
    network = brush.reader.answer_confidence
    if options.out is not None:
        blank = untrained(options.data)
        network = learn(answers(brush, "learn", options.data, blank), blank)
        network.save(options.out)
    if options.measure:
        assert network is not None
        report(answers(brush, "measure", options.data, network), network)


if __name__ == "__main__":
    main()
