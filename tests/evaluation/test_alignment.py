"""Ranks, zero-shot accuracy and recall compared with counting by hand."""

import pytest
import torch
import torch.nn.functional as F

from codebrush.errors import CodebrushError
from codebrush.evaluation.alignment import cross_retrieval, ranks, top_k, zero_shot


@pytest.fixture
def space() -> torch.Tensor:
    torch.manual_seed(3)
    return F.normalize(torch.randn(30, 8), dim=-1)


def test_ranks_equal_a_loop(space: torch.Tensor) -> None:
    queries, keys = space[:10], space[10:]
    right = torch.arange(10) % len(keys)
    found = ranks(queries, keys, right)
    for row, query in enumerate(queries):
        own = float(query @ keys[right[row]])
        assert int(found[row]) == sum(float(query @ key) > own + 1e-7 for key in keys)


def test_a_label_is_first_when_the_picture_is_its_own_text(space: torch.Tensor) -> None:
    labels = [f"label {index}" for index in range(len(space))]
    assert zero_shot(space, labels, space, labels)["top1"] == 1.0


def test_unrelated_embeddings_find_labels_only_by_chance() -> None:
    torch.manual_seed(0)
    images, texts = (F.normalize(torch.randn(400, 16), dim=-1) for _ in range(2))
    labels = [str(index) for index in range(400)]
    figures = zero_shot(images, labels, texts, labels)
    assert figures["top1"] < 0.02
    assert figures["top1"] <= figures["top5"] < 0.06


def test_top_k_counts_ranks_below_k() -> None:
    assert top_k(torch.tensor([0, 1, 4, 9]), 1) == 0.25
    assert top_k(torch.tensor([0, 1, 4, 9]), 5) == 0.75


def test_any_right_picture_counts_and_right_ones_do_not_push_each_other_back() -> None:
    texts = torch.tensor([[1.0, 0.0]])
    images = torch.tensor([[0.9, 0.436], [0.8, 0.6], [1.0, 0.0]])
    found = cross_retrieval(images, texts, [[], [0], []])["text_to_image"]
    assert found["recall_at_1"] == 0.0  # two wrong ones rank before it
    assert found["recall_at_5"] == 1.0
    assert cross_retrieval(images, texts, [[0], [0], [0]])["text_to_image"]["recall_at_1"] == 1.0


def test_equal_embeddings_find_nothing() -> None:
    alike = F.normalize(torch.ones(10, 4), dim=-1)
    labels = [str(index) for index in range(10)]
    assert zero_shot(alike, labels, alike, labels)["top5"] == 0.0
    for way in cross_retrieval(alike, alike, [[row] for row in range(10)]).values():
        assert way["recall_at_5"] == 0.0


def test_ties_rank_before_the_right_key() -> None:
    keys = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    assert ranks(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), keys, torch.tensor([0, 2])).tolist() == [1, 0]


def test_nan_is_refused(space: torch.Tensor) -> None:
    spoilt = space.clone()
    spoilt[3, 2] = float("nan")
    labels = [str(index) for index in range(len(space))]
    with pytest.raises(CodebrushError, match="embeddings hold NaN"):
        zero_shot(spoilt, labels, space, labels)
    with pytest.raises(CodebrushError, match="embeddings hold NaN"):
        cross_retrieval(spoilt, space, [[row] for row in range(len(space))])
