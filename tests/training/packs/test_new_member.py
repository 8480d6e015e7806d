"""A model is added by one file and an entry in two tables; it is trained, packed, opened and refused like any other."""

import json
import shutil
import sys
from importlib import import_module
from pathlib import Path

import pytest
import torch
import yaml
from colour_stage import STAGE, Colour, ColourConfig, ColourRecipe

from codebrush.cli.main import run as command
from codebrush.errors import PackError
from codebrush.pack.members import MEMBERS
from codebrush.pack.pack import open_pack
from codebrush.training.registry import ENTRIES, STAGES, Entry
from packs import micro_captioner, micro_tokenizer, write_micro_pack

LOOP = {"steps": 4, "batch_size": 4, "threads": 1, "log_every": 2, "checkpoint_every": 2, "preview_every": 0}
RECIPES = {
    "clip": {
        "image_size": 16, "patch_size": 8, "width": 16, "layers": 1, "heads": 2, "text_width": 16, "text_layers": 1,
        "text_heads": 2, "embed_dim": 8, "token_table": False,
    },
    "vqgan": {"image_size": 16, "channels": 8, "channel_multipliers": [1, 2], "codebook_size": 16, "perceptual": 0},
    "transformer": {"width": 16, "layers": 1, "heads": 2},
    "colour": {"width": 24},
}  # fmt: skip


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    import_module("codebrush.cli.train")  # as it is without the new stage, for the tests after these
    monkeypatch.setitem(MEMBERS, "colour", STAGE.member)
    monkeypatch.setitem(ENTRIES, "colour", Entry("colour_stage", ("clip", "captioner")))
    monkeypatch.delitem(sys.modules, "codebrush.cli.train")  # its flags are made on import


@pytest.fixture
def recipes(tmp_path: Path) -> Path:
    folder = tmp_path / "recipes"
    folder.mkdir()
    for stage, recipe in RECIPES.items():
        (folder / f"{stage}.yaml").write_text(yaml.safe_dump({"stage": stage, "recipe": recipe, "loop": LOOP}))
    return folder


def one_line(arguments: list[str], status: int, capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    assert command(arguments) == status
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_it_is_trained_packed_and_opened_and_a_resumed_training_ends_at_the_same_bits(
    recipes: Path, shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    out = tmp_path / "pack"
    given = [
        "train",
        str(shapes),
        "--out",
        str(out),
        "--recipes",
        str(recipes),
        "--tokenizer",
        "bpe",
        "--json",
        "--keep-work",
    ]
    assert command(given) == 0
    report = json.loads(capsys.readouterr().out)
    assert list(report["stages"]) == ["clip", "vqgan", "transformer", "colour"]
    pack = open_pack(out)
    assert pack.info["members"]["colour"] == "colour"
    assert pack.info["provenance"]["plans"]["colour"]["recipe"] == {
        "width": 24, "captioner": False, "learning_rate": 1e-2,
    }  # fmt: skip
    colour = pack.load(Colour)
    assert colour.config == ColourConfig(8, 24)
    assert colour(pack.clip.encode_text(pack.tokenizer(["a red circle"]))).shape == (1, 3)
    shutil.rmtree(tmp_path / "pack.work" / "colour" / "model")
    assert command(["train", str(shapes), "--out", str(out), "--resume"]) == 0
    again = open_pack(out).load(Colour).state_dict()
    assert all(torch.equal(value, again[name]) for name, value in colour.state_dict().items())
    assert open_pack(out).hash == pack.hash  # it draws nothing


def test_it_is_trained_alone_and_blended_and_wrong_flags_are_refused(
    recipes: Path, shapes: Path, micro_pack: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    recipe, places = recipes / "colour.yaml", [str(tmp_path / name) for name in ("first", "second", "blend")]
    given = ["train", "colour", str(recipe), "--source", str(shapes), "--clip", str(micro_pack)]
    assert command([*given, "--out", places[0]]) == 0
    assert command([*given, "--from", places[0], "--out", places[1]]) == 0
    assert command(["blend", places[0], places[1], "--out", places[2]]) == 0
    blend, first, second = (Colour.from_pretrained(place) for place in (places[2], *(f"{p}/model" for p in places[:2])))
    mean = (first.layers[0].weight + second.layers[0].weight) / 2  # pyright: ignore
    torch.testing.assert_close(blend.layers[0].weight, mean)
    missing = [*given[:-2], "--out", str(tmp_path / "third")]
    assert "needs the clip of an earlier one" in one_line(missing, 1, capsys)
    assert "--vqgan is for the stages transformer, flow and upscaler: colour needs no VQGAN" in one_line(
        [*given, "--vqgan", str(micro_pack), "--out", str(tmp_path / "third")], 2, capsys
    )
    recipe.write_text(recipe.read_text().replace("width: 24", "width: 0"))
    assert "recipe.width" in one_line([*given, "--out", str(tmp_path / "third")], 1, capsys)


def test_it_reads_another_member_that_no_stage_read_before(
    recipes: Path, shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    pack = write_micro_pack(tmp_path / "pack", captioner=micro_captioner(), words=micro_tokenizer())
    recipe = recipes / "colour.yaml"
    recipe.write_text(recipe.read_text().replace("width: 24", "width: 24\n  captioner: true"))
    given = ["train", "colour", str(recipe), "--source", str(shapes), "--tokenizer", "bpe"]
    assert command([*given, "--captioner", str(pack), "--out", str(tmp_path / "run")]) == 0
    assert Colour.from_pretrained(tmp_path / "run" / "model").config == ColourConfig(32, 24)
    third = ["--out", str(tmp_path / "third")]
    assert "needs the captioner of an earlier one" in one_line([*given, *third], 1, capsys)
    bare = write_micro_pack(tmp_path / "bare")
    assert f"the pack {bare} has no captioner" in one_line([*given, "--captioner", str(bare), *third], 1, capsys)
    assert "--captioner is for the stage colour: prior needs no captioner" in one_line(
        ["train", "prior", "prior.yaml", "--captioner", str(pack), *third], 2, capsys
    )
    assert command(["train", "--help"]) == 0
    assert "Folder of a trained captioner, or of its pack, for the stage colour." in " ".join(
        capsys.readouterr().out.split()
    )


@pytest.mark.parametrize("layout", ["openai", "huggingface"])
def test_it_has_no_published_layout(layout: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    Colour(ColourConfig(4, 4)).save_pretrained(tmp_path / "colour")
    line = one_line(["convert", str(tmp_path / "colour"), "--to", layout, "--out", str(tmp_path / "out")], 2, capsys)
    assert f"only a CLIP can be written in the layout '{layout}'" in line
    assert line.endswith("holds a colour model")
    assert not (tmp_path / "out").exists()


def test_a_pack_refuses_one_that_does_not_fit_and_says_how_to_get_one(micro_pack: Path, tmp_path: Path):
    with pytest.raises(PackError, match="the colour model reads embeddings of 4, but the CLIP makes 24"):
        write_micro_pack(tmp_path / "pack", colour=Colour(ColourConfig(4, 4)))
    with pytest.raises(PackError, match="'micro' has no colour model: train one with codebrush train colour"):
        open_pack(micro_pack).load(Colour)


def test_its_settings_are_those_of_its_recipe():
    assert STAGES["colour"].recipe is ColourRecipe
    assert list(STAGES)[-1] == "colour"
