"""A captioner, patch features and a prompt in; the likeliest, or drawn, words out.

Every way goes through the key-value cache, ends at the end token and never writes more than the captioner has room for.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from codebrush.models.captioner import Captioner
from codebrush.models.sampling import sample

Beam = list[tuple[float, tuple[int, ...]]]  # log-probability and tokens of each text that is not finished


@dataclass(frozen=True)
class Written:
    """Tokens without the end, the log-probability of all of them with the end, and whether the end was reached."""

    tokens: tuple[int, ...]
    log_probability: float
    finished: bool

    @property
    def probability(self) -> float:
        """The chance that the captioner gives to the whole text, 0 to 1."""
        return math.exp(self.log_probability)

    def score(self, length_penalty: float) -> float:
        """Log-probability over length to the power of `length_penalty` (Wu et al. 2016, section 7, without its
        constant): 0 favours short texts, 1 takes the mean of a token."""
        return self.log_probability / (len(self.tokens) + 1) ** length_penalty


def write_greedily(captioner: Captioner, features: Tensor, prompts: Tensor) -> list[Written]:
    """The likeliest next word, one after another: features (B, P, F), prompts (B, T) int64 -> B texts."""
    return _write(captioner, features, prompts, lambda logits, _: logits.argmax(-1))


def write_drawn(
    captioner: Captioner,
    features: Tensor,
    prompts: Tensor,
    uniforms: Tensor,
    temperature: float = 1.0,
    top_p: float = 1.0,
) -> list[Written]:
    """Words drawn with `uniforms` (B, room) in [0, 1); see `codebrush.models.sampling.probabilities`."""

    def pick(logits: Tensor, step: int) -> Tensor:
        return sample(logits, uniforms[:, step], temperature, top_p=top_p)

    return _write(captioner, features, prompts, pick)


@torch.no_grad()
def _write(
    captioner: Captioner, features: Tensor, prompts: Tensor, pick: Callable[[Tensor, int], Tensor]
) -> list[Written]:
    config, cache = captioner.config, captioner.make_cache()
    tokens: list[list[int]] = [[] for _ in prompts]
    totals, still = [0.0] * len(prompts), [True] * len(prompts)
    new = prompts
    for step in range(config.context_length - prompts.shape[1]):
        logits = captioner(features, new, cache).logits[:, -1].float()  # (B, K)
        chosen = pick(logits, step)  # (B,)
        gains = logits.log_softmax(-1).gather(1, chosen[:, None])[:, 0].tolist()
        for row, (token, gain) in enumerate(zip(chosen.tolist(), gains, strict=True)):
            if still[row]:
                totals[row] += gain
                still[row] = token != config.end_id
                tokens[row] += [token] if still[row] else []
        if not any(still):
            break
        new = chosen[:, None]
    return [Written(tuple(row), total, not more) for row, total, more in zip(tokens, totals, still, strict=True)]


@torch.no_grad()
def write_by_beam(
    captioner: Captioner, features: Tensor, prompt: Tensor, width: int = 5, length_penalty: float = 1.0
) -> list[Written]:
    """The best texts that a beam of `width` finds, best first by `Written.score`: features (1, P, F), prompt (T,).

    Finished texts leave the beam and are kept beside it. The search ends when no text in the beam could still beat the
    worst of `width` finished ones, however it went on. The greedy text is among those compared, so that a beam is
    never worse by its own score.
    """
    config, cache = captioner.config, captioner.make_cache()
    room = config.context_length - len(prompt)
    logits = captioner(features, prompt[None], cache).logits[:, -1].float().log_softmax(-1)  # (1, K)
    live: Beam = [(0.0, ())]
    done: list[Written] = []
    for step in range(room):
        live, parents, ended = _extend(live, logits, width, config.end_id)
        done = sorted([*done, *ended], key=lambda text: -text.score(length_penalty))[:width]
        if step == room - 1 or _settled(done, live, width, length_penalty, room):
            break
        cache.select(torch.tensor(parents, device=logits.device))
        new = torch.tensor([[tokens[-1]] for _, tokens in live], device=logits.device)
        logits = captioner(features, new, cache).logits[:, -1].float().log_softmax(-1)  # (b, K)
    found = {text.tokens: text for text in (*done, *write_greedily(captioner, features, prompt[None]))}
    if not done:  # nothing ended in the room there is
        found |= {tokens: Written(tokens, total, False) for total, tokens in live}
    return sorted(found.values(), key=lambda text: (not text.finished, -text.score(length_penalty)))[:width]


def _extend(live: Beam, logits: Tensor, width: int, end_id: int) -> tuple[Beam, list[int], list[Written]]:
    """The beam a word later, which text each came from, and the texts that ended: logits (b, K) are log-softmaxed."""
    totals = torch.tensor([total for total, _ in live], device=logits.device)[:, None] + logits  # (b, K)
    best = totals.flatten().topk(min(2 * width, totals.numel()))  # at most `width` of them end
    longer: Beam = []
    parents, ended = [], []
    for total, place in zip(best.values.tolist(), best.indices.tolist(), strict=True):
        row, token = divmod(place, logits.shape[1])
        if token == end_id:
            ended.append(Written(live[row][1], total, True))
        elif len(longer) < width:
            longer.append((total, (*live[row][1], token)))
            parents.append(row)
    return longer, parents, ended


def _settled(done: Sequence[Written], live: Beam, width: int, penalty: float, room: int) -> bool:
    """Whether no text in the beam can still beat the worst that is kept: its log-probability can only fall, and at
    best is shared out among all the words there is room for."""
    if len(done) < width:
        return False
    return max(total for total, _ in live) / (room + 1) ** penalty <= done[-1].score(penalty)
