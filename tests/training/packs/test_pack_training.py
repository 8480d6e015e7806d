"""`train_pack`: from a folder of captioned pictures to a pack that draws, by recipes or within a budget."""

import json
import os
import re
import shutil
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from multiprocessing.context import ForkServerContext
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from micro_plans import BUDGET, LOOP, PLANS, request
from PIL import Image
from torch.optim.optimizer import register_optimizer_step_post_hook

from codebrush.data.synthetic.scene_folder import write_shapes
from codebrush.errors import CodebrushError, TrainingError, UsageError
from codebrush.files import held_alone
from codebrush.pack.pack import open_pack
from codebrush.pipeline import Codebrush
from codebrush.previews import draw_preview
from codebrush.training.dataset import SourceConfig, load_captioned
from codebrush.training.packs.pack_training import train_pack
from codebrush.training.packs.request import PackRequest
from codebrush.training.recipes import read_recipes
from codebrush.training.run_folder import has_begun
from codebrush.training.stage import ModelSize, StagePlan
from codebrush.training.tasks.prior import PriorRecipe
from codebrush.training.tasks.upscaler import UpscalerRecipe


def test_recipes_make_a_pack_that_draws(pack):
    out, report, _ = pack
    assert report["pack"] == str(out)
    assert [report["stages"][stage]["steps"] for stage in ("clip", "vqgan", "transformer")] == [4, 4, 4]
    first, second = Codebrush.from_pretrained(out).generate("a red circle", n=2, rerank=2)
    assert first.image.size == (16, 16)
    assert first.score >= second.score
    for stage, network in (("clip", open_pack(out).clip), ("vqgan", open_pack(out).vqgan)):
        assert report["stages"][stage]["parameters"] == sum(part.numel() for part in network.parameters())


def test_a_pack_records_what_it_was_made_of(pack, shapes: Path):
    out, report, _ = pack
    info = open_pack(out).info
    assert (info["name"], info["licence"], info["image_size"]) == ("micro", "CC0-1.0", 16)
    made = info["provenance"]
    assert made["source"] == shapes.name
    assert made["data_sha256"] == SourceConfig(str(shapes)).open().fingerprint
    assert made["plans"]["vqgan"]["recipe"]["codebook_size"] == 32
    assert made["stages"] == report["stages"]


def test_the_work_stays_beside_the_pack_with_previews_of_what_is_drawn(pack):
    out, report, _ = pack
    assert report["work"] == f"{out}.work"
    previews = {path.relative_to(report["work"]).parts[0] for path in Path(report["work"]).rglob("previews/*.png")}
    assert previews == {"vqgan", "transformer"}


def test_a_finished_pack_is_not_trained_again_by_accident(pack, shapes: Path, tmp_path: Path):
    out = tmp_path / "micro"
    for suffix in ("", ".work"):
        shutil.copytree(f"{pack[0]}{suffix}", f"{out}{suffix}")
    with pytest.raises(TrainingError, match=r"micro\.work holds an earlier training: add --resume"):
        train_pack(request(shapes, out), lambda text: None)
    before = open_pack(out).hash
    train_pack(request(shapes, out, resume=True, keep_work=False), lambda text: None)
    assert open_pack(out).hash == before
    assert [path.name for path in tmp_path.iterdir()] == ["micro"]  # the work is gone
    for resume in (False, True):
        with pytest.raises(TrainingError, match="micro is a finished pack: name another folder with --out, or delete"):
            train_pack(request(shapes, out, resume=resume), lambda text: None)


def test_a_pack_has_sheets_and_curves_and_is_judged(pack):
    out, report, _ = pack
    assert report["sheets"] == [str(out / "reconstructions.png"), str(out / "samples.png")]
    for sheet in report["sheets"]:
        with Image.open(sheet) as image:
            assert min(image.size) > 96
    curve = [json.loads(line) for line in (out / "training" / "vqgan.jsonl").read_text().splitlines()]
    assert curve[-1]["step"] == 4
    measured = open_pack(out).info["provenance"]["measured"]
    assert (measured["psnr"], measured["verdict"]) == (report["psnr"], report["verdict"])
    assert report["verdict"][0].startswith(f"reconstruction {report['psnr']:.1f} dB: expect")
    assert "its code transformer saw 16 pictures" in report["verdict"][1]


def train_and_die(given: PackRequest, cache: str, at: str) -> None:
    """A process of its own that is killed when it says that the stage `at` begins."""
    torch.set_num_threads(1)
    datasets.config.HF_DATASETS_CACHE = Path(cache)

    def say(text: str) -> None:
        if text.startswith(f"{at}:"):
            os.kill(os.getpid(), signal.SIGKILL)

    train_pack(given, say, draw_preview)
    sys.exit(0)


