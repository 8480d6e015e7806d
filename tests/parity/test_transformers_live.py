"""Our CLIP towers against those of transformers, with the same random weights."""

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from codebrush.models.clip import CLIP, CLIPConfig
from codebrush.models.image_encoder import VisionTransformerConfig
from codebrush.models.text_encoder import TextTransformerConfig

transformers = pytest.importorskip("transformers")

END = 60
IMAGE = VisionTransformerConfig(32, 8, 24, 2, 3, 20, activation="quick_gelu")
TEXT = TextTransformerConfig(64, 12, 32, 3, 4, 20, end_id=END, activation="quick_gelu")


def reference(eos_token_id: int) -> Any:
    """A CLIPModel of the sizes above with no weight left at its default."""
    sizes = {"hidden_act": "quick_gelu", "projection_dim": 20}
    text = {"vocab_size": 64, "max_position_embeddings": 12, "eos_token_id": eos_token_id, "pad_token_id": 0}
    config = transformers.CLIPConfig(
        text_config={
            "hidden_size": 32,
            "intermediate_size": 128,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            **text,
            **sizes,
        },
        vision_config={
            "hidden_size": 24,
            "intermediate_size": 96,
            "num_hidden_layers": 2,
            "num_attention_heads": 3,
            "image_size": 32,
            "patch_size": 8,
            **sizes,
        },
        projection_dim=20,
    )
    model = transformers.CLIPModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def tower(state: Mapping[str, Tensor], theirs: str, mine: str, norm: str, first: str) -> dict[str, Tensor]:
    """One tower's blocks, norms and position table under our names; `norm` is our last norm, `first` theirs."""
    moved = {
        f"{mine}.final_norm": f"{theirs}.{norm}",
        f"{mine}.position_embedding": f"{theirs}.embeddings.position_embedding.weight",
    }
    layers = 1 + max(int(k.split(".")[3]) for k in state if k.startswith(f"{theirs}.encoder.layers."))
    found = {}
    for i in range(layers):
        block, layer = f"{mine}.transformer.blocks.{i}", f"{theirs}.encoder.layers.{i}"
        moved |= {
            f"{block}.attention_norm": f"{layer}.layer_norm1",
            f"{block}.mlp_norm": f"{layer}.layer_norm2",
            f"{block}.attention.out": f"{layer}.self_attn.out_proj",
            f"{block}.mlp.up": f"{layer}.mlp.fc1",
            f"{block}.mlp.down": f"{layer}.mlp.fc2",
        }
        for kind in ("weight", "bias"):
            parts = [state[f"{layer}.self_attn.{part}_proj.{kind}"] for part in "qkv"]
            found[f"{block}.attention.qkv.{kind}"] = torch.cat(parts)
    if first:
        moved[f"{mine}.input_norm"] = f"{theirs}.{first}"
    for new, old in moved.items():
        for suffix in ("", ".weight", ".bias"):
            if old + suffix in state:
                found[new + suffix] = state[old + suffix]
    return found


def ours(state: Mapping[str, Tensor], pooling: Any) -> CLIP:
    """The same network in our modules; every weight of theirs has a place, every place of ours a weight."""
    text = TextTransformerConfig(**{**vars(TEXT), "pooling": pooling})
    model = CLIP.from_config(CLIPConfig(IMAGE, text)).eval()
    vision = "vision_model.embeddings"
    weights = {
        **tower(state, "vision_model", "image_encoder", "post_layernorm", "pre_layrnorm"),
        **tower(state, "text_model", "text_encoder", "final_layer_norm", ""),
        "image_encoder.patch_embedding.weight": state[f"{vision}.patch_embedding.weight"],
        "image_encoder.class_embedding": state[f"{vision}.class_embedding"],
        "image_encoder.projection.weight": state["visual_projection.weight"],
        "text_encoder.token_embedding.weight": state["text_model.embeddings.token_embedding.weight"],
        "text_encoder.projection.weight": state["text_projection.weight"],
        "log_scale": state["logit_scale"],
        "logit_bias": torch.tensor(0.0),
    }
    model.load_state_dict(weights)
    assert sum(tensor.numel() for tensor in weights.values()) - 1 == sum(t.numel() for t in state.values())
    return model


def texts(largest_last: bool) -> Tensor:
    """Texts of several lengths, each with one end; where it is not the largest id, larger ones stand before."""
    tokens = torch.zeros(4, 12, dtype=torch.int64)
    for row, length in enumerate((1, 4, 9, 11)):
        tokens[row, :length] = torch.randint(1, END if largest_last else 64, (length,))
        tokens[row, :length][tokens[row, :length] == END] = 1
        tokens[row, length] = END
    if not largest_last:
        tokens[:, 0] = 63
    return tokens


@pytest.mark.parametrize(("eos_token_id", "pooling"), [(2, "argmax"), (END, "end")])
def test_clip_equals_transformers(eos_token_id: int, pooling: str) -> None:
    theirs = reference(eos_token_id)
    mine, tokens = ours(theirs.state_dict(), pooling), texts(largest_last=pooling == "argmax")
    pixels = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        output = theirs(input_ids=tokens, pixel_values=pixels)
        hidden = theirs.text_model(input_ids=tokens).last_hidden_state
        seen = theirs.vision_model(pixel_values=pixels).last_hidden_state
        image, text = mine.image_encoder(pixels), mine.text_encoder(tokens)
        unit = torch.nn.functional.normalize
        logits = mine.log_scale.exp() * unit(image, dim=1) @ unit(text, dim=1).T
        torch.testing.assert_close(unit(image, dim=1), output.image_embeds, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(unit(text, dim=1), output.text_embeds, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(mine.encode_text(tokens), output.text_embeds, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(mine.text_encoder.features(tokens), hidden, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(mine.image_encoder.features(pixels)[-1], seen, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(logits, output.logits_per_image, atol=1e-4, rtol=1e-5)
