"""The cached, batched drawing of codes against a naive loop that recomputes everything for one picture."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import product

import pytest
import torch
from torch import Tensor

from codebrush.errors import UsageError
from codebrush.generation.options import SamplingFilters
from codebrush.generation.sampling import decoding
from codebrush.generation.sampling.decoding import Known, draw_codes, draw_large, picture_uniforms
from codebrush.models.code_transformer import CodeTransformer
from codebrush.models.condition import Condition
from codebrush.models.sampling import sample
from packs import CONTEXT, WIDTH, micro_transformer

GRID = (4, 4)
COUNT = 16
FILTERS = {"temperature": 0.9, "top_k": 40, "top_p": 0.95, "min_p": 0.01}
PLAIN = SamplingFilters(**FILTERS)
GUIDED = SamplingFilters(cfg=2.0, **FILTERS)


@pytest.fixture(scope="module", params=[1, 2], ids=["codes", "blocks"])
def transformer(request: pytest.FixtureRequest) -> CodeTransformer:
    torch.manual_seed(3)
    return micro_transformer(grid=GRID, block=request.param)


def in_the_grid(written: Tensor, transformer: CodeTransformer) -> Tensor:
    """Codes (..., N) in the order of writing -> by their places."""
    return torch.empty_like(written).index_copy_(-1, transformer.order, written)


def make_condition(seed: int, rows: int = 1) -> Condition:
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(rows, CONTEXT, WIDTH, generator=generator)
    embedding = torch.randn(rows, 24, generator=generator)
    mask = (torch.arange(CONTEXT) < 5).expand(rows, -1)
    return Condition(text_features=features, text_mask=mask, text_embedding=embedding)


@torch.no_grad()
def draw_naively(
    transformer: CodeTransformer, weighted: list[tuple[Condition, float]], uniforms: Tensor, cfg: float
) -> tuple[Tensor, list[Tensor]]:
    """One picture after another, without a cache: codes (B, h, w), and each step's guided logits (B, K)."""
    pictures, logits = [], []
    for row in uniforms:
        codes = torch.zeros(1, 0, dtype=torch.int64)
        steps = []
        for uniform in row[transformer.order]:
            null = transformer(codes, Condition())[:, -1]
            mixed = null.clone()
            for condition, weight in weighted:
                mixed += cfg * weight * (transformer(codes, condition)[:, -1] - null)
            steps.append(mixed)
            codes = torch.cat([codes, sample(mixed, uniform[None], **FILTERS)[:, None]], dim=1)
        pictures.append(in_the_grid(codes[0], transformer))
        logits.append(torch.cat(steps))
    return torch.stack(pictures).unflatten(1, GRID), list(torch.stack(logits, dim=1))


@pytest.fixture
def seen_logits(transformer: CodeTransformer) -> Iterator[list[Tensor]]:
    """What the transformer's head gives, call by call."""
    seen: list[Tensor] = []
    hook = transformer.head.register_forward_hook(lambda _, __, output: seen.append(output[:, -1].clone()))
    yield seen
    hook.remove()


@pytest.mark.parametrize(("weights", "cfg"), [((1.0,), 3.0), ((1.0,), 1.0), ((0.7, 0.8, -0.5), 2.5), ((1.0, 0.0), 2.0)])
def test_drawing_equals_a_naive_loop(transformer: CodeTransformer, weights: tuple[float, ...], cfg: float) -> None:
    weighted = [(make_condition(index), weight) for index, weight in enumerate(weights)]
    uniforms = picture_uniforms(7, range(3), COUNT)
    expected, _ = draw_naively(transformer, weighted, uniforms, cfg)
    drawn = draw_codes(transformer, weighted, uniforms, SamplingFilters(cfg=cfg, **FILTERS))
    assert drawn.shape == (3, *GRID)
    assert torch.equal(drawn, expected)


def test_cached_logits_equal_uncached_ones(transformer: CodeTransformer, seen_logits: list[Tensor]) -> None:
    condition, cfg = make_condition(1), 3.0
    uniforms = picture_uniforms(8, range(2), COUNT)
    draw_codes(transformer, condition, uniforms, SamplingFilters(cfg=cfg, **FILTERS))
    prefixes, steps = seen_logits[:2], seen_logits[2:]  # the condition's and the null's, of one row each
    cached = [torch.cat([prefix.expand(2, -1) for prefix in prefixes]), *steps]
    guided = [cfg * step[:2] + (1 - cfg) * step[2:] for step in cached]
    seen_logits.clear()
    _, uncached = draw_naively(transformer, [(condition, 1.0)], uniforms, cfg)
    assert len(guided) == COUNT
    torch.testing.assert_close(torch.stack(guided), torch.stack(uncached), rtol=0, atol=1e-5)