@pytest.mark.parametrize("at", ["vqgan", "transformer"])
def test_a_training_killed_between_stages_ends_at_the_same_pack(
    at: str, pack, shapes: Path, tmp_path: Path, processes: ForkServerContext, datasets_cache: Path
):
    given = request(shapes, tmp_path / "micro")
    process = processes.Process(target=train_and_die, args=(given, str(datasets_cache), at))
    process.start()
    process.join(300)
    assert process.exitcode == -signal.SIGKILL
    assert not (tmp_path / "micro").exists()
    said: list[str] = []
    train_pack(replace(given, resume=True), said.append, draw_preview)
    assert open_pack(tmp_path / "micro").hash == open_pack(pack[0]).hash


def train_and_die_after_a_checkpoint(given: PackRequest, cache: str, clock: Path) -> None:
    """A process of its own that is killed in the step after the first checkpoint of the VQGAN."""
    torch.set_num_threads(1)
    datasets.config.HF_DATASETS_CACHE = Path(cache)

    def die(*_: object) -> None:
        if clock.exists() and "vqgan" in json.loads(clock.read_text()):
            os.kill(os.getpid(), signal.SIGKILL)

    register_optimizer_step_post_hook(die)
    train_pack(given, lambda text: None)
    sys.exit(0)


def test_the_time_of_a_killed_stage_counts_and_that_of_finished_ones_stays(
    shapes: Path, tmp_path: Path, processes: ForkServerContext, datasets_cache: Path
):
    plans = {stage: replace(plan, loop=replace(LOOP, checkpoint_every=1)) for stage, plan in PLANS.items()}
    given = request(shapes, tmp_path / "micro", plans=plans)
    clock = tmp_path / "micro.work" / "clock.json"
    process = processes.Process(target=train_and_die_after_a_checkpoint, args=(given, str(datasets_cache), clock))
    process.start()
    process.join(300)
    assert process.exitcode == -signal.SIGKILL
    seen = json.loads(clock.read_text())
    assert seen["clip"] > 0
    assert seen["vqgan"] > 0
    assert "transformer" not in seen
    clock.write_text(json.dumps({**seen, "clip": 1000.0, "vqgan": 2000.0}))
    report = train_pack(replace(given, resume=True), lambda text: None)
    assert report["stages"]["clip"]["seconds"] == 1000.0
    assert 2000.0 < report["stages"]["vqgan"]["seconds"] < 2060
    assert 3000 < report["seconds"] < 3060


def test_the_steps_that_were_run_are_reported(shapes: Path, tmp_path: Path):
    plans = {stage: replace(plan, loop=replace(LOOP, stop_after=3)) for stage, plan in PLANS.items()}
    plans["clip"] = replace(PLANS["clip"], loop=replace(LOOP, stop_after=30))
    report = train_pack(request(shapes, tmp_path / "micro", plans=plans), lambda text: None)
    assert [figures["steps"] for figures in report["stages"].values()] == [4, 3, 3]
    assert [figures["metrics"]["step"] for figures in report["stages"].values()] == [4, 3, 3]


def test_a_resumed_training_refuses_another_request(shapes: Path, tmp_path: Path):
    given = request(shapes, tmp_path / "micro")
    train_pack(given, lambda text: None)
    with pytest.raises(UsageError, match="--seed is 1 but was 0"):
        train_pack(replace(given, resume=True, seed=1), lambda text: None)


def test_a_pack_is_where_another_training_starts(pack, shapes: Path, tmp_path: Path):
    gentle = {stage: replace(plan, recipe=replace(plan.recipe, learning_rate=1e-5)) for stage, plan in PLANS.items()}
    train_pack(request(shapes, tmp_path / "second", plans=gentle, start=pack[0]), lambda text: None)
    first, second = open_pack(pack[0]), open_pack(tmp_path / "second")
    for member in ("clip", "vqgan", "transformer"):
        weights = zip(getattr(first, member).parameters(), getattr(second, member).parameters(), strict=True)
        moves = [(theirs - ours).abs().max().item() for theirs, ours in weights]
        assert 0 < max(moves) < 1e-3  # fresh weights would lie a hundred times as far away


