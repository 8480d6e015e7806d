from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from codebrush.models.encoders.image_encoder import make_image_encoder
from codebrush.models.encoders.modified_resnet import Bottleneck, ModifiedResNet, ModifiedResNetConfig
from codebrush.models.encoders.vision_transformer import VisionTransformer, VisionTransformerConfig
from codebrush.models.layers.pooling import AttentionPool
from codebrush.models.layers.transformer import Transformer, TransformerConfig

VIT = VisionTransformerConfig(32, 8, 16, 2, 2, 10)
RESNET = ModifiedResNetConfig(64, 8, (1, 2, 1, 1), 4, 10)


def disturbed(model: Any) -> Any:
    """The model in eval mode with no weight or statistic left at its default."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        for name, buffer in model.named_buffers():
            if buffer.is_floating_point():
                buffer.copy_(0.5 + torch.rand_like(buffer) if "var" in name else torch.randn_like(buffer))
    return model.eval()


def vit(pooling: Any) -> VisionTransformer:
    config = VisionTransformerConfig(32, 8, 16, 2, 2, 10, pooling=pooling, activation="quick_gelu")
    return disturbed(VisionTransformer(config))


@pytest.mark.parametrize("pooling", ["class", "mean"])
def test_a_vision_transformer_is_patches_places_blocks_and_a_projection(pooling: str) -> None:
    model, pixels = vit(pooling), torch.randn(3, 3, 32, 32)
    kernel = model.patch_embedding.weight.flatten(1)  # (D, 3 * 8 * 8)
    patches = [
        pixels[:, :, y : y + 8, x : x + 8].flatten(1) @ kernel.T for y in range(0, 32, 8) for x in range(0, 32, 8)
    ]
    x = torch.stack(patches, dim=1)  # (B, hw, D) in raster order
    if pooling == "class":
        assert model.class_embedding is not None
        x = torch.cat([model.class_embedding.expand(3, 1, 16), x], dim=1)
    x = model.transformer(model.input_norm(x + model.position_embedding))
    pooled = model.final_norm(x[:, 0] if pooling == "class" else x.mean(1))
    torch.testing.assert_close(model(pixels), pooled @ model.projection.weight.T, atol=1e-5, rtol=1e-5)
    features = model.features(pixels)
    assert len(features) == 2
    torch.testing.assert_close(features[-1], x, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("training", [False, True])
def test_the_class_tokens_row_alone_is_the_first_row_of_all(layers: int, training: bool) -> None:
    """In values, in the gradient to the pixels and to every weight."""
    config = VisionTransformerConfig(32, 8, 16, layers, 2, 10, activation="quick_gelu")
    model = disturbed(VisionTransformer(config)).double().train(training)

    def whole(pixels: Tensor) -> Tensor:
        patches = model.patch_embedding(pixels).flatten(2).transpose(1, 2)
        classes = model.class_embedding.expand(len(pixels), 1, -1)
        x = model.input_norm(torch.cat([classes, patches], dim=1) + model.position_embedding)
        return model.projection(model.final_norm(model.transformer(x)[:, 0]))

    pixels = torch.randn(3, 3, 32, 32, dtype=torch.float64, requires_grad=True)
    outputs, wanted = [], torch.randn(3, 10, dtype=torch.float64)
    for forward in (model, whole):
        value = forward(pixels)
        inputs = (pixels, *model.parameters())
        outputs.append((value, *torch.autograd.grad((value * wanted).sum(), inputs)))
    for mine, reference in zip(*outputs, strict=True):
        torch.testing.assert_close(mine, reference, atol=1e-10, rtol=1e-10)
    with torch.no_grad():  # where attention takes PyTorch's fused kernel
        torch.testing.assert_close(model(pixels), whole(pixels), atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("norm", ["layer", "rms"])
def test_a_transformer_gives_its_first_row_alone(bias: bool, norm: Any) -> None:
    trunk = disturbed(Transformer(TransformerConfig(16, 2, 4, norm=norm, bias=bias))).double()
    x = torch.randn(3, 7, 16, dtype=torch.float64)
    torch.testing.assert_close(trunk.first(x), trunk(x)[:, 0], atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("config", [VIT, RESNET, VisionTransformerConfig(32, 8, 16, 1, 2, 10, pooling="mean")])
def test_pictures_of_a_batch_do_not_meet(config: Any) -> None:
    model, side = disturbed(make_image_encoder(config)), config.image_size
    pixels = torch.randn(3, 3, side, side)
    together = model(pixels)
    assert together.shape == (3, 10)
    torch.testing.assert_close(together, torch.cat([model(row[None]) for row in pixels]), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("size", [(8, 8), (16, 64), (33, 33), (40, 40)])
@pytest.mark.parametrize("pooling", ["class", "mean"])
def test_a_vision_transformer_refuses_other_sizes(pooling: str, size: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="reads 32 x 32 pixels"):
        vit(pooling)(torch.randn(1, 3, *size))


@pytest.mark.parametrize("size", [(32, 128), (65, 65), (96, 96)])
def test_a_resnet_refuses_other_sizes(size: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="reads 64 x 64 pixels"):
        ModifiedResNet(RESNET).eval()(torch.randn(1, 3, *size))


def test_pixels_beyond_the_last_whole_patch_do_not_count() -> None:
    encoder, pixels = VisionTransformer(VisionTransformerConfig(30, 8, 16, 1, 2, 10)).eval(), torch.randn(1, 3, 30, 30)
    cut = pixels.clone()
    cut[..., 24:] = cut[..., 24:, :] = 9
    with torch.no_grad():
        assert torch.equal(encoder(pixels), encoder(cut))
        cut[..., 23, :] = 9
        assert not torch.equal(encoder(pixels), encoder(cut))


def test_a_picture_holds_a_patch() -> None:
    with pytest.raises(ValueError, match="image size 6 is smaller than patch 8"):
        VisionTransformer(VisionTransformerConfig(6, 8, 16, 1, 2, 10))


def folded(x: Tensor, conv: nn.Conv2d, norm: nn.BatchNorm2d, **options: Any) -> Tensor:
    """A convolution with the batch norm after it folded into its kernel."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    gain = norm.weight / (norm.running_var + 1e-5).sqrt()
    kernel = conv.weight * gain[:, None, None, None]
    return F.conv2d(x, kernel, norm.bias - norm.running_mean * gain, **options)


