"""Edits by a flow on a pack with random weights: what it starts from, what stays, who draws, replay and errors."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from codebrush import Codebrush
from codebrush.cli.main import run
from codebrush.data.decoding.images import read_manifest, save_png, to_tensor
from codebrush.data.synthetic.shapes import scene
from codebrush.errors import PackError, UsageError
from codebrush.generation.editing.canvas import extended_canvas, whole_canvas
from codebrush.generation.editing.editing import Edit, prepare_edit
from codebrush.generation.editing.interpolation import spread
from codebrush.generation.options import FlowSettings
from codebrush.generation.sampling.flow import draw_latents, noise_of, picture_noise
from codebrush.generation.sampling.sampler import draw_options
from codebrush.models.condition import Condition
from packs import micro_flow, micro_transformer, write_micro_pack

SIZE = 32
FLOW: dict[str, Any] = {"method": "flow", "steps": 4, "n": 2, "rerank": 3, "cfg": 1.5}
TRANSLATION = {"text": "{style} style", "styles": ["noto", "3d"], "likeness": 2.0, "defaults": {"temperature": 0.5}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pack with both painters."""
    torch.manual_seed(1)
    return write_micro_pack(
        tmp_path_factory.mktemp("packs") / "both",
        transformer=micro_transformer(image_embedding=24, source_codes=True),
        flow=micro_flow(image_embedding=24, source=True),
        extras={"translation": TRANSLATION},
    )


@pytest.fixture(scope="module")
def brush(folder: Path) -> Codebrush:
    return Codebrush.from_pretrained(folder, device="cpu", weights="float32")


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    scene(0, 1, 48).image.save(tmp_path / "picture.png")
    return tmp_path / "picture.png"


MAKERS: dict[str, Callable[..., Any]] = {
    "vary": lambda brush, file, mask, **how: brush.vary(file, **how),
    "edit": lambda brush, file, mask, **how: brush.edit(file, "a dog", strength=0.4, **how),
    "mask": lambda brush, file, mask, **how: brush.edit(file, "a dog:2|a cat:-0.5", mask=mask, **how),
    "box": lambda brush, file, mask, **how: brush.edit(file, box=(3, 4, 20, 10), **how),
    "extend": lambda brush, file, mask, **how: brush.edit(file, "a dog", extend={"left": 16}, **how),
    "translate": lambda brush, file, mask, *, method, **how: brush.translate(file, "noto", by=method, **how),
}


@pytest.fixture
def mask(tmp_path: Path) -> Path:
    mask = Image.new("L", (48, 48))
    mask.paste(255, (5, 5, 30, 40))
    mask.save(tmp_path / "mask.png")
    return tmp_path / "mask.png"


BY_FLOW_ALONE: dict[str, Callable[..., Any]] = {
    "mask at a strength": lambda brush, file, mask, **how: brush.edit(file, "a dog", mask=mask, strength=0.5, **how)
}


@pytest.mark.filterwarnings("ignore:.*comes back at the pack's")
@pytest.mark.parametrize("make", [*MAKERS.values(), *BY_FLOW_ALONE.values()], ids=[*MAKERS, *BY_FLOW_ALONE])
def test_every_edit_is_replayed_from_its_png(
    brush: Codebrush, picture: Path, mask: Path, tmp_path: Path, make: Callable[..., Any]
) -> None:
    results = make(brush, picture, mask, **FLOW)
    assert len(results) == 2
    for number, result in enumerate(results):
        assert result.manifest["options"]["flow"]["steps"] == 4
        save_png(result.image, tmp_path / f"{number}.png", result.manifest)
        again = brush.replay(read_manifest(tmp_path / f"{number}.png"))
        assert np.array_equal(np.asarray(again.image), np.asarray(result.image))
        assert json.dumps(again.manifest) == json.dumps(result.manifest)


def test_pixels_outside_the_hole_stay(brush: Codebrush, picture: Path, mask: Path) -> None:
    before = np.asarray(Image.open(picture).convert("RGB"))
    for result in brush.edit(picture, "a dog", mask=mask, **FLOW):
        after = np.asarray(result.image)
        assert (after[:, 34:] == before[:, 34:]).all()  # the mask ends at 30, and the border is 3 wide
        assert (after[44:] == before[44:]).all()
        assert (after[5:40, 5:30] != before[5:40, 5:30]).any()
    (result,) = brush.edit(picture, "a dog", extend={"right": 30, "top": 6}, **{**FLOW, "n": 1})
    assert result.image.size == (78, 54)
    assert (np.asarray(result.image)[10:, :44] == before[4:, :44]).all()


def ready(brush: Codebrush, edit: Edit) -> Any:
    options = draw_options(brush.pack, {"n": 1, "seed": 0, "flow": FlowSettings(4)})
    return prepare_edit(brush.flow_sampler, edit, options)


