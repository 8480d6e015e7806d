"""Training from a start: a locked encoder stays as it is, a replayed set has its share of every batch, sizes follow."""

import json
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

from codebrush.cli.main import run as command
from codebrush.conversion.convert import convert
from codebrush.data.synthetic.scene_folder import write_shapes
from codebrush.errors import TrainingError
from codebrush.models.clip import CLIP, CLIPConfig
from codebrush.models.encoders.text_transformer import TextTransformerConfig
from codebrush.models.encoders.vision_transformer import VisionTransformerConfig
from codebrush.text.tokenizer import train_bpe
from codebrush.training.dataset import Joined, SourceConfig, load_captioned
from codebrush.training.engine.checkpoints import CHECKPOINT
from codebrush.training.engine.loop import Loop
from codebrush.training.engine.loop_config import LoopConfig
from codebrush.training.engine.rows import ShuffledRows
from codebrush.training.fine_tuning import ReplayedRows, replayed_rows
from codebrush.training.recipes import read_recipe
from codebrush.training.registry import STAGES
from codebrush.training.run_folder import read_plan
from codebrush.training.run_stage import make_task, run_stage
from codebrush.training.stage import Materials, StagePlan
from codebrush.training.tasks.clip import CLIPRecipe, make_clip

RECIPE = CLIPRecipe(
    image_size=32, image="resnet", width=8, blocks=(1, 1, 1, 1), heads=2, text_width=16, text_layers=1, text_heads=2,
    embed_dim=8, token_table=False, dropout=0.1,
)  # fmt: skip
LOOP = LoopConfig(
    steps=6, batch_size=8, warmup=1, ema_decay=0.5, threads=1, log_every=2, checkpoint_every=100, preview_every=0
)


