"""Retouching: the least likely codes of a drawn picture are drawn again, with all others in view."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from codebrush import Codebrush
from codebrush.errors import PackError, UsageError
from codebrush.generation.editing.editing import translation_defaults
from codebrush.generation.result import Result
from codebrush.generation.sampling.decoding import draw_codes, picture_uniforms
from codebrush.generation.sampling.drawing import Known
from codebrush.generation.sampling.retouching import SHARE, least_likely, likelihoods
from codebrush.generation.sampling.sampler import draw_options
from codebrush.models.condition import Condition
from codebrush.pack.pack import open_pack
from packs import micro_flow, micro_transformer, write_micro_pack

HOW: dict[str, Any] = {"temperature": 0.8, "top_k": 0, "top_p": 1.0, "min_p": 0.0}


@pytest.fixture(scope="module", params=["blocks", "masked"])
def brush(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Codebrush:
    torch.manual_seed(2)
    kind: dict[str, Any] = {"source_codes": True, "aligned_source": True}
    kind |= {"blocks": {"block": 2}, "masked": {"masked": True, "source_codes": False}}[request.param]
    members = {"transformer": micro_transformer(**kind), "flow": micro_flow()}
    folder = write_micro_pack(tmp_path_factory.mktemp("packs") / request.param, **members)
    return Codebrush.from_pretrained(folder, device="cpu")


def drawn(brush: Codebrush, n: int = 2, **options: Any) -> list[Result]:
    found = brush.generate("a red circle", **{"n": n, "seed": 5, "rerank": n, "cfg": 2.0, **HOW, **options})
    return sorted(found, key=lambda result: result.manifest["index"])


def test_the_least_likely_share() -> None:
    likely = torch.tensor([[[-1.0, -5.0], [-2.0, -2.0]], [[0.0, -1.0], [-9.0, -8.0]]])
    free = torch.zeros(1, 2, 2, dtype=torch.bool)
    assert least_likely(likely, free, 0.5).tolist() == [[[False, True], [True, False]], [[False, False], [True, True]]]
    fixed = torch.tensor([[[False, True], [False, False]], [[False, False], [True, True]]])
    found = least_likely(likely, fixed, 0.5)  # of three codes two, of two codes one
    assert found.tolist() == [[[False, False], [True, True]], [[False, True], [False, False]]]
    assert not least_likely(likely, torch.ones_like(free), 0.5).any()


@torch.no_grad()
def test_likelihoods_are_those_of_the_drawing(brush: Codebrush) -> None:
    """Of a network that draws code after code: each code's probability after those before it, one by one."""
    network, sampler = brush.transformer, brush.sampler
    codes = torch.stack([result.codes for result in drawn(brush)])
    options = replace(_options(brush), cfg=2.0)
    drawing = sampler.prepare("a red circle", options)
    found = likelihoods(network, drawing, codes)
    (condition, _), places = drawing.conditions[0], network.order.tolist()
    for row in range(2):
        flat = codes[row].flatten()[network.order]
        for turn, place in list(enumerate(places))[::9]:
            if network.config.masked:
                y, x = divmod(place, 8)
                hidden = torch.tensor([(py + px) % 2 == (y + x) % 2 for py in range(8) for px in range(8)])
                read, at = codes[row].flatten().masked_fill(hidden, -1)[network.order][None], turn
            else:
                read, at = flat[None, :turn], -1
            own, null = (network(read, part)[0, at] for part in (condition, Condition()))
            expected = (null + 2.0 * (own - null)).log_softmax(-1)[flat[turn]]
            torch.testing.assert_close(found[row].flatten()[place], expected, atol=1e-4, rtol=1e-4)


def _options(brush: Codebrush) -> Any:
    from codebrush.generation.sampling.sampler import draw_options

    return draw_options(brush.pack, {"n": 2, "seed": 5, "rerank": 2, "retouch": 1, **HOW})


def test_a_round_redraws_these_codes_with_the_rest_as_the_source(brush: Codebrush) -> None:
    network, sampler = brush.transformer, brush.sampler
    before = torch.stack([result.codes for result in drawn(brush)])
    after = torch.stack([result.codes for result in drawn(brush, retouch=1)])
    options = replace(_options(brush), cfg=2.0)
    drawing = sampler.prepare("a red circle", options)
    hole = least_likely(likelihoods(network, drawing, before), torch.zeros(1, 8, 8, dtype=torch.bool), SHARE)
    assert hole.flatten(1).sum(1).tolist() == [16, 16]
    assert torch.equal(before[~hole], after[~hole])
    assert (before[hole] != after[hole]).any()
    source = Condition() if network.config.masked else Condition(source_codes=before, source_mask=~hole)
    (condition, _), shown = drawing.conditions[0], {"source_codes": source.source_codes, "source_mask": ~hole}
    expected = draw_codes(
        network, replace(condition, **shown).expand(2), picture_uniforms(5, range(2), 64, 1), options.filters,
        unconditional=source.expand(2), known=Known(before, ~hole),
    )  # fmt: skip
    assert torch.equal(after, expected)