@torch.no_grad()
def test_an_edit_starts_from_the_latent_of_the_picture_at_its_strength(brush: Codebrush) -> None:
    image = scene(0, 1, SIZE).image
    drawing = ready(brush, Edit("edit", image, "a dog", 0.4))
    torch.testing.assert_close(drawing.start.latent, brush.vqgan.encode(to_tensor(image)[None]))
    assert drawing.start.time == 0.4
    assert drawing.known is None
    ((condition, _),) = drawing.conditions
    assert condition.source_codes is None
    assert condition.text_features is not None


def test_at_full_strength_nothing_of_the_picture_is_left_and_little_changes_a_little(brush: Codebrush) -> None:
    image, how = scene(0, 1, SIZE).image, {**FLOW, "n": 1, "rerank": 1, "seed": 3}
    (edited,) = brush.edit(image, "a dog", strength=1.0, **how)
    (drawn,) = brush.generate("a dog", **how)
    assert torch.equal(edited.codes, drawn.codes)
    own = brush.sampler.encode(to_tensor(image))[1][0]
    changed = [
        float((brush.edit(image, "a dog", strength=s, **how)[0].codes != own).float().mean()) for s in (0.02, 0.3, 1)
    ]
    assert changed == sorted(changed)
    assert changed[0] < changed[2]


def test_it_takes_the_share_of_the_steps_that_its_strength_says(brush: Codebrush) -> None:
    image, counts = scene(0, 1, SIZE).image, []
    calls: list[float] = []
    flow = brush.flow_sampler.painter.flow  # pyright: ignore[reportAttributeAccessIssue]
    handle = flow.register_forward_pre_hook(lambda _, given: calls.append(round(float(given[1][0]), 3)))
    for strength in (0.4, 1.0, 0.01):
        calls.clear()
        brush.edit(image, "a dog", strength=strength, method="flow", steps=10, n=1, rerank=1, cfg=1)
        counts.append(list(calls))
    handle.remove()
    assert counts[0] == [0.4, 0.3, 0.2, 0.1]
    assert counts[1] == [1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1]
    assert counts[2] == [0.01]


@torch.no_grad()
def test_a_hole_starts_from_what_is_in_it_at_the_strength(brush: Codebrush) -> None:
    image = scene(0, 1, SIZE).image
    drawing = ready(brush, Edit("inpaint", image, "a dog", 0.4, box=(8, 8, 16, 16)))
    torch.testing.assert_close(drawing.start.latent, brush.vqgan.encode(to_tensor(image)[None]))
    assert drawing.start.time == 0.4
    assert (~drawing.known.fixed).sum() == 16  # the codes of the hole, as without a strength
    assert ready(brush, Edit("inpaint", image, "a dog", box=(8, 8, 16, 16))).start is None
    # beyond the picture's edges nothing was: there it starts from the colours around
    wide = ready(brush, Edit("inpaint", image, "a dog", 0.4, extend={"left": 16, "right": 16}))
    assert wide.start.time == 0.4
    filled, _ = extended_canvas(image, {"left": 16, "right": 16}, SIZE).view(SIZE)
    torch.testing.assert_close(wide.start.latent, brush.vqgan.encode(filled[None]))


def test_a_weak_edit_of_a_hole_keeps_what_is_in_it_and_all_around(brush: Codebrush, picture: Path, mask: Path) -> None:
    before, how = np.asarray(Image.open(picture).convert("RGB")), {**FLOW, "n": 1, "rerank": 1, "mask": mask}
    edited = [brush.edit(picture, "a dog", strength=s, **how)[0] for s in (0.02, 0.3, 1.0)]
    for result in edited:
        after = np.asarray(result.image)
        assert (after[:, 34:] == before[:, 34:]).all()
        assert (after[44:] == before[44:]).all()
    own = brush.sampler.encode(to_tensor(Image.open(picture).convert("RGB").crop((0, 0, 48, 48)).resize((32, 32))))[1]
    changed = [float((result.codes != own[0]).float().mean()) for result in edited]
    assert changed[0] < changed[1] < changed[2]
    assert [result.manifest["edit"].get("strength") for result in edited] == [0.02, 0.3, None]
    (plain,) = brush.edit(picture, "a dog", **how)
    assert plain.image.tobytes() == edited[2].image.tobytes()
    assert plain.manifest == edited[2].manifest


def test_strength_of_a_part_is_for_the_flow(brush: Codebrush, picture: Path) -> None:
    with pytest.raises(UsageError, match="strength is for redrawing a whole picture, or a part by the method flow"):
        brush.edit(picture, "a dog", strength=0.5, box=(3, 4, 20, 10))


