from dataclasses import fields, replace
from itertools import product
from typing import Any

import pytest
import torch
from code_networks import (
    GRID,
    NAMES,
    SIZES,
    TEXT,
    K,
    N,
    causal,
    close,
    differs,
    fits_without_copying,
    full_condition,
    hiding,
    network,
    only,
    same_in_chunks,
    some_codes,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from codebrush.errors import PackError
from codebrush.models.code_cache import CodeCache
from codebrush.models.code_transformer import CodeTransformer
from codebrush.models.condition import Condition


@pytest.mark.parametrize("present", list(product([False, True], repeat=5)))
def test_prefix_and_logits_for_every_combination_of_conditions(present: tuple[bool, ...]) -> None:
    absent = {name: type(SIZES[name])(0) for name, here in zip(NAMES, present, strict=True) if not here}
    model, condition = network(**absent), full_condition(2)
    lengths = dict(zip(NAMES, (TEXT, 1, 1, N, 1), strict=True))
    expected = 1 + sum(lengths[name] for name, here in zip(NAMES, present, strict=True) if here)
    assert model.config.prefix_length == expected
    assert sorted(model.nulls) == sorted(set(NAMES) - set(absent))
    for given_now in ({*NAMES}, set(), set(NAMES[:2])):
        prefix = model.prefix(only(condition, *given_now), 2)
        missing = N if model.config.source_codes and "source_codes" not in given_now else 0
        assert prefix.shape == (2, expected - missing, 16)
    for count in (0, 1, N):
        assert model(some_codes(2, count), condition).shape == (2, count + 1, K)
    assert model(some_codes(2)).shape == (2, N + 1, K)


def test_an_absent_condition_is_its_null_and_a_present_one_is_not() -> None:
    model, condition = network(), full_condition(2)
    slots = {}
    start = 0
    for name, length in zip(NAMES, (TEXT, 1, 1, N, 1), strict=True):
        slots[name] = slice(start, start + length)
        start += length
    nulls = torch.cat([model.nulls[name] for name in NAMES]) + model.prefix_positions[:-1]
    whole = model.prefix(condition, 2)
    close(whole[:, -1], (model.start + model.prefix_positions[-1:]).expand(2, -1))
    for missing in NAMES:
        prefix = model.prefix(hiding(condition, missing), 2)
        for name, slot in slots.items():
            expected = nulls[slot].expand(2, -1, -1) if name == missing else whole[:, slot]
            assert torch.equal(prefix[:, slot], expected)
        assert differs(whole[:, slots[missing]], nulls[slots[missing]])


def test_each_row_has_its_own_conditions() -> None:
    model, condition = network(), full_condition(3)
    has = torch.tensor([[True, False, True, False, True], [False] * 5, [True] * 5])
    found = model.prefix(replace(condition, present=has), 3)
    for row in range(3):
        missing = [name for name, here in zip(NAMES, has[row].tolist(), strict=True) if not here]
        close(found[row : row + 1], model.prefix(hiding(condition.rows(slice(row, row + 1)), *missing), 1))


def test_given_no_source_a_network_is_the_one_without() -> None:
    model, condition = network(), full_condition(2)
    plain = CodeTransformer(replace(model.config, source_codes=False)).eval()
    state, place = model.state_dict(), TEXT + 2
    positions = state.pop("prefix_positions")
    del state["nulls.source_codes"]
    plain.load_state_dict({**state, "prefix_positions": torch.cat([positions[:place], positions[place + N :]])})
    for given_now in (set(), {*NAMES} - {"source_codes"}):
        left = only(condition, *given_now)
        close(model(some_codes(2), left), plain(some_codes(2), left))


def test_a_hole_in_the_source_is_its_null() -> None:
    model, condition = network(), full_condition(2)
    mask = torch.tensor([[True, False, True, True, False, True], [True] * 6])
    prefix = model.prefix(replace(condition, source_mask=mask.view(2, *GRID)), 2)
    whole = model.prefix(condition, 2)
    place = TEXT + 2
    null = model.nulls["source_codes"] + model.prefix_positions[place : place + N]
    assert torch.equal(prefix[1], whole[1])
    for code in range(N):
        expected = whole[0, place + code] if mask[0, code] else null[code]
        assert torch.equal(prefix[0, place + code], expected)
    assert differs(model(some_codes(2), replace(condition, source_mask=mask))[0], model(some_codes(2), condition)[0])


def test_a_source_stands_where_its_picture_will_be() -> None:
    model = network()
    assert model.rotary is not None
    source, codes = model.rotary[:, TEXT + 2 : TEXT + 2 + N], model.rotary[:, model.config.prefix_length :]
    assert torch.equal(source, codes)
    rest = torch.cat([model.rotary[:, : TEXT + 2], model.rotary[:, TEXT + 2 + N : model.config.prefix_length]], dim=1)
    assert torch.equal(rest[0], torch.ones_like(rest[0]))
    assert torch.equal(rest[1], torch.zeros_like(rest[1]))


def test_an_aligned_source_is_added_where_each_code_is_predicted() -> None:
    model, condition, codes = network(aligned_source=True), full_condition(2), some_codes(2, N - 1)
    assert model.align is not None
    seen: list[Tensor] = []
    hook = model.transformer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    model(codes, condition)
    weight = model.align.weight.data.clone()
    model.align.weight.data.zero_()
    model(codes, condition)
    hook.remove()
    first = model.config.prefix_length - 1  # the start token, from which the first code is predicted
    assert torch.equal(seen[0][:, :first], seen[1][:, :first])
    source = model.code_embedding(condition.source_codes.flatten(1)) @ weight.T  # pyright: ignore
    close(seen[0][:, first:] - seen[1][:, first:], source)


def test_an_aligned_source_that_is_dropped_is_its_null() -> None:
    model, condition, codes = network(aligned_source=True), full_condition(2), some_codes(2)
    gone = replace(condition, present=torch.tensor([[True, True, True, False, True]] * 2))
    close(model(codes, gone), model(codes, hiding(condition, "source_codes")))
    assert differs(model(codes, gone), model(codes, condition))


def test_pooled_embeddings_modulate_the_blocks() -> None:
    model, codes, condition = network(modulation=True), some_codes(2), full_condition(2)
    seen: list[Tensor] = []
    for block in model.transformer.blocks:
        block.register_forward_pre_hook(lambda _, args, given: seen.append(given["vector"]), with_kwargs=True)
    model(codes, replace(condition, present=torch.tensor([[True] * 5, [True, False, True, True, True]])))
    text, image = (model.projections[name](getattr(condition, name)) for name in NAMES[1:3])
    expected = torch.stack([text[0] + image[0], model.nulls["text_embedding"][0] + image[1]])
    assert len(seen) == model.config.layers
    for vector in seen:
        close(vector, expected)
    causal(model, codes, condition)
    model.train()
    model(codes, condition).square().sum().backward()
    assert all(block.modulation.weight.grad.any() for block in model.transformer.blocks)


def test_a_fresh_network_with_modulation_has_closed_gates_and_needs_an_embedding() -> None:
    torch.manual_seed(0)
    model = CodeTransformer(replace(network().config, modulation=True)).eval()
    x = torch.randn(2, 4, 16)
    assert torch.equal(model.transformer(x, vector=torch.randn(2, 16)), x)
    with pytest.raises(PackError, match="must read that of a text or a picture"):
        network(modulation=True, text_embedding=0, image_embedding=0)


def test_every_condition_changes_the_logits() -> None:
    model, codes, condition = network(), some_codes(2), full_condition(2)
    other, unconditional = full_condition(2, seed=9), model(codes)
    for name in NAMES:
        logits = model(codes, only(condition, name))
        assert differs(logits, unconditional)
        assert differs(logits, model(codes, only(other, name)))
        assert differs(logits[:, 0], unconditional[:, 0])
    assert torch.equal(model(codes, Condition()), unconditional)


def test_later_codes_never_influence_earlier_logits() -> None:
    causal(network(), some_codes(2), full_condition(2))


@pytest.mark.parametrize("learned", [False, True])
def test_the_place_of_a_code_counts(learned: bool) -> None:
    model = network(learned_positions=learned)
    assert (model.positions is not None) == learned
    a, b = torch.tensor([[1, 2, 3]]), torch.tensor([[2, 1, 3]])
    assert differs(model(a)[:, 3], model(b)[:, 3])


class TestText:
    def test_masked_tokens_are_the_null(self) -> None:
        model, condition = network(), full_condition(2)
        text = condition.text_features
        assert text is not None
        mask = torch.tensor([[True, False, True, False, False], [False] * TEXT])
        found = model.prefix(Condition(text_features=text, text_mask=mask), 2)
        whole, none = model.prefix(Condition(text_features=text), 2), model.prefix(Condition(), 2)
        assert torch.equal(found[0, [0, 2]], whole[0, [0, 2]])
        assert torch.equal(found[0, [1, 3, 4]], none[0, [1, 3, 4]])
        assert torch.equal(found[1], none[1])
        for hidden in (9.0, float("nan")):
            changed = torch.where(mask[..., None], text, hidden)
            assert torch.equal(model.prefix(Condition(text_features=changed, text_mask=mask), 2), found)

    def test_short_texts_are_filled_up_and_long_ones_cut(self) -> None:
        model, text = network(), torch.randn(2, TEXT + 2, 7)
        for length in (1, 3, TEXT):
            mask = (torch.arange(TEXT) < length).expand(2, -1)
            expected = model.prefix(Condition(text_features=text[:, :TEXT], text_mask=mask), 2)
            close(model.prefix(Condition(text_features=text[:, :length]), 2), expected)
        longer = model.prefix(Condition(text_features=text), 2)
        close(longer, model.prefix(Condition(text_features=text[:, :TEXT]), 2))


class TestDropout:
    def test_a_rate_of_one_trains_without_any_condition(self) -> None:
        model, codes = network(condition_dropout=1.0), some_codes(3)
        with torch.no_grad():
            expected = model(codes, hiding(full_condition(3), *NAMES))
            assert differs(model(codes, full_condition(3)), expected)
            assert torch.equal(model.train()(codes, full_condition(3)), expected)

    def test_a_rate_of_zero_and_eval_mode_drop_nothing(self) -> None:
        codes, condition = some_codes(3), full_condition(3)
        whole = network().prefix(condition, 3)
        assert torch.equal(network(condition_dropout=0.0).train().prefix(condition, 3), whole)
        assert torch.equal(network(condition_dropout=1.0).prefix(condition, 3), whole)
        model = network(condition_dropout=0.5)
        assert torch.equal(model(codes, condition), model(codes, condition))

    def test_all_go_together_at_the_rate_and_then_each_by_itself(self) -> None:
        rate, batch = 0.3, 5000
        model = network(condition_dropout=rate)
        condition = full_condition(1).rows(torch.zeros(batch, dtype=torch.int64))
        condition = replace(condition, text_mask=None)
        none = model.prefix(hiding(condition.rows(slice(1)), *NAMES), 1)
        with torch.no_grad():
            dropped = (model.train().prefix(condition, batch) == none).all(-1)  # (B, prefix_length)
        slots = [dropped[:, :TEXT], dropped[:, 5:6], dropped[:, 6:7], dropped[:, 7 : 7 + N]]
        for slot in slots:
            assert bool((slot.any(1) == slot.all(1)).all())  # a condition goes whole or not at all
        gone = torch.stack([slot.all(1) for slot in slots], dim=1).float()  # (B, 4)
        alone = rate + (1 - rate) * rate
        torch.testing.assert_close(gone.mean(0), torch.full((4,), alone), atol=0.03, rtol=0)
        together = rate + (1 - rate) * rate**4
        assert float(gone.prod(1).mean()) == pytest.approx(together, abs=0.03)
        assert float((gone[:, 0] * gone[:, 3]).mean()) == pytest.approx(rate + (1 - rate) * rate**2, abs=0.03)


class TestCache:
    @settings(deadline=None, max_examples=20)
    @given(
        first=st.integers(0, 3),
        chunks=st.lists(st.integers(1, 3), max_size=4),
        batch=st.integers(1, 3),
        learned=st.booleans(),
        sourced=st.booleans(),
        aligned=st.booleans(),
        modulation=st.booleans(),
    )
    def test_codes_in_chunks_of_any_size_equal_one_pass(
        self, first: int, chunks: list[int], batch: int, learned: bool, sourced: bool, aligned: bool, modulation: bool
    ) -> None:
        model = network(learned_positions=learned, aligned_source=aligned, modulation=modulation)
        condition = full_condition(batch)
        condition = condition if sourced else only(condition, "text_features", "labels")
        codes = some_codes(batch, min(first + sum(chunks), N))
        same_in_chunks(model, codes, condition, first, chunks)

    def test_a_whole_picture_fits_without_copying(self) -> None:
        fits_without_copying(network(), some_codes(2))

    @pytest.mark.parametrize(
        "changes",
        [{}, {"hide_padding": True}, {"aligned_source": True, "grid": (4, 4), "block": 2}, {"modulation": True}],
    )
    def test_merged_and_selected_caches_step_like_their_rows(self, changes: dict[str, Any]) -> None:
        model, given = network(**changes), full_condition(2)
        if "block" in changes:
            source = torch.randint(0, K, (2, 4, 4))
            given = replace(given, source_codes=source, source_mask=torch.ones_like(source).bool())
        shared = replace(given.rows(slice(1)), text_mask=None)
        codes = some_codes(4, 6)
        codes[:2, :3] = codes[:1, :3]  # rows of a shared cache begin alike
        with torch.no_grad():
            caches = [model.prefill(codes[:1, :3], shared)[1], model.prefill(codes[2:, :3], given)[1]]
            merged = CodeCache.merge(caches, 2)
            logits = model.step(codes[:, 3:5], merged)
            rows = torch.tensor([3, 0, 0])
            merged.select(rows)
            last = model.step(codes[rows, 5:], merged)
            for row in range(4):
                condition = shared if row < 2 else given.rows(slice(row - 2, row - 1))
                whole = model(codes[row : row + 1], condition)
                close(logits[row : row + 1], whole[:, 4:6])
                for place in (rows == row).nonzero().flatten().tolist():
                    close(last[place : place + 1], whole[:, 6:])

    def test_rows_of_a_batch_do_not_meet(self) -> None:
        model, codes, condition = network(), some_codes(3), full_condition(3)
        together = model(codes, condition)
        for row in range(3):
            part = slice(row, row + 1)
            close(model(codes[part], condition.rows(part)), together[part])


class TestCondition:
    def test_source_codes_are_a_grid_or_a_row(self) -> None:
        model, grid = network(), full_condition(2).source_codes
        assert grid is not None
        flat = model.prefix(Condition(source_codes=grid.flatten(1)), 2)
        assert torch.equal(model.prefix(Condition(source_codes=grid), 2), flat)
        close(flat[:, 7 : 7 + N], model.code_embedding(grid.flatten(1)) + model.prefix_positions[7 : 7 + N])

    def test_rows_are_picked(self) -> None:
        condition = full_condition(3)
        twice, back = condition.rows(torch.tensor([0, 0, 1, 1, 2, 2])), condition.rows(torch.tensor([2, 0]))
        for field in fields(Condition):
            value = getattr(condition, field.name)
            assert torch.equal(getattr(twice, field.name), value[[0, 0, 1, 1, 2, 2]])
            assert torch.equal(getattr(back, field.name), value[[2, 0]])
            assert getattr(condition.to(torch.device("meta")), field.name).is_meta
        bare = only(condition, "text_embedding")
        assert bare.rows(slice(2)).text_features is None


def test_more_codes_than_the_grid_holds_raise() -> None:
    for learned in (False, True):
        with pytest.raises(RuntimeError, match=r"size of tensor a .* must match"):
            network(learned_positions=learned)(some_codes(1, N + 1))


def test_a_network_comes_back_exactly(tmp_path: Any) -> None:
    model, codes, condition = network(), some_codes(2), full_condition(2)
    model.save_pretrained(tmp_path)
    loaded = CodeTransformer.from_pretrained(tmp_path)
    assert loaded.config == model.config
    assert torch.equal(loaded(codes, condition), model(codes, condition))
    assert "rotary" not in loaded.state_dict()


def test_a_gradient_reaches_every_weight() -> None:
    model = network(condition_dropout=0.5).train()
    model(some_codes(16), full_condition(16)).square().sum().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []
