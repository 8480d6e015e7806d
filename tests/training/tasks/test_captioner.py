"""What a captioner is trained on, and that it learns: captions, questions of a source's columns, drawn scenes."""

import json
import tracemalloc
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
from codebrush.data.synthetic.shapes import Scene
from codebrush.errors import PackError, TrainingError
from codebrush.models.captioner import Captioner
from codebrush.models.encoders.modified_resnet import ModifiedResNet, ModifiedResNetConfig
from codebrush.models.encoders.vision_transformer import VisionTransformer
from codebrush.pack.pack import open_pack
from codebrush.text.tokenizer import Tokenizer
from codebrush.training.dataset import SourceConfig, load_captioned
from codebrush.training.engine.checkpoints import CHECKPOINT
from codebrush.training.engine.loop_config import LoopConfig
from codebrush.training.recipes import read_recipe
from codebrush.training.registry import STAGES
from codebrush.training.run_stage import make_network, make_task, run_stage
from codebrush.training.stage import Materials, StagePlan
from codebrush.training.tasks.captioner import (
    CaptionerRecipe,
    cells_of_names,
    feature_levels,
    rows_of_tokens,
    with_heads,
)
from codebrush.training.tasks.captioner_pairs import AskRule, CaptionPairs, make_vocabulary, scene_pairs
from codebrush.training.tasks.patch_labels import UNKNOWN
from packs import micro_clip, write_micro_pack

