from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from codebrush.models.bank import Bank, BankConfig, Neighbours, blended
from codebrush.models.prior import Prior, PriorConfig


def bank(count: int = 50, width: int = 24) -> Bank:
    made = Bank(BankConfig(width, tuple(f"picture {number}" for number in range(count))))
    with torch.no_grad():
        made.embeddings.copy_(F.normalize(torch.randn(count, width), dim=-1))
    return made.eval()


def test_a_prior_maps_unit_vectors_to_unit_vectors_and_learns() -> None:
    prior = Prior(PriorConfig(24, 64))
    texts = F.normalize(torch.randn(32, 24), dim=-1)
    assert torch.allclose(prior(texts).norm(dim=-1), torch.ones(32))
    wanted = F.normalize(texts @ torch.randn(24, 24), dim=-1)
    optimizer = torch.optim.Adam(prior.parameters(), 3e-3)
    before = float((prior(texts) * wanted).sum(-1).mean().detach())
    for _ in range(200):
        optimizer.zero_grad()
        (1 - (prior(texts) * wanted).sum(-1)).mean().backward()
        optimizer.step()
    assert float((prior(texts) * wanted).sum(-1).mean().detach()) > max(0.9, before + 0.3)


def test_the_nearest_are_those_of_a_plain_search() -> None:
    known, query = bank(), F.normalize(torch.randn(24), dim=0)
    found = known.nearest(query, 5)
    plain = sorted(((float(row @ query), number) for number, row in enumerate(known.embeddings)), reverse=True)[:5]
    assert found.names == [f"picture {number}" for _, number in plain]
    torch.testing.assert_close(found.cosines, torch.tensor([cosine for cosine, _ in plain]))
    torch.testing.assert_close(found.embeddings @ query, found.cosines)
    assert len(known.nearest(query, 500).names) == 50


def test_a_blend_is_a_unit_vector_nearer_to_the_nearer() -> None:
    found = bank().nearest(F.normalize(torch.randn(24), dim=0), 3)
    mixed = blended(found)
    assert float(mixed.norm()) == pytest.approx(1, abs=1e-5)
    one = Neighbours(found.names[:1], found.cosines[:1], found.embeddings[:1])
    torch.testing.assert_close(blended(one), found.embeddings[0])
    sharp = blended(found, sharpness=1e5)
    torch.testing.assert_close(sharp, found.embeddings[0], atol=1e-4, rtol=1e-4)


def test_both_are_saved_small_and_read_back(tmp_path: Path) -> None:
    known, prior = bank(400, 64), Prior(PriorConfig(64, 128)).eval()
    known.save_pretrained(tmp_path / "bank", torch.float16)
    prior.save_pretrained(tmp_path / "prior", torch.float16)
    assert (tmp_path / "bank" / "model.safetensors").stat().st_size < 400 * 64 * 1.2
    again = Bank.from_pretrained(tmp_path / "bank")
    assert again.config == known.config
    assert F.cosine_similarity(again.embeddings, known.embeddings).min() > 0.9995
    texts = F.normalize(torch.randn(8, 64), dim=-1)
    found = Prior.from_pretrained(tmp_path / "prior")(texts)
    assert F.cosine_similarity(found, prior(texts)).min() > 0.999
