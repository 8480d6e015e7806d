"""Each kind of heat map against a plain implementation, or with an encoder for which the right map is known."""

import itertools
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from codebrush.data.synthetic.shapes import scene
from codebrush.models.clip import CLIP, CLIPConfig
from codebrush.models.encoders.modified_resnet import ModifiedResNetConfig
from codebrush.models.encoders.text_transformer import TextTransformerConfig
from codebrush.models.encoders.vision_transformer import VisionTransformer, VisionTransformerConfig
from codebrush.understanding.attribution import heat_maps
from codebrush.understanding.faithfulness import RANDOM_MAPS, STEPS, faithfulness
from codebrush.understanding.grad_cam import class_activation_maps, combine_maps
from codebrush.understanding.occlusion import occlusion_maps
from codebrush.understanding.relevance import attention_relevance

SIZE, EMBED = 32, 12
TEXT = TextTransformerConfig(30, 8, 16, 1, 2, EMBED)


def clip_with(image: Any) -> CLIP:
    """A CLIP whose weights are all random, large enough that its attention is not even."""
    model = CLIP.from_config(CLIPConfig(image, TEXT)).eval()
    with torch.no_grad():
        for parameter in model.image_encoder.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model.requires_grad_(False)


def pictures(count: int) -> Tensor:
    return torch.rand(count, 3, SIZE, SIZE)


def directions(count: int) -> Tensor:
    return torch.randn(count, EMBED)


def weights(q: Tensor, k: Tensor, heads: int) -> Tensor:
    """Attention (B, heads, queries, N) of queries and keys (B, ., D)."""
    q, k = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in (q, k))
    return (q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5).softmax(-1)


def mixed(attention: Tensor, v: Tensor) -> Tensor:
    return (attention @ v.unflatten(-1, (attention.shape[1], -1)).transpose(1, 2)).transpose(1, 2).flatten(2)


def plain_relevance(clip: CLIP, image: Tensor, direction: Tensor) -> Tensor:
    """One picture (1, 3, S, S) -> its map (h, w), by gradients of explicit attention weights."""
    tower: VisionTransformer = clip.image_encoder
    x, taken = tower._tokens(clip.normalise(image)), []
    for block in tower.transformer.blocks:
        attention: Any = block.attention
        q, k, v = attention.qkv(block.attention_norm(x)).chunk(3, dim=-1)
        taken.append(weights(q, k, attention.heads).requires_grad_())
        x = x + attention.out(mixed(taken[-1], v))
        x = x + block.mlp(block.mlp_norm(x))
    pool = tower.pool
    if tower.config.pooling == "class":
        last, read = None, tower.final_norm(x[:, 0])
    elif pool is None:
        last = torch.full((1, 1, 1, x.shape[1]), 1 / x.shape[1], requires_grad=True)
        read = tower.final_norm((last[0, 0] @ x)[:, 0])
    else:
        width, normed = x.shape[-1], tower.final_norm(x)
        q = F.linear(pool.query, pool.qkv.weight[:width], pool.qkv.bias[:width]).expand(1, 1, -1)
        k, v = F.linear(normed, pool.qkv.weight[width:], pool.qkv.bias[width:]).chunk(2, dim=-1)
        last = weights(q, k, pool.heads).requires_grad_()
        y = pool.out(mixed(last, v)[:, 0])
        read = y + pool.mlp(pool.norm(y))
    score = (F.normalize(tower.projection(read), dim=-1) * direction).sum()
    wanted = taken if last is None else [*taken, last]
    gradients = torch.autograd.grad(score, wanted)
    flows = [(gradient * part).relu().mean(1)[0] for gradient, part in zip(gradients, wanted, strict=True)]
    relevance = torch.eye(x.shape[1])
    for flow in flows[: len(taken)]:
        share = flow / flow.sum(1, keepdim=True).clamp(min=1e-30)
        relevance = (relevance + share @ relevance) / 2
    row = relevance[0, 1:] if last is None else (flows[-1] @ relevance)[0]
    side = tower.config.image_size // tower.config.patch_size
    return row.view(side, side).detach()


@pytest.mark.parametrize("pooling", ["class", "mean", "attention"])
def test_relevance_equals_that_of_explicit_attention_weights(pooling: Any) -> None:
    clip = clip_with(VisionTransformerConfig(SIZE, 8, 16, 3, 2, EMBED, pooling=pooling))
    images, asked = pictures(3), directions(3)
    found = attention_relevance(clip, images, asked)
    assert found.shape == (3, 4, 4)
    for row in range(3):
        plain = plain_relevance(clip, images[row : row + 1], asked[row])
        torch.testing.assert_close(found[row], plain, atol=1e-6, rtol=1e-3)
        assert plain.std() > 0.01 * plain.mean()


