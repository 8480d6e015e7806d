"""Several prompts drawn in one batch: each gets, bit for bit, what it gets alone; half-drawn pictures on the way."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from codebrush import Codebrush
from codebrush.errors import UsageError
from codebrush.generation.sampling import many_prompts, together
from codebrush.generation.sampling.decoding import MAX_ROWS
from codebrush.generation.sampling.half_drawn import UNDRAWN, half_drawn
from codebrush.generation.sampling.together import in_batches
from codebrush.models.code_transformer import CodeTransformer
from codebrush.models.layers.packed_linear import can_pack
from codebrush.progress import Preview

PROMPTS = ["a red circle", "a blue square", "a green triangle:1.2 | a dog:-0.5", "a red circle"]
SEEDS = [3, 3, 5, 2**40]


@pytest.fixture(scope="module")
def brush(micro_pack: Path) -> Codebrush:
    return Codebrush.from_pretrained(micro_pack, device="cpu")


def told(results: list[Any]) -> list[Any]:
    """All that a caller sees of each picture."""
    return [(each.image.tobytes(), each.score, each.manifest) for each in results]


def rows_of_steps(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A list to which each step of a code transformer adds the rows of its batch."""
    seen, step = [], CodeTransformer.step

    def counted(self: CodeTransformer, codes: torch.Tensor, cache: Any) -> torch.Tensor:
        seen.append(len(codes))
        return step(self, codes, cache)

    monkeypatch.setattr(CodeTransformer, "step", counted)
    return seen


