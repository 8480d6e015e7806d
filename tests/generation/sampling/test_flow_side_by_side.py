"""A flow's batch is drawn in parts beside each other, on one thread each."""

import threading
from collections import defaultdict
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from codebrush import Codebrush
from codebrush.generation.options import BF16, FLOAT32, FlowSettings
from codebrush.generation.sampling import painters
from codebrush.generation.sampling.drawing import Drawing, Known
from codebrush.generation.sampling.sampler import draw_options
from codebrush.models.condition import Condition
from codebrush.models.precision import has_bf16
from packs import micro_flow, write_micro_pack


@pytest.mark.parametrize("kind", ["float32", "auto"])
@torch.no_grad()
def test_parts_side_by_side_draw_what_one_batch_draws(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    torch.manual_seed(2)
    pack = write_micro_pack(tmp_path / "pack", flow=micro_flow(image_embedding=24, source=True))
    sampler = Codebrush.from_pretrained(pack, device="cpu", weights=kind).flow_sampler
    flow = sampler.painter.flow  # pyright: ignore[reportAttributeAccessIssue]
    weights = BF16 if kind == "auto" and has_bf16(flow.device) else FLOAT32
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    names: set[str] = set()
    flow.register_forward_hook(lambda *_: names.add(threading.current_thread().name))
    try:
        codes = torch.randint(128, (9, 8, 8))
        fixed = torch.rand(9, 8, 8) < 0.2
        asked = {"n": 9, "seed": 5, "rerank": 9, "cfg": 2.0, "flow": FlowSettings(4)}
        options = draw_options(sampler.pack, asked, weights)
        embedding = F.normalize(torch.randn(9, 24), dim=-1)
        condition = Condition(image_embedding=embedding, source_codes=codes, source_mask=fixed)
        seen: dict[int, list[torch.Tensor]] = defaultdict(list)
        drawing = Drawing(
            "", options, [(condition, 1.0)], embedding[:1], [1.0], known=Known(codes, fixed),
            look=lambda done, first, codes: seen[first].append(codes),
        )  # fmt: skip
        apart = sampler.painter.paint(drawing, range(9), (8, 8), None)
        shown = {first: list(each) for first, each in seen.items()}
        seen.clear()
        monkeypatch.setattr(painters, "draws_side_by_side", lambda network: False)
        whole = sampler.painter.paint(drawing, range(9), (8, 8), None)
    finally:
        torch.set_num_threads(before)
        flow._forward_hooks.clear()
    if weights == FLOAT32:
        assert len(names) > 1
        assert (apart == whole).float().mean() > 0.99  # up to rounding, which may turn a code
    else:
        assert torch.equal(apart, whole)
    assert torch.equal(apart[fixed], codes[fixed])
    assert {first: len(each[0]) for first, each in shown.items()} == {0: 4, 4: 5}
    assert {first: len(each[0]) for first, each in seen.items()} == {0: 9}