def test_a_batch_equals_its_pictures_drawn_alone(transformer: CodeTransformer, monkeypatch: pytest.MonkeyPatch) -> None:
    condition = make_condition(2, rows=5)
    uniforms = picture_uniforms(9, range(5), COUNT)
    together = draw_codes(transformer, condition, uniforms, SamplingFilters(cfg=2.0))
    alone = [
        draw_codes(transformer, condition.rows(slice(i, i + 1)), uniforms[i : i + 1], SamplingFilters(cfg=2.0))
        for i in range(5)
    ]
    assert torch.equal(together, torch.cat(alone))
    assert len(together.unique(dim=0)) == 5
    monkeypatch.setattr(decoding, "MAX_ROWS", 4)  # two pictures at a time, the last one by itself
    assert torch.equal(draw_codes(transformer, condition, uniforms, SamplingFilters(cfg=2.0)), together)


def test_one_row_of_condition_serves_every_picture(transformer: CodeTransformer) -> None:
    condition, uniforms = make_condition(3), picture_uniforms(1, range(4), COUNT)
    shared = draw_codes(transformer, condition, uniforms, SamplingFilters(cfg=2.0))
    four = condition.rows(torch.zeros(4, dtype=torch.int64))
    assert torch.equal(shared, draw_codes(transformer, four, uniforms, SamplingFilters(cfg=2.0)))


@pytest.mark.parametrize(("cfg", "rows"), [(3.0, 4), (1.0, 2), (0.0, 2)])
def test_only_terms_with_a_share_are_computed(
    transformer: CodeTransformer, seen_logits: list[Tensor], cfg: float, rows: int
) -> None:
    draw_codes(transformer, make_condition(4), picture_uniforms(2, range(2), COUNT), SamplingFilters(cfg=cfg))
    assert {len(step) for step in seen_logits[-COUNT + 1 :]} == {rows}


def test_conditions_count_and_without_guidance_do_not(transformer: CodeTransformer) -> None:
    uniforms = picture_uniforms(3, range(2), COUNT)
    one, other = make_condition(5), make_condition(6)

    def drawn(condition: Condition, cfg: float) -> Tensor:
        return draw_codes(transformer, condition, uniforms, SamplingFilters(cfg=cfg))

    assert not torch.equal(drawn(one, 2.0), drawn(other, 2.0))
    assert torch.equal(drawn(one, 0.0), drawn(other, 0.0))


def test_temperature_zero_is_deterministic(transformer: CodeTransformer) -> None:
    condition = make_condition(7)
    drawn = draw_codes(transformer, condition, picture_uniforms(4, range(2), COUNT), SamplingFilters(temperature=0.0))
    assert torch.equal(drawn[0], drawn[1])


def test_codes_can_take_part_in_autograd(transformer: CodeTransformer) -> None:
    codes = draw_codes(transformer, make_condition(8), picture_uniforms(5, range(1), COUNT))
    table = torch.randn(128, 4, requires_grad=True)
    torch.nn.functional.embedding(codes, table).sum().backward()
    counts = torch.bincount(codes.flatten(), minlength=128).float()
    torch.testing.assert_close(table.grad, counts[:, None].expand(-1, 4))


def test_progress_counts_every_step_once(transformer: CodeTransformer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "MAX_ROWS", 2)
    monkeypatch.setattr(decoding, "most_rows", lambda: 2)
    calls: list[tuple[int, int]] = []
    draw_codes(
        transformer,
        make_condition(9),
        picture_uniforms(6, range(3), COUNT),
        progress=lambda done, steps: calls.append((done, steps)),
    )
    assert calls == [(step + 1, 2 * COUNT) for step in range(2 * COUNT)]


