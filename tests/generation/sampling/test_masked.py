"""The drawing of a masked code transformer against a naive loop, and pictures of a pack that has one."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from codebrush import Codebrush
from codebrush.cli.main import run
from codebrush.errors import UsageError
from codebrush.generation.options import SamplingFilters
from codebrush.generation.sampling.decoding import draw_codes, picture_uniforms
from codebrush.generation.sampling.drawing import Known
from codebrush.generation.sampling.masked import halton_order
from codebrush.generation.sampling.weighted_conditions import guided_terms
from codebrush.models.code_transformer import UNKNOWN, CodeTransformer, CodeTransformerConfig
from codebrush.models.condition import Condition
from codebrush.models.sampling import sample
from codebrush.training.tasks.code_noise import hide_codes
from packs import CONTEXT, WIDTH, micro_transformer, write_micro_pack

GRID, COUNT = (4, 4), 16
FILTERS = {"temperature": 0.9, "top_k": 40, "top_p": 0.95, "min_p": 0.01}


@pytest.fixture(scope="module", params=[1, 2], ids=["codes", "blocks"])
def transformer(request: pytest.FixtureRequest) -> CodeTransformer:
    torch.manual_seed(3)
    return micro_transformer(grid=GRID, block=request.param, masked=True)


def make_condition(seed: int, rows: int = 1) -> Condition:
    numbers = torch.Generator().manual_seed(seed)
    features = torch.randn(rows, CONTEXT, WIDTH, generator=numbers)
    return Condition(text_features=features, text_embedding=torch.randn(rows, 24, generator=numbers))


@torch.no_grad()
def fill_naively(transformer: CodeTransformer, terms: Any, uniforms: Tensor, steps: int, given: dict[int, int]) -> list:
    """One picture: `given` codes stay, and of the n others floor(n cos(pi s / 2 S)) wait after step s."""
    codes = torch.tensor([given.get(place, -1) for place in range(COUNT)])
    line = [place for place in halton_order(GRID).tolist() if place not in given]
    for step in range(1, steps + 1):
        stay = math.floor(len(line) * math.cos(math.pi / 2 * step / steps)) if step < steps else 0
        read = codes[transformer.order][None]
        logits = torch.stack([share * transformer(read, part)[0] for part, share in terms]).sum(0)
        known = int((codes >= 0).sum()) - len(given)
        for place in line[known : len(line) - stay]:
            at = transformer.order.tolist().index(place)
            codes[place] = sample(logits[at][None], uniforms[place][None], **FILTERS)[0]
    return codes.view(GRID).tolist()


def test_haltons_order() -> None:
    assert halton_order(GRID).tolist()[:5] == [0 * 4 + 0, 2 * 4 + 1, 1 * 4 + 2, 3 * 4 + 0, 0 * 4 + 1]
    for grid in ((16, 16), (8, 24), (1, 5)):
        assert sorted(halton_order(grid).tolist()) == list(range(grid[0] * grid[1]))


@pytest.mark.parametrize("steps", [1, 3, 20])
@pytest.mark.parametrize("cfg", [1.0, 2.5])
def test_drawing_equals_a_naive_loop(transformer: CodeTransformer, steps: int, cfg: float) -> None:
    uniforms, condition = picture_uniforms(7, range(3), COUNT), make_condition(1)
    drawn = draw_codes(transformer, condition, uniforms, SamplingFilters(cfg, **FILTERS, steps=steps))
    terms = guided_terms(condition, cfg, Condition())
    assert drawn.tolist() == [fill_naively(transformer, terms, row, steps, {}) for row in uniforms]


def test_known_codes_stay_and_are_seen(transformer: CodeTransformer) -> None:
    uniforms, condition = picture_uniforms(5, range(2), COUNT), make_condition(1)
    codes = torch.randint(0, 128, (2, *GRID))
    fixed = torch.rand(2, *GRID) < 0.4
    filters = SamplingFilters(**FILTERS, steps=3)
    drawn = draw_codes(transformer, condition, uniforms, filters, known=Known(codes, fixed))
    for row, given, kept, numbers in zip(drawn, codes, fixed, uniforms, strict=True):
        places = dict(zip(range(COUNT), given.flatten().tolist(), strict=True))
        places = {place: code for place, code in places.items() if kept.flatten()[place]}
        assert row.tolist() == fill_naively(transformer, [(condition, 1.0)], numbers, 3, places)
    everything = draw_codes(transformer, condition, uniforms, filters, known=Known(codes, torch.ones_like(fixed)))
    assert torch.equal(everything, codes)


def test_a_step_without_a_code_to_draw_asks_nothing_of_the_network(transformer: CodeTransformer) -> None:
    asked, steps = [], []
    hook = transformer.register_forward_hook(lambda *_: asked.append(1))
    fixed = torch.ones(1, *GRID, dtype=torch.bool)
    fixed[0, 1, 1:3] = False
    known, filters = Known(torch.zeros(1, *GRID, dtype=torch.int64), fixed), SamplingFilters(steps=9)
    count = lambda step, of: steps.append(step)  # noqa: E731
    draw_codes(
        transformer, make_condition(1), picture_uniforms(5, range(1), COUNT), filters, known=known, progress=count
    )
    hook.remove()
    assert len(asked) == 2
    assert steps == list(range(1, 10))


def test_a_picture_does_not_depend_on_its_batch(transformer: CodeTransformer, monkeypatch: pytest.MonkeyPatch) -> None:
    uniforms, filters = picture_uniforms(9, range(5), COUNT), SamplingFilters(2.0, **FILTERS)
    together = draw_codes(transformer, make_condition(2, 5), uniforms, filters)
    alone = [
        draw_codes(transformer, make_condition(2, 5).rows(slice(i, i + 1)), uniforms[i : i + 1], filters)
        for i in range(5)
    ]
    assert torch.equal(together, torch.cat(alone))
    monkeypatch.setattr("codebrush.generation.sampling.masked.MAX_ROWS", 4)  # two pictures at a time
    assert torch.equal(draw_codes(transformer, make_condition(2, 5), uniforms, filters), together)


def test_a_bias_and_progress(transformer: CodeTransformer) -> None:
    bias, calls = torch.zeros(COUNT, 128), []
    wanted = torch.randint(0, 128, (COUNT,))
    bias[torch.arange(COUNT), wanted] = 1e4
    uniforms = picture_uniforms(0, range(2), COUNT)
    filters = SamplingFilters(steps=3)
    drawn = draw_codes(
        transformer, make_condition(1), uniforms, filters, bias=bias, progress=lambda *step: calls.append(step)
    )
    assert torch.equal(drawn, wanted.view(1, *GRID).expand(2, -1, -1))
    assert calls == [(1, 3), (2, 3), (3, 3)]


@pytest.mark.slow
def test_it_draws_what_it_has_learned() -> None:
    """Four pictures of random codes, each with a label: after 300 steps each label draws its picture."""
    torch.manual_seed(0)
    pictures, labels = torch.randint(0, 12, (4, COUNT)), torch.arange(4)
    network = CodeTransformer(CodeTransformerConfig(12, GRID, 32, 1, 2, block=2, labels=4, masked=True))
    optimizer = torch.optim.Adam(network.parameters(), 3e-3)
    for _ in range(300):
        rows = torch.randint(0, 4, (16,))
        codes = pictures[rows][:, network.order]
        hidden = hide_codes(codes)
        logits = network(codes.masked_fill(hidden, UNKNOWN), Condition(labels=rows))
        loss = torch.nn.functional.cross_entropy(logits[hidden], codes[hidden])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    network.eval()
    uniforms = picture_uniforms(0, range(4), COUNT)
    drawn = draw_codes(network, Condition(labels=labels), uniforms, SamplingFilters(cfg=2.0, steps=4))
    assert (drawn.flatten(1) == pictures).float().mean() > 0.9
    corner = Known(pictures.view(4, *GRID), torch.zeros(4, *GRID, dtype=torch.bool))
    corner.fixed[:, :2] = True
    unlabelled = draw_codes(network, Condition(), uniforms, SamplingFilters(steps=4), known=corner)
    assert (unlabelled.flatten(1) == pictures).float().mean() > 0.9  # half a picture tells which one it is


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(1)
    painter = micro_transformer(masked=True, block=2, image_embedding=24)
    return write_micro_pack(tmp_path_factory.mktemp("packs") / "masked", transformer=painter)


@pytest.fixture(scope="module")
def brush(folder: Path) -> Codebrush:
    return Codebrush.from_pretrained(folder, device="cpu")


def test_the_manifest_has_the_steps_and_a_replay_the_pixels(brush: Codebrush) -> None:
    for options in ({}, {"steps": 3}, {"steps": 4, "retouch": 2}):
        for result in brush.generate("a red circle", n=2, seed=3, rerank=3, **options):
            assert result.manifest["options"]["steps"] == options.get("steps", 12)
            again = brush.replay(json.loads(json.dumps(result.manifest)))
            assert again.image.tobytes() == result.image.tobytes()
            assert json.dumps(again.manifest) == json.dumps(result.manifest)


def test_several_prompts_are_drawn_each_as_if_alone(brush: Codebrush) -> None:
    prompts = ["a red circle", "a blue square"]
    together = brush.generate(prompts, n=2, seed=[1, 2], rerank=2, steps=3)
    for prompt, seed, results in zip(prompts, (1, 2), together, strict=True):
        alone = brush.generate(prompt, n=2, seed=seed, rerank=2, steps=3)
        assert [result.image.tobytes() for result in results] == [result.image.tobytes() for result in alone]


def test_it_edits_and_varies(brush: Codebrush) -> None:
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8))
    codes = brush.sampler.encode(torch.zeros(3, 32, 32))[1]
    assert codes.shape == (1, 8, 8)
    (filled,) = brush.edit(picture, "a red circle", n=1, box=(8, 8, 8, 8), steps=3, rerank=1)
    before, after = picture.load(), filled.image.load()
    assert all(before[at, at] == after[at, at] for at in (0, 1, 2, 28, 31))
    assert brush.replay(filled.manifest, picture).image.tobytes() == filled.image.tobytes()
    (other,) = brush.edit(picture, "a red circle", n=1, seed=1, box=(8, 8, 8, 8), steps=3, rerank=1)
    changed = (other.codes != filled.codes).view(8, 8)
    assert changed[2:4, 2:4].any()
    changed[2:4, 2:4] = False
    assert not changed.any()
    varied = brush.vary(picture, n=2, steps=2, rerank=2)
    assert varied[0].image.tobytes() != varied[1].image.tobytes()


def test_what_it_cannot_do(brush: Codebrush, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="this pack's masked code transformer draws 32x32 alone: leave out size"):
        brush.generate("a red circle", size="64x32")
    with pytest.raises(UsageError, match="steps must be a whole number from 1 to 1000, not 0"):
        brush.generate("a red circle", steps=0)
    plain = Codebrush.from_pretrained(write_micro_pack(tmp_path / "plain"), device="cpu")
    for draw in (
        lambda: plain.generate("a red circle", steps=3),
        lambda: plain.vary(Image.new("RGB", (9, 9)), steps=3),
    ):
        with pytest.raises(UsageError, match="steps is for the methods flow and guide, and for masked code"):
            draw()


def test_on_the_command_line(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ("--pack", folder, "--n", 1, "--rerank", 1, "--steps", 2, "--out", tmp_path, "--json")
    assert run(["generate", "a red circle", *map(str, flags)]) == 0
    (image,) = json.loads(capsys.readouterr().out)["images"]
    assert Path(image["path"]).is_file()


def test_conditions_are_spread_once(transformer: CodeTransformer, monkeypatch: pytest.MonkeyPatch) -> None:
    calls, expand = [], Condition.expand
    monkeypatch.setattr(Condition, "expand", lambda self, batch: calls.append(batch) or expand(self, batch))
    counted = []
    for steps in (2, 8):
        draw_codes(
            transformer, Condition(), torch.rand(2, math.prod(transformer.config.grid)), SamplingFilters(steps=steps)
        )
        counted.append(len(calls))
        calls.clear()
    assert counted[0] == counted[1] > 0
