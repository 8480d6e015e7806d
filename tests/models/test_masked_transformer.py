"""The masked code transformer against a plain reading of the paper's forward pass, and what it may see."""

import pytest
import torch
from code_networks import GRID, K, N, close, differs, full_condition, network, only, some_codes
from torch import Tensor

from codebrush.models.code_transformer import UNKNOWN, CodeTransformer
from codebrush.models.condition import Condition

BLOCKS = {"grid": (4, 4), "block": 2}


def masked(**changes) -> CodeTransformer:
    return network(masked=True, source_codes=False, **changes)


def holed(batch: int, count: int) -> Tensor:
    """Codes of which every second one is not known."""
    codes = some_codes(batch, count)
    codes[:, ::2] = UNKNOWN
    return codes


def reference(model: CodeTransformer, codes: Tensor, condition: Condition) -> Tensor:
    """Logits by the parts of the network, one picture after another."""
    rows = []
    for number, row in enumerate(codes):
        vectors = torch.stack([model.unknown if code == UNKNOWN else model.code_embedding.weight[code] for code in row])
        squares = vectors if model.writer is None else model.writer.reader(vectors.view(-1, 4 * vectors.shape[1]))
        prefix = model.prefix(condition.rows(slice(number, number + 1)), 1)[0]
        x = torch.cat([prefix, squares + model.positions])[None]  # (1, P + N / M, D)
        x = model.transformer(x, rotary=model.rotary)[0, len(prefix) :]
        if model.writer is not None:
            inner = model.writer.before(vectors).view(len(x), 4, -1) + x[:, None] + model.writer.places
            x = model.writer.transformer(inner).flatten(0, 1)
        rows.append(model.head(model.final_norm(x)))
    return torch.stack(rows)


@pytest.mark.parametrize("sizes", [{}, BLOCKS], ids=["codes", "blocks"])
def test_it_is_the_sum_of_its_parts(sizes) -> None:
    model = masked(**sizes)
    codes, condition = holed(3, model.config.code_count), only(full_condition(3), "text_features", "text_embedding")
    found = model(codes, condition)
    assert found.shape == (3, model.config.code_count, K)
    close(found, reference(model, codes, condition))


@pytest.mark.parametrize("sizes", [{}, BLOCKS], ids=["codes", "blocks"])
def test_every_known_code_is_seen_from_everywhere(sizes) -> None:
    model, condition = masked(**sizes), Condition()
    codes = holed(2, model.config.code_count)
    before = model(codes, condition)
    for place in range(1, model.config.code_count, 2):
        changed = codes.clone()
        changed[:, place] = (codes[:, place] + 1) % K
        after = model(changed, condition)
        assert all(differs(after[:, other], before[:, other]) for other in range(model.config.code_count))


def test_every_condition_matters() -> None:
    model, condition, codes = masked(), full_condition(2), holed(2, N)
    plain = model(codes, Condition())
    for name in ("text_features", "text_embedding", "image_embedding", "labels"):
        assert differs(model(codes, only(condition, name)), plain)


def test_an_aligned_source_is_added_where_its_code_is() -> None:
    """With attention to the source cut off, a code of it changes the prediction of its own place alone."""
    model = network(masked=True, aligned_source=True, layers=1)
    with torch.no_grad():
        model.transformer.blocks[0].attention.out.weight.zero_()
    codes, source = holed(1, N), torch.zeros(1, *GRID, dtype=torch.int64)
    before = model(codes, Condition(source_codes=source))
    for place in range(N):
        changed = source.clone()
        changed.view(-1)[place] = 5
        after = model(codes, Condition(source_codes=changed))
        assert [differs(after[:, other], before[:, other]) for other in range(N)] == [o == place for o in range(N)]
