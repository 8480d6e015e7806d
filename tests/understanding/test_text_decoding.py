"""Beam search, greedy decoding and sampling with a captioner whose probabilities are all known."""

import itertools
import math

import pytest
import torch

from codebrush.models.captioner import Captioner, CaptionerConfig
from codebrush.models.code_cache import CodeCache
from codebrush.models.layers.attention import KVCache
from codebrush.understanding.text_decoding import DecodedText, beam_search, greedy_decode, sample_decode

END, K, ROOM = 2, 5, 4
CONFIG = CaptionerConfig(K, 2 + ROOM, 8, 1, 2, patches=3, feature_width=4, levels=(0,), end_id=END)
PROMPT = torch.tensor([1, END])


def captioner(seed: int = 0, spread: float = 3.0) -> Captioner:
    torch.manual_seed(seed)
    model = Captioner(CONFIG).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.5)
        model.final_norm.weight.mul_(spread)
    return model


def picture(batch: int = 1) -> torch.Tensor:
    return torch.randn(batch, 3, 4, generator=torch.Generator().manual_seed(5))


def every_text(model: Captioner, features: torch.Tensor) -> dict[tuple[int, ...], DecodedText]:
    """All texts that end within the context, with their log-probabilities, one pass of the network each."""
    found = {}
    words = [token for token in range(K) if token != END]
    for length in range(ROOM):
        for tokens in itertools.product(words, repeat=length):
            row = torch.tensor([[*PROMPT.tolist(), *tokens, END]])
            with torch.no_grad():
                logs = model(features, row[:, :-1]).logits.log_softmax(-1)[0, len(PROMPT) - 1 :]
            total = sum(float(logs[at, token]) for at, token in enumerate((*tokens, END)))
            found[tokens] = DecodedText(tokens, total, True)
    return found


@pytest.mark.parametrize("penalty", [0.0, 0.7, 1.0])
@pytest.mark.parametrize("seed", range(4))
def test_a_wide_beam_finds_the_best_of_all_texts(seed: int, penalty: float) -> None:
    model, features = captioner(seed), picture()
    known = every_text(model, features)
    expected = sorted(known.values(), key=lambda text: -text.score(penalty))[:5]
    found = beam_search(model, features, PROMPT, width=K**ROOM, length_penalty=penalty)[:5]
    for ours, best in zip(found, expected, strict=True):
        assert ours.log_probability == pytest.approx(known[ours.tokens].log_probability, abs=1e-4)
        assert ours.score(penalty) == pytest.approx(best.score(penalty), abs=1e-4)


@pytest.mark.parametrize("width", [1, 2, 3, 5])
@pytest.mark.parametrize("seed", range(6))
def test_a_beam_is_never_worse_than_greedy_by_its_own_score(seed: int, width: int) -> None:
    model, features = captioner(seed), picture()
    (greedy,) = greedy_decode(model, features, PROMPT[None])
    best = beam_search(model, features, PROMPT, width=width)[0]
    if greedy.finished:
        assert best.finished
        assert best.score(1.0) >= greedy.score(1.0) - 1e-6


def test_greedy_takes_the_likeliest_word_each_time_and_counts_its_probability() -> None:
    model, features = captioner(1), picture()
    (found,) = greedy_decode(model, features, PROMPT[None])
    row, total = PROMPT.tolist(), 0.0
    for _ in range(ROOM):
        with torch.no_grad():
            logs = model(features, torch.tensor([row])).logits[0, -1].log_softmax(-1)
        token = int(logs.argmax())
        total += float(logs[token])
        if token == END:
            break
        row.append(token)
    assert found.tokens == tuple(row[len(PROMPT) :])
    assert found.log_probability == pytest.approx(total, abs=1e-4)
    assert found.probability == pytest.approx(math.exp(total), rel=1e-3)


def test_a_text_stays_within_the_context_and_knows_that_it_is_unfinished() -> None:
    model, features = captioner(), picture()
    with torch.no_grad():
        model.token_embedding.weight[END] = 0  # also the row of the head: other tokens are likelier
        model.final_norm.weight.fill_(50)
    (greedy,) = greedy_decode(model, features, PROMPT[None])
    assert len(greedy.tokens) == ROOM
    assert not greedy.finished
    drawn = sample_decode(model, features, PROMPT[None], torch.full((1, ROOM), 0.5, dtype=torch.float64))
    assert len(drawn[0].tokens) <= ROOM
    assert all(len(text.tokens) <= ROOM for text in beam_search(model, features, PROMPT, width=2))


def test_rows_of_a_batch_are_decoded_independently() -> None:
    model, features = captioner(3), picture(4)
    together = greedy_decode(model, features, PROMPT.expand(4, -1))
    for row, text in enumerate(together):
        (alone,) = greedy_decode(model, features[row : row + 1], PROMPT[None])
        assert alone.tokens == text.tokens
        assert alone.log_probability == pytest.approx(text.log_probability, abs=1e-4)


def test_words_are_drawn_as_often_as_the_captioner_says() -> None:
    model, features = captioner(2, spread=1.0), picture()
    known = every_text(model, features)
    count = 4000
    uniforms = torch.rand(count, ROOM, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    drawn = sample_decode(model, features.expand(count, -1, -1), PROMPT.expand(count, -1), uniforms)
    tokens, text = max(known.items(), key=lambda pair: pair[1].log_probability)
    share = sum(each.tokens == tokens and each.finished for each in drawn) / count
    assert share == pytest.approx(text.probability, abs=4 * math.sqrt(text.probability / count))


def test_a_cache_keeps_the_rows_that_are_selected() -> None:
    attention, keys, values = KVCache(1), torch.randn(3, 2, 4, 8), torch.randn(3, 2, 4, 8)
    attention.append(0, keys, values)
    attention.advance(4)
    mask = torch.tensor([[True], [False], [True]])
    codes = torch.tensor([[0], [1], [2]])
    cache = CodeCache(attention, prefix=4, mask=mask, source=None, vector=None, hidden=torch.randn(3, 1, 8), open=codes)
    cache.select(torch.tensor([2, 2, 0]))
    (kept_keys,), (kept_values,) = attention.keys, attention.values
    assert kept_keys is not None
    assert kept_values is not None
    assert torch.equal(kept_keys[:, :, :4], keys[[2, 2, 0]])
    assert torch.equal(kept_values[:, :, :4], values[[2, 2, 0]])
    assert cache.mask is not None
    assert cache.mask.tolist() == [[True], [True], [True]]
    assert cache.open.tolist() == [[2], [2], [0]]
