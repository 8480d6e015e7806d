"""A code transformer that writes squares of 2 x 2 codes, each one step of its long transformer."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from code_networks import (
    TEXT,
    K,
    N,
    causal,
    differs,
    fits_without_copying,
    full_condition,
    network,
    only,
    same_in_chunks,
    some_codes,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from codebrush.errors import PackError
from codebrush.models.code_transformer import CodeTransformer
from codebrush.models.condition import Condition

SIDES, COUNT = (4, 4), 16
ORDER = [0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15]


def blocks(**changes: Any) -> CodeTransformer:
    return network(grid=SIDES, block=2, aligned_source=True, **changes)


def condition_of(batch: int) -> Condition:
    source = torch.randint(0, K, (batch, *SIDES), generator=torch.Generator().manual_seed(4))
    return replace(full_condition(batch), source_codes=source, source_mask=torch.ones_like(source).bool())


def test_codes_are_drawn_block_after_block() -> None:
    model = blocks()
    assert model.order.tolist() == ORDER
    assert network().order.tolist() == list(range(N))
    assert model.config.blocks == (2, 2)
    assert model.config.prefix_length == TEXT + 2 + 4 + 1 + 1


def test_a_grid_without_whole_blocks_is_refused() -> None:
    with pytest.raises(PackError, match="a grid of 2 x 3 codes has no whole squares of 2"):
        network(block=2)


def test_later_codes_never_influence_earlier_logits_and_all_earlier_ones_do() -> None:
    causal(blocks(), some_codes(2, COUNT), condition_of(2))


@settings(deadline=None, max_examples=20)
@given(first=st.integers(0, 6), chunks=st.lists(st.integers(1, 6), max_size=6), sourced=st.booleans())
def test_codes_in_chunks_of_any_size_equal_one_pass(first: int, chunks: list[int], sourced: bool) -> None:
    model, condition = blocks(), condition_of(3)
    condition = condition if sourced else only(condition, "text_features", "labels")
    codes = some_codes(3, min(first + sum(chunks), COUNT))
    same_in_chunks(model, codes, condition, first, chunks)


def test_a_block_of_the_source_is_shown_where_one_of_its_codes_is() -> None:
    model, condition = blocks(), condition_of(1)
    shown = torch.zeros(1, *SIDES, dtype=torch.bool)
    shown[0, 3, 0] = True  # of the third block alone
    found, place = model.prefix(replace(condition, source_mask=shown), 1), TEXT + 2
    whole, none = model.prefix(condition, 1), model.prefix(hiding_all(condition), 1)
    assert torch.equal(found[:, place + 2], whole[:, place + 2])
    for block in (0, 1, 3):
        assert torch.equal(found[:, place + block], none[:, place + block])


def test_the_place_of_a_code_in_its_block_counts() -> None:
    model = blocks()
    a, b = torch.tensor([[1, 2, 3, 4, 5]]), torch.tensor([[2, 1, 3, 4, 5]])
    assert differs(model(a)[:, 3], model(b)[:, 3])
    assert differs(model(a)[:, 5], model(b)[:, 5])


def test_a_whole_picture_fits_without_copying() -> None:
    fits_without_copying(blocks(), some_codes(2, COUNT))


def hiding_all(condition: Condition) -> Condition:
    assert condition.source_codes is not None
    return replace(condition, source_mask=torch.zeros_like(condition.source_codes).bool())
