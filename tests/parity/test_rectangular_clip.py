"""An open_clip model whose pictures are not square, against its computation and preprocessing written out plainly."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from codebrush.conversion.export import export_clip
from codebrush.conversion.load import load_clip
from codebrush.data.decoding.images import MAX_PIXELS
from codebrush.data.preprocess import clip_resize, pixels_for
from codebrush.errors import PackError
from codebrush.models.clip import CLIP
from codebrush.text.tokenizer import Tokenizer
from codebrush.training.tasks.captioner import CaptionerRecipe, make_captioner
from codebrush.understanding.attribution import heat_maps
from golden_files import close, golden

HEIGHT, WIDTH, PATCH, HEADS = 24, 40, 8, 3


def weights() -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The square model of the golden files with as many positions as 24 x 40 pixels have patches, and its config."""
    reference = golden("open_clip_vit_a")
    tensors = load_file(reference.weights)
    count = 1 + (HEIGHT // PATCH) * (WIDTH // PATCH)
    tensors["visual.positional_embedding"] = torch.randn(count, tensors["visual.class_embedding"].shape[0])
    vision = reference.config["vision_cfg"] | {"image_size": [HEIGHT, WIDTH]}
    return tensors, reference.config | {"vision_cfg": vision}


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    tensors, config = weights()
    folder = tmp_path / "published"
    folder.mkdir()
    save_file(tensors, folder / "open_clip_model.safetensors")
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config}))
    return folder / "open_clip_model.safetensors"


@pytest.fixture
def clip(checkpoint: Path) -> CLIP:
    return load_clip(checkpoint)


def reference_image_features(tensors: dict[str, Tensor], pixels: Tensor) -> Tensor:
    """open_clip's image encoder: normalised pixels (B, 3, H, W) -> (B, E)."""
    state = {name.removeprefix("visual."): value for name, value in tensors.items() if name.startswith("visual.")}
    width = state["class_embedding"].shape[0]

    def norm(x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, (width,), state[f"{name}.weight"], state[f"{name}.bias"])

    patches = F.conv2d(pixels, state["conv1.weight"], stride=PATCH).flatten(2).transpose(1, 2)  # (B, hw, D)
    x = torch.cat([state["class_embedding"].expand(len(pixels), 1, -1), patches], dim=1)
    x = norm(x + state["positional_embedding"], "ln_pre")
    for layer in range(2):
        block = f"transformer.resblocks.{layer}"
        attention = nn.MultiheadAttention(width, HEADS, batch_first=True)
        inner = {name: state[f"{block}.attn.{name}"] for name in attention.state_dict()}
        attention.load_state_dict(inner)
        y = norm(x, f"{block}.ln_1")
        x = x + attention(y, y, y, need_weights=False)[0]
        y = F.linear(norm(x, f"{block}.ln_2"), state[f"{block}.mlp.c_fc.weight"], state[f"{block}.mlp.c_fc.bias"])
        x = x + F.linear(F.gelu(y), state[f"{block}.mlp.c_proj.weight"], state[f"{block}.mlp.c_proj.bias"])
    return norm(x[:, 0], "ln_post") @ state["proj"]


def reference_resize(picture: Image.Image) -> Image.Image:
    """open_clip's default for sizes that are not square: cover the size, both sides rounded, and cut out the middle."""
    ratio = min(picture.height / HEIGHT, picture.width / WIDTH)
    width, height = round(picture.width / ratio), round(picture.height / ratio)
    scaled = picture.resize((width, height), Image.Resampling.BICUBIC)
    left, top = round((width - WIDTH) / 2.0), round((height - HEIGHT) / 2.0)
    return scaled.crop((left, top, left + WIDTH, top + HEIGHT)).convert("RGB")


def noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def test_features_and_logits_are_the_references(clip: CLIP) -> None:
    tensors, _ = weights()
    pixels, tokens = torch.randn(3, 3, HEIGHT, WIDTH), golden("open_clip_vit_a").io["input.text"]
    tensors["visual.positional_embedding"] = clip.image_encoder.position_embedding.data
    with torch.no_grad():
        image, text = clip.image_encoder(pixels), clip.text_encoder(tokens)
        expected = reference_image_features(tensors, pixels)
    close(image, expected, "image features")
    close(text, golden("open_clip_vit_a").io["output.text_features"], "text features")
    assert clip.image_shape == (HEIGHT, WIDTH)
    assert clip.config.image.grid == (3, 5)  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize("size", [(61, 47), (47, 61), (80, 48), (40, 24), (24, 40), (9, 20), (301, 255), (33, 20)])
def test_pictures_are_prepared_as_the_reference_does(clip: CLIP, size: tuple[int, int]) -> None:
    expected = torch.from_numpy(np.array(reference_resize(noise(*size)))).permute(2, 0, 1) / 255
    found = pixels_for(clip, [noise(*size)])
    assert torch.equal(found[0], expected)
    assert torch.equal(clip.normalise(found), (found - clip.mean) / clip.std)


def test_a_picture_can_be_squashed_whole(checkpoint: Path) -> None:
    config = json.loads((checkpoint.parent / "open_clip_config.json").read_text())
    clip = load_clip(checkpoint, config | {"preprocess_cfg": {"resize_mode": "squash"}})
    expected = noise(61, 47).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)
    assert torch.equal(
        pixels_for(clip, [noise(61, 47)])[0], torch.from_numpy(np.array(expected)).permute(2, 0, 1) / 255
    )


def test_a_strip_never_becomes_larger_than_the_limit() -> None:
    strip = Image.new("RGBA", (1, 5_000_000), (255, 0, 0, 9))
    assert WIDTH * WIDTH * strip.height > MAX_PIXELS
    fitted = clip_resize(strip, (HEIGHT, WIDTH))
    assert fitted.size == (WIDTH, HEIGHT)
    assert fitted.getpixel((20, 12)) == (255, 0, 0)


def test_it_comes_back_from_its_folder(clip: CLIP, tmp_path: Path) -> None:
    clip.save_pretrained(tmp_path / "ours")
    assert json.loads((tmp_path / "ours" / "config.json").read_text())["image"]["image_size"] == [HEIGHT, WIDTH]
    again, images = CLIP.from_pretrained(tmp_path / "ours").requires_grad_(False), torch.rand(2, 3, HEIGHT, WIDTH)
    assert again.config == clip.config
    assert torch.equal(again.encode_image(images), clip.encode_image(images))


def test_equal_sides_are_one_number() -> None:
    reference = golden("open_clip_vit_a")
    vision = reference.config["vision_cfg"] | {"image_size": [32, 32]}
    assert load_clip(reference.weights, reference.config | {"vision_cfg": vision}).config.image.image_size == 32


@pytest.mark.parametrize("size", [[40, 40], [24, 48], [24], "wide", [0, 40], [24.0, 40], 24])
def test_a_size_that_the_positions_do_not_fit_is_refused(checkpoint: Path, size: Any) -> None:
    _, config = weights()
    vision = config["vision_cfg"] | {"image_size": size}
    with pytest.raises(PackError, match="its config says image_size"):
        load_clip(checkpoint, config | {"vision_cfg": vision})


def test_what_needs_square_pictures_says_so_in_one_line(clip: CLIP, tmp_path: Path) -> None:
    refused: list[Callable[[], object]] = [
        lambda: clip.image_size,
        lambda: make_captioner(CaptionerRecipe(), clip, Tokenizer.wordpiece()),
    ]
    for attempt in refused:
        with pytest.raises(PackError, match=r"reads pictures of 24 x 40 pixels \(height x width\)") as caught:
            attempt()
        assert "\n" not in str(caught.value)
    for layout in ("openai", "huggingface"):
        with pytest.raises(PackError, match="the pictures it reads are not square"):
            export_clip(clip, tmp_path, layout)


def test_explanations_have_the_pictures_shape(clip: CLIP) -> None:
    image, direction = torch.rand(3, HEIGHT, WIDTH), F.normalize(torch.randn(2, clip.embed_dim), dim=1)
    assert heat_maps(clip, image, direction, "gradient").shape == (2, HEIGHT, WIDTH)
