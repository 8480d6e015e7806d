"""The published models at full size, on the meta device: every tensor's published name and shape, and the totals.

The tables below follow the papers and the original configs. That they name what the originals have is checked on the
small checkpoints of the golden set, which the same loops must describe to the last tensor.
"""

from collections.abc import Callable, Iterator
from math import prod
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn

from codebrush.conversion import openai, taming
from codebrush.conversion.state_dict_rules import extract, fill
from codebrush.models.clip import CLIP, CLIPConfig
from codebrush.models.encoders.modified_resnet import ModifiedResNetConfig
from codebrush.models.encoders.text_transformer import TextTransformerConfig
from codebrush.models.encoders.vision_transformer import VisionTransformerConfig
from codebrush.models.vqgan import VQGAN, VQGANConfig
from codebrush.models.vqgan_sizes import vqgan_taming_f16, vqgan_taming_gumbel_f8

Shape = tuple[int, ...]
Table = dict[str, Shape]
STATISTICS = ("running_mean", "running_var", "num_batches_tracked")  # buffers of a batch norm


def with_bias(name: str, *shape: int) -> Table:
    """A linear map or a convolution."""
    return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}


def norm(name: str, width: int) -> Table:
    return with_bias(name, width)


def merged(tables: Iterator[Table]) -> Table:
    return {name: shape for table in tables for name, shape in table.items()}


def blocks(name: str, width: int, layers: int) -> Table:
    """The blocks of an OpenAI transformer."""

    def parts() -> Iterator[Table]:
        for place in (f"{name}.transformer.resblocks.{layer}".lstrip(".") for layer in range(layers)):
            yield {f"{place}.attn.in_proj_weight": (3 * width, width), f"{place}.attn.in_proj_bias": (3 * width,)}
            yield with_bias(f"{place}.attn.out_proj", width, width)
            yield norm(f"{place}.ln_1", width)
            yield norm(f"{place}.ln_2", width)
            yield with_bias(f"{place}.mlp.c_fc", 4 * width, width)
            yield with_bias(f"{place}.mlp.c_proj", width, 4 * width)

    return merged(parts())


def text_encoder(config: TextTransformerConfig) -> Table:
    return {
        "token_embedding.weight": (config.vocab_size, config.width),
        "positional_embedding": (config.context_length, config.width),
        **blocks("", config.width, config.layers),
        **norm("ln_final", config.width),
        "text_projection": (config.width, config.embed_dim),
        "logit_scale": (),
    }


