import math

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from codebrush.models.sampling import probabilities, sample

LOGITS = st.lists(st.floats(-6, 6, width=32), min_size=1, max_size=12)
TEMPERATURE = st.floats(0.2, 3)
EDGE = 1e-5  # a filter's bound this near to a probability could fall on either side of it
ALMOST_ONE = math.nextafter(1.0, 0.0)


def softmax(logits: list[float], temperature: float) -> list[float]:
    weights = [math.exp((value - max(logits)) / temperature) for value in logits]
    return [weight / sum(weights) for weight in weights]


def normalised(weights: list[float]) -> list[float]:
    return [weight / sum(weights) for weight in weights]


def only(p: list[float], kept: list[int]) -> list[float]:
    return normalised([value if token in kept else 0.0 for token, value in enumerate(p)])


def naive_top_k(p: list[float], k: int) -> list[float]:
    ordered = sorted(range(len(p)), key=lambda token: -p[token])
    assume(k == 0 or k >= len(p) or p[ordered[k - 1]] - p[ordered[k]] > EDGE)
    return only(p, ordered[:k] if k else ordered)


def naive_top_p(p: list[float], share: float) -> list[float]:
    kept, mass = [], 0.0
    for token in sorted(range(len(p)), key=lambda token: -p[token]):
        assume(not kept or (abs(mass - share) > EDGE and p[kept[-1]] - p[token] > EDGE))
        if kept and mass >= share:
            break
        kept.append(token)
        mass += p[token]
    return only(p, kept)


def naive_min_p(p: list[float], share: float) -> list[float]:
    bound = share * max(p)
    assume(share == 1 or all(abs(value - bound) > EDGE for value in p))
    return only(p, [token for token, value in enumerate(p) if value >= bound])


def check(found: torch.Tensor, expected: list[float]) -> None:
    torch.testing.assert_close(found, torch.tensor(expected), atol=1e-5, rtol=1e-4)


@settings(deadline=None, max_examples=40)
@given(logits=LOGITS, temperature=TEMPERATURE, k=st.integers(0, 15))
def test_top_k_keeps_the_k_likeliest(logits: list[float], temperature: float, k: int) -> None:
    found = probabilities(torch.tensor([logits]), temperature, top_k=k)[0]
    check(found, naive_top_k(softmax(logits, temperature), k))


@settings(deadline=None, max_examples=40)
@given(logits=LOGITS, temperature=TEMPERATURE, share=st.floats(0.01, 0.99))
def test_top_p_keeps_the_smallest_set_that_reaches_it(logits: list[float], temperature: float, share: float) -> None:
    found = probabilities(torch.tensor([logits]), temperature, top_p=share)[0]
    check(found, naive_top_p(softmax(logits, temperature), share))


@settings(deadline=None, max_examples=40)
@given(logits=LOGITS, temperature=TEMPERATURE, share=st.floats(0, 1))
def test_min_p_measures_by_the_likeliest(logits: list[float], temperature: float, share: float) -> None:
    found = probabilities(torch.tensor([logits]), temperature, min_p=share)[0]
    check(found, naive_min_p(softmax(logits, temperature), share))


@settings(deadline=None, max_examples=40)
@given(logits=LOGITS, k=st.integers(0, 12), top=st.floats(0.05, 0.99), least=st.floats(0, 0.5))
def test_filters_follow_each_other(logits: list[float], k: int, top: float, least: float) -> None:
    found = probabilities(torch.tensor([logits]), top_k=k, top_p=top, min_p=least)[0]
    check(found, naive_top_p(naive_top_k(naive_min_p(softmax(logits, 1.0), least), k), top))


@settings(deadline=None, max_examples=60)
@given(
    logits=LOGITS,
    temperature=st.one_of(TEMPERATURE, st.sampled_from([0.0, 5e-324, 1e-40, 1e-6, 100.0])),
    k=st.integers(0, 15),
    top=st.floats(5e-324, 1),
    least=st.floats(0, 1),
)
def test_every_setting_leaves_a_distribution_that_holds_the_likeliest(
    logits: list[float], temperature: float, k: int, top: float, least: float
) -> None:
    p = probabilities(torch.tensor([logits]), temperature, k, top, least)[0]
    assert float(p.sum()) == pytest.approx(1, abs=1e-5)
    assert bool((p >= 0).all())
    unfiltered = probabilities(torch.tensor([logits]), temperature)[0]
    likeliest = unfiltered == unfiltered.max()  # logits whose difference float32 cannot resolve are equally likely
    assert bool((p[likeliest] > 0).any())
    assert int((p > 0).sum()) <= (k or len(logits))


