"""Masks of guidance: fitted by the rule of start and target, read as in editing, and old runs as they were."""

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from codebrush import Codebrush
from codebrush.errors import ImageError, UsageError
from codebrush.generation.guided.guide_options import GuideOptions
from codebrush.generation.guided.guided_batch import make_batch
from codebrush.generation.guided.guided_request import GuidedRequest, with_files
from codebrush.generation.guided.run.guided_run import GuidedRun

SHORT: dict[str, Any] = {"steps": 1, "cutouts": 2, "precision": "float32", "size": "32x32"}


@pytest.fixture(scope="module")
def brush(micro_pack: Path) -> Codebrush:
    return Codebrush.from_pretrained(micro_pack, device="cpu")


def wide_mask(path: Path, white: tuple[int, int]) -> Path:
    """A mask of 128 x 32 pixels that is white in the columns from `white[0]` up to `white[1]`."""
    image = Image.new("L", (128, 32))
    image.paste(255, (white[0], 0, white[1], 32))
    image.save(path)
    return path


def request_of(**options: Any) -> GuidedRequest:
    return GuidedRequest("a dog", 1, 0, GuideOptions(**SHORT | options))


def mask_of(brush: Codebrush, request: GuidedRequest) -> Tensor:
    """(32, 32): 1 where the request's run may change the picture."""
    mask = make_batch(request, brush.guidance_models(), range(1)).mask
    assert mask is not None
    return mask[0, 0]


def test_a_mask_lies_where_its_start_and_target_do(brush: Codebrush, tmp_path: Path) -> None:
    # Of 128 x 32 pixels the middle 32 columns, 48 to 79, are seen at 32 x 32; the white ones are 56 to 71 of them.
    mask = wide_mask(tmp_path / "mask.png", (56, 72))
    expected = torch.zeros(32, 32)
    expected[:, 8:24] = 1
    assert torch.equal(mask_of(brush, request_of(mask=str(mask))), expected)
    assert torch.equal(mask_of(brush, request_of(mask=str(mask), mask_side="outside")), 1 - expected)
    (target, _), = make_batch(request_of(target=(str(mask),)), brush.guidance_models(), range(1)).targets  # fmt: skip
    assert torch.equal(target[0, 0], expected)


def test_an_old_run_squeezes_its_mask(brush: Codebrush, tmp_path: Path) -> None:
    mask = wide_mask(tmp_path / "mask.png", (56, 72))
    request = request_of(mask=str(mask))
    stored = request.to_json()
    assert stored["mask_fit"] == "cover"
    assert GuidedRequest.from_json(stored) == request
    del stored["mask_fit"]  # as versions before 0.3 wrote it
    old = GuidedRequest.from_json(stored)
    expected = torch.zeros(32, 32)
    expected[:, 14:18] = 1  # all 128 columns, a quarter as wide
    assert torch.equal(mask_of(brush, old), expected)
    assert GuidedRequest.from_json(old.to_json()) == old
    with pytest.raises(UsageError, match="mask_fit is 'turn'"):
        GuidedRequest.from_json(request.to_json() | {"mask_fit": "turn"})
    assert "mask_fit" not in request_of().to_json()


def test_clear_parts_of_a_mask_are_black_as_in_editing(brush: Codebrush, tmp_path: Path) -> None:
    layer = Image.new("RGBA", (32, 32), (255, 255, 255, 0))
    layer.paste((255, 255, 255, 255), (0, 0, 8, 32))
    layer.save(tmp_path / "layer.png")
    expected = torch.zeros(32, 32)
    expected[:, :8] = 1
    request = request_of(mask=str(tmp_path / "layer.png"))
    assert torch.equal(mask_of(brush, request), expected)
    assert torch.equal(mask_of(brush, replace(request, mask_fit="squeeze")), torch.ones(32, 32))


def test_grey_128_is_white_and_127_is_not(brush: Codebrush, tmp_path: Path) -> None:
    levels = np.full((32, 32), 127, np.uint8)
    levels[4:] = 128
    Image.fromarray(levels).save(tmp_path / "grey.png")
    assert torch.equal(mask_of(brush, request_of(mask=str(tmp_path / "grey.png")))[:, 0], torch.arange(32) >= 4)


def test_pictures_of_different_shapes_are_told(brush: Codebrush, tmp_path: Path) -> None:
    mask = wide_mask(tmp_path / "mask.png", (56, 72))
    Image.new("RGB", (64, 64)).save(tmp_path / "start.png")
    Image.new("RGB", (257, 64)).save(tmp_path / "target.png")  # of the mask's shape but for one pixel
    options: dict[str, Any] = SHORT | {"mask": str(mask), "target": f"{tmp_path / 'target.png'}:2"}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        brush.guide("a dog", **options)
    told = r"differ in shape \(start.png 64 x 64, mask.png 128 x 32, target.png 257 x 64\): each is scaled"
    with pytest.warns(UserWarning, match=told):
        brush.guide("a dog", init=str(tmp_path / "start.png"), **options)


def test_a_transparent_start_gives_a_transparent_picture_and_an_old_run_an_opaque_one(
    brush: Codebrush, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sticker = Image.new("RGBA", (64, 32), (0, 0, 0, 0))  # of which the middle is seen
    sticker.paste((250, 250, 250, 255), (28, 12, 36, 20))
    sticker.save(tmp_path / "sticker.png")
    white = torch.ones(1, 3, 32, 32)
    monkeypatch.setattr(type(brush.vqgan), "decode", lambda self, latent: white + 0 * latent.sum())
    request = with_files(request_of(init=str(tmp_path / "sticker.png")))
    folder = tmp_path / "run"
    run = GuidedRun(request, brush.guidance_models(), folder)
    list(run)
    (result,) = run.results
    shown = np.asarray(result.image)
    assert shown.shape == (32, 32, 4)
    assert (shown[12:20, 12:20, 3] == 255).all()  # white before as well
    shown = shown[..., 3].copy()
    shown[10:22, 10:22] = 0
    assert (shown == 0).all()
    assert brush.resume(folder).results[0].image.tobytes() == result.image.tobytes()
    assert brush.replay(result.manifest).image.tobytes() == result.image.tobytes()
    old = {name: value for name, value in result.manifest.items() if name != "transparency"}
    assert brush.replay(old).image.mode == "RGB"
    assert "transparency" not in brush.replay(old).manifest
    with pytest.raises(ImageError, match="transparency is 'half'"):
        brush.replay(old | {"transparency": "half"})
    Image.new("RGB", (32, 32)).save(tmp_path / "plain.png")
    run = GuidedRun(with_files(request_of(init=str(tmp_path / "plain.png"))), brush.guidance_models())
    list(run)
    assert run.results[0].image.mode == "RGB"
