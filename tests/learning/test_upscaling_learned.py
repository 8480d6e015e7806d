"""An upscaler that has seen drawn scenes for some seconds beats bicubic on scenes that it has not seen."""

from pathlib import Path

import pytest
import torch
from filelock import FileLock
from torch import Tensor

from codebrush.data.decoding.images import stack, to_pil
from codebrush.data.synthetic.scene_folder import write_shapes
from codebrush.data.synthetic.shapes import scene
from codebrush.generation.editing.upscaling import upscale_picture
from codebrush.models.upscaler import Upscaler, enlarge, reduce
from codebrush.text.tokenizer import Tokenizer
from codebrush.training.dataset import SourceConfig, load_captioned
from codebrush.training.stage import Materials, StagePlan
from codebrush.training.tasks.upscaler import UpscalerRecipe
from micro_models import loop, train_once

pytestmark = pytest.mark.slow  # an upscaler that learns for some seconds
SIZE = 64
RECIPE = UpscalerRecipe(
    width=24, blocks=3, target_size=SIZE, crop=16, perceptual=0.0, adversarial=0.0, learning_rate=3e-3
)
GAIN = {2: 2.0, 4: 1.0}  # dB over bicubic, at least; measured are 3.9 and 2.4


@pytest.fixture(scope="module")
def upscaler(kept: Path) -> Upscaler:
    with FileLock(kept / "shapes.lock"):
        if not (kept / "shapes").exists():
            write_shapes(kept / "shapes", 300, size=SIZE)
        data = load_captioned(SourceConfig(str(kept / "shapes")).open(), SIZE, kept / "cache")
    plan = StagePlan("upscaler", RECIPE, loop(400, 8))
    trained = train_once(plan, Materials(data, {"clip": Tokenizer.wordpiece()}), kept / "upscaler")
    assert isinstance(trained, Upscaler)
    return trained


def psnr(made: Tensor, true: Tensor) -> float:
    errors = (made.clamp(0, 1) - true).square().mean((1, 2, 3))  # (B,)
    return float(-10 * errors.log10().mean())


@pytest.mark.parametrize("scale", [2, 4])
def test_unseen_scenes_come_nearer_than_by_bicubic(upscaler: Upscaler, scale: int, tmp_path: Path) -> None:
    true = stack([scene(7, index, SIZE).image for index in range(64)], SIZE)
    small = [to_pil(image) for image in reduce(true, scale)]
    made = stack([upscale_picture(upscaler, picture, scale, tile=20) for picture in small], SIZE)
    bicubic = enlarge(stack(small, SIZE // scale), scale)
    ours, theirs = psnr(made, true), psnr(bicubic, true)
    print(f"x{scale}: {ours:.2f} dB, bicubic {theirs:.2f} dB")
    assert ours - theirs > GAIN[scale]
    assert torch.equal(made, made.clamp(0, 1))
