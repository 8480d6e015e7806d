"""The micro models that the learning tests judge, trained once."""

import json
from pathlib import Path

import pytest
from torch import Tensor

from codebrush.data.images import stack
from codebrush.data.stored_codes import encode_once
from codebrush.models.clip import CLIP
from codebrush.models.code_transformer import CodeTransformer
from codebrush.models.vqgan import VQGAN
from codebrush.text.tokenizer import Tokenizer
from codebrush.training.dataset import SourceConfig, load_captioned
from codebrush.training.run_stage import run_stage
from codebrush.training.stage import Materials, StagePlan
from micro_models import (
    CLIP_RECIPE,
    SEEN,
    SIZE,
    TRANSFORMER_RECIPE,
    UNSEEN,
    VQGAN_RECIPE,
    label_of,
    loop,
    single_shapes,
)


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("learning")


@pytest.fixture(scope="session")
def materials(folder: Path) -> Materials:
    """Scenes to train on as a folder of captioned pictures, read back as any source is."""
    (folder / "scenes").mkdir()
    rows = []
    for index, drawn in enumerate(single_shapes(SEEN, 1500)):
        drawn.image.save(folder / "scenes" / f"{index}.png")
        (each,) = drawn.objects
        cells = {"label": label_of(drawn), "size": each.size, "colour": each.colour, "shape": each.shape}
        rows.append({"file_name": f"{index}.png", **cells})
    (folder / "scenes" / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = SourceConfig(str(folder / "scenes"), captions=("a {label}", "a {size} {label}"), group="label")
    return Materials(load_captioned(source.open(), SIZE, folder / "cache"), {"clip": Tokenizer.wordpiece()})


@pytest.fixture(scope="session")
def unseen() -> tuple[Tensor, list[str]]:
    """Pictures (B, 3, S, S) that nothing was trained on, and their labels."""
    scenes = list(single_shapes(UNSEEN, 256))
    return stack([each.image for each in scenes], SIZE), [label_of(each) for each in scenes]


@pytest.fixture(scope="session")
def clip(folder: Path, materials: Materials) -> CLIP:
    trained = run_stage(StagePlan("clip", CLIP_RECIPE, loop(160, 64)), materials, folder / "clip")
    assert isinstance(trained, CLIP)
    materials.models["clip"] = trained
    return trained


@pytest.fixture(scope="session")
def vqgan(folder: Path, materials: Materials) -> VQGAN:
    trained = run_stage(StagePlan("vqgan", VQGAN_RECIPE, loop(800, 8)), materials, folder / "vqgan")
    assert isinstance(trained, VQGAN)
    materials.models["vqgan"] = trained
    return trained


@pytest.fixture(scope="session")
def transformer(folder: Path, materials: Materials, clip: CLIP, vqgan: VQGAN) -> CodeTransformer:
    materials.codes = encode_once(vqgan, materials.data.pixels, folder / "cache")
    plan = StagePlan("transformer", TRANSFORMER_RECIPE, loop(400, 32))
    trained = run_stage(plan, materials, folder / "transformer")
    assert isinstance(trained, CodeTransformer)
    return trained
