"""Captions of pictures and answers to questions about them, from a captioner; captions are ranked by CLIP score."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from codebrush.data.known_texts import KnownTexts
from codebrush.data.text_embedding import embed_other_texts
from codebrush.errors import PromptError, UsageError
from codebrush.models.captioner import Captioner, patch_features
from codebrush.models.clip import CLIP
from codebrush.text.other_things import NEAR
from codebrush.text.reading import named_texts
from codebrush.text.tokenizer import Tokenizer
from codebrush.understanding.answer_confidence import (
    THRESHOLD,
    THRESHOLD_WITHOUT,
    AnswerConfidence,
)
from codebrush.understanding.presence import presences
from codebrush.understanding.question_kinds import fits_question
from codebrush.understanding.text_decoding import DecodedText, beam_search, greedy_decode, sample_decode

METHODS = ("beam", "greedy", "sample")
CANDIDATES = 5  # captions that are written and ranked for each picture, at least
LENGTH_PENALTY = 1.0
UNKNOWN_ANSWER = "I don't know"
MIN_ANSWER_TOKENS = 4  # a question must leave room for this many


@dataclass(frozen=True)
class Caption:
    """A caption, its CLIP score (cosine with the picture, -1 to 1) and the captioner's probability of it, 0 to 1.

    `level`, 0 to 1, is the share of texts about other things (`codebrush.text.other_things`) that fit the picture less.
    """

    text: str
    score: float
    probability: float
    level: float

    @property
    def doubt(self) -> str | None:
        """What there is to say to a reader of the caption; None if it fits better than every text about other things,
        as a caption that was written for the picture should."""
        if self.level >= 1:
            return None
        opening = "the captions may be wrong" if self.level >= NEAR else "the captions are hardly right"
        return (
            f"{opening}: {max(1 - self.level, 0.01):.0%} of texts about other things fit the picture as well or better"
        )


@dataclass(frozen=True)
class Answer:
    """The best `guess` of the captioner, or of CLIP, and the `confidence`, 0 to 1, that it is right.

    `text` is the guess, or "I don't know" if the confidence is below the threshold or the guess is not of the kind that
    the question asks for; `reason` says why then, and is empty otherwise.
    """

    text: str
    confidence: float
    guess: str
    reason: str = ""


class CaptionPipeline:
    """Writes captions and answers with a captioner and ranks captions with CLIP.

    `tokenizer` is CLIP's, `caption_tokenizer` the captioner's. `answer_confidence` says how likely an answer is
    right; without it that is the captioner's own probability of the answer. `known` helps CLIP with words that no
    caption of its training had.
    """

    def __init__(
        self,
        clip: CLIP,
        tokenizer: Tokenizer,
        captioner: Captioner,
        caption_tokenizer: Tokenizer,
        answer_confidence: AnswerConfidence | None = None,
        known: KnownTexts | None = None,
    ):
        self.answer_confidence, self.known = answer_confidence, known
        self.clip, self.tokenizer = clip, tokenizer
        self.captioner, self.caption_tokenizer = captioner, caption_tokenizer

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
        """Images (B, 3, S, S) in [0, 1] -> up to `n` different captions of each, best first by CLIP score.

        "beam" searches for the most probable captions, "greedy" takes the most probable token each time and gives one
        caption, "sample" draws them with `temperature` and nucleus sampling (`top_p`). Samples of image i of the batch
        use the random stream of (seed, first + i). Both write five or more, so that a smaller `n` gives the best of
        what a larger one up to five gives.

        Raises:
            UsageError: if the method is unknown, n is below 1, or n is above 1 with "greedy".
        """
        if method not in METHODS:
            raise UsageError(f"method must be one of {', '.join(METHODS)}, not {method}")
        if n < 1 or (method == "greedy" and n > 1):
            raise UsageError("n must be at least 1, and greedy writes one caption: use beam or sample for more")
        prompt, features = self._prompt(""), self._features(images)
        drawn = max(CANDIDATES, n)
        if method == "greedy":
            texts = [[text] for text in greedy_decode(self.captioner, features, prompt.expand(len(images), -1))]
        elif method == "beam":
            texts = [beam_search(self.captioner, row[None], prompt, drawn, LENGTH_PENALTY) for row in features]
        else:
            texts = [
                self._sample(row, prompt, drawn, np.random.SeedSequence(seed, spawn_key=(number,)), temperature, top_p)
                for number, row in enumerate(features, first)
            ]
        return [self._rank(image, found)[:n] for image, found in zip(images, texts, strict=True)]

    @torch.no_grad()
    def caption_tiles(
        self, tiles: Tensor, n: int = 1, method: str = "beam", seed: int = 0, first: int = 0
    ) -> list[Caption]:
        """Tiles (T, 3, S, S) in [0, 1] of one picture -> up to `n` different captions, best first; see `caption`.

        The captioner reads one square, so it writes captions for each tile, whose scores are the cosines with that
        tile. With the mean of all tiles those that show little would win where they are many.
        """
        found = [each for tile in tiles for each in self.caption(tile[None], n, method, seed, first=first)[0]]
        best: dict[str, Caption] = {}
        for each in sorted(found, key=lambda caption: -caption.score):
            best.setdefault(each.text, each)
        return list(best.values())[:n]

    @torch.no_grad()
    def ask(self, images: Tensor, questions: Sequence[str], threshold: float | None = None) -> list[Answer]:
        """Answer one question about each of images (B, 3, S, S) in [0, 1]: by greedy decoding, or by CLIP if the
        question names a thing and `answer_confidence` leaves it to CLIP.

        An answer with a confidence below `threshold`, 0 to 1 (None: the `THRESHOLD` of `answer_confidence`, or that
        without one), is replaced by "I don't know". The confidence is 0 if the question has words that were in no
        trained question, unless it names a thing that CLIP is asked for.

        Raises:
            UsageError: if the threshold is out of range.
            PromptError: if a question is empty or too long.
        """
        if threshold is None:
            threshold = THRESHOLD_WITHOUT if self.answer_confidence is None else THRESHOLD
        if not 0 <= threshold <= 1:
            raise UsageError(f"the threshold must be from 0 to 1, not {threshold}")
        features, answers = self._features(images), []
        for image, row, question in zip(images, features, questions, strict=True):
            if not question.strip():
                raise PromptError("the question is empty: ask something")
            answers.append(self._answer(image, row[None], question, threshold))
        return answers

    def _answer(self, image: Tensor, features: Tensor, question: str, threshold: float) -> Answer:
        prompt = self._prompt(question)[None]
        (decoded,) = greedy_decode(self.captioner, features, prompt)
        guess, confidence, unknown = self.caption_tokenizer.decode(decoded.tokens), decoded.probability, list[str]()
        if self.answer_confidence is not None:
            unknown, odds = self.answer_confidence.unknown_words(question), 0.0
            if (thing := self.answer_confidence.named_thing(question)) is not None:
                assert self.answer_confidence.naming is not None
                odds = self.answer_confidence.naming.odds(*self.presence_of(image, thing))
                guess = "yes" if odds >= 0 else "no"
            confidence = 0.0
            if not unknown:
                told = self.answer_confidence.features(self.captioner.state(features, prompt)[0], decoded, odds)
                confidence = float(self.answer_confidence.confidence(told))
        if not fits_question(question, guess):
            return Answer(UNKNOWN_ANSWER, 0.0, guess, "its best guess is no answer to such a question")
        if confidence >= threshold:
            return Answer(guess, confidence, guess)
        reason = f"it was trained on no questions with {named_texts(unknown)}" if unknown else "it is not sure enough"
        return Answer(UNKNOWN_ANSWER, confidence, guess, reason)

    @torch.no_grad()
    def presence_of(self, image: Tensor, thing: str) -> tuple[float, float]:
        """CLIP's cosine of an image (3, S, S) in [0, 1] with the name of a thing, and the name's `Presence.level`."""
        picture, text = self._embedded(image, [thing])  # (E,), (1, E)
        text = text if self.known is None else self.known.helped([thing], text)
        return float(text[0] @ picture), presences(picture, text, self._others)[0].level

    def _embedded(self, image: Tensor, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """CLIP's embeddings of an image (3, S, S) in [0, 1], (E,), and of texts, (T, E)."""
        tokens = self.tokenizer(list(texts), on_long="truncate").to(image.device)
        return self.clip.encode_image(image[None])[0], self.clip.encode_text(tokens)

    @cached_property
    def _others(self) -> Tensor:
        return embed_other_texts(self.clip, self.tokenizer)  # (N, E)

    def _features(self, images: Tensor) -> Tensor:
        pixels = self.clip.normalise(images)
        return self.captioner.with_stem(
            patch_features(self.clip.image_encoder, pixels, self.captioner.config.levels), pixels
        )  # (B, P, F + stem)

    def _prompt(self, question: str) -> Tensor:
        """Tokens (T,) that ask for the answer to `question`, or for a caption if it is empty."""
        config = self.captioner.config
        ids = self.caption_tokenizer.ids([question])[0] if question else []
        room = config.context_length - 2 - MIN_ANSWER_TOKENS
        if len(ids) > room:
            raise PromptError(f"the question has {len(ids)} tokens, more than the {room} that fit: shorten it")
        return torch.tensor([config.start_id, *ids, config.end_id], device=self.captioner.device)

    def _sample(
        self, features: Tensor, prompt: Tensor, n: int, seed: np.random.SeedSequence, temperature: float, top_p: float
    ) -> list[DecodedText]:
        room = self.captioner.config.context_length - len(prompt)
        uniforms = torch.from_numpy(np.random.default_rng(seed).random((n, room))).to(features.device)
        rows = features.expand(n, -1, -1), prompt.expand(n, -1)
        return sample_decode(self.captioner, *rows, uniforms, temperature, top_p)

    def _rank(self, image: Tensor, texts: Sequence[DecodedText]) -> list[Caption]:
        different = {self.caption_tokenizer.decode(text.tokens): text for text in reversed(texts)}
        different.pop("", None)
        if not different:
            return []
        picture, vectors = self._embedded(image, list(different))  # (E,), (T, E)
        levels = [each.level for each in presences(picture, vectors, self._others)]
        captions = [
            Caption(text, score, decoded.probability, level)
            for (text, decoded), score, level in zip(
                different.items(), (vectors @ picture).tolist(), levels, strict=True
            )
        ]
        return sorted(captions, key=lambda caption: -caption.score)
