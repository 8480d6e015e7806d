"""The micro models that the learning tests judge, trained once for all processes of a test run."""

import hashlib
import shutil
from pathlib import Path

import pytest
import torch
from filelock import FileLock
from torch import Tensor

import codebrush
from codebrush.data.decoding.images import stack
from codebrush.data.stored_codes import encode_once, latents_once
from codebrush.data.synthetic.shapes import Scene
from codebrush.models.clip import CLIP
from codebrush.models.code_transformer import CodeTransformer
from codebrush.models.flow_transformer import FlowTransformer
from codebrush.models.vqgan import VQGAN
from codebrush.text.tokenizer import Tokenizer
from codebrush.training.stage import Materials, StagePlan
from micro_models import (
    CLIP_RECIPE,
    FLOW_RECIPE,
    SEEN,
    SIZE,
    TRANSFORMER_RECIPE,
    UNSEEN,
    VQGAN_RECIPE,
    label_of,
    loop,
    scene_set,
    single_shapes,
    train_once,
)

TESTS = Path(__file__).resolve().parents[1]
CODE = ("*.py", *(f"{room}/**/*.py" for room in ("models", "text", "data", "conversion", "pack", "training")))


@pytest.fixture(scope="session")
def kept(request: pytest.FixtureRequest) -> Path:
    """Where trained models lie for all processes of a run, and for later runs of the very same training code."""
    code = hashlib.sha256(torch.__version__.encode())
    package, learning = Path(codebrush.__file__).parent, Path(__file__).parent
    files = [path for pattern in CODE for path in package.glob(pattern)]
    for path in sorted([*files, *learning.glob("*.py"), TESTS / "micro_models.py"]):
        code.update(path.read_bytes())
    folder = request.config.cache.mkdir(f"trained-{code.hexdigest()[:16]}")
    for other in folder.parent.glob("trained-*"):
        if other != folder:
            shutil.rmtree(other, ignore_errors=True)
    return folder


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What this process alone writes."""
    return tmp_path_factory.mktemp("learning")


@pytest.fixture(scope="session")
def materials(kept: Path) -> Materials:
    """Scenes of one shape to train on."""
    scenes = ((drawn, cells_of(drawn)) for drawn in single_shapes(SEEN, 1500))
    data = scene_set(kept / "scenes", scenes, ("a {label}", "a {size} {label}"), "label")
    return Materials(data, {"clip": Tokenizer.wordpiece()})


def cells_of(drawn: Scene) -> dict[str, str]:
    (each,) = drawn.objects
    return {"label": label_of(drawn), "size": each.size, "colour": each.colour, "shape": each.shape}


@pytest.fixture(scope="session")
def unseen() -> tuple[Tensor, list[str]]:
    """Pictures (B, 3, S, S) that nothing was trained on, and their labels."""
    scenes = list(single_shapes(UNSEEN, 256))
    return stack([each.image for each in scenes], SIZE), [label_of(each) for each in scenes]


@pytest.fixture(scope="session")
def clip(kept: Path, materials: Materials) -> CLIP:
    trained = train_once(StagePlan("clip", CLIP_RECIPE, loop(100, 64)), materials, kept / "clip")
    assert isinstance(trained, CLIP)
    materials.models["clip"] = trained
    return trained


@pytest.fixture(scope="session")
def vqgan(kept: Path, materials: Materials) -> VQGAN:
    trained = train_once(StagePlan("vqgan", VQGAN_RECIPE, loop(450, 8)), materials, kept / "vqgan")
    assert isinstance(trained, VQGAN)
    materials.models["vqgan"] = trained
    return trained


@pytest.fixture(scope="session")
def transformer(kept: Path, materials: Materials, clip: CLIP, vqgan: VQGAN) -> CodeTransformer:
    with FileLock(kept / "codes.lock"):
        materials.codes = encode_once(vqgan, materials.data.pixels, kept / "cache")
    plan = StagePlan("transformer", TRANSFORMER_RECIPE, loop(260, 32))
    trained = train_once(plan, materials, kept / "transformer")
    assert isinstance(trained, CodeTransformer)
    return trained


@pytest.fixture(scope="session")
def flow(kept: Path, materials: Materials, clip: CLIP, vqgan: VQGAN) -> FlowTransformer:
    materials.latents = latents_once(vqgan, materials.data.pixels, kept / "cache")
    trained = train_once(StagePlan("flow", FLOW_RECIPE, loop(450, 64)), materials, kept / "flow")
    assert isinstance(trained, FlowTransformer)
    return trained
