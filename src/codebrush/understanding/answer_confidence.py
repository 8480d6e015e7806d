"""How likely an answer is right, by a small network on what the captioner has in mind when it begins to answer.

A captioner is as sure of "how many squares?" about a photograph as about the drawings that it was trained on. Whether
it knows can be told from its own state (Kadavath et al. 2022, section 5, who train such a head for a language model).
The network was trained on questions about pictures of many kinds (recipes/emoji/answer_confidence.py). Beside it stand
the words of the questions that the captioner was trained on: it answers none with others. Whether a picture shows what
is named, as in "is it a dog?", CLIP knows better than a small captioner: with three more weights it answers those, also
where the name is of words that it alone can read.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from codebrush.errors import PackError
from codebrush.files import atomic_file
from codebrush.text.word_vectors import is_read
from codebrush.understanding.text_decoding import DecodedText

FILE = "confidence.safetensors"  # in the captioner's folder
KINDS = ("codebrush answer confidence 1", "codebrush answer confidence 2")  # without and with `Naming`
TENSORS = ("mean", "scale", "hidden", "hidden_bias", "output", "output_bias")
OWN_FEATURES = 3  # of the answer, beside the captioner's state
NAMING = "naming"  # one more, in the file of a pack whose CLIP answers questions that name a thing
# The least confidence with which an answer is given; below it, the answer is "I don't know".
THRESHOLD = 0.5  # by this network, whose confidence is calibrated
THRESHOLD_WITHOUT = 0.4  # by the captioner's own probability, of a captioner without this network
SUREST = 8.0  # log-odds beyond which the captioner's own probability says no more
MOST_WORDS = 5  # of a name that was not trained on
# Words by which what follows an article is no name: "is it a bit dark?", "is it a good idea to eat this?"
NO_NAME = frozenset(
    ("bit", "idea", "if", "is", "it", "lot", "never", "no", "not", "or", "than", "that", "there", "this", "to")
)
_NAMING = re.compile(r"(?:is it|is this|does it show) (?!the )")  # what follows may be any name that was trained on
_NAMED = re.compile(rf"{_NAMING.pattern}(?P<article>an? )?(?P<name>.+)")
_WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class Naming:
    """How CLIP answers whether a picture shows what is named: by `weights` (3,), see `odds`.

    `names` are those of trained questions, and `questions` the trained ones that look alike but are the captioner's, as
    "is it an animal?".
    """

    weights: Tensor
    names: frozenset[str]
    questions: frozenset[str]

    def odds(self, cosine: float, level: float) -> float:
        """The log-odds that a picture shows a thing, from CLIP's cosine of the two and the thing's `Presence.level`."""
        return float(self.weights @ torch.tensor([cosine, level, 1.0]))


@dataclass(frozen=True)
class AnswerConfidence:
    """`words` are those of all trained questions, `things` those of the names in "is it a dog?".

    `tensors` are those in TENSORS: mean and scale (F,) of the features, a hidden layer (H, F) with its bias (H,), and
    the output (H,) with its bias (). Without `naming` the captioner answers all questions.
    """

    words: frozenset[str]
    things: frozenset[str]
    tensors: Mapping[str, Tensor]
    naming: Naming | None = None

    @property
    def width(self) -> int:
        """D, the width of the captioner's state that the features have."""
        return len(self.tensors["mean"]) - OWN_FEATURES - (self.naming is not None)

    def named_thing(self, question: str) -> str | None:
        """What a question like "is it a dog?" names, if CLIP is to answer it; else None.

        It is a name that was trained on, or what stands after an article: a few words that the pack's questions or the
        distilled tables know, without those that make a clause of it.
        """
        asked = plain(question)
        found = _NAMED.fullmatch(asked)
        if self.naming is None or found is None or asked in self.naming.questions:
            return None
        name, words = found["name"], _WORD.findall(found["name"])
        if name in self.naming.names:
            return name
        known = all(word in self.words or word in self.things or is_read(word) for word in words)
        is_clause = not NO_NAME.isdisjoint(words) or not set(name).isdisjoint(",/;")
        if found["article"] is None or is_clause or not known or not 1 <= len(words) <= MOST_WORDS:
            return None
        return None if self.words.issuperset(words) else name

    def features(self, state: Tensor, decoded: DecodedText, odds: float = 0.0) -> Tensor:
        """`answer_features`; with `naming`, how far from 0 the `Naming.odds` of the answer are beside them."""
        own = answer_features(state, decoded)
        return own if self.naming is None else torch.cat([own, torch.tensor([min(abs(odds), SUREST)])])

    def unknown_words(self, question: str) -> list[str]:
        """The words of a question that were in none of the trained questions, and are no name that CLIP reads."""
        if self.named_thing(question) is not None:
            return []
        asked = plain(question)
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
        about: dict[str, Any] = {"kind": KINDS[0], "words": sorted(self.words), "things": sorted(self.things)}
        tensors = dict(self.tensors)
        if self.naming is not None:
            named = {"names": sorted(self.naming.names), "questions": sorted(self.naming.questions)}
            about |= {"kind": KINDS[1], **named}
            tensors[NAMING] = self.naming.weights
        with atomic_file(folder / FILE) as part:
            save_file(tensors, part, metadata={"confidence": json.dumps(about)})

    @classmethod
    def load(cls, folder: Path) -> "AnswerConfidence | None":
        """The one in a captioner's folder; None if it has none. Raises PackError if the file is damaged."""
        path = folder / FILE
        if not path.is_file():
            return None
        try:
            with safe_open(path, framework="pt") as file:
                about = json.loads((file.metadata() or {})["confidence"])
                kind = about["kind"]
                tensors = {name: file.get_tensor(name).float() for name in TENSORS}
                weights = file.get_tensor(NAMING).float().reshape(3) if kind == KINDS[1] else None
            named = ("names", "questions") if weights is not None else ()
            texts = {name: frozenset(map(str, about[name])) for name in ("words", "things", *named)}
            naming = None if weights is None else Naming(weights, texts["names"], texts["questions"])
            read = cls(texts["words"], texts["things"], tensors, naming)
            read.confidence(torch.zeros_like(tensors["mean"]))  # its tensors fit together
        except (OSError, SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
            raise PackError(f"{path} is damaged: remove it, or install the pack again") from error
        if kind not in KINDS:
            raise PackError(f"{path} was made by another version of codebrush: remove it, or install the pack again")
        return read


def plain(question: str) -> str:
    """A question in small letters, without the signs at its end."""
    return " ".join(question.lower().split()).strip(" ?.!")


def answer_features(state: Tensor, decoded: DecodedText) -> Tensor:
    """What the confidence is computed from, (3 + D,): the log-probability of the answer, its log-odds, its length in
    tokens, and the captioner's state (D,) before the answer (see `Captioner.state`)."""
    log_probability = torch.tensor(decoded.log_probability)
    odds = torch.special.logit(log_probability.exp(), eps=1e-6).clamp(-SUREST, SUREST)
    own = torch.stack([log_probability, odds, torch.tensor(float(len(decoded.tokens)))])
    return torch.cat([own, state.float().cpu()])
