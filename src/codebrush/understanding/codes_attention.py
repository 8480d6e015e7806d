"""Attention maps of a generated picture: how much each of its codes attended to each word of the prompt.

The codes are fed to the code transformer again, all at once (teacher forcing). The attention from the position that
predicts a code to the prompt's tokens is averaged over heads and layers.
"""

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from codebrush.errors import PackError
from codebrush.models.clip import CLIP
from codebrush.models.code_transformer import CodeTransformer
from codebrush.models.condition import Condition
from codebrush.models.layers.attention import rotate
from codebrush.pack.pack import encode_condition
from codebrush.text.prompts import parse_prompt
from codebrush.text.tokenizer import Tokenizer
from codebrush.understanding.attribution import places_of_content


@dataclass(frozen=True)
class PromptWord:
    """One word of part number `part` of a prompt, with its map (h, w): the share, 0 to 1, of each code's attention."""

    word: str
    part: int
    heat: Tensor

    @property
    def share(self) -> float:
        """The mean over all codes."""
        return float(self.heat.mean())


def prompt_attention(
    clip: CLIP, tokenizer: Tokenizer, transformer: CodeTransformer, codes: Tensor, prompt: str
) -> list[PromptWord]:
    """The words of a prompt (with its weights and parts) and how much the codes (h, w) drawn from it attended to each.

    Stop words are left out, unless a part has no others. Each part of a weighted prompt conditions the transformer
    separately, so the shares of each part's words are separate. Raises PackError if the transformer reads no text
    tokens.
    """
    found = []
    for number, part in enumerate(parse_prompt(prompt).parts):
        words = part.text.split()
        content = places_of_content(words)
        condition = encode_condition(clip, tokenizer, [part.text], transformer.config)
        maps = code_attention(transformer, codes, condition, word_spans(tokenizer, words))
        found += [PromptWord(words[place], number, maps[place]) for place in content]
    return found


def code_attention(transformer: CodeTransformer, codes: Tensor, condition: Condition, spans: list[slice]) -> Tensor:
    """Codes (h, w) of one picture, its condition (one row) and the token positions of each word -> maps (W, h, w).

    Values are shares of attention, 0 to 1; those of a word beyond the text that the transformer reads are 0. Raises
    PackError if the transformer is conditioned on the embedding of the text alone.
    """
    config = transformer.config
    if not config.text_features:
        raise PackError(
            "this pack's code transformer reads one embedding of the whole text, so its attention to words is unknown"
        )
    given = codes.flatten()[None, transformer.order[:-1].cpu()]  # (1, N - 1): the last code predicts none
    with torch.no_grad(), _recorded_attention(transformer) as weights:
        transformer(given.to(transformer.device), condition)
    attention = torch.stack([layer[0].mean(0) for layer in weights]).mean(0)  # (P + N / M - 1, P + N / M - 1)
    # (N / M, P + N / M - 1): the positions that predict the blocks of codes
    attention = attention[len(transformer.prefix_indices(condition)) - 1 :]
    features = condition.text_features
    read = 0 if features is None else min(features.shape[1], config.text_length)
    first = config.text_length - read if config.hide_padding else 0  # hidden padding is on the left
    spans = [slice(min(span.start, read) + first, min(span.stop, read) + first) for span in spans]
    maps = torch.stack([attention[:, span].sum(1).unflatten(0, config.blocks) for span in spans])
    return maps.repeat_interleave(config.block, 1).repeat_interleave(config.block, 2)


def word_spans(tokenizer: Tokenizer, words: list[str]) -> list[slice]:
    """The token positions of each word in the tokens of " ".join(words); an empty slice for a word that was cut off."""
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
def _recorded_attention(transformer: CodeTransformer) -> Iterator[list[Tensor]]:
    """Records the attention weights (B, heads, N, N) of every layer, in order, in passes made inside the block."""
    weights: list[Tensor] = []

    def record(attention: Any, inputs: tuple[Tensor, ...], options: dict[str, Any]) -> None:
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
    hooks = [block.attention.register_forward_pre_hook(record, with_kwargs=True) for block in blocks]
    try:
        yield weights
    finally:
        for hook in hooks:
            hook.remove()