@pytest.fixture(scope="module")
def materials(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Materials:
    """Forty scenes to learn and thirteen to replay."""
    folder = tmp_path_factory.mktemp("sets")
    write_shapes(folder / "general", 13, size=32, seed=9, objects=1)
    data, replay = (
        load_captioned(SourceConfig(str(place)).open(), 32, folder) for place in (shapes, folder / "general")
    )
    tokenizer = train_bpe([caption for row in range(len(data)) for caption in data.captions(row)])
    return Materials(data, {"clip": tokenizer}, replay=replay)


@pytest.fixture(scope="module")
def start(materials: Materials) -> CLIP:
    torch.manual_seed(5)
    return make_clip(RECIPE, materials.tokenizer)


def saved_start(start: CLIP, materials: Materials, folder: Path) -> Path:
    start.save_pretrained(folder)
    materials.tokenizer.save(folder)
    return folder


def recipe_file(folder: Path, **changes) -> Path:
    """The recipe above as YAML."""
    recipe = {name: list(value) if isinstance(value, tuple) else value for name, value in vars(RECIPE).items()}
    del recipe["augmentation"]
    recipe |= changes.pop("recipe", {})
    path = folder / "clip.yaml"
    path.write_text(yaml.safe_dump({"stage": "clip", "recipe": recipe, "loop": vars(LOOP), **changes}))
    return path


@pytest.mark.parametrize(("lock", "other"), [("image", "text"), ("text", "image")])
def test_a_locked_encoder_keeps_every_bit_while_the_other_moves(lock, other, materials, start: CLIP, tmp_path: Path):
    plan = StagePlan("clip", replace(RECIPE, lock=lock), LOOP)
    before = {name: tensor.clone() for name, tensor in start.state_dict().items()}
    averaged = run_stage(plan, replace(materials, replay=None), tmp_path / "run", start=deepcopy(start)).state_dict()
    trained = torch.load(tmp_path / "run" / CHECKPOINT, weights_only=True)["network.clip"]
    for state in (averaged, trained):
        same = {name: torch.equal(tensor, before[name]) for name, tensor in state.items()}
        assert all(kept for name, kept in same.items() if name.startswith(f"{lock}_encoder"))
        assert not any(kept for name, kept in same.items() if name.startswith(f"{other}_encoder") and "weight" in name)
        assert not same["log_scale"]


def test_without_a_lock_both_move_with_their_running_statistics(materials: Materials, start: CLIP, tmp_path: Path):
    trained = run_stage(
        StagePlan("clip", RECIPE, LOOP), replace(materials, replay=None), tmp_path, start=deepcopy(start)
    )
    before = start.state_dict()
    moved = {name for name, tensor in trained.state_dict().items() if not torch.equal(tensor, before[name])}
    assert {"image_encoder.stem.1.running_mean", "text_encoder.projection.weight"} <= moved


def test_there_is_nothing_to_lock_without_a_start(materials: Materials, tmp_path: Path):
    with pytest.raises(TrainingError, match="the image encoder is untrained: name a start with --from"):
        run_stage(StagePlan("clip", replace(RECIPE, lock="image"), LOOP), materials, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_layers_far_from_the_output_move_less(materials: Materials, start: CLIP, tmp_path: Path):
    plan = StagePlan("clip", replace(RECIPE, layer_decay=0.1), replace(LOOP, steps=1, clip_norm=0.0, ema_decay=0.0))
    run_stage(plan, replace(materials, replay=None), tmp_path, start=deepcopy(start))
    trained = torch.load(tmp_path / CHECKPOINT, weights_only=True)["network.clip"]
    before = start.state_dict()
    moves = [
        (trained[name] - before[name]).abs().max().item()
        for name in ("image_encoder.stem.1.bias", "image_encoder.stages.2.0.norm3.bias", "image_encoder.pool.out.bias")
    ]  # the first step of Adam moves every number by the learning rate
    assert moves == pytest.approx([1e-8, 1e-5, 1e-3], rel=1e-2)


def test_every_step_sees_its_share_of_both_sets(materials: Materials):
    data = Joined(materials.data, materials.replay)
    count = replayed_rows(0.25, 8)
    assert count == 2
    drawn = ReplayedRows(data, count, 8, 3)
    steps = [drawn.of_step(step) for step in range(60)]
    assert all((rows >= 40).sum() == 2 for rows in steps)
    assert np.concatenate(steps).max() == len(data) - 1 == 52
    replayed = np.concatenate([rows[rows >= 40] for rows in steps])[:117]
    assert np.bincount(replayed)[40:].tolist() == [9] * 13  # nine epochs of thirteen
    new = np.concatenate([rows[rows < 40] for rows in steps])
    assert new.tolist() == np.concatenate([ShuffledRows(40, 6, 3).of_step(step) for step in range(60)]).tolist()
    assert all(np.array_equal(ReplayedRows(data, count, 8, 3).of_step(step), steps[step]) for step in (0, 17, 59))
    assert not np.array_equal(ReplayedRows(data, count, 8, 4).of_step(0), steps[0])


def test_sets_of_one_length_are_shuffled_differently(materials: Materials):
    rows = ReplayedRows(Joined(materials.data, materials.data), 20, 40, 0).of_step(0)
    assert rows[:20].tolist() != (rows[20:] - 40).tolist()


def test_joined_sets_keep_their_pictures_captions_and_groups(materials: Materials):
    new, replay = materials.data, materials.replay
    data = Joined(new, replay)
    images = data.images(np.array([45, 3, 40, 0]))
    assert torch.equal(images, torch.cat([replay.images([5]), new.images([3]), replay.images([0]), new.images([0])]))
    assert torch.equal(data.images(np.array([1, 2])), new.images([1, 2]))
    assert (data.captions(39), data.captions(40)) == (new.captions(39), replay.captions(0))
    assert data.groups.shape == (53,)
    assert not set(data.groups[:40]) & set(data.groups[40:])
    for part, whole in ((new.groups, data.groups[:40]), (replay.groups, data.groups[40:])):
        assert np.array_equal(part[:, None] == part, whole[:, None] == whole)


def replaying(materials: Materials, start: CLIP, folder: Path, stop_after: int | None = None) -> tuple[Loop, list[int]]:
    """A run with a replayed set, and how many of its rows each batch held."""
    plan = StagePlan("clip", replace(RECIPE, replay_share=0.25), LOOP)
    task, seen = make_task(plan, materials, deepcopy(start)), []
    make = task.batch
    task.batch = lambda rows, rng: (seen.append(int((rows >= 40).sum())), make(rows, rng))[1]
    folder.mkdir(exist_ok=True)
    loop = Loop(task, plan.loop, folder, hooks=STAGES["clip"].hooks(plan, materials, folder))
    loop.run(stop_after)
    return loop, seen


def test_a_replaying_run_that_is_resumed_is_the_run_in_one(materials: Materials, start: CLIP, tmp_path: Path):
    whole, seen = replaying(materials, start, tmp_path / "whole")
    assert set(seen) == {2}
    replaying(materials, start, tmp_path / "parts", stop_after=3)
    parts, _ = replaying(materials, start, tmp_path / "parts")
    for name, value in whole.ema.values.items():
        assert torch.equal(parts.ema.values[name], value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"recipe": {"replay_share": 0.25}}, "there is no replay: name its source"),
        (
            {"replay": {"source": "general"}},
            "recipe.replay_share 0.0 of loop.batch_size 8 leaves no row for the replay",
        ),
        ({"replay": {"source": "general"}, "recipe": {"replay_share": 0.97}}, "no row for the new pictures"),
        ({"recipe": {"lock": "both"}}, "recipe.lock"),
        ({"recipe": {"layer_decay": 0}}, "recipe.layer_decay"),
        ({"recipe": {"layer_decay": 1.1}}, "recipe.layer_decay"),
        ({"gate": {"source": {"source": "held-out"}, "limit": 2}}, "gate.limit"),
        ({"gate": {"source": {"source": "held-out"}, "action": "cry"}}, "gate.action"),
        ({"gate": {"limit": 0.1}}, "gate.source"),
        ({"stage": "vqgan", "recipe": {}, "replay": {"source": "general"}}, "replay"),
    ],
)
def test_fields_that_contradict_each_other_are_refused_in_one_line(changes: dict, message: str, tmp_path: Path):
    path = recipe_file(tmp_path, **changes)
    if "stage" in changes:
        path.write_text(yaml.safe_dump({**changes, "loop": vars(LOOP)}))
    with pytest.raises(TrainingError) as caught:
        read_recipe(path, source="pictures")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_recipe_with_a_replayed_set_trains_and_resumes(
    materials: Materials, start: CLIP, shapes: Path, tmp_path, capsys
):
    general = materials.replay.source.origin
    path = recipe_file(tmp_path, recipe={"replay_share": 0.5}, replay={"source": general})
    given = ["train", "clip", str(path), "--source", str(shapes), "--out", str(tmp_path / "run"), "--json"]
    given += ["--from", str(saved_start(start, materials, tmp_path / "start"))]
    assert command(given) == 0
    plan = read_plan(tmp_path / "run")
    assert plan.replay == SourceConfig(general)
    assert plan.facts["replay_sha256"] == materials.replay.source.fingerprint
    capsys.readouterr()
    (tmp_path / "run" / "model").rename(tmp_path / "gone")
    values = json.loads((tmp_path / "run" / "stage.json").read_text())
    (tmp_path / "run" / "stage.json").write_text(json.dumps({**values, "replay": {"source": str(shapes)}}))
    assert command([*given[:-2], "--resume"]) == 1
    assert "began with other pictures or captions" in capsys.readouterr().err


