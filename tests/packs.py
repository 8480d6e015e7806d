"""Writes a micro pack: every member at its real structure and with random weights, 32 x 32 pixels."""

from pathlib import Path

import torch

from codebrush.models.captioner import Captioner, CaptionerConfig
from codebrush.models.clip import CLIP, CLIPConfig
from codebrush.models.code_transformer import CodeTransformer, CodeTransformerConfig
from codebrush.models.encoders.text_transformer import TextTransformerConfig
from codebrush.models.encoders.vision_transformer import VisionTransformerConfig
from codebrush.models.flow_transformer import FlowTransformer, FlowTransformerConfig
from codebrush.models.pretrained import PretrainedModel
from codebrush.models.vqgan import VQGAN
from codebrush.models.vqgan_sizes import vqgan_micro
from codebrush.pack.members import MEMBERS
from codebrush.pack.writing import PackMembers, write_pack
from codebrush.text.tokenizer import Tokenizer, train_bpe

WIDTH = 32
CONTEXT = 32


def micro_tokenizer() -> Tokenizer:
    return train_bpe(["a red circle", "a blue square", "a green triangle"], 280, context_length=CONTEXT)


def micro_clip(vocab_size: int = 280, width: int = WIDTH) -> CLIP:
    text = TextTransformerConfig(
        vocab_size=vocab_size,
        context_length=CONTEXT,
        width=width,
        layers=1,
        heads=2,
        embed_dim=24,
        causal=False,
        pooling="mean",
    )
    return CLIP.from_config(CLIPConfig(VisionTransformerConfig(32, 8, 32, 1, 2, 24), text)).eval()


def micro_transformer(codebook_size: int = 128, grid: tuple[int, int] = (8, 8), **conditions) -> CodeTransformer:
    config = CodeTransformerConfig(
        codebook_size=codebook_size,
        grid=grid,
        width=WIDTH,
        layers=2,
        heads=2,
        text_features=WIDTH,
        text_length=CONTEXT,
        text_embedding=24,
        **conditions,
    )
    model = CodeTransformer(config).eval()
    with torch.no_grad():
        model.head.weight.mul_(20)  # untrained logits are nearly flat: spread, so that conditions matter
        for null in model.nulls.values():
            null.mul_(20)
    return model


def micro_flow(latent_channels: int = 8, grid: tuple[int, int] = (8, 8), **conditions) -> FlowTransformer:
    config = FlowTransformerConfig(
        latent_channels=latent_channels,
        grid=grid,
        width=WIDTH,
        layers=1,
        heads=2,
        stem=16,
        text_features=WIDTH,
        text_length=CONTEXT,
        text_embedding=24,
        **conditions,
    )
    model = FlowTransformer(config).eval()
    with torch.no_grad():  # untrained gates are closed: open them, so that conditions matter
        for name, parameter in model.named_parameters():
            if "modulation" in name or name.startswith(("head", "final")):
                parameter.normal_(std=0.3)
        for null in model.nulls.values():
            null.mul_(20)
    return model


def micro_vqgan() -> VQGAN:
    model = VQGAN(vqgan_micro()).eval()
    with torch.no_grad():
        model.decoder.conv_out.weight.mul_(8)  # pictures that differ visibly when their codes do
    return model


def micro_captioner(vocab_size: int = 262) -> Captioner:
    config = CaptionerConfig(
        vocab_size, CONTEXT, 32, 1, 2, patches=16, feature_width=32, levels=(0,), start_id=1, end_id=vocab_size - 1
    )
    model = Captioner(config).eval()
    with torch.no_grad():  # the head is the table: untrained, every word would be followed by itself
        model.token_embedding.weight.normal_(std=0.3)
        model.token_positions.normal_(std=0.5)
        model.token_embedding.weight[vocab_size - 1].mul_(0.3)
    return model


def write_micro_pack(folder: Path, seed: int = 0, **changes) -> Path:
    """Write the pack into `folder`; `changes` are members, their tokenizers ("tokenizer" is the CLIP's, "words" the
    captioner's) and arguments of `write_pack`."""
    torch.manual_seed(seed)
    models: dict[str, PretrainedModel] = {
        "clip": micro_clip(),
        "vqgan": micro_vqgan(),
        "transformer": micro_transformer(),
    }
    models |= {name: changes.pop(name) for name in MEMBERS if name in changes}
    tokenizers = {"clip": changes.pop("tokenizer", None) or micro_tokenizer()}
    if "scorer" in models:
        tokenizers["scorer"] = tokenizers["clip"]
    if "words" in changes:
        tokenizers["captioner"] = changes.pop("words")
    about = {"name": "micro", "version": "1", "licence": "CC0-1.0", "provenance": {"recipe": "none"}}
    write_pack(folder, PackMembers(models, tokenizers), **{**about, **changes})
    return folder
