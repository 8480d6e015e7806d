"""What an upscaler is trained on and by, and how its stage is asked for."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from in_parts import check_parts
from PIL import Image

from codebrush.cli.main import run as command
from codebrush.data.synthetic.scene_folder import write_shapes
from codebrush.errors import PackError, TrainingError
from codebrush.models.upscaler import Upscaler, reduce
from codebrush.models.vqgan import VQGAN
from codebrush.pack.pack import open_pack
from codebrush.training.dataset import Captioned, SourceConfig, load_captioned
from codebrush.training.engine.loop_config import LoopConfig
from codebrush.training.engine.rows import step_rng
from codebrush.training.recipes import plan_from_dict
from codebrush.training.run_stage import make_network, make_task, run_stage
from codebrush.training.stage import Materials, StagePlan
from codebrush.training.tasks.upscaler import (
    DIHEDRAL,
    UpscalerRecipe,
    UpscalerTask,
    charbonnier,
    fitting_target,
    reoriented,
)
from packs import micro_clip, micro_tokenizer, micro_vqgan, write_micro_pack

RECIPE = UpscalerRecipe(
    width=8, blocks=1, target_size=32, crop=8, adversarial_from=0.5, discriminator_channels=8, discriminator_layers=1,
)  # fmt: skip
LOOP = LoopConfig(steps=6, batch_size=4, threads=1, log_every=2, checkpoint_every=2, preview_every=6)


@pytest.fixture(scope="module")
def data(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Captioned:
    return load_captioned(SourceConfig(str(shapes)).open(), 32, tmp_path_factory.mktemp("cache"))


@pytest.fixture
def materials(data: Captioned) -> Materials:
    return Materials(data, {"clip": micro_tokenizer()}, {"clip": micro_clip(), "vqgan": micro_vqgan()})


def make(materials: Materials, **changes) -> UpscalerTask:
    plan = StagePlan("upscaler", replace(RECIPE, **changes), LOOP)
    task = make_task(plan, materials, make_network(plan, materials))
    assert isinstance(task, UpscalerTask)
    return task


def test_small_pictures_are_the_large_ones_reduced(materials: Materials) -> None:
    for scale in (2, 4):
        task = make(materials, scale=scale, rounded=0.0, perceptual=0.0)
        small, targets = task.pairs(task.batch(np.arange(4), step_rng(0, 0)))
        assert targets.shape == (4, 3, 8 * scale, 8 * scale)
        assert torch.equal(small, reduce(targets, scale))
    task = make(materials, rounded=1.0)
    small, _ = task.pairs(task.batch(np.arange(4), step_rng(0, 0)))
    assert torch.equal(small, (small * 255).round() / 255)


def test_crops_lie_anywhere_and_any_way_round(materials: Materials) -> None:
    task = make(materials, crop=12)
    crops = torch.cat([task.batch(np.zeros(32, dtype=np.int64), step_rng(0, step))["images"] for step in range(4)])
    assert len(crops.flatten(1).unique(dim=0)) > 40
    picture = torch.arange(27).view(3, 3, 3)
    assert len({tuple(reoriented(picture, way).flatten().tolist()) for way in range(DIHEDRAL)}) == DIHEDRAL
    whole = make(materials, crop=64).batch(np.arange(2), step_rng(0, 0))["images"]  # more than there is
    assert whole.shape == (2, 3, 32, 32)


def test_a_share_has_passed_through_the_vqgan(materials: Materials) -> None:
    task = make(materials, reconstructed=0.5, rounded=0.0)
    batch = task.batch(np.arange(4), step_rng(0, 0))
    assert batch["whole"].shape == (2, 3, 32, 32)
    small, targets = task.pairs(batch)
    plain = reduce(targets, 2)
    assert [torch.equal(a, b) for a, b in zip(small, plain, strict=True)] == [False, False, True, True]
    vqgan = materials.need(VQGAN)
    for row, (top, left) in enumerate(batch["corners"].tolist()):
        assert torch.equal(
            targets[row] * 255, batch["whole"][row, :, 2 * top : 2 * top + 16, 2 * left : 2 * left + 16].float()
        )
        seen = reduce(batch["whole"][row][None].float() / 255, 2)
        made = vqgan.decode(vqgan.quantize(vqgan.encode(seen))[0]).clamp(0, 1)
        torch.testing.assert_close(small[row], made[0, :, top : top + 8, left : left + 8], atol=1e-4, rtol=0)


def test_half_of_the_preview_has_passed_through_the_vqgan(materials: Materials) -> None:
    plain, mixed = (make(materials, reconstructed=share) for share in (0.0, 0.5))
    sheets = [np.asarray(task.preview(task.upscaler)) for task in (plain, mixed)]
    differs = (sheets[0] != sheets[1]).any((0, 2))  # (width,)
    assert not differs[: len(differs) // 2].any()
    assert differs[len(differs) // 2 :].any()


def test_a_step_in_parts_has_the_share_that_has_passed_through_the_vqgan(materials: Materials, tmp_path: Path) -> None:
    """One picture among four, of which each part has one."""
    recipe = replace(RECIPE, reconstructed=0.25, adversarial=0.0)
    parts = check_parts(StagePlan("upscaler", recipe, LOOP), materials, tmp_path, 4)
    assert [len(part["whole"]) for part in parts] == [1, 0, 0, 0] * 2


def test_the_discriminator_joins_in_late(materials: Materials, tmp_path: Path) -> None:
    plan = StagePlan("upscaler", replace(RECIPE, reconstructed=0.25), LOOP)
    trained = run_stage(plan, materials, tmp_path / "run")
    assert isinstance(trained, Upscaler)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert ["discriminator_loss" in line for line in lines] == [False, True, True]
    assert {"psnr", "gain", "perceptual", "generator"} <= set(lines[-1])
    sheet = Image.open(next((tmp_path / "run" / "previews").iterdir()))
    assert sheet.width / sheet.height == pytest.approx(6 / 4, rel=0.1)
    assert trained.last_layer.abs().max() > 0


def test_a_stopped_run_ends_at_the_same_bits(materials: Materials, tmp_path: Path) -> None:
    plan = StagePlan("upscaler", replace(RECIPE, reconstructed=0.25), LOOP)
    whole = run_stage(plan, materials, tmp_path / "whole")

    class Stopped(Exception):
        pass

    saved = 0

    def stop() -> None:
        nonlocal saved
        saved += 1
        if saved == 2:  # at step 4, the discriminator having joined in at step 3
            raise Stopped

    with pytest.raises(Stopped):
        run_stage(plan, materials, tmp_path / "broken", saved=stop)
    torch.manual_seed(99)
    resumed = run_stage(plan, materials, tmp_path / "broken", resume=True)
    for (name, ours), theirs in zip(resumed.state_dict().items(), whole.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs), name


def test_the_target_is_what_the_source_has(shapes: Path, tmp_path: Path) -> None:
    data = load_captioned(SourceConfig(str(shapes)).open(), 16, tmp_path)  # pictures of 32 pixels
    assert [fitting_target(data, size, 2) for size in (8, 16, 24, 64)] == [16, 32, 32, 32]
    assert [fitting_target(data, size, 4) for size in (8, 16)] == [32, 32]
    write_shapes(tmp_path / "tiny", 3, size=10, objects=1)
    tiny = load_captioned(SourceConfig(str(tmp_path / "tiny")).open(), 16, tmp_path)
    assert fitting_target(tiny, 64, 2) == 16


def test_the_stage_takes_its_pictures_at_its_own_size(shapes: Path, tmp_path: Path) -> None:
    small = load_captioned(SourceConfig(str(shapes)).open(), 16, tmp_path / "cache")
    plan = StagePlan("upscaler", replace(RECIPE, perceptual=0.0), LOOP)
    run_stage(plan, Materials(small, {"clip": micro_tokenizer()}), tmp_path / "run")
    assert small.pixels.pixels.shape[1] == 16
    with pytest.raises(TrainingError, match=r"the pictures are 16 pixels wide, but recipe\.target_size is 32"):
        make(Materials(small, {"clip": micro_tokenizer()}, {"clip": micro_clip()}))


def test_the_pixel_loss_is_the_absolute_error() -> None:
    made, targets = torch.tensor([0.0, 0.5, 1.0]), torch.tensor([0.0, 0.25, 0.5])
    assert charbonnier(made, targets) == pytest.approx(0.25, abs=1e-3)


def test_sizes_that_do_not_fit_are_refused(materials: Materials) -> None:
    plan = StagePlan("upscaler", RECIPE, LOOP)
    other = make_network(replace(plan, recipe=replace(RECIPE, scale=4)), materials)
    with pytest.raises(TrainingError, match=r"recipe\.scale is 2, but the upscaler to start from has 4"):
        make_task(plan, materials, other)
    with pytest.raises(TrainingError, match=r"small pictures of 2 pixels do not fit the VQGAN's 4 pixels a code"):
        UpscalerTask(
            Upscaler.from_config(Upscaler.config_class(scale=2, width=8, blocks=0)),
            replace(RECIPE, target_size=4),
            Captioned(
                materials.data.source, replace(materials.data.pixels, pixels=np.zeros((40, 4, 4, 3))), np.zeros(40)
            ),
            4,
            vqgan=micro_vqgan(),
        )
    with pytest.raises(TrainingError, match="this stage needs the vqgan of an earlier one"):
        make(replace(materials, models={"clip": micro_clip()}), reconstructed=0.5)
    values = {"stage": "upscaler", "recipe": {"target_size": 33}, "loop": {"steps": 1, "batch_size": 1}}
    with pytest.raises(TrainingError, match="target_size 33 is not a multiple of the scale 2"):
        plan_from_dict(values, "r.yaml")
    with pytest.raises(TrainingError, match=r"recipe\.scale"):
        plan_from_dict({**values, "recipe": {"scale": 3}}, "r.yaml")


def test_the_command_trains_one_and_goes_on_from_it(
    shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = {
        "width": 8, "blocks": 1, "target_size": 16, "crop": 8, "reconstructed": 0.5,
        "discriminator_channels": 8, "discriminator_layers": 1,
    }  # fmt: skip
    values = {"stage": "upscaler", "source": {"source": str(shapes)}, "recipe": recipe}
    file = tmp_path / "upscaler.yaml"
    file.write_text(yaml.safe_dump({**values, "loop": {"steps": 2, "batch_size": 2, "threads": 1}}))
    pack = write_micro_pack(tmp_path / "pack")
    given = ["train", "upscaler", str(file), "--clip", str(pack), "--vqgan", str(pack)]
    assert command([*given, "--out", str(tmp_path / "run"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["stages"]["upscaler"]["steps"] == 2
    assert command([*given, "--from", str(tmp_path / "run"), "--out", str(tmp_path / "more")]) == 0
    assert command(["train", "upscaler", str(file), "--out", str(tmp_path / "none")]) == 1
    assert "needs the" in capsys.readouterr().err


def test_a_pack_keeps_its_upscaler(tmp_path: Path) -> None:
    model = Upscaler(Upscaler.config_class(width=8, blocks=1))
    pack = open_pack(write_micro_pack(tmp_path / "pack", upscaler=model))
    assert pack.has("upscaler")
    assert pack.upscaler.config == model.config
    without = open_pack(write_micro_pack(tmp_path / "without"))
    assert pack.hash == without.hash  # pictures of old stay what they were
    assert pack.hash_of("upscaler") != pack.hash
    with pytest.raises(PackError, match="'micro' has no upscaler: train one with codebrush train upscaler"):
        _ = without.upscaler
    (tmp_path / "pack" / "upscaler" / "config.json").write_text("{}[")
    with pytest.raises(PackError, match="is damaged"):
        open_pack(tmp_path / "pack")
