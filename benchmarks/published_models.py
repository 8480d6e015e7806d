"""Models at published sizes with random weights, ours and plain ones, that several benchmarks compare."""

from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from codebrush.models.clip import CLIP, CLIPConfig
from codebrush.models.encoders.text_transformer import TextTransformerConfig
from codebrush.models.encoders.vision_transformer import VisionTransformerConfig
from codebrush.models.layers.convolution import GroupNormSiLU
from codebrush.models.vqgan import Decoder, Encoder

SIDE, WORDS, LENGTH, START, END = 224, 49_408, 77, 49_406, 49_407  # of CLIP ViT-B/32
CAPTION = 10  # tokens of a short caption, the first and last included
VIT_B32 = VisionTransformerConfig(SIDE, 32, 768, 12, 12, 512, activation="quick_gelu")
Network = TypeVar("Network", bound=nn.Module)


def clip_vit_b32() -> CLIP:
    """Our CLIP ViT-B/32."""
    text = TextTransformerConfig(WORDS, LENGTH, 512, 12, 8, 512, activation="quick_gelu")
    return CLIP.from_config(CLIPConfig(VIT_B32, text))


def transformers_clip_vit_b32() -> Any:
    """transformers' CLIP ViT-B/32."""
    from transformers import CLIPConfig as TheirConfig
    from transformers import CLIPModel

    sizes = {"image_size": SIDE, "patch_size": 32, "hidden_size": 768, "intermediate_size": 3072}
    sizes |= {"num_hidden_layers": 12, "num_attention_heads": 12}
    text = {"vocab_size": WORDS, "eos_token_id": END, "bos_token_id": START, "pad_token_id": 0}
    return CLIPModel(TheirConfig(vision_config=sizes, text_config=text, projection_dim=512))


def short_captions(count: int) -> Tensor:
    """Tokens (B, 77) of captions of CAPTION tokens."""
    tokens = torch.zeros(count, LENGTH, dtype=torch.int64)
    tokens[:, 0], tokens[:, CAPTION - 1] = START, END
    tokens[:, 1 : CAPTION - 1] = torch.randint(1, START, (count, CAPTION - 2))
    return tokens


def of_plain_layers(network: Network) -> Network:
    """The network with PyTorch's GroupNorm and SiLU one after the other."""
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, GroupNormSiLU):
                norm = nn.GroupNorm(child.num_groups, child.num_channels, eps=child.eps)
                setattr(parent, name, nn.Sequential(norm, nn.SiLU()))
    return network


class PlainEncoder(Encoder):
    """A VQGAN's encoder in the usual memory layout."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for level in self.down:
            x = level(x)
        return self.conv_out(self.norm_out(self.mid(x)))


class PlainDecoder(Decoder):
    """A VQGAN's decoder in the usual memory layout."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.mid(self.conv_in(x))
        for level in reversed(self.up):
            x = level(x)
        return self.conv_out(self.norm_out(x))