RULES = (
    AskRule(ask=("what is behind it?", "what is the background?"), answer="{background}"),
    AskRule(ask=("is there one?",), yes_if=("count == 1",)),
    AskRule(ask=("is it on {background}?",), contrast="background"),
)
RECIPE = CaptionerRecipe(
    width=32, layers=1, heads=2, vocab_size=300, context_length=24, segments=3, scene_share=0.5, questions=RULES,
    learning_rate=3e-3, stem=16,
)  # fmt: skip
LOOP = LoopConfig(steps=4, batch_size=4, warmup=1, ema_decay=0.5, threads=1, log_every=2, checkpoint_every=2)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Thirty scenes of one to six shapes, with the questions that are stored beside them."""
    folder = tmp_path_factory.mktemp("mixed") / "scenes"
    write_shapes(folder, 30, size=32)
    return folder


@pytest.fixture(scope="module")
def materials(mixed: Path, tmp_path_factory: pytest.TempPathFactory) -> Materials:
    torch.manual_seed(0)
    data = load_captioned(SourceConfig(str(mixed)).open(), 32, tmp_path_factory.mktemp("cache"))
    clip = micro_clip().requires_grad_(False)
    given = Materials(data, {"clip": Tokenizer.wordpiece()}, {"clip": clip})
    return STAGES["captioner"].prepare(StagePlan("captioner", RECIPE, LOOP), given, tmp_path_factory.mktemp("other"))


class TestWhatIsAsked:
    def test_stored_questions_and_rules_are_answered_from_the_row(self, materials: Materials, mixed: Path) -> None:
        pairs, rng = CaptionPairs(RECIPE.questions, materials.data), np.random.default_rng(0)
        rows = [json.loads(line) for line in (mixed / "metadata.jsonl").read_text().splitlines()]
        contrasts = set()
        for number, row in enumerate(rows):
            found = pairs.questions(number, rng)
            for stored in row["questions"]:
                assert (stored["ask"], stored["answer"]) in found
            told = dict(found)
            behind = told.get("what is behind it?") or told["what is the background?"]
            assert behind == row["background"]
            assert told["is there one?"] == ("yes" if row["count"] == 1 else "no")
            (contrast,) = [(ask, answer) for ask, answer in found if ask.startswith("is it on ")]
            assert contrast[1] == ("yes" if contrast[0] == f"is it on {row['background']}?" else "no")
            contrasts.add(contrast[1])
        assert contrasts == {"yes", "no"}

    def test_a_draw_mixes_captions_and_questions(self, materials: Materials) -> None:
        pairs, rng = CaptionPairs(RECIPE.questions, materials.data), np.random.default_rng(0)
        drawn = pairs.draw(0, 6, rng)
        captions = [answer for ask, answer in drawn if not ask]
        assert len(drawn) == 6
        assert len(captions) == 2
        assert set(captions) <= set(materials.data.captions(0))
        plain = CaptionPairs((), materials.data)
        plain.stored = False
        assert all(not ask for ask, _ in plain.draw(0, 5, rng))

    def test_rows_are_not_kept_in_memory(self, tmp_path: Path) -> None:
        """Every row as a dict would take 6 MB; a column that no rule names is not even read."""
        place, rows = tmp_path / "notes", 300
        place.mkdir()
        Image.new("RGB", (8, 8), "red").save(place / "0.png")
        names = [place / "0.png", *(place / f"{number}.png" for number in range(1, rows))]
        for name in names[1:]:
            name.hardlink_to(names[0])
        cells = [
            {"file_name": name.name, "caption": f"picture {number}", "colour": "red", "notes": f"{number} " * 5000}
            for number, name in enumerate(names)
        ]
        (place / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in cells))
        data = load_captioned(SourceConfig(str(place), captions=("{caption}",)).open(), 8, tmp_path / "cache")
        rules = (
            AskRule(ask=("which colour?",), answer="{colour}"),
            AskRule(ask=("is it {colour}?",), contrast="colour"),
        )
        rng = np.random.default_rng(0)
        CaptionPairs(rules, data).draw(0, 6, rng)  # imports and caches
        tracemalloc.start()
        pairs = CaptionPairs(rules, data)
        texts = [pairs.draw(row, 6, rng) for row in range(rows)]
        kept, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert len(texts) == rows
        assert kept < 1e6
        assert peak < 1e6

    def test_a_rule_says_one_thing(self) -> None:
        with pytest.raises(ValueError, match="one of 'answer', 'yes_if' and 'contrast'"):
            AskRule(ask=("what?",), answer="{a}", yes_if=("a == b",))
        with pytest.raises(ValueError, match="a question needs 'ask'"):
            AskRule(ask=(), answer="{a}")

    def test_a_scenes_first_pair_is_its_caption(self) -> None:
        scene, pairs = scene_pairs(np.random.default_rng(0), 48)
        assert scene.image.size == (48, 48)
        assert pairs[0][0] == ""
        assert len(pairs) > 3

    def test_a_practice_scene_asks_where_things_are_that_are_much_alike(self) -> None:
        rng, counts, shared = np.random.default_rng(0), set(), 0
        for _ in range(600):  # also on backgrounds where few colours can be seen
            drawn, pairs = scene_pairs(rng, 16, practice=True)
            kinds = {(each.colour, each.shape) for each in drawn.objects}
            counts.add(len(drawn.objects))
            shared += len(kinds) > 1 and min(map(len, map(set, zip(*kinds, strict=True)))) == 1
            words = ("where", "left", "right", "above", "below")
            if len(kinds) == len(drawn.objects):
                assert all(any(word in ask for word in words) for ask, _ in pairs[1:])
        assert counts == {2, 3, 4, 5, 6}
        assert shared > 250  # of one shape or one colour

    def test_scenes_of_the_fixed_palette_come_too(self) -> None:
        rng = np.random.default_rng(0)
        fixed = sum(isinstance(scene_pairs(rng, 32)[0], Scene) for _ in range(100))
        assert 15 < fixed < 45


class TestTokens:
    def test_the_last_token_of_a_name_has_its_cell(self, materials: Materials) -> None:
        words, rng = materials.tokenizers["captioner"], np.random.default_rng(0)
        pairs, about = [], []
        for _ in range(30):
            drawn, asked = scene_pairs(rng, 48)
            pairs += asked
            about += [(drawn.objects, 48)] * len(asked)
        pairs += [("is it a red star?", "no")]  # about no scene
        tokens, learned = rows_of_tokens(pairs, words, 40)
        found = cells_of_names(pairs, about, 8, words, learned)
        assert found.shape == tokens.shape
        assert (found[-1] == UNKNOWN).all()
        spots = (found != UNKNOWN).nonzero().tolist()
        assert len(spots) > 100
        for row, place in spots:
            begin = 1 if place <= int(learned[row].int().argmax()) else int(learned[row].int().argmax()) + 1
            text = words.decode(tokens[row, begin : place + 1])
            shape = text.split()[-1]
            fitting = [each for each in about[row][0] if each.shape == shape]
            cells = [int(y / 6) * 8 + int(x / 6) for x, y in (each.centre for each in fitting)]
            assert int(found[row, place]) in cells, (text, pairs[row])

    def test_only_the_tokens_of_answers_are_learned(self, materials: Materials) -> None:
        words = materials.tokenizers["captioner"]
        tokens, learned = rows_of_tokens([("", "a red circle"), ("what colour is it?", "red")], words, 24)
        for row, answer in enumerate(("a red circle", "red")):
            wanted = tokens[row, 1:][learned[row]]
            assert words.decode(wanted) == answer
            assert wanted[-1] == words.end_id
        assert tokens[0, 0] == words.start_id
        assert tokens[0, 1] == words.end_id  # a caption answers the empty question
        assert not learned[:, -1].any()

    def test_long_pairs_are_cut_and_keep_a_part_of_the_answer(self, materials: Materials) -> None:
        words = materials.tokenizers["captioner"]
        tokens, learned = rows_of_tokens([("why " * 40, "because " * 40)], words, 12)
        assert tokens.shape == (1, 12)
        assert learned.sum() >= 1

    def test_the_vocabulary_knows_the_scenes_words(self, materials: Materials) -> None:
        words = make_vocabulary(CaptionPairs(RECIPE.questions, materials.data), True, 600, RECIPE.context_length)
        (ids,) = words.ids(["how many green triangles are there?"])
        assert len(ids) <= 9
        assert words.decode(ids) == "how many green triangles are there?"


def test_a_finer_grid_is_read_where_it_is_not_too_long() -> None:
    def levels(size: int) -> tuple[int, ...]:
        return feature_levels(ModifiedResNet(ModifiedResNetConfig(size, 4, (1, 1, 1, 1), 2, 8)))

    assert levels(64) == (1, 2)
    assert levels(32) == (0, 1)
    assert levels(224) == (3,)
    vit = micro_clip().image_encoder
    assert isinstance(vit, VisionTransformer)
    assert feature_levels(vit) == (0,)


@pytest.mark.parametrize("steps", [0, 1])
def test_a_step_in_parts_has_the_scenes_and_the_mean_of_the_whole(
    steps: int, materials: Materials, tmp_path: Path
) -> None:
    """One scene among four rows, each a part; tokens count equally in parts with few, and so do patches and places."""
    recipe = replace(RECIPE, scene_share=0.25, patch_label_steps=steps)
    parts = check_parts(StagePlan("captioner", recipe, LOOP), materials, tmp_path, 4)
    drawn = [bool((part["labels"] != UNKNOWN).any()) for part in parts]
    assert drawn == [True, False, False, False] * 2


def test_batches_are_the_same_for_the_same_numbers_and_hold_scenes(materials: Materials) -> None:
    task = make_task(StagePlan("captioner", RECIPE, LOOP), materials, make_network(_plan(), materials))
    one, other = (task.batch(np.arange(4), np.random.default_rng(3)) for _ in range(2))
    for name in one:
        assert torch.equal(one[name], other[name]), name
    stored = materials.data.images(np.arange(4))
    assert not torch.equal(one["images"][:2], stored[:2])  # drawn
    assert torch.equal(one["images"][2:], stored[2:])
    assert one["tokens"].shape[:2] == (4, 3)
    assert one["learned"].shape[-1] == one["tokens"].shape[-1] - 1
    identity = torch.eye(3)[:2].expand(2, 2, 3)
    assert torch.equal(one["affine"][:2], identity)  # where things are is part of the answer


def test_a_captioner_without_heads_gets_them_and_keeps_the_rest(materials: Materials) -> None:
    bare = make_network(_plan(), materials)
    assert isinstance(bare, Captioner)
    assert with_heads(bare, RECIPE) is bare
    old = Captioner(replace(bare.config, places=0))
    grown = make_network(_plan(), materials, start=old)
    assert isinstance(grown, Captioner)
    assert grown.config == bare.config
    assert grown.places is not None
    for name, value in old.state_dict().items():
        assert torch.equal(grown.state_dict()[name], value), name
    assert with_heads(old, replace(RECIPE, scene_share=0.0)) is old


@pytest.mark.slow
def test_a_captioner_learns_what_a_picture_shows(materials: Materials, tmp_path: Path) -> None:
    plan = _plan(steps=200, batch_size=8, log_every=10, checkpoint_every=200)
    run_stage(plan, materials, tmp_path / "run")
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["words"] < 0.6 * lines[0]["words"]
    assert lines[-1]["sights"] < 0.6 * lines[0]["sights"]
    assert (
        Tokenizer.from_pretrained(tmp_path / "run" / "model").vocab_size == materials.tokenizers["captioner"].vocab_size
    )  # pyright: ignore
    assert Captioner.from_pretrained(tmp_path / "run" / "model").config.levels == (0,)


@pytest.mark.parametrize("names", ["present", "stored"])
def test_a_stopped_run_ends_at_the_same_bits(names: str, materials: Materials, tmp_path: Path) -> None:
    """Also from a checkpoint of a version in which the head of the patch labels was called "sights"."""
    whole = run_stage(_plan(), materials, tmp_path / "whole")
    run_stage(_plan(stop_after=2), materials, tmp_path / "part")
    (tmp_path / "part" / "model").rename(tmp_path / "gone")
    path = tmp_path / "part" / "stage.json"
    path.write_text(path.read_text().replace('"stop_after": 2', '"stop_after": 0'))
    if names == "stored":
        checkpoint = torch.load(tmp_path / "part" / CHECKPOINT, weights_only=True)
        for part in ("network.captioner", "ema"):
            renamed = {name.replace("patch_labels", "sights"): value for name, value in checkpoint[part].items()}
            assert renamed.keys() != checkpoint[part].keys()
            checkpoint[part] = renamed
        torch.save(checkpoint, tmp_path / "part" / CHECKPOINT)
    again = run_stage(_plan(), materials, tmp_path / "part", resume=True)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name


def test_the_command_trains_one_for_a_pack_and_goes_on_from_it(
    mixed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pack = write_micro_pack(tmp_path / "pack")
    recipe = {"stage": "captioner", "recipe": {"width": 32, "layers": 1, "heads": 2, "vocab_size": 300}}
    recipe["recipe"]["questions"] = [{"ask": ["what is behind it?"], "answer": "{background}"}]
    loop = {"steps": 2, "batch_size": 4, "threads": 1, "log_every": 1}
    file = tmp_path / "captioner.yaml"
    file.write_text(yaml.safe_dump({**recipe, "source": {"source": str(mixed)}, "loop": loop}))
    out = tmp_path / "run"
    assert command(["train", "captioner", str(file), "--clip", str(pack), "--out", str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["stages"]["captioner"]["steps"] == 2
    more = ["train", "captioner", str(file), "--clip", str(pack), "--from", str(out), "--out", str(tmp_path / "more")]
    assert command(more) == 0
    vocabularies = [(place / "model" / "tokenizer.json").read_bytes() for place in (out, tmp_path / "more")]
    assert vocabularies[0] == vocabularies[1]
    assert command(["train", "captioner", str(file), "--out", str(tmp_path / "none")]) == 1
    assert "needs the clip of an earlier one" in capsys.readouterr().err


def test_a_wrong_rule_in_a_recipe_is_named(tmp_path: Path) -> None:
    file = tmp_path / "captioner.yaml"
    rule = {"ask": ["what?"], "answer": "{a}", "contrast": "b"}
    values = {"stage": "captioner", "recipe": {"questions": [rule]}, "loop": {"steps": 1, "batch_size": 1}}
    file.write_text(yaml.safe_dump({**values, "source": {"source": "x"}}))
    with pytest.raises(TrainingError, match=r"recipe.questions.0.*one of 'answer'"):
        read_recipe(file)


def test_a_pack_opens_its_captioner_and_refuses_one_of_other_features(materials: Materials, tmp_path: Path) -> None:
    words = materials.tokenizers["captioner"]
    network = make_network(_plan(), materials)
    folder = write_micro_pack(tmp_path / "pack", captioner=network, words=words)
    pack = open_pack(folder)
    assert pack.captioner_tokenizer.ids(["a red circle"]) == words.ids(["a red circle"])
    assert pack.captioner.config == network.config
    assert pack.hash == open_pack(write_micro_pack(tmp_path / "plain")).hash  # it draws nothing
    path = folder / "captioner" / "config.json"
    path.write_text(path.read_text().replace('"patches": 16', '"patches": 25'))
    with pytest.raises(PackError, match="captioner reads features of 25 x 32, but the CLIP makes 16 x 32"):
        open_pack(folder)


def _plan(**changes) -> StagePlan:
    return StagePlan("captioner", RECIPE, replace(LOOP, **changes))
