"""Batches of codes drawn side by side: the same codes with any number of threads; errors and interrupts end all."""

import threading
from collections.abc import Callable, Iterator

import pytest
import torch

from codebrush.generation.options import FLOAT32, SamplingFilters
from codebrush.generation.sampling import side_by_side
from codebrush.generation.sampling.decoding import draw_codes, picture_uniforms
from codebrush.generation.sampling.painters import CodePainter
from codebrush.generation.sampling.side_by_side import (
    draws_side_by_side,
    most_rows,
    parts_of,
    run_side_by_side,
    slices_of,
)
from codebrush.models.code_transformer import CodeTransformer
from codebrush.models.condition import Condition
from codebrush.models.layers.packed_linear import PackedLinear, can_order
from codebrush.progress import Progress
from packs import micro_transformer

FILTERS = SamplingFilters(cfg=3.0, top_p=0.9)
needs_order = pytest.mark.skipif(not can_order(), reason="this build of PyTorch has no such products")


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def condition(network: CodeTransformer) -> Condition:
    torch.manual_seed(1)
    return Condition(text_embedding=torch.randn(1, network.config.text_embedding))


def drawing_network() -> CodeTransformer:
    """A network as it is stored to draw with."""
    return CodePainter(micro_transformer(block=2)).network(FLOAT32)


@needs_order
@pytest.mark.parametrize("count", [1, 3, 16, 40])
def test_codes_do_not_depend_on_the_threads(threads: Callable[[int], None], count: int) -> None:
    network = drawing_network()
    uniforms = picture_uniforms(0, range(count), network.config.code_count)
    drawn = []
    for each in (1, 2, 3):
        threads(each)
        drawn.append(draw_codes(network, condition(network), uniforms, FILTERS))
        assert torch.get_num_threads() == each
    assert torch.equal(drawn[0], drawn[1])
    assert torch.equal(drawn[0], drawn[2])


@needs_order
def test_a_picture_alone_has_the_codes_that_it_has_in_a_batch(threads: Callable[[int], None]) -> None:
    threads(2)
    network = drawing_network()
    uniforms = picture_uniforms(0, range(8), network.config.code_count)
    together = draw_codes(network, condition(network), uniforms, FILTERS)
    for number in range(8):
        alone = draw_codes(network, condition(network), uniforms[number : number + 1], FILTERS)
        assert torch.equal(alone[0], together[number])


@needs_order
def test_weights_in_another_order_draw_the_same_pictures() -> None:
    plain = micro_transformer(block=2)
    stored = CodePainter(plain).network(FLOAT32)
    assert not any(isinstance(part, torch.nn.Linear) for part in stored.modules())
    assert any(isinstance(part, PackedLinear) for part in stored.modules())
    codes = torch.randint(0, 128, (3, 40))
    found, wanted = stored(codes, condition(plain)), plain(codes, condition(plain))
    assert (found - wanted).norm() < 1e-5 * wanted.norm()
    uniforms = picture_uniforms(0, range(8), plain.config.code_count)
    drawn = [draw_codes(network, condition(plain), uniforms, FILTERS) for network in (stored, plain)]
    assert (drawn[0] == drawn[1]).float().mean() > 0.99


def test_large_networks_and_autocast_use_all_threads_for_each_product(monkeypatch: pytest.MonkeyPatch) -> None:
    network = micro_transformer()
    assert draws_side_by_side(network)
    with torch.autocast("cpu", torch.bfloat16):
        assert not draws_side_by_side(network)
    monkeypatch.setattr(side_by_side, "SMALL", network.config.linear_weights - 1)
    assert not draws_side_by_side(network)
    assert CodePainter(network).network(FLOAT32) is network


def test_parts_and_slices(threads: Callable[[int], None]) -> None:
    threads(2)
    assert most_rows() == 64
    threads(32)
    assert most_rows() == 8  # of 16 batches at a time: no more rows in all than on two threads
    threads(2)
    assert [parts_of(rows) for rows in (0, 1, 15, 16, 64)] == [1, 1, 1, 2, 2]
    threads(1)
    assert parts_of(64) == 1
    assert slices_of(5, 2) == [slice(0, 2), slice(2, 5)]
    assert slices_of(1, 3) == [slice(0, 1)]
    assert slices_of(0, 2) == []


def test_jobs_run_at_the_same_time_on_one_thread_each(threads: Callable[[int], None]) -> None:
    threads(2)
    both = threading.Barrier(2, timeout=60)

    def job(progress: Progress) -> int:
        both.wait()  # passes only if the other one runs, too
        progress(1, 2)
        both.wait()
        progress(2, 2)
        return torch.get_num_threads()

    seen: list[tuple[int, int]] = []
    assert run_side_by_side([job, job], lambda *at: seen.append(at)) == [1, 1]
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_error_ends_all_jobs(threads: Callable[[int], None], error: type[BaseException]) -> None:
    threads(2)
    ended: list[str] = []

    def fails(progress: Progress) -> None:
        progress(1, 2)
        raise error("no")

    def goes_on(progress: Progress) -> None:
        try:
            for step in range(10**9):
                progress(step, 10**9)
        finally:
            ended.append("stopped")

    with pytest.raises(error, match="no"):
        run_side_by_side([goes_on, fails], None)
    assert ended == ["stopped"]
    assert run_side_by_side([lambda _: 1, lambda _: 2, lambda _: 3], None) == [1, 2, 3]


def test_a_progress_that_raises_ends_the_drawing(threads: Callable[[int], None]) -> None:
    threads(2)
    network = micro_transformer()
    calls: list[int] = []

    def cancelled(done: int, total: int) -> None:
        calls.append(done)
        if done >= 10:
            raise InterruptedError("cancelled")

    uniforms = picture_uniforms(0, range(16), network.config.code_count)
    with pytest.raises(InterruptedError, match="cancelled"):
        draw_codes(network, condition(network), uniforms, FILTERS, progress=cancelled)
    assert max(calls) <= 11  # the other worker may have been past its check