def test_the_size_of_the_start_counts_and_not_the_recipe_s(
    materials: Materials, start: CLIP, shapes: Path, tmp_path, capsys
):
    path = recipe_file(tmp_path, recipe={"image_size": 64, "width": 16, "text_layers": 3})
    given = ["train", "clip", str(path), "--source", str(shapes), "--out", str(tmp_path / "run")]
    assert command([*given, "--from", str(saved_start(start, materials, tmp_path / "start"))]) == 0
    assert "pictures are 32 x 32, as the CLIP of --from reads them" in capsys.readouterr().err
    assert read_plan(tmp_path / "run").recipe.image_size == 32
    assert CLIP.from_pretrained(tmp_path / "run" / "model").config == start.config


def test_rows_are_at_most_as_long_as_the_start_reads(materials: Materials, start: CLIP, shapes: Path, tmp_path: Path):
    folder = saved_start(start, materials, tmp_path / "start")
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, "model_max_length": 1000}))
    given = ["train", "clip", str(recipe_file(tmp_path)), "--source", str(shapes), "--out", str(tmp_path / "run")]
    assert command([*given, "--from", str(folder)]) == 0
    config = json.loads((tmp_path / "run" / "model" / "tokenizer_config.json").read_text())
    assert config["model_max_length"] == start.config.text.context_length


def test_a_tokenizer_with_more_tokens_than_the_start_reads_is_refused(
    materials: Materials, shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    small = make_clip(RECIPE, train_bpe(["a b"], 259))
    folder = saved_start(small, materials, tmp_path / "start")
    given = ["train", "clip", str(recipe_file(tmp_path)), "--source", str(shapes), "--out", str(tmp_path / "run")]
    assert command([*given, "--from", str(folder)]) == 1
    assert "but its CLIP knows 259" in capsys.readouterr().err


@pytest.mark.parametrize("table", [False, True])
def test_token_vectors_of_a_start_are_kept_only_where_they_are_the_table(
    table: bool, materials: Materials, tmp_path: Path
):
    recipe = replace(RECIPE, text_width=16)
    clip = make_clip(recipe, materials.tokenizer)
    if table:
        clip = CLIP.from_config(replace(clip.config, text=replace(clip.config.text, token_width=6)))
    clip.save_pretrained(tmp_path / "start")
    plan = StagePlan("clip", replace(recipe, token_table=True), replace(LOOP, steps=2))
    trained = run_stage(plan, replace(materials, replay=None), tmp_path / "run", start=clip)
    before = load_file(tmp_path / "start" / "model.safetensors")["text_encoder.token_embedding.weight"]
    assert torch.equal(trained.state_dict()["text_encoder.token_embedding.weight"], before) == table


def test_published_weights_are_a_start_like_any_other(shapes: Path, materials: Materials, tmp_path: Path, capsys):
    """OpenAI's architecture, in the layout of transformers, with its tokenizer beside it."""
    image = VisionTransformerConfig(16, 8, 16, 1, 2, 8)
    text = TextTransformerConfig(materials.tokenizer.vocab_size, 24, 16, 1, 2, 8)
    ours = saved_start(CLIP.from_config(CLIPConfig(image, text)), materials, tmp_path / "ours")
    convert(ours, tmp_path / "published", to="huggingface")
    given = ["train", "clip", str(recipe_file(tmp_path)), "--source", str(shapes)]
    for name in ("ours", "published"):
        assert command([*given, "--from", str(tmp_path / name), "--out", str(tmp_path / f"from-{name}")]) == 0
    first, second = (load_file(tmp_path / f"from-{name}/model/model.safetensors") for name in ("ours", "published"))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    config = json.loads((tmp_path / "from-published" / "model" / "tokenizer_config.json").read_text())
    assert config["model_max_length"] == 24
    blend = ["blend", str(tmp_path / "published"), str(tmp_path / "from-published"), "--out", str(tmp_path / "half")]
    assert command(blend) == 0