def test_a_budget_is_kept_and_a_pack_to_start_from_decides_the_sizes(
    pack, shapes: Path, tmp_path: Path, clock: Callable[[], float]
):
    started, said = clock(), []
    given = request(shapes, tmp_path / "second", plans={}, budget=BUDGET, start=pack[0], image_size=None)
    started -= 2.0  # what the start of the process took is a part of it
    report = train_pack(given, said.append, began=started)
    assert 0.85 * BUDGET < clock() - started <= BUDGET
    assert list(report["left_out"]) == ["prior", "captioner", "upscaler"]
    planned = {line.split()[0]: line.split(maxsplit=1)[1] for line in said if line.startswith("  ")}
    for stage in ("clip", "vqgan", "transformer"):
        assert re.fullmatch(r"about \d+ s, from micro", planned[stage])
    for stage in ("prior", "captioner", "upscaler"):
        assert planned[stage] == f"left out: {report['left_out'][stage]}"
    assert report["seconds"] == pytest.approx(clock() - started, abs=0.1)
    first, second = open_pack(pack[0]), open_pack(tmp_path / "second")
    assert (second.image_size, second.tokenizer.vocab_size) == (16, first.tokenizer.vocab_size)
    for member in ("clip", "vqgan", "transformer"):
        assert report["stages"][member]["steps"] > 1
        made, began = getattr(second, member).config, getattr(first, member).config
        if member == "transformer":  # which also learns to edit
            assert (made.image_embedding, made.source_codes, made.aligned_source) == (8, True, True)
            made = replace(made, image_embedding=0, source_codes=False, aligned_source=False)
        assert made == began


def test_pictures_that_cannot_be_read_are_named_and_counted(tmp_path: Path):
    write_shapes(tmp_path / "shapes", 12, size=16, objects=1)
    (tmp_path / "shapes" / "images" / "000003.png").write_bytes(b"no picture")
    (tmp_path / "shapes" / "images" / "000007.png").write_bytes(b"")
    said: list[str] = []
    report = train_pack(request(tmp_path / "shapes", tmp_path / "micro"), said.append)
    assert report["skipped"] == 2
    assert said[0].startswith("10 pictures with captions")
    assert [each for each in said if "images/000003.png" in each]
    assert [each for each in said if each == "2 unreadable pictures left out"]


@pytest.mark.slow
def test_recipes_may_end_with_an_upscaler(shapes: Path, tmp_path: Path, clock: Callable[[], float]):
    recipe = UpscalerRecipe(
        width=8, blocks=1, target_size=32, crop=8, reconstructed=0.5, discriminator_channels=8, discriminator_layers=1
    )
    plans = {**PLANS, "upscaler": StagePlan("upscaler", recipe, LOOP)}
    said: list[str] = []
    report = train_pack(request(shapes, tmp_path / "micro", plans=plans), said.append)
    pack = open_pack(tmp_path / "micro")
    assert list(report["stages"]) == ["clip", "vqgan", "transformer", "upscaler"]
    assert said[-1] == "upscaler: 4 steps of 4 pictures, from nothing"
    assert (pack.image_size, pack.upscaler.config.width) == (16, 8)
    assert pack.info["provenance"]["plans"]["upscaler"]["recipe"]["target_size"] == 32
    second = train_pack(
        request(shapes, tmp_path / "second", plans={}, budget=BUDGET, start=tmp_path / "micro", image_size=None), print
    )
    assert [second["stages"][stage]["from"] for stage in ("clip", "vqgan", "transformer")] == ["micro"] * 3
    assert "upscaler" in second["left_out"]  # so that of the start is taken as it is
    assert open_pack(tmp_path / "second").upscaler.config == pack.upscaler.config
    assert not pack.has("bank")
    drawn = Codebrush.from_pretrained(tmp_path / "second").generate("a red circle", 1, method="retrieve", rerank=1)
    assert drawn[0].manifest["retrieval"]["found"]  # what was taught to read pictures has a bank of them


def test_a_transformer_that_reads_pictures_comes_with_a_bank_and_a_prior(shapes: Path, tmp_path: Path):
    shares = {"image_share": 0.25, "hole_share": 0.25, "pair_share": 0.25, "pair_captions": ("on {background}",)}
    reads = replace(PLANS["transformer"].recipe, **shares)  # pyright: ignore
    plans = {**PLANS, "transformer": replace(PLANS["transformer"], recipe=reads)}
    plans["prior"] = StagePlan("prior", PriorRecipe(width=16, layers=1), LOOP)
    report = train_pack(request(shapes, tmp_path / "micro", plans=plans), print)
    assert list(report["stages"]) == ["clip", "vqgan", "transformer", "prior"]
    brush, pack = Codebrush.from_pretrained(tmp_path / "micro"), open_pack(tmp_path / "micro")
    known = load_captioned(SourceConfig(str(shapes)).open(), 16, tmp_path / "cache")
    assert pack.bank.config.names == tuple(known.captions(row)[0] for row in range(len(known)))
    seen = brush.clip.encode_image(known.images(np.arange(len(known))).float() / 255)
    torch.testing.assert_close(F.normalize(pack.bank.embeddings, dim=-1), seen, atol=0.02, rtol=0)  # 8 bits a number
    assert pack.info["translation"]["text"] == "on {style}"
    assert pack.info["translation"]["styles"] == sorted(
        {known.source.row(row)["background"] for row in known.pixels.rows}
    )
    by_prior = brush.generate("a red circle", 1, method="retrieve", prior="mlp", rerank=1)
    assert by_prior[0].image.size == (16, 16)
    assert brush.vary(known.source.image(0), n=1, rerank=1)[0].image.size == (16, 16)
    assert brush.edit(known.source.image(0), "a red circle", n=1, rerank=1, box=(2, 2, 6, 6))[0].image.size == (32, 32)