def without(pack: Path, member: str, target: Path) -> Codebrush:
    shutil.copytree(pack, target)
    shutil.rmtree(target / member)
    info = json.loads((target / "pack.json").read_text())
    del info["members"][member]
    (target / "pack.json").write_text(json.dumps(info))
    return Codebrush.from_pretrained(target, device="cpu", weights="float32")


@pytest.mark.filterwarnings("ignore:.*comes back at the pack's")
@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS.keys())
def test_the_code_transformer_draws_unless_the_pack_has_a_flow_alone(
    brush: Codebrush, folder: Path, picture: Path, mask: Path, tmp_path: Path, make: Callable[..., Any]
) -> None:
    how = {"n": 1, "rerank": 1, "method": None}
    assert "flow" not in make(brush, picture, mask, **how)[0].manifest["options"]
    alone = without(folder, "transformer", tmp_path / "alone")
    (result,) = make(alone, picture, mask, **how)
    assert result.manifest["options"]["flow"]["steps"] == 16
    assert alone.replay(result.manifest).image.tobytes() == result.image.tobytes()
    codes = without(folder, "flow", tmp_path / "codes")
    with pytest.raises(PackError, match="has no flow transformer"):
        make(codes, picture, mask, **{**how, "method": "flow"})


def test_a_flow_trained_on_text_alone_edits_too(picture: Path, mask: Path, tmp_path: Path) -> None:
    torch.manual_seed(1)
    brush = Codebrush.from_pretrained(write_micro_pack(tmp_path / "plain", flow=micro_flow()), device="cpu")
    before = np.asarray(Image.open(picture).convert("RGB"))
    (result,) = brush.edit(picture, "a dog", mask=mask, **{**FLOW, "n": 1})
    assert (np.asarray(result.image)[:, 34:] == before[:, 34:]).all()
    assert brush.replay(result.manifest).image.tobytes() == result.image.tobytes()
    with pytest.raises(PackError, match="this pack's flow transformer takes no image embedding"):
        brush.vary(picture, **FLOW)


def test_wrong_options_are_one_line(brush: Codebrush, picture: Path) -> None:
    for options, said in (
        ({"steps": 5}, "steps is for the methods flow and guide, and for masked code transformers: leave it out"),
        ({"method": "sample", "sampler": "dpm"}, "sampler is an option of the method flow, not of sample"),
        ({"method": "flow", "temperature": 0.5}, "temperature is for drawing codes"),
        ({"method": "flow", "sampler": "magic"}, "sampler must be one of euler, heun, dpm, not magic"),
        ({"method": "guide"}, "method must be one of sample, flow, not guide"),
        ({"method": "flow", "stepz": 3}, "stepz is not an option of an edit or an interpolation: did you mean steps"),
    ):
        with pytest.raises(UsageError, match=said):
            brush.vary(picture, **options)
        if options.get("method") != "flow" or "stepz" not in options:
            with pytest.raises(UsageError, match=said):
                brush.interpolate(["a dog", "a cat"], **options)  # pyright: ignore
    with pytest.raises(UsageError, match="only a flow goes through noise"):
        brush.interpolate(["a dog", "a cat"], through="noise", method="sample")


def pixels(image: Any) -> np.ndarray:
    return np.asarray(image, dtype=int)


def test_prompts_turn_into_each_other_through_noise(brush: Codebrush) -> None:
    how = {"seed": 5, "steps": 3, "rerank": 2}
    found = [pixels(each) for each in brush.interpolate(["a red circle", "a blue square"], 5, through="noise", **how)]
    for prompt, frame in (("a red circle", found[0]), ("a blue square", found[4])):
        (drawn,) = brush.generate(prompt, n=1, method="flow", **how)
        assert np.abs(frame - pixels(drawn.image)).max() <= 1  # but for rounding, which another batch does otherwise
    assert len({frame.tobytes() for frame in found}) == 5


@torch.no_grad()
def test_a_frame_in_between_has_the_noise_and_the_conditions_of_both(brush: Codebrush) -> None:
    how, calls = {"seed": 5, "steps": 3, "rerank": 1, "cfg": 1}, []
    flow = brush.flow_sampler.painter.flow  # pyright: ignore[reportAttributeAccessIssue]
    frames = brush.interpolate(["a red circle", "a blue square"], 5, through="noise", **how)
    next(frames)
    handle = flow.register_forward_pre_hook(lambda _, given: calls.append(given[0]))
    second = next(frames)
    handle.remove()
    noise = picture_noise(5, [0], (8, 8, 8))  # that of both, as each has one candidate
    torch.testing.assert_close(calls[0], noise)
    (mixed,) = brush.generate("a red circle:0.75|a blue square:0.25", n=1, method="flow", **how)
    assert np.array_equal(pixels(second), pixels(mixed.image))


