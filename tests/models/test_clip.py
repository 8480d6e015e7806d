import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from codebrush.models.clip import CLIP, OPENAI_MEAN, OPENAI_STD, CLIPConfig
from codebrush.models.encoders.bag_of_words import BagOfWordsConfig
from codebrush.models.encoders.modified_resnet import ModifiedResNetConfig
from codebrush.models.encoders.text_transformer import TextTransformerConfig
from codebrush.models.encoders.vision_transformer import VisionTransformerConfig

VIT = VisionTransformerConfig(32, 8, 16, 1, 2, 12)
TEXT = TextTransformerConfig(30, 8, 16, 1, 2, 12)


def clip(image: Any = VIT, text: Any = TEXT, **changes: Any) -> CLIP:
    return CLIP.from_config(CLIPConfig(image, text, **changes)).eval()


def test_embeddings_are_the_encoders_outputs_as_unit_vectors() -> None:
    model, images, tokens = clip(), torch.rand(3, 3, 32, 32), torch.randint(0, 30, (4, 8))
    pixels = (images - torch.tensor(OPENAI_MEAN)[:, None, None]) / torch.tensor(OPENAI_STD)[:, None, None]
    for found, raw in (
        (model.encode_image(images), model.image_encoder(pixels)),
        (model.encode_text(tokens), model.text_encoder(tokens)),
    ):
        assert found.dtype == torch.float32
        torch.testing.assert_close(found.norm(dim=1), torch.ones(len(found)))
        torch.testing.assert_close(found, raw / raw.norm(dim=1, keepdim=True), atol=1e-6, rtol=1e-5)
        assert (raw.norm(dim=1) - 1).abs().max() > 0.01


@pytest.mark.parametrize("size", [(64, 64), (20, 20), (48, 40)])
def test_pictures_of_another_size_are_resized(size: tuple[int, int]) -> None:
    model, images = clip(), torch.rand(2, 3, *size)
    resized = F.interpolate(images, (32, 32), mode="bicubic", antialias=True).clamp(0, 1)
    assert torch.equal(model.encode_image(images), model.encode_image(resized))
    assert model.normalise(images).shape == (2, 3, 32, 32)


def test_pictures_of_its_own_size_are_only_shifted_and_scaled() -> None:
    model = clip(image_mean=(0.25, 0.5, 0.75), image_std=(0.5, 1.0, 2.0))
    images = torch.rand(1, 3, 32, 32) * 3 - 1  # a drawing under way may leave [0, 1]
    pixels = model.normalise(images)
    for channel, (mean, std) in enumerate(((0.25, 0.5), (0.5, 1.0), (0.75, 2.0))):
        torch.testing.assert_close(pixels[:, channel], (images[:, channel] - mean) / std)


def test_a_gradient_reaches_the_picture_through_the_resize() -> None:
    model, images = clip(), torch.rand(1, 3, 48, 48, requires_grad=True)
    target = model.encode_text(torch.randint(0, 30, (1, 8)))
    (gradient,) = torch.autograd.grad((model.encode_image(images) @ target.T).sum(), images)
    step = gradient / gradient.norm()
    after, before = (model.encode_image(images.detach() + way * step) @ target.T for way in (1, -1))
    assert gradient.norm().item() == pytest.approx((after - before).item() / 2, rel=0.05)


@pytest.mark.parametrize(
    ("log_scale", "scale"), [(math.log(1 / 0.07), 1 / 0.07), (math.log(117), 117), (9.0, 8103.08), (-2.0, 0.1353)]
)
def test_the_temperature_is_the_learned_one(log_scale: float, scale: float) -> None:
    model = clip()
    with torch.no_grad():
        model.log_scale.fill_(log_scale)
        output = model(torch.rand(2, 3, 32, 32), torch.randint(0, 30, (2, 8)))
    assert float(output.logit_scale) == pytest.approx(scale, rel=1e-3)


def test_both_sides_of_a_batch_come_out() -> None:
    model, images, tokens = clip(), torch.rand(2, 3, 32, 32), torch.randint(0, 30, (3, 8))
    output = model(images, tokens)
    assert torch.equal(output.image, model.encode_image(images))
    assert torch.equal(output.text, model.encode_text(tokens))
    assert float(clip().log_scale.detach().exp()) == pytest.approx(1 / 0.07)  # section 2.5 of the paper
    assert float(output.logit_bias.detach()) == 0
    assert (model.image_size, model.embed_dim) == (32, 12)


@pytest.mark.parametrize("image", [VIT, ModifiedResNetConfig(32, 4, (1, 1, 1, 1), 2, 12)])
@pytest.mark.parametrize("text", [TEXT, BagOfWordsConfig(30, 8, 6, 12, special_ids=(1, 2))])
def test_every_pair_of_encoders_comes_back_exactly(image: Any, text: Any, tmp_path: Path) -> None:
    model = clip(image, text, image_mean=(0.5,) * 3, image_std=(0.25,) * 3)
    images, tokens = torch.rand(3, 3, 32, 32), torch.randint(0, 30, (2, 8))
    with torch.no_grad():
        model.log_scale.fill_(1.5)
        model.logit_bias.fill_(-3)
        model.train()(images, tokens)  # moves the statistics of batch norms
    model.eval().save_pretrained(tmp_path)
    loaded = CLIP.from_pretrained(tmp_path)
    assert loaded.config == model.config
    assert not loaded.training
    with torch.no_grad():
        for mine, original in zip(loaded(images, tokens), model(images, tokens), strict=True):
            assert torch.equal(mine, original)
