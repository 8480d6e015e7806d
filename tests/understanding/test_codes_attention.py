"""Attention of codes to prompt words, compared with the attention inside the network."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from codebrush import Codebrush
from codebrush.errors import PackError
from codebrush.models.code_transformer import CodeTransformer, CodeTransformerConfig
from codebrush.pack.pack import encode_condition
from codebrush.understanding.codes_attention import _recorded_attention, code_attention, prompt_attention, word_spans
from packs import micro_transformer


@pytest.fixture(scope="module")
def brush(micro_pack: Path) -> Codebrush:
    return Codebrush.from_pretrained(micro_pack, device="cpu")


def some_codes(brush: Codebrush) -> Tensor:
    config = brush.transformer.config
    return torch.randint(0, config.codebook_size, config.grid)


def test_the_recorded_weights_are_those_that_the_network_uses(brush: Codebrush) -> None:
    transformer = brush.transformer
    condition = encode_condition(brush.clip, brush.tokenizer, ["a red circle"], transformer.config)
    mixed: list[tuple[Tensor, Tensor]] = []  # the heads' output of each attention, before its projection
    blocks: Any = transformer.transformer.blocks
    hooks = [block.attention.out.register_forward_pre_hook(lambda _, given: mixed.append(given[0])) for block in blocks]
    inputs: list[Tensor] = []
    hooks += [block.attention.register_forward_pre_hook(lambda _, given: inputs.append(given[0])) for block in blocks]
    with torch.no_grad(), _recorded_attention(transformer) as weights:
        transformer(some_codes(brush).flatten()[None, :-1], condition)
    for hook in hooks:
        hook.remove()
    assert len(weights) == len(mixed) == len(blocks)
    for block, x, seen, attention in zip(blocks, inputs, mixed, weights, strict=True):
        heads = block.attention.heads
        v = block.attention.qkv(x).chunk(3, dim=-1)[2].unflatten(-1, (heads, -1)).transpose(1, 2)
        torch.testing.assert_close((attention @ v).transpose(1, 2).flatten(2), seen, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(attention.sum(-1), torch.ones_like(attention[..., 0]))


def test_each_word_has_a_map_of_shares(brush: Codebrush) -> None:
    codes = some_codes(brush)
    words = prompt_attention(brush.clip, brush.tokenizer, brush.transformer, codes, "a red circle:2|a blue square:1")
    assert [(word.part, word.word) for word in words] == [
        (0, "red"), (0, "circle"), (1, "blue"), (1, "square"),
    ]  # fmt: skip
    for word in words:
        assert word.heat.shape == brush.transformer.config.grid
        assert 0 < word.share < 1
    total = torch.stack([word.heat for word in words[:2]]).sum(0)
    assert total.max() <= 1 + 1e-5
    assert not torch.equal(words[0].heat, words[1].heat)
    alone = prompt_attention(brush.clip, brush.tokenizer, brush.transformer, codes, "a red circle")
    for one, other in zip(alone, words[:2], strict=True):
        torch.testing.assert_close(one.heat, other.heat)


def test_stop_words_have_a_map_only_where_there_are_no_others(brush: Codebrush) -> None:
    codes = some_codes(brush)
    words = prompt_attention(brush.clip, brush.tokenizer, brush.transformer, codes, "the red one|of the")
    assert [word.word for word in words] == ["red", "one", "of", "the"]


def test_what_was_drawn_before_counts_and_what_comes_after_does_not(brush: Codebrush) -> None:
    codes = some_codes(brush)
    changed = codes.clone()
    changed[4, 0] = (changed[4, 0] + 1) % brush.transformer.config.codebook_size
    one, other = (
        prompt_attention(brush.clip, brush.tokenizer, brush.transformer, each, "a red circle")[1].heat
        for each in (codes, changed)
    )
    torch.testing.assert_close(one.flatten()[: 4 * 8 + 1], other.flatten()[: 4 * 8 + 1])
    assert (one - other).abs().flatten()[4 * 8 + 1 :].max() > 0


def test_the_codes_of_a_square_share_what_it_attended_to(brush: Codebrush) -> None:
    torch.manual_seed(2)
    squares = micro_transformer(block=2)
    codes = some_codes(brush)
    (word, *_) = prompt_attention(brush.clip, brush.tokenizer, squares, codes, "red")
    assert word.heat.shape == (8, 8)
    corners = word.heat[::2, ::2]
    assert torch.equal(word.heat, corners.repeat_interleave(2, 0).repeat_interleave(2, 1))
    changed = codes.clone()
    changed[3, 5] = (changed[3, 5] + 1) % squares.config.codebook_size  # in the seventh square
    other = prompt_attention(brush.clip, brush.tokenizer, squares, changed, "red")[0].heat[::2, ::2].flatten()
    torch.testing.assert_close(corners.flatten()[:7], other[:7])
    assert (corners.flatten()[7:] - other[7:]).abs().max() > 0


def test_words_stand_where_their_tokens_are(brush: Codebrush) -> None:
    words = ["a", "red", "circle"]
    spans = word_spans(brush.tokenizer, words)
    (row,) = brush.tokenizer([" ".join(words)])
    for word, span in zip(words, spans, strict=True):
        assert brush.tokenizer.backend.decode(row[span].tolist()).strip() == word
    assert [span.start for span in spans[1:]] == [span.stop for span in spans[:-1]]


def test_a_transformer_of_whole_texts_has_no_words(brush: Codebrush) -> None:
    plain = CodeTransformer(
        CodeTransformerConfig(codebook_size=16, grid=(2, 2), width=16, layers=1, heads=2, text_embedding=24)
    )
    condition = encode_condition(brush.clip, brush.tokenizer, ["a red circle"], plain.config)
    with pytest.raises(PackError, match="reads one embedding of the whole text"):
        code_attention(plain, torch.zeros(2, 2, dtype=torch.int64), condition, [])