def test_grad_cam_joins_all_stages_of_a_resnet() -> None:
    clip = clip_with(ModifiedResNetConfig(SIZE, 8, (1, 1, 1, 1), 4, EMBED))
    image, asked = pictures(1), directions(2)
    found = class_activation_maps(clip, image.expand(2, -1, -1, -1), asked)
    assert found.shape == (2, SIZE // 4, SIZE // 4)
    tower, x = clip.image_encoder, clip.normalise(image)
    stages = [part.requires_grad_() for part in tower.features(x)]
    for row in range(2):
        maps = []
        for place in range(4):  # the rest of the network behind each stage, run by itself
            start = stages[place].detach().requires_grad_()
            y = start
            for stage in tower.stages[place + 1 :]:
                y = stage(y)
            (F.normalize(tower.pool(y), dim=-1) * asked[row]).sum().backward()
            assert start.grad is not None
            maps.append((start.grad.relu() * start).sum(1, keepdim=True).detach())
        torch.testing.assert_close(found[row], combine_maps(maps)[0], atol=1e-6, rtol=1e-3)


def test_a_place_is_hot_where_every_map_is() -> None:
    fine, coarse = torch.zeros(1, 1, 4, 4), torch.zeros(1, 1, 2, 2)
    fine[..., :, 0] = 3.0
    coarse[..., 0, :] = 0.5
    found = combine_maps([fine, coarse])[0]
    assert found.shape == (4, 4)
    assert found[0, 0] == pytest.approx(1)
    assert found[:, 1:].abs().max() == 0
    assert found[3, 0] == 0
    empty = combine_maps([fine, torch.zeros(1, 1, 2, 2)])
    assert torch.equal(empty, torch.zeros(1, 4, 4))  # no heat, and no nan


def counting(left: int, top: int, side: int) -> Any:
    """An encoder that sees how bright one box is: the cosine with (1, 0) rises with it, and with nothing else."""

    def encode_image(images: Tensor) -> Tensor:
        bright = images[:, :, top : top + side, left : left + side].mean((1, 2, 3))
        return torch.stack([bright, torch.ones_like(bright)], dim=1) / 2

    return SimpleNamespace(encode_image=encode_image, image_encoder=None)


def lit(left: int, top: int, side: int) -> Tensor:
    """A dark picture (3, S, S) with one bright box."""
    image = torch.full((3, SIZE, SIZE), 0.1)
    image[:, top : top + side, left : left + side] = 1.0
    return image


def test_occlusion_is_the_mean_fall_over_the_windows_that_cover_a_pixel() -> None:
    clip, image, toward = counting(4, 20, 6), lit(4, 20, 6), torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    reported: list[tuple[int, int]] = []
    found = occlusion_maps(clip, image, toward, lambda done, of: reported.append((done, of)))
    whole, means = clip.encode_image(image[None])[0, 0], []
    for window, step in ((SIZE // 4, SIZE // 16), (SIZE // 8, SIZE // 16)):
        total, count = torch.zeros(SIZE, SIZE), torch.zeros(SIZE, SIZE)
        for top, left in itertools.product(range(0, SIZE - window + 1, step), repeat=2):
            covered = image.clone()
            covered[:, top : top + window, left : left + window] = image.mean((1, 2))[:, None, None]
            total[top : top + window, left : left + window] += whole - clip.encode_image(covered[None])[0, 0]
            count[top : top + window, left : left + window] += 1
        assert count.min() > 0
        means.append(total / count)
    torch.testing.assert_close(found[0], (sum(means) / 2).relu(), atol=1e-6, rtol=1e-4)
    row, column = divmod(int(found[0].argmax()), SIZE)
    assert 20 <= row < 26
    assert 4 <= column < 10
    assert found[1].max() < 1e-6  # what only lowers a score has no heat
    assert reported[-1][0] == reported[-1][1]


def test_faithfulness_prefers_the_true_map_to_random_ones_and_to_its_opposite() -> None:
    clip, image, toward = counting(8, 8, 12), lit(8, 8, 12), torch.tensor([1.0, 0.0])
    truth = (image[0] == 1).float()
    reported: list[tuple[int, int]] = []
    found = faithfulness(clip, image, toward, truth, lambda done, of: reported.append((done, of)))
    assert reported == [(count + 1, 1 + RANDOM_MAPS) for count in range(1 + RANDOM_MAPS)]
    assert found.insertion > found.insertion_random + 0.05
    assert found.deletion < found.deletion_random - 0.05
    opposite = faithfulness(clip, image, toward, -truth)
    assert opposite.insertion < found.insertion_random
    assert opposite.deletion > found.deletion_random


def test_the_area_of_a_deletion_is_that_under_its_curve() -> None:
    clip, image, toward = counting(0, 0, SIZE), lit(0, 0, SIZE // 2), torch.tensor([1.0, 0.0])
    truth = (image[0] == 1).float()
    order = truth.flatten().argsort(descending=True, stable=True)
    grey, curve = float(image.mean()), []
    for step in range(STEPS + 1):
        gone = order[(torch.arange(SIZE**2) * STEPS // SIZE**2 + 1) <= step]
        left = image.flatten(1).clone()
        left[:, gone] = grey
        curve.append(float(left.mean()) / 2)
    area = sum((one + other) / 2 for one, other in itertools.pairwise(curve)) / STEPS
    assert faithfulness(clip, image, toward, truth).deletion == pytest.approx(area, abs=1e-5)


@pytest.mark.parametrize("kind", ["vit", "resnet"])
def test_a_map_by_gradients_is_as_large_as_its_picture_and_has_no_cold_numbers(kind: str) -> None:
    sizes = {
        "vit": VisionTransformerConfig(SIZE, 8, 16, 2, 2, EMBED),
        "resnet": ModifiedResNetConfig(SIZE, 8, (1, 1, 1, 1), 4, EMBED),
    }
    clip = clip_with(sizes[kind])
    reported: list[tuple[int, int]] = []
    image, asked = scene_pixels(), directions(6)  # more than are read together
    maps = heat_maps(clip, image, asked, "gradient", lambda done, of: reported.append((done, of)))
    assert maps.shape == (6, SIZE, SIZE)
    assert maps.min() >= 0
    assert maps.max() <= 1 + 1e-5
    assert reported[-1] == (9, 9)
    torch.testing.assert_close(maps[5:], heat_maps(clip, image, asked[5:], "gradient"), atol=1e-3, rtol=1e-3)
    assert not torch.allclose(maps[0], maps[1])


def scene_pixels() -> Tensor:
    pixels = torch.tensor(list(scene(0, 3, SIZE).image.tobytes()), dtype=torch.float32)
    return pixels.view(SIZE, SIZE, 3).permute(2, 0, 1) / 255