def vision_transformer(config: VisionTransformerConfig) -> Table:
    return {
        "visual.class_embedding": (config.width,),
        "visual.positional_embedding": ((config.image_size // config.patch_size) ** 2 + 1, config.width),
        "visual.proj": (config.width, config.embed_dim),
        "visual.conv1.weight": (config.width, 3, config.patch_size, config.patch_size),
        **norm("visual.ln_pre", config.width),
        **blocks("visual", config.width, config.layers),
        **norm("visual.ln_post", config.width),
    }


def batch_norm(name: str, width: int) -> Table:
    shapes = ((width,), (width,), ())
    return norm(name, width) | {f"{name}.{kept}": shape for kept, shape in zip(STATISTICS, shapes, strict=True)}


def resnet(config: ModifiedResNetConfig) -> Table:
    """CLIP's ResNet: a stem of three convolutions, bottlenecks that widen four times, attention pooling."""

    def parts() -> Iterator[Table]:
        width = config.width
        for index, (before, after) in enumerate(((3, width // 2), (width // 2, width // 2), (width // 2, width)), 1):
            yield {f"visual.conv{index}.weight": (after, before, 3, 3)} | batch_norm(f"visual.bn{index}", after)
        before = width
        for stage, count in enumerate(config.blocks):
            inner = width * 2**stage
            for block in range(count):
                place = f"visual.layer{stage + 1}.{block}"
                for index, shape in enumerate(((inner, before, 1), (inner, inner, 3), (4 * inner, inner, 1)), 1):
                    yield {f"{place}.conv{index}.weight": (*shape, shape[-1])}
                    yield batch_norm(f"{place}.bn{index}", shape[0])
                if not block:
                    yield {f"{place}.downsample.0.weight": (4 * inner, before, 1, 1)}
                    yield batch_norm(f"{place}.downsample.1", 4 * inner)
                before = 4 * inner
        pool = "visual.attnpool"
        yield {f"{pool}.positional_embedding": ((config.image_size // 32) ** 2 + 1, before)}
        for name in ("q_proj", "k_proj", "v_proj"):
            yield with_bias(f"{pool}.{name}", before, before)
        yield with_bias(f"{pool}.c_proj", config.embed_dim, before)

    return merged(parts())


def clip_table(config: CLIPConfig) -> Table:
    image: Any = config.image
    tower = vision_transformer if isinstance(image, VisionTransformerConfig) else resnet
    text: Any = config.text
    return tower(image) | text_encoder(text)


def res_block(name: str, before: int, after: int) -> Table:
    shortcut = with_bias(f"{name}.nin_shortcut", after, before, 1, 1) if before != after else {}
    return {
        **norm(f"{name}.norm1", before),
        **with_bias(f"{name}.conv1", after, before, 3, 3),
        **norm(f"{name}.norm2", after),
        **with_bias(f"{name}.conv2", after, after, 3, 3),
        **shortcut,
    }


def attention(name: str, width: int) -> Table:
    maps = (with_bias(f"{name}.{part}", width, width, 1, 1) for part in ("q", "k", "v", "proj_out"))
    return norm(f"{name}.norm", width) | merged(maps)


def middle(name: str, width: int) -> Table:
    sides = res_block(f"{name}.block_1", width, width) | res_block(f"{name}.block_2", width, width)
    return sides | attention(f"{name}.attn_1", width)


def coder(config: VQGANConfig, decoder: bool) -> Table:
    """taming's encoder, or its decoder, which goes the levels the other way and has one block more on each."""
    side, levels, resize = ("decoder", "up", "upsample") if decoder else ("encoder", "down", "downsample")
    widths = [config.channels * multiplier for multiplier in config.channel_multipliers]
    last = len(widths) - 1

    def parts() -> Iterator[Table]:
        inner = widths[-1]
        ends = (inner, config.latent_channels) if decoder else (config.channels, 3)
        yield with_bias(f"{side}.conv_in", *ends, 3, 3)
        yield middle(f"{side}.mid", inner)
        width = ends[0]
        for level in reversed(range(len(widths))) if decoder else range(len(widths)):
            place = f"{side}.{levels}.{level}"
            for block in range(config.res_blocks + decoder):
                yield res_block(f"{place}.block.{block}", width, widths[level])
                width = widths[level]
                if config.image_size >> level in config.attention_resolutions:
                    yield attention(f"{place}.attn.{block}", width)
            if level != (0 if decoder else last):
                yield with_bias(f"{place}.{resize}.conv", width, width, 3, 3)
        yield norm(f"{side}.norm_out", width)
        yield with_bias(f"{side}.conv_out", 3 if decoder else config.latent_channels, width, 3, 3)

    return merged(parts())


def vqgan_table(config: VQGANConfig) -> Table:
    size, dim, channels = config.codebook_size, config.code_dim, config.latent_channels
    if config.quantizer == "gumbel":
        codes = {"quantize.embed.weight": (size, dim), **with_bias("quantize.proj", size, dim, 1, 1)}
    else:
        codes = {"quantize.embedding.weight": (size, dim)}
    between = with_bias("quant_conv", dim, channels, 1, 1) | with_bias("post_quant_conv", channels, dim, 1, 1)
    return coder(config, decoder=False) | coder(config, decoder=True) | codes | between


def total(table: Table, prefix: str = "") -> int:
    """Parameters whose names begin with `prefix`."""
    kept = (shape for name, shape in table.items() if name.startswith(prefix) and not name.endswith(STATISTICS))
    return sum(map(prod, kept))


def shapes(tensors: dict[str, Tensor]) -> Table:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def stand_ins(table: Table) -> dict[str, Tensor]:
    return {name: torch.empty(shape, device="meta") for name, shape in table.items()}


def trainable(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def text(width: int, heads: int, embed_dim: int) -> TextTransformerConfig:
    return TextTransformerConfig(49_408, 77, width, 12, heads, embed_dim, activation="quick_gelu")


VIT_B_32 = VisionTransformerConfig(224, 32, 768, 12, 12, 512, activation="quick_gelu")
VIT_L_14 = VisionTransformerConfig(224, 14, 1024, 24, 16, 768, activation="quick_gelu")
RN50 = ModifiedResNetConfig(224, 64, (3, 4, 6, 3), 32, 1024)
CLIPS = {  # parameters in all, of the image encoder, and shapes in which these models differ from their neighbours
    "ViT-B/32": (CLIPConfig(VIT_B_32, text(512, 8, 512), resize_mode="crop"), 151_277_313, 87_849_216),
    "ViT-L/14": (CLIPConfig(VIT_L_14, text(768, 12, 768), resize_mode="crop"), 427_616_513, 303_966_208),
    "RN50": (CLIPConfig(RN50, text(512, 8, 1024), resize_mode="crop"), 102_007_137, 38_316_896),
}
DECISIVE_CLIP: dict[str, Table] = {
    "ViT-B/32": {
        "visual.conv1.weight": (768, 3, 32, 32),
        "visual.positional_embedding": (50, 768),
        "visual.proj": (768, 512),
        "visual.transformer.resblocks.11.attn.in_proj_weight": (2304, 768),
        "transformer.resblocks.11.mlp.c_fc.weight": (2048, 512),
        "text_projection": (512, 512),
    },
    "ViT-L/14": {
        "visual.conv1.weight": (1024, 3, 14, 14),
        "visual.positional_embedding": (257, 1024),
        "visual.proj": (1024, 768),
        "visual.transformer.resblocks.23.mlp.c_proj.weight": (1024, 4096),
        "transformer.resblocks.11.attn.out_proj.weight": (768, 768),
        "token_embedding.weight": (49408, 768),
    },
    "RN50": {
        "visual.conv1.weight": (32, 3, 3, 3),
        "visual.layer1.0.downsample.0.weight": (256, 64, 1, 1),
        "visual.layer3.5.conv2.weight": (256, 256, 3, 3),
        "visual.layer4.2.bn3.running_var": (2048,),
        "visual.attnpool.positional_embedding": (50, 2048),
        "visual.attnpool.c_proj.weight": (1024, 2048),
    },
}
VQGANS = {  # parameters of the encoder, the decoder and the quantiser
    "f16-1024": (vqgan_taming_f16(1024), 29_298_176, 42_449_795, 262_144),
    "f16-16384": (vqgan_taming_f16(16384), 29_298_176, 42_449_795, 4_194_304),
    "gumbel-f8": (vqgan_taming_gumbel_f8(), 26_345_728, 38_316_163, 4_202_496),
}
BETWEEN = 2 * (256 * 256 + 256)  # the two 1x1 convolutions on either side of the quantiser
DECISIVE_F16: Table = {
    "encoder.conv_in.weight": (128, 3, 3, 3),
    "encoder.down.2.block.0.nin_shortcut.weight": (256, 128, 1, 1),
    "encoder.down.3.downsample.conv.weight": (256, 256, 3, 3),
    "encoder.down.4.attn.1.q.weight": (512, 512, 1, 1),
    "encoder.mid.attn_1.proj_out.weight": (512, 512, 1, 1),
    "encoder.conv_out.weight": (256, 512, 3, 3),
    "quant_conv.weight": (256, 256, 1, 1),
    "post_quant_conv.weight": (256, 256, 1, 1),
    "decoder.conv_in.weight": (512, 256, 3, 3),
    "decoder.up.4.attn.2.q.weight": (512, 512, 1, 1),
    "decoder.up.3.block.0.nin_shortcut.weight": (256, 512, 1, 1),
    "decoder.up.1.block.0.conv1.weight": (128, 256, 3, 3),
    "decoder.up.0.block.2.conv2.weight": (128, 128, 3, 3),
    "decoder.conv_out.weight": (3, 128, 3, 3),
}
DECISIVE_VQGAN: dict[str, Table] = {
    "f16-1024": {**DECISIVE_F16, "quantize.embedding.weight": (1024, 256)},
    "f16-16384": {**DECISIVE_F16, "quantize.embedding.weight": (16384, 256)},
    "gumbel-f8": {
        "encoder.down.2.downsample.conv.weight": (256, 256, 3, 3),
        "encoder.down.3.attn.1.q.weight": (512, 512, 1, 1),
        "encoder.conv_out.weight": (256, 512, 3, 3),
        "quantize.proj.weight": (8192, 256, 1, 1),
        "quantize.proj.bias": (8192,),
        "quantize.embed.weight": (8192, 256),
        "decoder.up.3.attn.2.q.weight": (512, 512, 1, 1),
        "decoder.up.2.block.0.nin_shortcut.weight": (256, 512, 1, 1),
        "decoder.up.0.block.2.conv2.weight": (128, 128, 3, 3),
    },
}


@pytest.mark.parametrize("name", CLIPS)
def test_clip_has_the_published_tensors(name: str) -> None:
    config, whole, image = CLIPS[name]
    table = clip_table(config)
    tensors = stand_ins(table)
    assert DECISIVE_CLIP[name].items() <= table.items()
    assert (total(table), total(table, "visual.")) == (whole, image)
    with torch.device("meta"):
        clip = CLIP.from_config(config)
    assert all(parameter.is_meta for parameter in clip.parameters())
    assert trainable(clip) - clip.logit_bias.numel() == whole  # OpenAI's have no bias, and ours is 0
    assert trainable(clip.image_encoder) == image
    assert shapes(extract(clip, openai.rules(tensors))) == table
    fill(clip, tensors, openai.rules(tensors), openai.IGNORED, name)  # strict both ways


@pytest.mark.parametrize("name", CLIPS)
def test_clip_sizes_are_read_off_the_published_tensors(name: str) -> None:
    config, *_ = CLIPS[name]
    assert openai.config(stand_ins(clip_table(config)), None, name) == config


@pytest.mark.parametrize("name", VQGANS)
def test_vqgan_has_the_published_tensors(name: str) -> None:
    config, *parts = VQGANS[name]
    table = vqgan_table(config)
    tensors = stand_ins(table)
    assert DECISIVE_VQGAN[name].items() <= table.items()
    assert [total(table, prefix) for prefix in ("encoder.", "decoder.", "quantize.")] == parts
    with torch.device("meta"):
        vqgan = VQGAN(config)
    assert all(parameter.is_meta for parameter in vqgan.parameters())
    assert [trainable(part) for part in (vqgan.encoder, vqgan.decoder, vqgan.quantizer)] == parts
    assert trainable(vqgan) == sum(parts) + BETWEEN == total(table)
    rules = taming.GUMBEL_RULES if config.quantizer == "gumbel" else taming.VQ_RULES
    assert shapes(extract(vqgan, rules)) == table
    fill(vqgan, tensors, rules, taming.IGNORED, name)


@pytest.mark.parametrize("name", VQGANS)
def test_vqgan_sizes_are_read_off_the_published_tensors(name: str) -> None:
    config, *_ = VQGANS[name]
    published = {"kl_weight": config.kl_weight, "ddconfig": {"resolution": 256, "ch": 128, "double_z": False}}
    assert taming.vqgan_config(stand_ins(vqgan_table(config)), published, name) == config


SMALL: dict[str, Callable[[dict[str, Tensor]], Table]] = {
    "openai_clip_vit_a": lambda tensors: clip_table(openai.config(tensors, None, "")),
    "openai_clip_rn_a": lambda tensors: clip_table(openai.config(tensors, None, "")),
    "taming_vq_a": lambda tensors: vqgan_table(taming.vqgan_config(tensors, {"ddconfig": {"resolution": 16}}, "")),
    "taming_gumbel_a": lambda tensors: vqgan_table(taming.vqgan_config(tensors, {"ddconfig": {"resolution": 32}}, "")),
}


@pytest.mark.parametrize("name", SMALL)
def test_the_tables_describe_what_the_originals_have(golden_file: Callable[[str], Path], name: str) -> None:
    with safe_open(golden_file(f"{name}.safetensors"), "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys() if not key.startswith("loss.")}  # noqa: SIM118
    assert SMALL[name](tensors) == shapes(tensors)
