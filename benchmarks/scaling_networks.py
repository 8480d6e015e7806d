"""FLOPs, parameters, activations and cached bytes of the networks that `scaling_model.py` plans, from their configs.

Transformers are counted by formula: the package's text encoder cuts texts at the longest of a batch, so that a count of
a run would depend on the data. Convolutions are counted by torch on the meta device, without memory for the weights.
A multiplication and an addition are two FLOPs; norms and activations are left out.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from alternation import flops_of
from torch import Tensor, nn

from codebrush.models.code_transformer_config import CodeTransformerConfig
from codebrush.models.discriminator import PatchGAN
from codebrush.models.encoders.image_encoder import make_image_encoder
from codebrush.models.encoders.modified_resnet import ModifiedResNetConfig
from codebrush.models.encoders.text_transformer import TextTransformerConfig
from codebrush.models.encoders.vision_transformer import VisionTransformerConfig
from codebrush.models.layers.transformer import TransformerConfig
from codebrush.models.perceptual import VGG_BLOCKS
from codebrush.models.vqgan import VQGAN, VQGANConfig
from codebrush.models.vqgan_sizes import vqgan_taming_f16

VOCABULARY, CONTEXT = 49_408, 77


@dataclass(frozen=True)
class Network:
    """What one sample of a training costs: `forward` FLOPs, and `extra` ones that are no forward pass of its own (a
    step takes 3 * forward + extra); `parameters` that are trained; `activations`, bytes kept for backward in 16 bits;
    `inputs`, the bytes of the layers' inputs alone, kept where they are computed again; `features`, the width E of
    embeddings that are gathered."""

    forward: float
    parameters: float
    activations: float
    inputs: float
    extra: float = 0.0
    features: int = 0
    layers: int = 1


def block_weights(width: int, hidden: int, matrices: int = 2) -> int:
    """Weights of the products of one transformer block; an MLP has two matrices, a SwiGLU's three."""
    return 4 * width**2 + matrices * width * hidden


def transformer_flops(tokens: int, width: int, layers: int, hidden: int, matrices: int = 2) -> float:
    """Forward pass of one sequence: each weight once a token, and attention's two products. Causal attention is counted
    whole, as its kernels mostly compute it."""
    return layers * (2.0 * tokens * block_weights(width, hidden, matrices) + 4.0 * tokens**2 * width)


def transformer_activations(tokens: int, width: int, layers: int) -> float:
    """34 bytes a token, channel and layer with fused attention (Korthikanti et al. 2022, section 4.1)."""
    return 34.0 * tokens * width * layers


def clip(image: VisionTransformerConfig | ModifiedResNetConfig, text: TextTransformerConfig) -> Network:
    """CLIP with texts of the whole context, as the published runs trained it."""
    forward, weights, kept, inputs = _image(image)
    text_hidden = text.hidden or 4 * text.width
    tokens = text.context_length
    forward += transformer_flops(tokens, text.width, text.layers, text_hidden)
    weights += text.layers * block_weights(text.width, text_hidden) + text.width * (text.vocab_size + tokens)
    weights += text.width * text.embed_dim
    kept += transformer_activations(tokens, text.width, text.layers)
    inputs += 2.0 * tokens * text.width * text.layers
    return Network(forward, weights, kept, inputs, features=text.embed_dim, layers=text.layers)


