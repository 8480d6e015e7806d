"""A recipe with a fault gives one line that names the file, the field and what it should be."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from codebrush.errors import TrainingError
from codebrush.training.recipes import plan_from_dict, read_recipe

ROOT = Path(__file__).resolve().parents[2]
BASE: dict[str, Any] = {
    "stage": "clip",
    "source": {"source": "pictures"},
    "loop": {"steps": 5, "batch_size": 4},
}


def write(folder: Path, values: Any) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(values if isinstance(values, str) else yaml.safe_dump(values))
    return path


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"recipe": {"widht": 64}}, "recipe.widht"),
        ({"recipe": {"width": "wide"}}, "recipe.width"),
        ({"recipe": {"width": 0}}, "recipe.width"),
        ({"recipe": {"learning_rate": -1e-3}}, "recipe.learning_rate"),
        ({"recipe": {"learning_rate": float("nan")}}, "recipe.learning_rate"),
        ({"recipe": {"image": "cnn"}}, "recipe.image"),
        ({"recipe": {"blocks": [2, 2]}}, "recipe.blocks"),
        ({"recipe": {"dropout": 1.5}}, "recipe.dropout"),
        ({"recipe": {"augmentation": {"mirror": 2}}}, "recipe.augmentation.mirror"),
        ({"stage": "vqgan", "recipe": {"channel_multipliers": []}}, "recipe.channel_multipliers"),
        ({"stage": "vqgan", "recipe": {"adversarial_from": -0.1}}, "recipe.adversarial_from"),
        ({"stage": "transformer", "recipe": {"layers": 1.5}}, "recipe.layers"),
        ({"loop": {"batch_size": 4}}, "loop.steps"),
        ({"loop": {"steps": 0, "batch_size": 4}}, "loop.steps"),
        ({"loop": {"steps": 5, "batch_size": 4, "seed": -1}}, "loop.seed"),
        ({"loop": {"steps": 5, "batch_size": 4, "precision": "fast"}}, "loop.precision"),
        ({"loop": {"steps": 5, "batch_size": 4, "accelerator": "abacus"}}, "loop.accelerator"),
        ({"loop": {"steps": 5, "batch_size": 4, "ema_decay": 2}}, "loop.ema_decay"),
        ({"loop": {"steps": 5, "batch_size": 5, "devices": 2}}, "loop.batch_size"),
        ({"loop": 3}, "loop"),
        ({"source": {"source": "pictures", "wehre": []}}, "source.wehre"),
        ({"source": {"source": "pictures", "limit": 0}}, "source.limit"),
        ({"colour": "red"}, "colour"),
        ({"stage": "painter"}, "stage"),
        ({"stage": ["clip"]}, "stage"),
        ({"stage": {"clip": 1}}, "stage"),
        ({"source": "pictures"}, "source: {source: pictures}"),
        ({"source": ["a", "b"]}, "source"),
    ],
)
def test_a_wrong_field_is_named_in_one_line(changes: dict[str, Any], field: str, tmp_path: Path):
    path = write(tmp_path, {**BASE, **changes})
    with pytest.raises(TrainingError) as caught:
        read_recipe(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert field in message
    assert "\n" not in message


def test_every_wrong_field_is_named(tmp_path: Path):
    path = write(tmp_path, {**BASE, "recipe": {"width": -1, "heads": "two"}, "loop": {"steps": "many"}})
    with pytest.raises(TrainingError) as caught:
        read_recipe(path)
    assert all(name in str(caught.value) for name in ("recipe.width", "recipe.heads", "loop.steps", "loop.batch_size"))


@pytest.mark.parametrize("text", ["", "- 1\n", "a: [", "\x00", "stage: clip"])
def test_a_file_that_is_not_a_recipe_is_refused_in_one_line(text: str, tmp_path: Path):
    path = write(tmp_path, text)
    with pytest.raises(TrainingError, match=str(path)) as caught:
        read_recipe(path)
    assert "\n" not in str(caught.value)


def test_a_recipe_that_is_not_there_is_named(tmp_path: Path):
    with pytest.raises(TrainingError, match=r"nowhere\.yaml: there is no such recipe"):
        read_recipe(tmp_path / "nowhere.yaml")


def test_a_recipe_for_another_stage_is_refused(tmp_path: Path):
    with pytest.raises(TrainingError, match="is a recipe for the stage clip, not vqgan"):
        read_recipe(write(tmp_path, BASE), stage="vqgan")


def test_pictures_come_from_the_recipe_or_from_the_caller(tmp_path: Path):
    path = write(tmp_path, BASE)
    assert read_recipe(path).sources[0].source == "pictures"
    assert read_recipe(path, source="others").sources[0].source == "others"
    bare = write(tmp_path, {name: value for name, value in BASE.items() if name != "source"})
    assert read_recipe(bare, source="others").sources[0].source == "others"
    with pytest.raises(TrainingError, match="names no pictures: add --source"):
        read_recipe(bare)


def test_a_source_without_a_field_is_refused_even_if_the_caller_names_another(tmp_path: Path):
    path = write(tmp_path, {**BASE, "source": "pictures"})
    with pytest.raises(TrainingError, match=r"recipe\.yaml: source: should hold fields, as in"):
        read_recipe(path, source="others")


def test_numbers_may_be_written_as_yaml_writes_them(tmp_path: Path):
    path = write(tmp_path, "stage: vqgan\nrecipe: {learning_rate: 1e-4}\nloop: {steps: 3, batch_size: 2}\n")
    assert read_recipe(path, source="here").plan.recipe.learning_rate == 1e-4


def test_a_damaged_plan_is_named():
    with pytest.raises(TrainingError, match=r"run/stage\.json: loop: Field required"):
        plan_from_dict({"stage": "clip"}, "run/stage.json")


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").rglob("*.yaml")), ids=lambda path: path.stem)
def test_the_project_s_own_recipes_are_in_order(path: Path):
    recipe = read_recipe(path, source="pictures")
    assert f"# codebrush train {recipe.plan.stage} {path.relative_to(ROOT).as_posix()} " in path.read_text()
