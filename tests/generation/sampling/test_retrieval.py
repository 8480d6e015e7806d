"""Retrieval on a pack with random weights: the query, the embedding that is drawn from, and what is recorded."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from codebrush import Codebrush
from codebrush.errors import ImageError, PackError, UsageError
from codebrush.generation.manifest import check_retrieval
from codebrush.generation.sampling.retrieval import Retrieval, prepare_retrieval
from codebrush.generation.sampling.sampler import draw_options
from codebrush.models.bank import Bank, BankConfig, Neighbours, blended
from codebrush.models.prior import Prior, PriorConfig
from packs import micro_transformer, write_micro_pack


@pytest.fixture(scope="module")
def brush(tmp_path_factory: pytest.TempPathFactory) -> Codebrush:
    folder = tmp_path_factory.mktemp("packs") / "retriever"
    torch.manual_seed(1)
    write_micro_pack(folder, transformer=micro_transformer(image_embedding=24, source_codes=True))
    return Codebrush.from_pretrained(folder, device="cpu")


@pytest.fixture(scope="module")
def bank() -> Bank:
    made = Bank(BankConfig(24, tuple(f"{number}.png" for number in range(30))))
    with torch.no_grad():
        made.embeddings.copy_(F.normalize(torch.randn(30, 24), dim=-1))
    return made


def drawing(brush: Codebrush, prompt: str, how: Retrieval, find: Any = None, prior: Any = None) -> Any:
    options = draw_options(brush.pack, {"n": 2, "seed": 0, "rerank": 3})
    return prepare_retrieval(brush.sampler, prompt, options, how, find, prior)


def test_neighbours_of_the_text_are_drawn_from_and_recorded(brush: Codebrush, bank: Bank) -> None:
    made = drawing(brush, "a red circle", Retrieval(neighbours=3), bank.nearest)
    text = brush.embed_text(["a red circle"])[0]
    found = bank.nearest(text, 3)
    ((condition, _),) = made.conditions
    torch.testing.assert_close(condition.image_embedding[0], blended(found))
    assert condition.text_features is not None
    recorded = made.entry["retrieval"]
    assert [each["name"] for each in recorded["found"]] == found.names
    results = brush.sampler.best(made)
    assert [result.manifest["method"] for result in results] == ["retrieve", "retrieve"]
    assert results[0].manifest["retrieval"]["found"] == recorded["found"]


def test_parts_of_negative_weight_are_subtracted_from_the_query(brush: Codebrush, bank: Bank) -> None:
    asked: list[torch.Tensor] = []

    def find(query: torch.Tensor, k: int) -> Neighbours:
        asked.append(query)
        return bank.nearest(query, k)

    drawing(brush, "a red circle:2|a blue square:-1", Retrieval(), find)
    one, other = brush.embed_text(["a red circle", "a blue square"])
    torch.testing.assert_close(asked[0], F.normalize(2 * one - other, dim=0))


def test_a_learned_prior_and_none(brush: Codebrush) -> None:
    prior = Prior(PriorConfig(24, 32)).eval()
    with torch.no_grad():
        prior.head.weight.normal_()
    text = brush.embed_text(["a red circle"])
    ((condition, _),) = drawing(brush, "a red circle", Retrieval("mlp"), prior=prior).conditions
    torch.testing.assert_close(condition.image_embedding, prior(text))
    ((condition, _),) = drawing(brush, "a red circle", Retrieval("none")).conditions
    torch.testing.assert_close(condition.image_embedding, text)


def test_a_missing_bank_or_prior_is_one_line(brush: Codebrush, micro_pack: Path) -> None:
    with pytest.raises(PackError, match="has no bank of pictures"):
        drawing(brush, "a dog", Retrieval())
    with pytest.raises(PackError, match="has no learned prior"):
        drawing(brush, "a dog", Retrieval("mlp"))
    with pytest.raises(PackError, match="the bank is empty"):
        drawing(brush, "a dog", Retrieval(), lambda query, k: Neighbours([], torch.zeros(0), torch.zeros(0, 24)))
    bare = Codebrush.from_pretrained(micro_pack, device="cpu")
    with pytest.raises(PackError, match="takes no image embedding"):
        drawing(bare, "a dog", Retrieval("none"))
    for wrong, said in (
        ({"prior": "oracle"}, "prior must be one of retrieval, mlp, none, not oracle"),
        ({"neighbours": 0}, "neighbours must be from 1 to 1000, not 0"),
        ({"neighbours": "many"}, "neighbours must be from 1 to 1000, not many"),
        ({"prior": "mlp", "bank": "db"}, "bank is used by the prior retrieval only"),
    ):
        with pytest.raises(UsageError, match=said):
            Retrieval(**wrong)  # pyright: ignore


def test_a_pack_holds_a_bank_and_a_prior(tmp_path: Path, bank: Bank) -> None:
    torch.manual_seed(1)
    write_micro_pack(
        tmp_path / "whole",
        transformer=micro_transformer(image_embedding=24),
        bank=bank,
        prior=Prior(PriorConfig(24, 32)),
    )
    brush = Codebrush.from_pretrained(tmp_path / "whole", device="cpu")
    for options in ({"neighbours": 2}, {"prior": "mlp"}, {"prior": "none"}):
        (result,) = brush.generate("a red circle", n=1, rerank=2, method="retrieve", **options)
        again = brush.replay(result.manifest)
        assert again.image.tobytes() == result.image.tobytes()
        assert again.manifest == result.manifest
    with pytest.raises(UsageError, match="neighbours is an option of the methods flow and retrieve, not of sample"):
        brush.generate("a red circle", n=1, neighbours=2)
    wide = Bank(BankConfig(23, ("a",)))
    with pytest.raises(PackError, match="bank holds vectors of 23"):
        write_micro_pack(tmp_path / "misfit", bank=wide)


def test_a_replay_refuses_another_bank_or_prior() -> None:
    def check(now: dict[str, Any], then: dict[str, Any]) -> None:
        check_retrieval({"retrieval": now}, {"retrieval": then})

    found = {"prior": "retrieval", "bank": "", "found": [{"name": "one", "cosine": 0.5}], "hash": "a"}
    check({**found, "found": [{"name": "one", "cosine": 0.4999}]}, found)
    for now, said in (
        ({**found, "hash": "b"}, "the pack's bank has changed since"),
        ({**found, "bank": "/photos.db", "found": [{"name": "two", "cosine": 0.5}]}, "/photos.db has changed since"),
        ({**found, "prior": "mlp", "hash": "b"}, "the pack's prior has changed since"),
    ):
        with pytest.raises(ImageError, match=said):
            check(now, found)