def naive_bottleneck(block: Bottleneck, x: Tensor, stride: int) -> Tensor:
    y = F.relu(folded(x, block.conv1, block.norm1))
    y = F.relu(folded(y, block.conv2, block.norm2, padding=1))
    y = F.avg_pool2d(y, stride)
    short: Any = block.shortcut
    x = x if isinstance(short, nn.Identity) else folded(F.avg_pool2d(x, stride), short.conv, short.norm)
    return F.relu(folded(y, block.conv3, block.norm3) + x)


def naive_pool(pool: AttentionPool, x: Tensor) -> Tensor:
    """PyTorch's own multi-head attention with the mean of the grid as its query."""
    channels = x.shape[1]
    attention = nn.MultiheadAttention(channels, pool.heads, batch_first=True).eval()
    parts = (pool.query, pool.key, pool.value)
    attention.in_proj_weight.data = torch.cat([part.weight for part in parts])
    attention.in_proj_bias.data = torch.cat([part.bias for part in parts])
    attention.out_proj.weight.data, attention.out_proj.bias.data = torch.eye(channels), torch.zeros(channels)
    grid = x.flatten(2).movedim(1, 2)
    tokens = torch.cat([grid.mean(1, keepdim=True), grid], dim=1) + pool.position_embedding
    return pool.out(attention(tokens[:, :1], tokens, tokens, need_weights=False)[0][:, 0])


def test_a_resnet_equals_folded_convolutions_and_torchs_attention() -> None:
    model, pixels = disturbed(ModifiedResNet(RESNET)), torch.randn(2, 3, 64, 64)
    x = pixels
    for index, stride in ((0, 2), (3, 1), (6, 1)):
        conv, norm = model.stem[index], model.stem[index + 1]
        x = F.relu(folded(x, conv, norm, stride=stride, padding=1))
    x = F.avg_pool2d(x, 2)
    outputs = []
    with torch.no_grad():
        for number, stage in enumerate(model.stages):
            for index, block in enumerate(stage):
                x = naive_bottleneck(block, x, 2 if number and not index else 1)
            outputs.append(x)
        for mine, reference in zip(model.features(pixels), outputs, strict=True):
            torch.testing.assert_close(mine, reference, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(model(pixels), naive_pool(model.pool, outputs[-1]), atol=1e-4, rtol=1e-4)
    assert [tuple(output.shape[1:]) for output in outputs] == [
        (32, 16, 16),
        (64, 8, 8),
        (128, 4, 4),
        (256, 2, 2),
    ]


def test_a_fresh_bottleneck_adds_nothing_to_its_shortcut() -> None:
    model = ModifiedResNet(RESNET).eval()
    block = model.stages[1][1]  # pyright: ignore[reportIndexIssue]
    x = torch.rand(1, 64, 4, 4)
    assert torch.equal(block(x), x)