def test_recipes_of_a_folder_become_plans(tmp_path: Path):
    for stage, plan in PLANS.items():
        source = {"split": "train", "captions": ["a {label}"], "limit": 7}
        loop = {"steps": plan.loop.steps, "batch_size": 4}
        (tmp_path / f"{stage}.yaml").write_text(yaml.safe_dump({"stage": stage, "source": source, "loop": loop}))
    rows, plans = read_recipes(tmp_path, SourceConfig("pictures", limit=5))
    assert rows == SourceConfig("pictures", split="train", captions=("a {label}",), limit=5)
    assert {stage: plan.stage for stage, plan in plans.items()} == {stage: stage for stage in PLANS}
    weighted = {"stage": "vqgan", "source": {"weight": "often"}, "loop": {"steps": 1, "batch_size": 4}}
    (tmp_path / "vqgan.yaml").write_text(yaml.safe_dump(weighted))
    with pytest.raises(TrainingError, match=r"vqgan\.yaml: source\.weight is for training a single stage"):
        read_recipes(tmp_path, SourceConfig("pictures"))
    (tmp_path / "vqgan.yaml").unlink()
    with pytest.raises(TrainingError, match=r"vqgan\.yaml: there is no such recipe"):
        read_recipes(tmp_path, SourceConfig("pictures"))


def test_without_recipe_and_budget_there_is_nothing_to_do(shapes: Path, tmp_path: Path):
    with pytest.raises(TrainingError, match="no recipe for the stage clip: add one, or give a --budget"):
        train_pack(request(shapes, tmp_path / "micro", plans={}), lambda text: None)


def test_a_wrong_request_can_be_made_right(shapes: Path, tmp_path: Path):
    out = tmp_path / "micro"
    with pytest.raises(UsageError, match="--image-size 20 is not a multiple of 8"):
        train_pack(request(shapes, out, image_size=20), lambda text: None)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(TrainingError, match="--tokenizer 'letters' is unknown: use wordpiece or bpe"):
        train_pack(request(shapes, out, tokenizer="letters"), lambda text: None)
    assert not has_begun(tmp_path / "micro.work" / "clip")
    train_pack(request(shapes, out), lambda text: None)
    assert open_pack(out).name == "micro"


def test_a_folder_with_other_things_is_left_alone(shapes: Path, tmp_path: Path):
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "diary.txt").write_text("dear diary")
    with pytest.raises(TrainingError, match="is not empty and not a pack: name another folder"):
        train_pack(request(shapes, tmp_path / "notes"), lambda text: None)


@pytest.mark.long  # the smallest sizes of a fresh pack are large beside micro ones
def test_a_budget_makes_a_pack_that_draws(
    shapes: Path, tmp_path: Path, clock: Callable[[], float], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(ModelSize, "least", lambda size, started: 2 * size.batch_size)  # the real ones take 300 steps
    started = clock()
    given = request(shapes, tmp_path / "timed", plans={}, budget=BUDGET, tokenizer="wordpiece", image_size=32)
    report = train_pack(given, print, draw_preview)
    steps = {stage: figures["steps"] for stage, figures in report["stages"].items()}
    print(f"budget {BUDGET} s, took {clock() - started:.1f} s: {steps}")
    assert 0.85 * BUDGET < clock() - started <= BUDGET
    assert min(steps[stage] for stage in ("clip", "vqgan", "transformer")) > 1
    (drawn,) = Codebrush.from_pretrained(tmp_path / "timed").generate("a red circle", n=1, rerank=1)
    assert drawn.image.size == (32, 32)


def test_two_processes_do_not_train_into_one_folder(shapes: Path, tmp_path: Path):
    given = request(shapes, tmp_path / "micro")
    with held_alone(tmp_path / "micro.work"):
        for resume in (False, True):
            with pytest.raises(CodebrushError, match=r"another process is at work in .*micro\.work: wait for it"):
                train_pack(replace(given, resume=resume), lambda text: None)
    assert not (tmp_path / "micro.work").exists()
    with (
        held_alone(tmp_path / "micro.work" / "vqgan"),
        pytest.raises(CodebrushError, match=r"another process is at work in .*vqgan"),
    ):
        train_pack(given, lambda text: None)
    train_pack(replace(given, resume=True), lambda text: None)
    assert (tmp_path / "micro" / "pack.json").is_file()
    assert not list(tmp_path.rglob(".*lock"))