@settings(deadline=None, max_examples=40)
@given(
    logits=LOGITS,
    k=st.integers(0, 12),
    top=st.floats(0.05, 1),
    least=st.floats(0, 0.5),
    uniform=st.one_of(st.sampled_from([0.0, ALMOST_ONE, 1.0]), st.floats(0, 1)),  # float32 rounds up to 1
)
def test_no_number_draws_a_filtered_token(
    logits: list[float], k: int, top: float, least: float, uniform: float
) -> None:
    values = torch.tensor([logits])
    p = probabilities(values, 1.0, k, top, least)[0]
    token = sample(values, torch.tensor([uniform], dtype=torch.float64), 1.0, k, top, least)
    assert token.shape == (1,)
    assert token.dtype == torch.int64
    assert p[int(token)] > 0


def test_temperature_zero_is_the_arg_max_whatever_the_filters_say() -> None:
    logits = torch.randn(50, 9)
    drawn = sample(logits, torch.rand(50), 0.0, top_k=3, top_p=0.5, min_p=0.2)
    assert torch.equal(drawn, logits.argmax(-1))
    assert torch.equal(sample(logits, torch.rand(50), 1e-45), logits.argmax(-1))
    assert torch.equal(sample(logits, torch.rand(50), top_k=1), logits.argmax(-1))


def test_ties_do_not_widen_top_k() -> None:
    p = probabilities(torch.tensor([[1.0, 1.0, 1.0, 0.0], [0.0] * 4]), top_k=2)
    assert (p > 0).sum(-1).tolist() == [2, 2]
    assert p[0, 3] == 0


@pytest.mark.parametrize(
    "options",
    [{}, {"temperature": 0.5}, {"top_k": 3}, {"top_p": 0.7}, {"min_p": 0.2}, {"top_k": 4, "top_p": 0.9}],
)
def test_evenly_spread_numbers_draw_each_token_as_often_as_its_probability(options: dict) -> None:
    logits, count = torch.randn(8), 4000
    uniform = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    drawn = sample(logits.expand(count, -1), uniform, **options)
    shares = drawn.bincount(minlength=8) / count
    torch.testing.assert_close(shares, probabilities(logits, **options), atol=1.01 / count, rtol=0)


def test_a_row_draws_the_same_whoever_shares_its_batch() -> None:
    logits, uniform = torch.randn(6, 20), torch.rand(6, dtype=torch.float64)
    options = {"temperature": 0.8, "top_k": 9, "top_p": 0.9, "min_p": 0.01}
    together = sample(logits, uniform, **options)
    alone = [sample(logits[i : i + 1], uniform[i : i + 1], **options) for i in range(6)]
    assert torch.equal(together, torch.cat(alone))


def test_a_large_codebook_never_leaves_its_range() -> None:
    logits = torch.zeros(3, 16_384)
    uniform = torch.tensor([0.0, 0.5, ALMOST_ONE], dtype=torch.float64)
    assert sample(logits, uniform).tolist() == [0, 8192, 16_383]
    logits[:, -4:] = -200  # probabilities of zero at the end
    assert int(sample(logits, uniform)[2]) == 16_379


def test_half_precision_logits_are_read_in_float32() -> None:
    logits = torch.randn(4, 10).half()
    assert torch.equal(probabilities(logits, 0.7), probabilities(logits.float(), 0.7))


@pytest.mark.parametrize("spread", [0.1, 2.0, 6.0])  # flat rows need more codes than are looked at first
@pytest.mark.parametrize("top_p", [0.3, 0.9, 0.999])
def test_nucleus_sampling_of_many_codes_is_that_of_a_full_sort(spread: float, top_p: float):
    logits = torch.randn(3, 5000, generator=torch.Generator().manual_seed(0)).double().float() * spread
    p = torch.softmax(logits - logits.amax(-1, keepdim=True), -1)
    ordered, order = (p / p.sum(-1, keepdim=True)).sort(dim=-1, descending=True)
    before = ordered.cumsum(-1) - ordered
    kept = ordered.masked_fill((before >= top_p) & (before > 0), 0.0)
    wanted = torch.zeros_like(p).scatter_(-1, order, kept)
    wanted = wanted / wanted.sum(-1, keepdim=True)
    assert torch.equal(probabilities(logits, top_p=top_p), wanted)
