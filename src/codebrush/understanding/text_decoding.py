"""Text decoding with a captioner: greedy, sampled, and by beam search.

Each uses the key-value cache, stops at the end token, and stays within the captioner's context.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from codebrush.models.captioner import Captioner
from codebrush.models.sampling import sample

Beam = list[tuple[float, tuple[int, ...]]]  # log-probability and tokens of each unfinished text


@dataclass(frozen=True)
class DecodedText:
    """A text as tokens, without the end token.

    `log_probability` is that of all its tokens, in nats, with the end token if it was reached (`finished`).
    """

    tokens: tuple[int, ...]
    log_probability: float
    finished: bool

    @property
    def probability(self) -> float:
        """The captioner's probability of the whole text, 0 to 1."""
        return math.exp(self.log_probability)

    def score(self, length_penalty: float) -> float:
        """Log-probability divided by length ** length_penalty (Wu et al. 2016, section 7, without the constants).

        0 favours short texts; 1 is the mean log-probability of a token.
        """
        return self.log_probability / (len(self.tokens) + 1) ** length_penalty


def greedy_decode(captioner: Captioner, features: Tensor, prompts: Tensor) -> list[DecodedText]:
    """Take the most probable token each time: patch features (B, P, F), prompts (B, T) int64 -> B texts."""
    return _decode(captioner, features, prompts, lambda logits, _: logits.argmax(-1))


def sample_decode(
    captioner: Captioner,
    features: Tensor,
    prompts: Tensor,
    uniforms: Tensor,
    temperature: float = 1.0,
    top_p: float = 1.0,
) -> list[DecodedText]:
    """Sample each token: patch features (B, P, F), prompts (B, T) int64 -> B texts.

    `uniforms` (B, steps) in [0, 1) are the random numbers, one column a step, for as many steps as the context leaves
    after the prompt. `temperature` and `top_p` are those of `codebrush.models.sampling.probabilities`.
    """

    def pick(logits: Tensor, step: int) -> Tensor:
        return sample(logits, uniforms[:, step], temperature, top_p=top_p)

    return _decode(captioner, features, prompts, pick)


@torch.no_grad()
def _decode(
    captioner: Captioner, features: Tensor, prompts: Tensor, pick: Callable[[Tensor, int], Tensor]
) -> list[DecodedText]:
    config = captioner.config
    tokens: list[list[int]] = [[] for _ in prompts]
    totals, unfinished = [0.0] * len(prompts), [True] * len(prompts)
    room = config.context_length - prompts.shape[1]
    logits, cache = captioner.prefill(features, prompts)
    for step in range(room):
        last = logits[:, -1].float()  # (B, K)
        chosen = pick(last, step)  # (B,)
        gains = last.log_softmax(-1).gather(1, chosen[:, None])[:, 0].tolist()
        for row, (token, gain) in enumerate(zip(chosen.tolist(), gains, strict=True)):
            if unfinished[row]:
                totals[row] += gain
                unfinished[row] = token != config.end_id
                tokens[row] += [token] if unfinished[row] else []
        if not any(unfinished):
            break
        if step + 1 < room:
            logits = captioner.step(chosen[:, None], cache)
    rows = zip(tokens, totals, unfinished, strict=True)
    return [DecodedText(tuple(row), total, not more) for row, total, more in rows]


@torch.no_grad()
def beam_search(
    captioner: Captioner, features: Tensor, prompt: Tensor, width: int = 5, length_penalty: float = 1.0
) -> list[DecodedText]:
    """Beam search: patch features (1, P, F), prompt (T,) int64 -> up to `width` texts, best `DecodedText.score` first.

    Finished texts leave the beam and are kept beside it. The search ends when no text in the beam can still beat the
    worst of `width` finished ones. The greedy text is compared too, so that the result is never worse than it by score.
    """
    room = captioner.config.context_length - len(prompt)
    logits, cache = captioner.prefill(features, prompt[None])
    last = logits[:, -1].float().log_softmax(-1)  # (1, K)
    live: Beam = [(0.0, ())]
    done: list[DecodedText] = []
    for step in range(room):
        live, parents, ended = _extend(live, last, width, captioner.config.end_id)
        done = sorted([*done, *ended], key=lambda text: -text.score(length_penalty))[:width]
        if step == room - 1 or _settled(done, live, width, length_penalty, room):
            break
        cache.select(torch.tensor(parents, device=last.device))
        new = torch.tensor([[tokens[-1]] for _, tokens in live], device=last.device)
        last = captioner.step(new, cache)[:, -1].float().log_softmax(-1)  # (b, K)
    found = {text.tokens: text for text in (*done, *greedy_decode(captioner, features, prompt[None]))}
    if not done:  # no text ended within the context
        found |= {tokens: DecodedText(tokens, total, False) for total, tokens in live}
    return sorted(found.values(), key=lambda text: (not text.finished, -text.score(length_penalty)))[:width]


def _extend(live: Beam, logits: Tensor, width: int, end_id: int) -> tuple[Beam, list[int], list[DecodedText]]:
    """The beam one token later, the row that each of its texts came from, and the texts that ended.

    `logits` (b, K) are log-probabilities of the next token.
    """
    totals = torch.tensor([total for total, _ in live], device=logits.device)[:, None] + logits  # (b, K)
    best = totals.flatten().topk(min(2 * width, totals.numel()))  # at most `width` of them end
    longer: Beam = []
    parents, ended = [], []
    for total, place in zip(best.values.tolist(), best.indices.tolist(), strict=True):
        row, token = divmod(place, logits.shape[1])
        if token == end_id:
            ended.append(DecodedText(live[row][1], total, True))
        elif len(longer) < width:
            longer.append((total, (*live[row][1], token)))
            parents.append(row)
    return longer, parents, ended


def _settled(done: Sequence[DecodedText], live: Beam, width: int, penalty: float, room: int) -> bool:
    """Whether no text in the beam can still beat the worst of those kept. A log-probability can only fall, and at best
    is divided by the greatest length that the context allows."""
    if len(done) < width:
        return False
    return max(total for total, _ in live) / (room + 1) ** penalty <= done[-1].score(penalty)