def _image(config: VisionTransformerConfig | ModifiedResNetConfig) -> tuple[float, float, float, float]:
    if isinstance(config, ModifiedResNetConfig):
        side = config.image_size
        return _counted(lambda: make_image_encoder(config), lambda network: network(torch.empty(1, 3, side, side)))
    height, width = config.image_shape
    patches = (height // config.patch_size) * (width // config.patch_size)
    hidden, patch = config.hidden or 4 * config.width, 3 * config.patch_size**2 * config.width
    forward = transformer_flops(patches + 1, config.width, config.layers, hidden) + 2.0 * patches * patch
    weights = config.layers * block_weights(config.width, hidden) + patch + config.width * (patches + config.embed_dim)
    kept = transformer_activations(patches + 1, config.width, config.layers)
    return forward, weights, kept, 2.0 * (patches + 1) * config.width * config.layers


def _counted(make: Callable[[], nn.Module], run: Callable[..., Tensor]) -> tuple[float, float, float, float]:
    """FLOPs of a forward pass of one picture, parameters, and bytes of all layers' outputs and of convolutions'."""
    with torch.device("meta"), torch.no_grad():
        network = make()
        sizes: list[tuple[bool, int]] = []

        def note(module: nn.Module, _: object, output: object) -> None:
            if isinstance(output, Tensor) and not list(module.children()):
                sizes.append((isinstance(module, nn.Conv2d), output.numel()))

        for module in network.modules():
            module.register_forward_hook(note)
        flops = flops_of(lambda: run(network))
    parameters = sum(weight.numel() for weight in network.parameters())
    every, convolutions = sum(size for _, size in sizes), sum(size for is_one, size in sizes if is_one)
    return flops, parameters, 2.0 * every, 2.0 * convolutions


@cache
def clip_of(name: str) -> Network:
    """CLIP by its published name."""
    visions: dict[str, tuple[VisionTransformerConfig | ModifiedResNetConfig, int]] = {
        "ViT-B/32": (VisionTransformerConfig(224, 32, 768, 12, 12, 512), 512),
        "ViT-B/16": (VisionTransformerConfig(224, 16, 768, 12, 12, 512), 512),
        "ViT-B/16+ 240": (VisionTransformerConfig(240, 16, 896, 12, 14, 640), 640),
        "ViT-L/14": (VisionTransformerConfig(224, 14, 1024, 24, 16, 768), 768),
        "ViT-g/14": (VisionTransformerConfig(224, 14, 1408, 40, 16, 1024, hidden=6144), 1024),
        "RN50x64": (ModifiedResNetConfig(448, 128, (3, 15, 36, 10), 64, 1024), 1024),
    }
    image, width = visions[name]
    layers = 24 if name == "ViT-g/14" else 12
    return clip(image, TextTransformerConfig(VOCABULARY, CONTEXT, width, layers, width // 64, image.embed_dim))


def code_transformer(config: CodeTransformerConfig) -> Network:
    """A code transformer that draws code after code, trained on all codes of a picture at once."""
    block = TransformerConfig(config.width, 1, config.heads, hidden=config.hidden, activation=config.activation)
    matrices, tokens = (3 if config.activation == "swiglu" else 2), config.prefix_length + config.code_count
    forward = transformer_flops(tokens, config.width, config.layers, block.mlp_width, matrices)
    forward += 2.0 * (config.code_count + 1) * config.codebook_size * config.width
    parameters = config.linear_weights + config.codebook_size * config.width
    kept = transformer_activations(tokens, config.width, config.layers) + 6.0 * config.code_count * config.codebook_size
    return Network(forward, parameters, kept, 2.0 * tokens * config.width * config.layers, layers=config.layers)


def decoder_of(width: int, layers: int, tokens: int, hidden: int, matrices: int, outputs: int) -> Network:
    """A decoder-only transformer whose input and output tables are one."""
    forward = transformer_flops(tokens, width, layers, hidden, matrices) + 2.0 * tokens * outputs * width
    parameters = layers * block_weights(width, hidden, matrices) + outputs * width
    kept = transformer_activations(tokens, width, layers) + 6.0 * tokens * outputs
    return Network(forward, parameters, kept, 2.0 * tokens * width * layers, layers=layers)


def llamagen(name: str) -> CodeTransformerConfig:
    """LlamaGen's class-conditional transformers at 256 pixels (Sun et al. 2024, table 1)."""
    width, layers, heads = {
        "B": (768, 12, 12),
        "L": (1024, 24, 16),
        "XL": (1280, 36, 20),
        "XXL": (1536, 48, 24),
        "3B": (3200, 24, 32),
    }[name]
    hidden = -(-8 * width // 3 // 256) * 256
    return CodeTransformerConfig(16_384, (16, 16), width, layers, heads, labels=1000, hidden=hidden, start_token=False)


def painter() -> CodeTransformerConfig:
    """The plan's code transformer: LlamaGen-XL's sizes, 77 text tokens as its prefix."""
    return CodeTransformerConfig(16_384, (16, 16), 1280, 36, 20, text_features=768, text_length=CONTEXT)


def cached_bytes(config: CodeTransformerConfig, codes: int) -> float:
    """Keys and values of one sequence in 16 bits."""
    return 4.0 * config.layers * config.width * (config.prefix_length + codes)


def vgg_flops(side: int) -> float:
    """Forward pass of LPIPS's VGG-16 on one picture."""
    flops, channels = 0.0, 3
    for level, widths in enumerate(VGG_BLOCKS):
        for width in widths:
            flops += 18.0 * channels * width * (side >> level) ** 2
            channels = width
    return flops


@cache
def vqgan(config: VQGANConfig | None = None) -> Network:
    """A VQGAN with its perceptual and adversarial losses, as trained from the discriminator's start on.

    A step passes the frozen VGG three times (two pictures forward, one backward to the picture), the discriminator
    eight times (generator: forward and backward to the picture; its own step: forward and backward of two pictures),
    and for the adaptive weight both once more back to the picture.
    """
    config = config or vqgan_taming_f16()
    side, cells = config.image_size, config.image_size // config.factor
    encoder, parameters, kept, inputs = _counted(
        lambda: VQGAN(config), lambda it: it.encode(torch.empty(1, 3, side, side))
    )
    decoder, _, kept_too, inputs_too = _counted(
        lambda: VQGAN(config), lambda it: it.decode(torch.empty(1, config.code_dim, cells, cells))
    )
    judge, weights, judge_kept, _ = _counted(PatchGAN, lambda it: it(torch.empty(1, 3, side, side)))
    nearest = 2.0 * cells**2 * config.codebook_size * config.code_dim
    extra = 4 * vgg_flops(side) + 9 * judge + nearest
    kept += kept_too + 3 * judge_kept + _vgg_outputs(side)
    return Network(encoder + decoder, parameters + weights, kept, inputs + inputs_too, extra, layers=20)


def _vgg_outputs(side: int) -> float:
    return sum(4.0 * width * (side >> level) ** 2 for level, widths in enumerate(VGG_BLOCKS) for width in widths)


@cache
def vqgan_decoder_flops() -> float:
    """Codes of one picture of 256 pixels to pixels."""
    config = vqgan_taming_f16()
    return _counted(lambda: VQGAN(config), lambda it: it.decode(torch.empty(1, config.code_dim, 16, 16)))[0]
