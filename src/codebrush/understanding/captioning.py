"""Pictures in; captions of them, and answers to questions about them, out."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from codebrush.errors import PromptError, UsageError
from codebrush.models.captioner import Captioner, patch_features
from codebrush.models.clip import CLIP
from codebrush.text.tokenizer import Tokenizer
from codebrush.understanding.text_decoding import Written, write_by_beam, write_drawn, write_greedily

METHODS = ("beam", "greedy", "sample")
BEAM = 5
LENGTH_PENALTY = 1.0
UNSURE = "I don't know"
SURE = 0.4  # the confidence from which an answer is given
ANSWER_ROOM = 4  # tokens that a question must leave for its answer


@dataclass(frozen=True)
class Caption:
    """What is in a picture; `score` is CLIP's cosine with it, -1 to 1, `probability` the captioner's own."""

    text: str
    score: float
    probability: float


@dataclass(frozen=True)
class Answer:
    """`confidence` is the captioner's probability of `guess`, 0 to 1; `text` is the guess, or that it is not known."""

    text: str
    confidence: float
    guess: str


class Reader:
    """Reads pictures with a captioner, and ranks what it wrote with CLIP. The vocabulary is the captioner's own."""

    def __init__(self, clip: CLIP, tokenizer: Tokenizer, captioner: Captioner, words: Tokenizer):
        self.clip, self.tokenizer, self.captioner, self.words = clip, tokenizer, captioner, words

    @torch.no_grad()
    def caption(
        self,
        images: Tensor,
        n: int = 1,
        method: str = "beam",
        seed: int = 0,
        temperature: float = 0.7,
        top_p: float = 0.95,
        first: int = 0,
    ) -> list[list[Caption]]:
        """Images (B, 3, S, S) in [0, 1] -> `n` captions of each, best first by CLIP; fewer where it has fewer to say.

        "beam" finds the likeliest texts, "sample" draws them (those of picture i, counted from `first`, from the
        stream of (seed, i)), "greedy" takes the likeliest word each time and has one text. Raises UsageError for
        another method or n.
        """
        if method not in METHODS:
            raise UsageError(f"method must be one of {', '.join(METHODS)}, not {method}")
        if n < 1 or (method == "greedy" and n > 1):
            raise UsageError("n must be at least 1, and greedy writes one caption: take beam or sample for more")
        prompt, features = self._prompt(""), self._features(images)
        if method == "greedy":
            found = [[text] for text in write_greedily(self.captioner, features, prompt.expand(len(images), -1))]
        elif method == "beam":
            width = max(BEAM, n)
            found = [write_by_beam(self.captioner, row[None], prompt, width, LENGTH_PENALTY)[:n] for row in features]
        else:
            found = [
                self._draw(row, prompt, n, np.random.SeedSequence(seed, spawn_key=(number,)), temperature, top_p)
                for number, row in enumerate(features, first)
            ]
        return [self._ranked(image, texts) for image, texts in zip(images, found, strict=True)]

    @torch.no_grad()
    def ask(self, images: Tensor, questions: Sequence[str], threshold: float = SURE) -> list[Answer]:
        """The likeliest answer to one question about each of images (B, 3, S, S).

        Below `threshold`, a confidence from 0 to 1, the text says that it is not known. A question that is empty or
        too long is a PromptError.
        """
        if not 0 <= threshold <= 1:
            raise UsageError(f"the threshold must be from 0 to 1, not {threshold}")
        features, answers = self._features(images), []
        for row, question in zip(features, questions, strict=True):
            if not question.strip():
                raise PromptError("the question is empty: ask something")
            (written,) = write_greedily(self.captioner, row[None], self._prompt(question)[None])
            guess, sure = self.words.decode(written.tokens), written.probability
            answers.append(Answer(guess if guess and sure >= threshold else UNSURE, sure, guess))
        return answers

    def _features(self, images: Tensor) -> Tensor:
        pixels = self.clip.normalise(images)
        return self.captioner.see(
            patch_features(self.clip.image_encoder, pixels, self.captioner.config.levels), pixels
        )  # (B, P, F + stem)

    def _prompt(self, question: str) -> Tensor:
        config = self.captioner.config
        ids, room = self.words.ids([question])[0] if question else [], config.context_length - 2 - ANSWER_ROOM
        if len(ids) > room:
            raise PromptError(f"the question has {len(ids)} tokens, over the {room} that are read: shorten it")
        return torch.tensor([config.start_id, *ids, config.end_id], device=self.captioner.device)

    def _draw(
        self, features: Tensor, prompt: Tensor, n: int, seed: np.random.SeedSequence, temperature: float, top_p: float
    ) -> list[Written]:
        room = self.captioner.config.context_length - len(prompt)
        uniforms = torch.from_numpy(np.random.default_rng(seed).random((n, room))).to(features.device)
        rows = features.expand(n, -1, -1), prompt.expand(n, -1)
        return write_drawn(self.captioner, *rows, uniforms, temperature, top_p)

    def _ranked(self, image: Tensor, texts: Sequence[Written]) -> list[Caption]:
        said = {self.words.decode(text.tokens): text for text in reversed(texts)}
        said.pop("", None)
        if not said:
            return []
        tokens = self.tokenizer(list(said), on_long="truncate").to(image.device)
        scores = (self.clip.encode_text(tokens) @ self.clip.encode_image(image[None])[0]).tolist()
        captions = [
            Caption(text, score, written.probability)
            for (text, written), score in zip(said.items(), scores, strict=True)
        ]
        return sorted(captions, key=lambda caption: -caption.score)
