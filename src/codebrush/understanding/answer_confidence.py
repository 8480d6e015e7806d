"""How likely an answer is right, by a small network on what the captioner has in mind when it begins to answer.

A captioner is as sure of "how many squares?" about a photograph as about the drawings that it was trained on. Whether
it knows can be told from its own state (Kadavath et al. 2022, section 5, who train such a head for a language model).
The network was trained on questions about pictures of many kinds (recipes/emoji/answer_confidence.py). Beside it stand
the words of the questions that the captioner was trained on: it answers none with others. Whether a picture shows what
is named, as in "is it a dog?", CLIP knows better than a small captioner: with three more weights it answers those.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from codebrush.errors import PackError
from codebrush.files import atomic_file
from codebrush.understanding.text_decoding import DecodedText

FILE = "confidence.safetensors"  # in the captioner's folder
KIND = "codebrush answer confidence 1"
TENSORS = ("mean", "scale", "hidden", "hidden_bias", "output", "output_bias")
NAMING = "naming"  # one more, in the file of a pack whose CLIP answers questions that name a thing
# The least confidence with which an answer is given; below it, the answer is "I don't know".
THRESHOLD = 0.5  # by this network, whose confidence is calibrated
THRESHOLD_WITHOUT = 0.4  # by the captioner's own probability, of a captioner without this network
SUREST = 8.0  # log-odds beyond which the captioner's own probability says no more
_NAMING = re.compile(r"(?:is it|is this|does it show) (?!the )")  # what follows may be any name that was trained on
_NAMED = re.compile(rf"{_NAMING.pattern}(?P<thing>(?P<article>an? )?[^?]+?)[ ?]*")
_WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class AnswerConfidence:
    """`words` are those of all trained questions, `things` those of the names in "is it a dog?".

    `tensors` are those in TENSORS: mean and scale (F,) of the features, a hidden layer (H, F) with its bias (H,), and
    the output (H,) with its bias (). `naming` (3,) are the weights of `naming_odds`; None where the captioner answers
    all questions.
    """

    words: frozenset[str]
    things: frozenset[str]
    tensors: Mapping[str, Tensor]
    naming: Tensor | None = None

    def named_thing(self, question: str) -> str | None:
        """What a question like "is it a dog?" names, if CLIP is to answer it; else None.

        A name without an article must be of words that were trained on: "is it raining?" names nothing. One whose words
        other questions have, as "is it an animal?", was trained on as a question of its own: the captioner answers it.
        """
        found = _NAMED.fullmatch(" ".join(question.lower().split()))
        if self.naming is None or found is None or " or " in found["thing"]:
            return None
        words = set(_WORD.findall(found["thing"]))
        is_name = found["article"] is not None or words <= self.words | self.things
        return found["thing"] if is_name and not words <= self.words | {"a", "an"} else None

    def naming_odds(self, cosine: float, level: float) -> float:
        """The log-odds that a picture shows a thing, from CLIP's cosine of the two and the thing's `Presence.level`."""
        assert self.naming is not None
        return float(self.naming @ torch.tensor([cosine, level, 1.0]))

    def features(self, state: Tensor, decoded: DecodedText, odds: float = 0.0) -> Tensor:
        """`answer_features`, with how far from 0 the `naming_odds` of the answer are if CLIP answers such questions."""
        own = answer_features(state, decoded)
        return own if self.naming is None else torch.cat([own, torch.tensor([min(abs(odds), SUREST)])])

    def unknown_words(self, question: str) -> list[str]:
        """The words of a question that were in none of the trained questions, and are no name that CLIP reads."""
        if self.named_thing(question) is not None:
            return []
        asked = " ".join(question.lower().split())
        known = self.words | self.things if _NAMING.match(asked) else self.words
        return list(dict.fromkeys(word for word in _WORD.findall(asked) if word not in known))

    def confidence(self, features: Tensor) -> Tensor:
        """What `features` makes, (..., F) -> the probability, 0 to 1, that each answer is right."""
        part = self.tensors
        scaled = (features - part["mean"]) / part["scale"]
        hidden = torch.relu(scaled @ part["hidden"].T + part["hidden_bias"])  # (..., H)
        return (hidden @ part["output"] + part["output_bias"]).sigmoid()

    def save(self, folder: Path) -> None:
        """Write it into the captioner's folder."""
        about = {"kind": KIND, "words": sorted(self.words), "things": sorted(self.things)}
        with atomic_file(folder / FILE) as part:
            naming = {} if self.naming is None else {NAMING: self.naming}
            save_file({**self.tensors, **naming}, part, metadata={"confidence": json.dumps(about)})

    @classmethod
    def load(cls, folder: Path) -> "AnswerConfidence | None":
        """The one in a captioner's folder; None if it has none. Raises PackError if the file is damaged."""
        path = folder / FILE
        if not path.is_file():
            return None
        try:
            with safe_open(path, framework="pt") as file:
                about = json.loads((file.metadata() or {})["confidence"])
                tensors = {name: file.get_tensor(name).float() for name in TENSORS}
                naming = file.get_tensor(NAMING).float().reshape(3) if NAMING in set(file.keys()) else None
            words, things = frozenset(map(str, about["words"])), frozenset(map(str, about["things"]))
            is_known = about["kind"] == KIND
        except (OSError, SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
            raise PackError(f"{path} is damaged: remove it, or install the pack again") from error
        if not is_known:
            raise PackError(f"{path} was made by another version of codebrush: remove it, or install the pack again")
        return cls(words, things, tensors, naming)


def answer_features(state: Tensor, decoded: DecodedText) -> Tensor:
    """What the confidence is computed from, (3 + D,): the log-probability of the answer, its log-odds, its length in
    tokens, and the captioner's state (D,) before the answer (see `Captioner.state`)."""
    log_probability = torch.tensor(decoded.log_probability)
    odds = torch.special.logit(log_probability.exp(), eps=1e-6).clamp(-SUREST, SUREST)
    own = torch.stack([log_probability, odds, torch.tensor(float(len(decoded.tokens)))])
    return torch.cat([own, state.float().cpu()])
