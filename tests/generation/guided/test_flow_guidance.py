"""CLIP's guidance of a flow on a pack with random weights: how far it pulls, what it depends on, replay and errors."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from codebrush import Codebrush
from codebrush.cli.main import run
from codebrush.data.decoding.images import read_manifest
from codebrush.data.synthetic.shapes import scene
from codebrush.errors import CodebrushError, ImageError, UsageError
from codebrush.generation.guided.flow_guidance import FlowGuidance, guided_drawing
from codebrush.generation.guided.guide_options import GuideOptions
from codebrush.generation.guided.losses.cutouts import cut_out, draw_views
from codebrush.generation.options import FlowSettings
from codebrush.generation.result import Result
from codebrush.generation.sampling.flow import Lead, draw_latents, picture_noise
from codebrush.generation.sampling.sampler import draw_options
from codebrush.generation.seeding import Purpose, stream
from codebrush.models.condition import Condition
from packs import micro_flow, write_micro_pack

STEPS, CUTOUTS = 3, 2
PROMPT = "a red circle:2|a dog:-0.5"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(2)
    return write_micro_pack(tmp_path_factory.mktemp("packs") / "led", flow=micro_flow(image_embedding=24, source=True))


@pytest.fixture(scope="module")
def brush(folder: Path) -> Codebrush:
    return Codebrush.from_pretrained(folder, device="cpu")


HOW: dict[str, Any] = {"method": "flow", "steps": STEPS, "cfg": 1.5, "seed": 5}


def drawn(brush: Codebrush, n: int = 1, scale: float | None = 2.0, **options: Any) -> list[Result]:
    given = {**HOW, "rerank": n, "clip_guidance": scale, **({} if scale is None else {"cutouts": CUTOUTS}), **options}
    return sorted(brush.generate(PROMPT, n, **given), key=lambda result: result.manifest["index"])


def test_the_predicted_picture_moves_down_the_loss_by_the_scale_and_the_time() -> None:
    flow = micro_flow(unit_latents=False)
    flow.mean.fill_(0.5)
    flow.deviation.copy_(torch.linspace(0.5, 2, 8))
    goal, seen = torch.randn(1, 8, 8, 8), []

    def gradient(latent: Tensor, step: int) -> Tensor:  # of half the squared distance to the goal
        seen.append((latent, step))
        return latent - goal

    x, velocity, time = torch.randn(3, 8, 8, 8), torch.randn(3, 8, 8, 8), 0.3
    bent = Lead(gradient, 0.7).bent(velocity, x, time, 4, flow)
    before, after = x - time * velocity, x - time * bent
    torch.testing.assert_close(seen[0][0], flow.denormalise(before))
    assert seen[0][1] == 4
    moved = (after - before).square().mean((1, 2, 3)).sqrt()
    torch.testing.assert_close(moved, torch.full((3,), 0.7 * time))
    direction = (goal - seen[0][0]) * flow.deviation[:, None, None]  # downhill, in standard deviations
    assert float(F.cosine_similarity((after - before).flatten(1), direction.flatten(1)).min()) > 0.9999
    still = Lead(lambda latent, step: torch.zeros_like(latent), 0.7).bent(velocity, x, time, 0, flow)
    assert torch.equal(still, velocity)


@torch.no_grad()
def test_a_flow_that_is_led_ends_nearer_to_the_goal() -> None:
    torch.manual_seed(4)
    flow, noise = micro_flow(unit_latents=False), picture_noise(0, range(2), (8, 8, 8))
    goal = torch.randn(1, 8, 8, 8)
    far = [
        float((draw_latents(flow, Condition(), noise, FlowSettings(8, sampler), lead=lead) - goal).norm())
        for sampler in ("euler", "heun", "dpm")
        for lead in (None, Lead(lambda latent, step: latent - goal, 0.5))
    ]
    assert all(led < alone for alone, led in zip(far[::2], far[1::2], strict=True))


def test_the_gradient_is_that_of_clip_through_cutouts_and_decoder(folder: Path) -> None:
    """Against a plain computation of what one picture is pulled by, where no pixel is clamped."""
    brush = Codebrush.from_pretrained(folder, device="cpu")
    brush.vqgan.decoder.conv_out.weight.div_(16)
    options = draw_options(brush.pack, {"n": 3, "rerank": 3, "seed": 5, "flow": FlowSettings(STEPS)})
    how = FlowGuidance.of(1.0, {"cutouts": CUTOUTS, "distance": "cosine", "precision": "float32"}, {})
    drawing = guided_drawing(brush.flow_sampler.prepare(PROMPT, options), brush.guidance_models(), how)
    assert drawing.lead is not None
    latent = torch.randn(3, 8, 8, 8)
    found = drawing.lead(range(3)).gradient(latent, 1)
    settings = GuideOptions(cutouts=CUTOUTS)
    texts, weights = brush.embed_text(["a red circle", "a dog"]), torch.tensor([2.0, -0.5])
    for picture in range(3):
        leaf = latent[picture : picture + 1].clone().requires_grad_()
        unit = F.normalize(leaf, dim=1)
        with torch.no_grad():
            codes = brush.vqgan.quantize(unit)[0]
        image = brush.vqgan.decode(unit + (codes - unit).detach())
        assert torch.equal(image.clamp(0, 1), image)
        views = draw_views(settings, (32, 32), stream(5, picture, Purpose.VIEWS, 1))
        seen = F.normalize(brush.clip.image_encoder(brush.clip.normalise(cut_out(image, views, 32, settings))), dim=-1)
        ((1 - seen @ texts.T) @ weights).mean().backward()
        assert leaf.grad is not None
        torch.testing.assert_close(leaf.grad[0], found[picture], rtol=1e-3, atol=1e-6)


def test_a_picture_does_not_depend_on_how_many_are_drawn(brush: Codebrush) -> None:
    three = [result.codes for result in drawn(brush, 3)]
    assert torch.equal(drawn(brush, 1)[0].codes, three[0])
    assert all(
        torch.equal(result.codes, codes) for result, codes in zip(drawn(brush, 3, batch_size=2), three, strict=True)
    )
    assert not torch.equal(three[0], three[1])


def test_every_option_changes_the_picture(brush: Codebrush, tmp_path: Path) -> None:
    scene(0, 1, 32).image.save(tmp_path / "picture.png")
    half = Image.new("L", (32, 32))
    half.paste(255, (0, 0, 16, 32))
    half.save(tmp_path / "half.png")
    plain = drawn(brush)[0].codes
    picture = str(tmp_path / "picture.png")
    changes: tuple[dict[str, Any], ...] = (
        {"scale": None},
        {"scale": 0.5},
        {"cutouts": 3},
        {"turn": 90.0},
        {"exclude": ("a blue square",), "beta": 5.0},
        {"image_prompt": (picture,), "alpha": 0.0},
        {"target": (f"{picture}:50",)},
        {"mask": str(tmp_path / "half.png")},
        {"tv": 100.0},
    )
    for change in changes:
        assert not torch.equal(drawn(brush, **change)[0].codes, plain), change
    parts = [drawn(brush, precision="float32", **how)[0].codes for how in ({}, {"micro_batch": 1})]
    assert torch.equal(*parts)  # in bfloat16 a part more or less rounds otherwise
    assert torch.equal(drawn(brush)[0].codes, plain)
    assert torch.equal(drawn(brush, scale=0.0)[0].codes, drawn(brush, scale=None)[0].codes)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"sampler": "heun", "batch_size": 2},
        {"size": "40x24", "exclude": ("a cat",), "precision": "float32"},
        {"prior": "none", "story": ("a blue square",)},
    ],
)
def test_a_replay_has_the_same_pixels(brush: Codebrush, options: dict[str, Any]) -> None:
    for result in drawn(brush, 2, **options):
        again = brush.replay(json.loads(json.dumps(result.manifest)))
        assert again.image.tobytes() == result.image.tobytes()
        assert json.dumps(again.manifest) == json.dumps(result.manifest)


def test_the_manifest_says_how_it_was_guided(brush: Codebrush, tmp_path: Path) -> None:
    scene(0, 1, 32).image.save(tmp_path / "goal.png")
    (result,) = drawn(brush, target=(str(tmp_path / "goal.png"),))
    entry = result.manifest["clip_guidance"]
    assert (entry["scale"], entry["options"]["cutouts"]) == (2.0, CUTOUTS)
    assert list(entry["files"]) == [str(tmp_path / "goal.png")]
    assert entry["plan"]["micro_batch"] == CUTOUTS
    assert "clip_guidance" not in drawn(brush, scale=None)[0].manifest
    with pytest.raises(ImageError, match="damaged"):
        brush.replay({**result.manifest, "clip_guidance": {**entry, "scale": -1}})
    scene(0, 2, 32).image.save(tmp_path / "goal.png")
    with pytest.raises(ImageError, match="has changed since the run began"):
        brush.replay(result.manifest)


@pytest.mark.filterwarnings("ignore:.*comes back at the pack's")
def test_edits_are_guided_by_what_they_are_scored_by(brush: Codebrush, tmp_path: Path) -> None:
    scene(0, 1, 48).image.save(tmp_path / "picture.png")
    picture, how = tmp_path / "picture.png", {**HOW, "n": 1, "rerank": 1}
    for make in (
        lambda **options: brush.vary(picture, **options),
        lambda **options: brush.edit(picture, "a dog", strength=0.8, **options),
        lambda **options: brush.edit(picture, box=(4, 4, 30, 30), **options),
    ):
        (led,), (alone,) = make(clip_guidance=3.0, **how), make(**how)
        assert led.manifest["clip_guidance"]["scale"] == 3.0
        assert not torch.equal(led.codes, alone.codes)
        assert brush.replay(led.manifest).image.tobytes() == led.image.tobytes()
    with pytest.raises(UsageError, match="clip_guidance is an option of the method flow, not of sample"):
        brush.vary(picture, clip_guidance=1.0, method="sample")


def test_a_gradient_that_is_not_finite_is_one_line(brush: Codebrush, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(brush.vqgan), "decode", lambda self, latent: latent.repeat(1, 1, 4, 4)[:, :3] * torch.nan)
    with pytest.raises(CodebrushError, match="CLIP's gradient at step 1 is not finite"):
        drawn(brush)


def test_wrong_options_are_one_line(brush: Codebrush) -> None:
    cases: tuple[tuple[dict[str, Any], str], ...] = (
        ({"scale": -1}, "clip_guidance must be a number from 0 to 100, not -1"),
        ({"scale": "much"}, "clip_guidance must be a number from 0 to 100, not much"),
        ({"scale": None, "cutouts": 3}, "cutouts is for CLIP's guidance of the flow: add clip_guidance, like 0.5"),
        ({"cutouts": 0}, "cutouts must be a whole number from 1 to 4096, not 0"),
        ({"learning_rate": 0.1}, "learning_rate is an option of the method guide, not of flow"),
        ({"max_memory": "1MiB"}, "max_memory of 1 MiB does not suffice"),
    )
    for options, said in cases:
        with pytest.raises(UsageError, match=said):
            drawn(brush, **options)
    with pytest.raises(UsageError, match="clip_guidance is an option of the method flow, not of sample"):
        brush.generate("a dog", clip_guidance=1.0)


def test_the_command_line_guides_and_replays(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    common = ["--pack", str(folder), "--out", str(tmp_path), "--json"]
    flags = ["--method", "flow", "--steps", "2", "--clip-guidance", "0.7", "--n", "1", "--rerank", "1"]
    assert run(["generate", "a dog", *flags, "--cutouts", "2", "--exclude", "a cat", *common]) == 0
    (image,) = json.loads(capsys.readouterr().out)["images"]
    entry = read_manifest(Path(image["path"]))["clip_guidance"]
    assert (entry["scale"], entry["options"]) == (0.7, {"cutouts": 2, "exclude": ["a cat"]})
    assert run(["replay", image["path"], "--out", str(tmp_path / "again.png"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["images"][0]["identical"] is True
    for wrong, line in (
        (["--method", "flow", "--cutouts", "4"], "--cutouts is an option of guidance: add --clip-guidance"),
        (["--clip-guidance", "1"], "--clip-guidance is an option of the flow: add --method flow"),
        ([*flags, "--learning-rate", "1"], "--learning-rate is of no use to --clip-guidance: leave it out"),
        (["--cutouts", "4"], "--cutouts is an option of guidance: add --method guide"),
    ):
        assert run(["generate", "a dog", "--pack", str(folder), *wrong]) == 2
        assert capsys.readouterr().err == f"codebrush: {line}\n"
