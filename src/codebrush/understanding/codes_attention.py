"""A drawn picture's codes and the prompt they were drawn from in; how much each code attended to each word out.

The codes are shown to the code transformer again, all at once (teacher forcing): the position that predicts a code is
where it was written from, and what it attends to among the prompt's tokens is averaged over heads and layers.
"""

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from codebrush.errors import PackError
from codebrush.models.attention import rotate
from codebrush.models.clip import CLIP
from codebrush.models.code_transformer import CodeTransformer
from codebrush.models.condition import Condition
from codebrush.pack.pack import encode_condition
from codebrush.text.prompts import parse_prompt
from codebrush.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class PromptWord:
    """One word of part number `part` of a prompt, and its map (h, w): each code's share of attention to it, 0 to 1."""

    word: str
    part: int
    heat: Tensor

    @property
    def share(self) -> float:
        """Of all codes' attention."""
        return float(self.heat.mean())


def prompt_attention(
    clip: CLIP, tokenizer: Tokenizer, transformer: CodeTransformer, codes: Tensor, prompt: str
) -> list[PromptWord]:
    """The words of a prompt, in the syntax of prompts, and what the codes (h, w) drawn from it attended to.

    A part with a weight is a condition of its own, so each part's words share one whole.
    """
    found = []
    for number, part in enumerate(parse_prompt(prompt).parts):
        words = part.text.split()
        condition = encode_condition(clip, tokenizer, [part.text], transformer.config)
        maps = code_attention(transformer, codes, condition, word_spans(tokenizer, words))
        found += [PromptWord(word, number, heat) for word, heat in zip(words, maps, strict=True)]
    return found


def code_attention(transformer: CodeTransformer, codes: Tensor, condition: Condition, spans: list[slice]) -> Tensor:
    """Codes (h, w) of one picture, its condition of one row and the tokens of each word -> maps (W, h, w).

    Values are shares of attention, 0 to 1. A word beyond the tokens that the transformer reads gets zeros. Raises
    PackError where the transformer reads no tokens but only the text as a whole.
    """
    config = transformer.config
    if not config.text_features:
        raise PackError("this pack's code transformer reads the text as a whole: its words have no codes of their own")
    given = codes.flatten()[None, transformer.order[:-1].cpu()]  # (1, N - 1): the last code predicts none
    with torch.no_grad(), _watched(transformer) as weights:
        transformer(given.to(transformer.device), condition)
    attention = torch.stack([layer[0].mean(0) for layer in weights]).mean(0)  # (P + N / M - 1, P + N / M - 1)
    # (N / M, P + N / M - 1): the positions that predict the blocks of codes
    attention = attention[len(transformer.prefix_indices(condition)) - 1 :]
    features = condition.text_features
    read = 0 if features is None else min(features.shape[1], config.text_length)
    first = config.text_length - read if config.hide_padding else 0  # there the text stands at the right
    spans = [slice(min(span.start, read) + first, min(span.stop, read) + first) for span in spans]
    maps = torch.stack([attention[:, span].sum(1).unflatten(0, config.blocks) for span in spans])
    return maps.repeat_interleave(config.block, 1).repeat_interleave(config.block, 2)


def word_spans(tokenizer: Tokenizer, words: list[str]) -> list[slice]:
    """Where the tokens of each word of " ".join(words) stand in the tokenizer's row."""
    beginnings = [" ".join(words[:count]) for count in range(len(words) + 1)]
    ids = tokenizer(beginnings, on_long="truncate")  # (W + 1, T)
    ends = ids == tokenizer.end_id
    if tokenizer.pad_id == tokenizer.end_id:
        stops = ends.int().argmax(1)
    else:
        stops = ids.shape[1] - 1 - ends.int().flip(1).argmax(1)
    places = stops.tolist()
    return [slice(start, max(start, stop)) for start, stop in itertools.pairwise(places)]


@contextmanager
def _watched(transformer: CodeTransformer) -> Iterator[list[Tensor]]:
    """The attention weights (B, heads, N, N) of every layer, computed beside the passes made inside."""
    weights: list[Tensor] = []

    def note(attention: Any, inputs: tuple[Tensor, ...], options: dict[str, Any]) -> None:
        x, rotary, mask = inputs[0], options["rotary"], options["mask"]
        q, k, _ = attention.qkv(x).unflatten(-1, (3, attention.heads, -1)).permute(2, 0, 3, 1, 4)  # (B, heads, N, d)
        if rotary is not None:
            q, k = rotate(q, rotary), rotate(k, rotary)
        allowed = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=x.device).tril()
        if mask is not None:
            own = torch.eye(x.shape[1], dtype=torch.bool, device=x.device)
            allowed = (allowed & mask[:, None, None, :]) | own
        scores = (q @ k.transpose(-2, -1)) * q.shape[-1] ** -0.5
        weights.append(scores.masked_fill(~allowed, torch.finfo(scores.dtype).min).softmax(-1))

    blocks: Any = transformer.transformer.blocks
    hooks = [block.attention.register_forward_pre_hook(note, with_kwargs=True) for block in blocks]
    try:
        yield weights
    finally:
        for hook in hooks:
            hook.remove()