def test_pictures_turn_into_each_other_through_noise(brush: Codebrush) -> None:
    one, other = (scene(0, index, SIZE).image for index in (1, 2))
    calls: list[tuple[int, int]] = []
    found = list(
        brush.interpolate([one, other], 4, through="noise", steps=3, progress=lambda *step: calls.append(step))
    )
    ends = brush.reconstruct([one, other])
    assert np.abs(pixels(found[0]) - pixels(ends[0])).max() <= 1
    assert np.abs(pixels(found[3]) - pixels(ends[1])).max() <= 1
    assert calls == [(number, 4) for number in range(1, 5)]


def test_noise_turns_on_its_sphere() -> None:
    noises = torch.randn(2, 512, 1, 1)
    lengths = spread(noises, 7).flatten(1).norm(dim=1)
    straight = torch.lerp(noises[0], noises[1], 0.5).norm()
    assert float(lengths.min()) > 0.97 * float(noises.flatten(1).norm(dim=1).min())
    assert float(straight) < 0.8 * float(lengths.min())


@torch.no_grad()
def test_the_noise_of_a_latent_leads_back_to_it() -> None:
    torch.manual_seed(3)
    latent, plain = torch.randn(2, 8, 8, 8) * 0.5, micro_flow(unit_latents=False)
    noise = noise_of(plain, latent, 60)
    back = draw_latents(plain, Condition(), noise, FlowSettings(60, "heun"))
    assert float((back - latent).abs().mean()) < 0.1 * float((noise - latent).abs().mean())


def test_the_command_line_edits_by_a_flow(
    folder: Path, picture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ["--pack", str(folder), "--out", str(tmp_path / "out"), "--json"]
    flags = ["--method", "flow", "--steps", "3", "--sampler", "dpm", "--cfg-interval", "0.1,0.9", "--n", "1"]
    few = ["--rerank", "1"]
    for command in (
        ["vary", str(picture), *flags, *few],
        ["edit", str(picture), "a dog", "--strength", "0.5", *flags, *few],
        ["edit", str(picture), "a dog", "--box", "3,4,20,10", *flags, *few],
        ["edit", str(picture), "a dog", "--box", "3,4,20,10", "--strength", "0.5", *flags, *few],
        ["translate", str(picture), "--to", "noto", "--by", *flags[1:], *few],
    ):
        assert run([*command, *common]) == 0
        (image,) = json.loads(capsys.readouterr().out)["images"]
        options = read_manifest(Path(image["path"]))["options"]
        assert options["flow"] == {"steps": 3, "sampler": "dpm", "cfg_interval": [0.1, 0.9]}
        assert run(["replay", image["path"], "--out", str(tmp_path / "again.png"), "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["images"][0]["identical"] is True
    assert run(["interpolate", "a dog", str(picture), "--through", "noise", "--frames", "3", *common]) == 0
    assert len(json.loads(capsys.readouterr().out)["images"]) == 3
    assert run(["vary", str(picture), "--pack", str(folder), "--steps", "3"]) == 2
    assert (
        capsys.readouterr().err
        == "codebrush: steps is for the methods flow and guide, and for masked code transformers: leave it out\n"
    )
    assert run(["edit", str(picture), "a dog", "--pack", str(folder), "--method", "guide", "--sampler", "dpm"]) == 2
    assert "--sampler cannot be used with --method guide" in capsys.readouterr().err


def test_a_variation_keeps_the_less_of_the_picture_the_stronger_it_is(brush: Codebrush, picture: Path) -> None:
    plain = brush.vary(picture, seed=5, **FLOW)
    assert plain[0].manifest["edit"]["strength"] == 0.7
    codes = brush.flow_sampler.encode(whole_canvas(picture).view(SIZE)[0])[1]
    kept = []
    for strength in (0.1, 0.5, 0.9):
        made = brush.vary(picture, seed=5, strength=strength, **FLOW)
        again = brush.replay(made[0].manifest)
        assert again.image.tobytes() == made[0].image.tobytes() != plain[0].image.tobytes()
        kept.append(float((made[0].codes == codes[0]).float().mean()))
    assert kept == sorted(kept, reverse=True)
    assert kept[0] > 2 * kept[-1]


def test_variations_from_before_they_had_a_strength_replay_as_they_were(brush: Codebrush, picture: Path) -> None:
    made = brush.vary(picture, seed=5, strength=1, **FLOW)
    assert "strength" not in made[0].manifest["edit"]
    assert brush.replay(made[0].manifest).image.tobytes() == made[0].image.tobytes()
    with pytest.raises(UsageError, match="the strength of a variation is for the method flow: leave it out"):
        brush.vary(picture, strength=0.5, n=1, method="sample")
    with pytest.raises(UsageError, match=r"strength must be above 0 and up to 1, not 1\.5"):
        brush.vary(picture, strength=1.5, n=1, method="flow")
