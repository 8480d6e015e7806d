"""Retrieval, CLIP score, R-precision and the mean over classes, compared with torchmetrics and plain loops."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from codebrush.evaluation import alignment
from codebrush.evaluation.alignment import clip_score, cross_retrieval, first_right, r_precision, ranks, zero_shot

retrieval_metrics = pytest.importorskip("torchmetrics.retrieval")


@pytest.fixture
def pairs() -> tuple[Tensor, Tensor, list[list[int]]]:
    """40 pictures and 25 texts: one or two texts a picture, some texts shared."""
    texts = F.normalize(torch.randn(25, 6), dim=-1)
    owners = [[row % 25] if row % 3 else [row % 25, (row * 7 + 1) % 25] for row in range(40)]
    own = torch.stack([texts[places].mean(0) for places in owners])
    return F.normalize(own + 0.6 * torch.randn(40, 6), dim=-1), texts, owners


def hit_rate(cosines: Tensor, right: Tensor, k: int) -> float:
    metric = retrieval_metrics.RetrievalHitRate(top_k=k)
    queries = torch.arange(len(cosines))[:, None].expand_as(cosines)
    return float(metric(cosines.flatten(), right.flatten(), indexes=queries.flatten()))


def test_recall_both_ways_is_torchmetrics_hit_rate(
    pairs: tuple[Tensor, Tensor, list[list[int]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    images, texts, owners = pairs
    right = torch.zeros(40, 25, dtype=torch.bool)
    for row, places in enumerate(owners):
        right[row, places] = True
    for block in (1024, 7):  # whole, and in blocks with a remainder
        monkeypatch.setattr(alignment, "BLOCK", block)
        found = cross_retrieval(images, texts, owners)
        for k in (1, 5, 10):
            assert found["image_to_text"][f"recall_at_{k}"] == pytest.approx(hit_rate(images @ texts.T, right, k))
            assert found["text_to_image"][f"recall_at_{k}"] == pytest.approx(hit_rate(texts @ images.T, right.T, k))
    assert found["image_to_text"]["queries"] == found["text_to_image"]["among"] == 40
    assert 0.1 < found["image_to_text"]["recall_at_1"] < 0.9


def test_a_query_without_a_right_key_ranks_after_all_keys() -> None:
    keys = F.normalize(torch.randn(5, 3), dim=-1)
    assert first_right(keys[:1], keys, lambda start, stop: torch.zeros(1, 5, dtype=torch.bool)).tolist() == [5]


def test_ranks_in_blocks_are_those_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    space, right = F.normalize(torch.randn(20, 4), dim=-1), torch.arange(20) % 7
    whole = ranks(space, space[:7], right)
    monkeypatch.setattr(alignment, "BLOCK", 6)
    assert torch.equal(ranks(space, space[:7], right), whole)


def test_the_mean_over_classes_weights_every_class_equally() -> None:
    classes = torch.eye(3)
    images = torch.eye(3)[[0, 0, 0, 2, 1]]
    found = zero_shot(images, ["a", "b", "c"], classes, ["a", "a", "a", "b", "b"])
    assert found["top1"] == pytest.approx(4 / 5)
    assert found["mean_per_class"] == pytest.approx((3 / 3 + 1 / 2) / 2)  # c has no picture


def test_clip_score_is_the_mean_cosine_as_torchmetrics_scales_it(
    pairs: tuple[Tensor, Tensor, list[list[int]]],
) -> None:
    images, texts, owners = pairs
    cosines = [
        sum(float(images[row] @ texts[place]) for place in places) / len(places) for row, places in enumerate(owners)
    ]
    found = clip_score(images, texts, owners)
    assert found["mean_cosine"] == pytest.approx(sum(cosines) / 40)
    assert found["torchmetrics"] == pytest.approx(100 * sum(cosines) / 40)
    assert clip_score(-images, texts, owners)["torchmetrics"] == 0.0


def test_r_precision_among_all_texts_is_top_1() -> None:
    texts = F.normalize(torch.randn(30, 5), dim=-1)
    images = F.normalize(texts + 0.5 * torch.randn(30, 5), dim=-1)
    wanted = ((images @ texts.T).argmax(1) == torch.arange(30)).double().mean()
    found = r_precision(images, range(30), texts)
    assert found == {"r_precision": pytest.approx(float(wanted)), "candidates": 30}
    assert 0.2 < wanted < 0.95


def test_r_precision_of_random_pictures_is_chance() -> None:
    texts, images = (F.normalize(torch.randn(800, 12), dim=-1) for _ in range(2))
    found = r_precision(images, range(800), texts, candidates=10)
    assert found["candidates"] == 10
    assert found["r_precision"] == pytest.approx(0.1, abs=0.04)
    assert found == r_precision(images, range(800), texts, candidates=10)


def test_ties_rank_before_the_prompt() -> None:
    same = torch.tensor([[1.0, 0.0]]).expand(4, 2)
    assert r_precision(same[:1], [0], same)["r_precision"] == 0.0
