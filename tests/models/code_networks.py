"""Small code transformers with every condition, inputs for them, and checks that several tests share."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from codebrush.models.code_transformer import CodeTransformer, CodeTransformerConfig
from codebrush.models.condition import Condition

K, GRID, N, TEXT = 20, (2, 3), 6, 5
NAMES = ("text_features", "text_embedding", "image_embedding", "source_codes", "labels")
SIZES: dict[str, Any] = {
    "text_features": 7,
    "text_length": TEXT,
    "text_embedding": 4,
    "image_embedding": 3,
    "source_codes": True,
    "labels": 6,
}


def network(**changes: Any) -> CodeTransformer:
    """A small network with every condition, with weights so large that every part changes the output."""
    torch.manual_seed(0)
    config = CodeTransformerConfig(codebook_size=K, grid=GRID, width=16, layers=2, heads=2, **SIZES)
    model = CodeTransformer(replace(config, **changes)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def full_condition(batch: int, seed: int = 1) -> Condition:
    numbers = torch.Generator().manual_seed(seed)
    mask = torch.arange(TEXT) < torch.randint(1, TEXT + 1, (batch, 1), generator=numbers)
    return Condition(
        text_features=torch.randn(batch, TEXT, 7, generator=numbers),
        text_mask=mask,
        text_embedding=torch.randn(batch, 4, generator=numbers),
        image_embedding=torch.randn(batch, 3, generator=numbers),
        source_codes=torch.randint(0, K, (batch, *GRID), generator=numbers),
        source_latent=torch.randn(batch, 2, *GRID, generator=numbers),
        source_mask=torch.ones(batch, *GRID, dtype=torch.bool),
        present=torch.ones(batch, len(NAMES), dtype=torch.bool),
        labels=torch.randint(0, 6, (batch,), generator=numbers),
    )


def only(condition: Condition, *names: str) -> Condition:
    kept = {*names, "text_mask"} if "text_features" in names else set(names)
    return Condition(**{name: getattr(condition, name) for name in kept})


def hiding(condition: Condition, *names: str) -> Condition:
    """Without `names`; a source that is left out still takes up its part of the prefix, all of it masked."""
    left = only(condition, *(set(NAMES) - {*names}))
    hidden = torch.zeros(len(condition.labels), *GRID, dtype=torch.bool)
    return replace(left, source_codes=condition.source_codes, source_mask=hidden if "source_codes" in names else None)


def some_codes(batch: int, count: int = N) -> Tensor:
    return torch.randint(0, K, (batch, count), generator=torch.Generator().manual_seed(2))


def causal(model: CodeTransformer, codes: Tensor, condition: Condition) -> None:
    """Each code changes all later logits and no earlier ones, and the first codes alone give the same logits."""
    before, count = model(codes, condition), codes.shape[1]
    assert before.shape == (len(codes), count + 1, K)
    for position in range(count):
        changed = codes.clone()
        changed[:, position] = (codes[:, position] + 1) % K
        after = model(changed, condition)
        close(after[:, : position + 1], before[:, : position + 1])
        for later in range(position + 1, count + 1):
            assert differs(after[:, later], before[:, later])
    for part in range(count):
        close(model(codes[:, :part], condition), before[:, : part + 1])


@torch.no_grad()
def same_in_chunks(model: CodeTransformer, codes: Tensor, condition: Condition, first: int, chunks: list[int]) -> None:
    """Prefilling with the first codes and stepping by `chunks` codes at a time gives the logits of one pass."""
    whole, (logits, cache) = model(codes, condition), model.prefill(codes[:, :first], condition)
    parts, end = [logits], first
    for count in chunks:
        if end < codes.shape[1]:
            parts.append(model.step(codes[:, end : end + count], cache))
            end = min(end + count, codes.shape[1])
    close(torch.cat(parts, dim=1), whole)


@torch.no_grad()
def fits_without_copying(model: CodeTransformer, codes: Tensor) -> None:
    """The cache has room for a whole picture from the start."""
    _, cache = model.prefill(codes[:, :0])
    places = [keys.data_ptr() for keys in cache.attention.keys if keys is not None]
    for position in range(codes.shape[1]):
        model.step(codes[:, position : position + 1], cache)
    assert [keys.data_ptr() for keys in cache.attention.keys if keys is not None] == places
    assert len(places) == 2
    assert cache.attention.length == model.config.prefix_length  # the codes took the room of the absent source


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def differs(found: Tensor, expected: Tensor) -> bool:
    return bool((found - expected).abs().max() > 1e-3)