def test_a_replay_has_the_same_pixels(brush: Codebrush) -> None:
    plain = drawn(brush)
    assert "retouch" not in plain[0].manifest["options"]
    rounds = {0: [each.image.tobytes() for each in plain]}
    for count in (1, 2):
        results = drawn(brush, retouch=count)
        rounds[count] = [each.image.tobytes() for each in results]
        assert results[1].manifest["options"]["retouch"] == count
        again = brush.replay(json.loads(json.dumps(results[1].manifest)))
        assert again.image.tobytes() == results[1].image.tobytes()
        assert json.dumps(again.manifest) == json.dumps(results[1].manifest)
    assert rounds[0] != rounds[1] != rounds[2]
    assert [each.image.tobytes() for each in drawn(brush, retouch=0)] == rounds[0]


def test_several_prompts_are_drawn_each_as_if_alone(brush: Codebrush) -> None:
    together = brush.generate(["a red circle", "a blue square"], n=2, seed=[5, 6], rerank=2, cfg=2.0, retouch=1, **HOW)
    alone = brush.generate("a red circle", n=2, seed=5, rerank=2, cfg=2.0, retouch=1, **HOW)
    assert [each.image.tobytes() for each in together[0]] == [each.image.tobytes() for each in alone]


def test_an_edit_keeps_what_it_keeps(brush: Codebrush) -> None:
    picture = Image.effect_noise((32, 32), 80).convert("RGB")
    plain, again = (
        brush.edit(picture, "a red circle", n=1, box=(8, 8, 16, 16), rerank=1, retouch=count, **HOW)[0]
        for count in (0, 2)
    )
    changed = (plain.codes != again.codes).nonzero()
    assert len(changed)
    assert changed.min() >= 1
    assert changed.max() <= 6
    assert brush.replay(again.manifest, picture).image.tobytes() == again.image.tobytes()


def test_a_pack_may_have_its_own_default(brush: Codebrush, tmp_path: Path) -> None:
    members = {"transformer": brush.transformer, "clip": brush.clip, "vqgan": brush.vqgan}
    folder = write_micro_pack(tmp_path / "own", **members, defaults={"retouch": 1})
    own = Codebrush.from_pretrained(folder, device="cpu")
    assert own.generate("a red circle", n=1, rerank=1)[0].manifest["options"]["retouch"] == 1


def test_what_cannot_be_retouched(brush: Codebrush, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="retouch must be a whole number from 0 to 16, not 17"):
        drawn(brush, retouch=17)
    with pytest.raises(UsageError, match="retouch is for drawing codes"):
        brush.generate("a red circle", method="flow", retouch=1)
    blind = Codebrush.from_pretrained(write_micro_pack(tmp_path / "blind"), device="cpu")
    with pytest.raises(PackError, match="this pack's code transformer fills no holes, which retouch needs"):
        blind.generate("a red circle", n=1, retouch=1)
    if not brush.transformer.config.masked:
        with pytest.raises(UsageError, match="retouch is for pictures of the pack's own size"):
            drawn(brush, n=1, retouch=1, size="40x32")


def test_a_default_of_the_pack_that_does_not_apply_is_left_out(brush: Codebrush, tmp_path: Path) -> None:
    pack = open_pack(brush.pack.folder)
    pack.info["defaults"] = {"retouch": 2}
    given = {"n": 1, "seed": 0}
    assert draw_options(pack, given).retouch == 2
    side = pack.image_size
    assert draw_options(pack, {**given, "size": f"{side}x{side}"}).retouch == 2
    assert draw_options(pack, {**given, "size": f"{2 * side}x{side}"}).retouch == 0
    assert draw_options(pack, {**given, "size": f"{2 * side}x{side}", "retouch": 1}).retouch == 1  # and is refused
    pack.info["translation"] = {"text": "{style}", "styles": ["a"], "defaults": {"retouch": 3}}
    assert translation_defaults(pack) == {"retouch": 0}
    blind = open_pack(write_micro_pack(tmp_path / "blind"))
    blind.info["defaults"] = {"retouch": 2}
    assert draw_options(blind, given).retouch == 0