def test_no_two_runs_share_a_picture() -> None:
    seeds = [0, 1, 2, 2**32, 2**32 + 1, 1 + 2 * 2**32, 2**63 - 1]
    streams = torch.cat([picture_uniforms(seed, range(40), 8) for seed in seeds])
    assert streams.shape == (len(seeds) * 40, 8)
    assert streams.dtype == torch.float64
    assert streams.min() >= 0
    assert streams.max() < 1
    assert len(streams.unique(dim=0)) == len(streams)


def test_a_stream_depends_on_its_seed_and_index_alone() -> None:
    longer = picture_uniforms(11, [5, 3], 20)
    assert torch.equal(picture_uniforms(11, [3], 20)[0], longer[1])
    assert torch.equal(picture_uniforms(11, [3], 8)[0], longer[1, :8])


def test_known_codes_stay_and_the_rest_is_drawn_after_them(transformer: CodeTransformer) -> None:
    uniforms, condition = picture_uniforms(5, range(3), COUNT), make_condition(1)
    codes = torch.randint(0, 128, (3, *GRID))
    fixed = torch.rand(3, *GRID) < 0.5
    found = draw_codes(transformer, condition, uniforms, PLAIN, known=Known(codes, fixed))
    assert torch.equal(found[fixed], codes[fixed])
    for row in range(3):
        naive = torch.zeros(1, 0, dtype=torch.int64)
        for place in transformer.order.tolist():
            with torch.no_grad():
                logits = transformer(naive, condition)[:, -1]
            drawn = sample(logits, uniforms[row : row + 1, place], **FILTERS)
            new = codes[row].flatten()[place : place + 1] if fixed[row].flatten()[place] else drawn
            naive = torch.cat([naive, new[:, None]], dim=1)
        assert torch.equal(found[row].flatten(), in_the_grid(naive[0], transformer))
    one = Known(codes[:1], fixed[:1])
    shared = draw_codes(transformer, condition, uniforms, PLAIN, known=one)
    assert torch.equal(shared[0], found[0])
    assert (shared[:, fixed[0]] == codes[0][fixed[0]]).all()


def test_a_bias_is_added_to_the_logits_of_its_place(transformer: CodeTransformer) -> None:
    uniforms, wanted = (
        picture_uniforms(0, range(2), COUNT),
        torch.randint(0, transformer.config.codebook_size, (COUNT,)),
    )
    bias = torch.zeros(COUNT, transformer.config.codebook_size)
    assert torch.equal(
        draw_codes(transformer, make_condition(1), uniforms, PLAIN, bias=bias),
        draw_codes(transformer, make_condition(1), uniforms, PLAIN),
    )
    bias[torch.arange(COUNT), wanted] = 1e4
    drawn = draw_codes(transformer, make_condition(1), uniforms, PLAIN, bias=bias)
    assert torch.equal(drawn.flatten(1), wanted.expand(2, -1))


def test_guidance_away_from_the_same_condition_has_no_effect(transformer: CodeTransformer) -> None:
    condition, same = make_condition(1), picture_uniforms(0, range(2), COUNT)
    plain = draw_codes(transformer, condition, same, PLAIN)
    assert torch.equal(
        draw_codes(transformer, condition, same, SamplingFilters(cfg=4.0, **FILTERS), unconditional=condition), plain
    )
    assert not torch.equal(draw_codes(transformer, condition, same, SamplingFilters(cfg=4.0, **FILTERS)), plain)


def test_terms_with_and_without_a_source_share_a_batch(transformer: CodeTransformer) -> None:
    torch.manual_seed(5)
    model = CodeTransformer(replace(transformer.config, source_codes=True, aligned_source=True)).eval()
    torch.nn.init.normal_(model.align.weight, std=0.3)  # pyright: ignore
    source = torch.randint(0, transformer.config.codebook_size, (1, *GRID))
    hidden = replace(make_condition(2), source_codes=source, source_mask=torch.zeros_like(source).bool())
    terms = [(replace(make_condition(1), source_codes=source), 1.0), (make_condition(2), 0.5)]
    uniforms = picture_uniforms(0, range(2), COUNT)
    null = Condition(source_codes=source, source_mask=torch.zeros_like(source).bool())
    expected = draw_codes(model, [terms[0], (hidden, 0.5)], uniforms, GUIDED, unconditional=null)
    drawn = draw_codes(model, terms, uniforms, GUIDED)
    assert torch.equal(drawn, expected)
    codes = torch.zeros(1, 0, dtype=torch.int64)
    for uniform in uniforms[1][model.order]:  # without a cache, one after the other
        logits = [model(codes, part)[:, -1] for part in (terms[0][0], hidden, null)]
        mixed = 2.0 * logits[0] + logits[1] - 2.0 * logits[2]
        codes = torch.cat([codes, sample(mixed, uniform[None], **FILTERS)[:, None]], dim=1)
    assert torch.equal(drawn[1].flatten(), in_the_grid(codes[0], model))


