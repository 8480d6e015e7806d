"""A translator learns from pairs of the same thing: here the same scenes in two palettes."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import ImageOps
from stopped_runs import run_in_two

from codebrush import Codebrush
from codebrush.cli.main import run as command
from codebrush.data.synthetic.shapes import scene
from codebrush.errors import DataError, TrainingError
from codebrush.models.translator import Translator, TranslatorConfig
from codebrush.text.tokenizer import Tokenizer
from codebrush.training.dataset import SourceConfig, load_captioned
from codebrush.training.engine.loop_config import LoopConfig
from codebrush.training.packs.pack_training import train_pack
from codebrush.training.packs.request import PackRequest
from codebrush.training.run_stage import make_network, make_task, run_stage
from codebrush.training.stage import Materials, StagePlan
from codebrush.training.tasks.translator import TranslatorRecipe
from micro_models import CLIP_RECIPE, SIZE, TRANSFORMER_RECIPE, VQGAN_RECIPE
from packs import micro_clip, write_micro_pack

RECIPE = TranslatorRecipe(channels=8, multipliers=(1, 2, 2), learning_rate=3e-3)
LOOP = LoopConfig(steps=80, batch_size=8, warmup=5, ema_decay=0.9, threads=1, log_every=10, checkpoint_every=40)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixteen scenes as they are and with their colours turned to the opposite, and one alone."""
    place = tmp_path_factory.mktemp("pairs")
    rows = []
    for number in range(17):
        drawn = scene(0, number, 32, objects=1)
        looks = {"plain": drawn.image, "opposite": ImageOps.invert(drawn.image)}
        for style, image in list(looks.items())[: 1 if number == 16 else 2]:
            image.save(place / f"{number}-{style}.png")
            cells = {"thing": f"t{number}", "style": style, "label": drawn.caption}
            rows.append({"file_name": f"{number}-{style}.png", **cells})
    (place / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return place


@pytest.fixture(scope="module")
def materials(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Materials:
    torch.manual_seed(0)
    source = SourceConfig(str(folder), captions=("{label}",), group="thing")
    data = load_captioned(source.open(), 32, tmp_path_factory.mktemp("cache"))
    tokenizer = Tokenizer.wordpiece()
    return Materials(data, {"clip": tokenizer}, {"clip": micro_clip(tokenizer.vocab_size).requires_grad_(False)})


def test_a_batch_holds_pairs_of_the_same_thing(materials: Materials) -> None:
    plan = StagePlan("translator", RECIPE, LOOP)
    task = make_task(plan, materials, make_network(plan, materials))
    assert task.examples == 32  # the scene without a partner is left out
    batch = task.batch(np.arange(32), np.random.default_rng(0))
    apart = (255 - batch["images"].int() - batch["wanted"].int()).abs().max()
    assert int(apart) == 0  # the opposite of each
    assert set(batch["styles"].tolist()) == {0, 1}


@pytest.mark.slow
def test_it_comes_nearer_than_a_copy(materials: Materials, tmp_path: Path) -> None:
    trained = run_stage(StagePlan("translator", RECIPE, LOOP), materials, tmp_path / "run")
    assert isinstance(trained, Translator)
    assert trained.config.styles == ("opposite", "plain")
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["gain"] > 3  # dB over the picture as it was


def test_a_resumed_run_ends_at_the_same_bits(materials: Materials, tmp_path: Path) -> None:
    plan = StagePlan("translator", RECIPE, replace(LOOP, steps=6, log_every=2, checkpoint_every=3))
    whole = run_stage(plan, materials, tmp_path / "whole")
    again = run_in_two(plan, materials, tmp_path / "part", stop_after=3)
    for name, value in whole.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name


def test_wrong_sources_are_one_line(materials: Materials, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"recipe\.style_column is look; there are"):
        make_network(StagePlan("translator", replace(RECIPE, style_column="look"), LOOP), materials)
    alone = load_captioned(SourceConfig(str(folder), captions=("{label}",), group="file_name").open(), 32, tmp_path)
    plan, lonely = StagePlan("translator", RECIPE, LOOP), replace(materials, data=alone)
    with pytest.raises(TrainingError, match="no two rows of a group have different styles"):
        make_task(plan, lonely, make_network(plan, lonely))
    one = SourceConfig(str(folder), where=("style == plain",), captions=("{label}",), group="thing")
    single = replace(materials, data=load_captioned(one.open(), 32, tmp_path))
    with pytest.raises(TrainingError, match="fewer than two styles"):
        make_network(plan, single)


def test_a_start_that_does_not_know_a_style_is_refused(materials: Materials) -> None:
    start = Translator(TranslatorConfig(("plain", "round"), 8, (1, 2, 2)))
    with pytest.raises(TrainingError, match="does not know the style 'opposite'"):
        make_task(StagePlan("translator", RECIPE, LOOP), materials, start)


def test_the_command_trains_one_and_a_pack_translates_with_it(folder: Path, tmp_path: Path) -> None:
    pack = write_micro_pack(tmp_path / "bare")
    recipe = {"recipe": {"channels": 8, "multipliers": [1, 2]}, "loop": {"steps": 2, "batch_size": 4, "threads": 1}}
    source = {"captions": ["{label}"], "group": "thing"}
    (tmp_path / "translator.yaml").write_text(yaml.safe_dump({"stage": "translator", "source": source, **recipe}))
    given = ["translator", str(tmp_path / "translator.yaml"), "--source", str(folder), "--clip", str(pack)]
    assert command(["train", *given, "--out", str(tmp_path / "run")]) == 0
    model = Translator.from_pretrained(tmp_path / "run" / "model")
    assert any((tmp_path / "cache").glob("pixels-32-*"))  # the size of the pack's pictures
    torch.nn.init.normal_(model.last_convolution.weight, std=0.1)
    brush = Codebrush.from_pretrained(write_micro_pack(tmp_path / "pack", translator=model), device="cpu")
    (done,) = brush.translate(folder / "1-plain.png", "opposite")
    assert done.image.size == (32, 32)
    assert done.manifest["translator"] == brush.pack.hash_of("translator")
    assert brush.replay(done.manifest).image.tobytes() == done.image.tobytes()


def test_a_recipe_can_name_the_size_of_its_pictures(folder: Path, tmp_path: Path) -> None:
    pack = write_micro_pack(tmp_path / "pack")
    recipe = {"image_size": 48, "channels": 8, "multipliers": [1, 2]}
    whole = {"stage": "translator", "source": {"captions": ["{label}"], "group": "thing"}, "recipe": recipe}
    whole["loop"] = {"steps": 1, "batch_size": 4, "threads": 1}
    (tmp_path / "translator.yaml").write_text(yaml.safe_dump(whole))
    given = ["translator", str(tmp_path / "translator.yaml"), "--source", str(folder), "--clip", str(pack)]
    assert command(["train", *given, "--out", str(tmp_path / "run")]) == 0
    assert [cache.name.split("-")[1] for cache in (tmp_path / "cache").glob("pixels-*.npy")] == ["48"]


def test_a_pack_is_as_large_as_its_vqgan_draws_whatever_its_translator_learned_from(
    folder: Path, tmp_path: Path
) -> None:
    recipes = {
        "clip": CLIP_RECIPE,
        "vqgan": VQGAN_RECIPE,
        "transformer": TRANSFORMER_RECIPE,
        "translator": replace(RECIPE, image_size=16),
    }
    loop = LoopConfig(steps=1, batch_size=4, threads=1)
    plans = {stage: StagePlan(stage, recipe, loop) for stage, recipe in recipes.items()}
    source = SourceConfig(str(folder), captions=("{label}",), group="thing")
    request = PackRequest(source=source, out=tmp_path / "pack", plans=plans, threads=1)
    train_pack(request, lambda _: None, lambda *_: None)
    brush = Codebrush.from_pretrained(tmp_path / "pack", device="cpu")
    assert brush.pack.image_size == brush.vqgan.config.image_size == SIZE
    assert brush.translate(folder / "1-plain.png", "opposite")[0].image.size == (SIZE, SIZE)
    sizes = {cache.name.split("-")[1] for cache in tmp_path.rglob("pixels-*.npy")}
    assert sizes <= {"16", str(SIZE)}