@pytest.fixture(params=[1, 2, 3], ids=lambda count: f"{count}-threads")
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize("options", [{"rerank": 12}, {"rerank": 12, "cfg": 1.0}, {"n": 3, "rerank": 3}])
@pytest.mark.parametrize("weights", ["float32", "int8"])
def test_each_of_many_gets_its_own_with_any_number_of_threads(
    brush: Codebrush, threads: int, weights: str, options: dict[str, Any]
) -> None:
    if weights != "float32" and not can_pack():
        pytest.skip("this build of PyTorch has no such products")
    brush = Codebrush(brush.pack, "cpu", weights)
    options = {"n": 1, **options}
    alone = [told(brush.generate(prompt, seed=seed, **options)) for prompt, seed in zip(PROMPTS, SEEDS, strict=True)]
    done: list[tuple[int, int]] = []
    many = brush.generate(PROMPTS, seed=SEEDS, progress=lambda *at: done.append(at), **options)
    assert [told(results) for results in many] == alone
    assert [step for step, _ in done] == sorted(step for step, _ in done)
    assert done[-1][0] == done[-1][1]
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize("options", [{"n": 2}, {"cfg": 1.0, "top_p": 0.8, "rerank": 1}])
def test_each_of_many_gets_what_it_gets_alone(
    brush: Codebrush, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    options = {"n": 1, "rerank": 2, **options}
    alone = [told(brush.generate(prompt, seed=seed, **options)) for prompt, seed in zip(PROMPTS, SEEDS, strict=True)]
    rows, done = rows_of_steps(monkeypatch), []
    many = brush.generate(PROMPTS, seed=SEEDS, progress=lambda *at: done.append(at), **options)
    assert [told(results) for results in many] == alone
    assert done == [(step, 64) for step in range(1, 65)]
    rows.clear()
    monkeypatch.setattr(together, "same_bits", lambda *_: True)  # as on a machine whose rounding is the same
    drawn = brush.generate(PROMPTS, seed=SEEDS, **options)
    assert rows.count(max(rows)) == 63  # of 64 codes the first needs no step: all prompts take each of them at once
    assert [[entry[0] for entry in told(each)] for each in drawn] == [[entry[0] for entry in each] for each in alone]


def test_a_machine_whose_rounding_depends_on_the_batch_draws_each_alone(
    brush: Codebrush, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = [told(brush.generate(prompt, n=1, rerank=2, seed=3)) for prompt in PROMPTS[:2]]
    step = CodeTransformer.step

    def rounded(self: CodeTransformer, codes: torch.Tensor, cache: Any) -> torch.Tensor:
        return step(self, codes, cache) + (1.0 if len(codes) == 8 else 0.0) * torch.arange(128)

    monkeypatch.setattr(CodeTransformer, "step", rounded)
    rows = rows_of_steps(monkeypatch)
    assert [told(results) for results in brush.generate(PROMPTS[:2], n=1, rerank=2, seed=3)] == alone
    assert rows.count(8) == 1  # the first step showed it
    assert rows.count(4) == 2 * 63


@pytest.mark.parametrize("options", [{"rerank": 3}, {"size": "32x32"}], ids=["candidates", "size"])
def test_what_does_not_fit_a_batch_is_drawn_as_ever(
    brush: Codebrush, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    options = {"n": 1, "rerank": 1, "seed": 1, **options}
    alone = [told(brush.generate(prompt, **options)) for prompt in PROMPTS[:2]]
    monkeypatch.setattr(many_prompts, "BATCH", 2)
    monkeypatch.setattr(many_prompts, "draw_together", None)  # would fail
    assert [told(results) for results in brush.generate(PROMPTS[:2], **options)] == alone


def test_batches_hold_so_many_rows() -> None:
    assert in_batches([8] * 9) == [[0, 1, 2, 3, 4, 5, 6, 7], [8]]
    assert in_batches([MAX_ROWS, 1, MAX_ROWS - 1, 1]) == [[0], [1, 2], [3]]
    assert in_batches([]) == []


def test_half_drawn_pictures_are_shown(brush: Codebrush, threads: int) -> None:
    shown: list[Any] = []
    preview = Preview(3, lambda number, pictures: shown.append((number, [each.size for each in pictures])))
    plain = brush.generate(PROMPTS[:2], n=2, seed=4)
    assert [told(each) for each in brush.generate(PROMPTS[:2], n=2, seed=4, preview=preview)] == list(map(told, plain))
    if threads == 1:  # else the two prompts are not drawn in step
        assert shown == [(number, [(32, 32)] * 2) for _ in range(3) for number in (0, 1)]
    assert sorted(shown) == [(number, [(32, 32)] * 2) for number in (0, 1) for _ in range(3)]
    shown.clear()
    assert told(brush.generate(PROMPTS[0], n=2, seed=4, preview=preview)) == told(plain[0])
    assert len(shown) == 3


def test_previews_are_spread_evenly() -> None:
    due = Preview(3, lambda *_: None).due
    assert [done for done in range(1, 65) if due(done - 1, done, 64)] == [16, 32, 48]
    assert [done for done in range(1, 3) if due(done - 1, done, 2)] == [1]
    assert [done for done in range(10, 257, 10) if due(done - 10, done, 256)] == [70, 130, 200]  # ten at a time
    assert not any(Preview(0, lambda *_: None).due(done - 1, done, 64) for done in range(1, 65))


def test_what_is_not_drawn_yet_is_plain(brush: Codebrush) -> None:
    codes = torch.full((1, 8, 8), 5)
    whole = half_drawn(brush.vqgan, codes)[0]
    codes[:, 4:] = UNDRAWN  # the mean of equal codes is that code
    assert (
        max(abs(a - b) for a, b in zip(half_drawn(brush.vqgan, codes)[0].tobytes(), whole.tobytes(), strict=True)) <= 1
    )


def test_seeds_are_one_or_one_for_each(brush: Codebrush) -> None:
    with pytest.raises(UsageError, match="one for each prompt: 2 prompts, but 3 seeds"):
        brush.generate(PROMPTS[:2], n=1, seed=[1, 2, 3])
    with pytest.raises(UsageError, match="seed must be a whole number"):
        brush.generate(PROMPTS[:2], n=1, seed=[1, -1])