def test_a_grid_of_the_networks_own_size_is_drawn_by_draw_codes(transformer: CodeTransformer) -> None:
    weighted = [(make_condition(1), 1.0), (make_condition(2), -0.5)]
    uniforms = picture_uniforms(0, range(2), COUNT)
    plain = draw_codes(transformer, weighted, uniforms, GUIDED)
    assert torch.equal(draw_large(transformer, weighted, uniforms, GRID, GUIDED), plain)


def test_a_window_of_the_whole_grid_draws_the_same_codes(transformer: CodeTransformer) -> None:
    """The way of the window, forced where one suffices: the moving window's own arithmetic equals the cached loop's."""
    condition, uniforms = make_condition(1), picture_uniforms(0, range(2), COUNT)
    plain, side = draw_codes(transformer, condition, uniforms, GUIDED), transformer.config.block
    wide = picture_uniforms(0, range(2), COUNT + GRID[0] * side)
    rows = wide.view(2, GRID[0], GRID[1] + side)
    rows[:, :, : GRID[1]] = uniforms.view(2, *GRID)  # the first columns up to the middle see the very window
    found = draw_large(transformer, condition, rows.flatten(1), (GRID[0], GRID[1] + side), GUIDED)
    assert torch.equal(found[:, :side, : GRID[1] // 2 + side], plain[:, :side, : GRID[1] // 2 + side])


@pytest.mark.parametrize("more", [(0, 3), (2, 0), (1, 2)])
def test_a_larger_grid_equals_a_naive_loop(transformer: CodeTransformer, more: tuple[int, int]) -> None:
    side = transformer.config.block
    grid = GRID[0] + more[0] * side, GRID[1] + more[1] * side
    condition, uniforms = make_condition(1), picture_uniforms(0, range(2), grid[0] * grid[1])
    calls: list[tuple[int, int]] = []
    found = draw_large(transformer, condition, uniforms, grid, GUIDED, progress=lambda *step: calls.append(step))
    assert calls == [(step + 1, grid[0] * grid[1]) for step in range(grid[0] * grid[1])]
    assert found.shape == (2, *grid)
    codes = torch.zeros(2, *grid, dtype=torch.int64)

    def turn(place: tuple[int, int]) -> tuple[int, ...]:
        row, column = place
        return row // side, column // side, row % side, column % side

    for row, column in sorted(product(range(grid[0]), range(grid[1])), key=turn):
        top = min(max(0, row // side - 4 // side // 2), grid[0] // side - 4 // side) * side
        left = min(max(0, column // side - 4 // side // 2), grid[1] // side - 4 // side) * side
        shown = sorted(product(range(top, top + 4), range(left, left + 4)), key=turn)
        seen = [codes[:, y, x] for y, x in shown if turn((y, x)) < turn((row, column))]
        before = torch.stack(seen, dim=1) if seen else torch.zeros(2, 0, dtype=torch.int64)
        with torch.no_grad():
            null = transformer(before)[:, -1]
            logits = null + 2.0 * (transformer(before, condition.expand(2))[:, -1] - null)
        codes[:, row, column] = sample(logits, uniforms[:, row * grid[1] + column], **FILTERS)
    assert torch.equal(found, codes)


def test_a_smaller_grid_is_refused(transformer: CodeTransformer) -> None:
    with pytest.raises(UsageError, match="a grid of 3 x 4 codes is smaller than the network's 4 x 4"):
        draw_large(transformer, make_condition(1), torch.zeros(1, 12), (3, 4))


def test_a_grid_of_no_whole_blocks_is_refused() -> None:
    with pytest.raises(UsageError, match="a grid of 4 x 5 codes has no whole blocks of 2 x 2"):
        draw_large(micro_transformer(grid=GRID, block=2), make_condition(1), torch.zeros(1, 20), (4, 5))
