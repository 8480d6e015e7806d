"""CLIPs and SigLIPs of random sizes and weights, saved by transformers: they give the same numbers when loaded here,
and transformers opens what is written back."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from codebrush.conversion.convert import convert
from codebrush.conversion.load import load_clip
from codebrush.text.tokenizer import Tokenizer, train_bpe
from codebrush.training.tasks.clip import CLIPRecipe, make_clip
from golden_files import close

transformers = pytest.importorskip("transformers")

END = 60  # of 64 tokens


@st.composite
def encoders(draw: Any, activations: tuple[str, ...]) -> dict[str, Any]:
    """Sizes of both encoders, and a seed for the weights."""
    heads = draw(st.integers(1, 4))
    return {
        "seed": draw(st.integers(0, 2**31)),
        "activation": draw(st.sampled_from(activations)),
        "heads": heads,
        "vision_width": heads * draw(st.sampled_from((8, 12))),
        "text_width": heads * draw(st.sampled_from((4, 16))),
        "inner": draw(st.sampled_from((40, 64, 96))),
        "layers": draw(st.integers(1, 3)),
        "patch": draw(st.sampled_from((8, 16))),
        "context": draw(st.sampled_from((12, 20))),
        "embed_dim": draw(st.sampled_from((8, 20))),
    }


def reference(sizes: dict[str, Any], kind: str, eos_token_id: int = END, epsilon: float = 1e-5) -> Any:
    """A model of transformers with no weight left at its default."""
    both = {
        "num_hidden_layers": sizes["layers"],
        "num_attention_heads": sizes["heads"],
        "intermediate_size": sizes["inner"],
        "hidden_act": sizes["activation"],
        "layer_norm_eps": epsilon,
    }
    vision = both | {"hidden_size": sizes["vision_width"], "image_size": 32, "patch_size": sizes["patch"]}
    text = both | {
        "hidden_size": sizes["text_width"],
        "vocab_size": 64,
        "max_position_embeddings": sizes["context"],
        "eos_token_id": eos_token_id,
        "bos_token_id": 1,
        "pad_token_id": 0,
    }
    torch.manual_seed(sizes["seed"])
    if kind == "clip":
        config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=sizes["embed_dim"])
        model = transformers.CLIPModel(config).eval()
    else:
        text["projection_size"] = sizes["vision_width"]
        model = transformers.SiglipModel(transformers.SiglipConfig(text_config=text, vision_config=vision)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def texts(context: int, largest_last: bool) -> Tensor:
    """Texts of several lengths, each with one end; where it is not the largest id, larger ones stand before."""
    tokens = torch.zeros(4, context, dtype=torch.int64)
    for row, length in enumerate((1, 4, 9, 11)):
        tokens[row, :length] = torch.randint(1, END if largest_last else 64, (length,))
        tokens[row, :length][tokens[row, :length] == END] = 1
        tokens[row, length] = END
    if not largest_last:
        tokens[:, 0] = 63
    return tokens


def check_equal(theirs: Any, folder: Path, tokens: Tensor) -> None:
    """Embeddings, hidden states and logits, for a batch and for a batch of one."""
    mine, pixels = load_clip(folder), torch.randn(3, 3, 32, 32)
    for pictures, rows in ((pixels, tokens), (pixels[:1], tokens[:1])):
        with torch.no_grad():
            output = theirs(input_ids=rows, pixel_values=pictures)
            hidden = theirs.text_model(input_ids=rows).last_hidden_state
            image, text = mine.image_encoder(pictures), mine.text_encoder(rows)
            unit = torch.nn.functional.normalize
            logits = mine.log_scale.exp() * unit(image, dim=1) @ unit(text, dim=1).T + mine.logit_bias
            close(unit(image, dim=1), output.image_embeds, "images")
            close(unit(text, dim=1), output.text_embeds, "texts")
            close(mine.encode_text(rows), output.text_embeds, "unit texts")
            close(mine.text_encoder.features(rows), hidden, "hidden states of the texts")
            close(logits, output.logits_per_image, "logits")


@given(encoders(("quick_gelu", "gelu", "gelu_pytorch_tanh")), st.booleans())
@settings(max_examples=8, deadline=None)
def test_clip(sizes: dict[str, Any], legacy: bool) -> None:
    theirs = reference(sizes, "clip", 2 if legacy else END)
    with TemporaryDirectory() as folder:
        theirs.save_pretrained(folder)
        check_equal(theirs, Path(folder), texts(sizes["context"], largest_last=legacy))


@given(encoders(("gelu_pytorch_tanh", "gelu")))
@settings(max_examples=8, deadline=None)
def test_siglip(sizes: dict[str, Any]) -> None:
    theirs = reference(sizes, "siglip", epsilon=1e-6)
    with TemporaryDirectory() as folder:
        theirs.save_pretrained(folder)
        check_equal(theirs, Path(folder), texts(sizes["context"], largest_last=True))


@given(encoders(("quick_gelu", "gelu")), st.booleans())
@settings(max_examples=6, deadline=None)
def test_there_and_back(sizes: dict[str, Any], legacy: bool) -> None:
    theirs = reference(sizes, "clip", 2 if legacy else END)
    with TemporaryDirectory() as name:
        folder = Path(name)
        theirs.save_pretrained(folder / "theirs")
        with pytest.warns(UserWarning, match="no tokenizer"):
            convert(folder / "theirs", folder / "ours")
        with pytest.warns(UserWarning, match="no tokenizer"):
            convert(folder / "ours", folder / "back", to="huggingface")
        back = transformers.CLIPModel.from_pretrained(folder / "back")
        processor = transformers.CLIPImageProcessor.from_pretrained(folder / "back")
    for key, value in theirs.state_dict().items():
        assert torch.equal(back.state_dict()[key], value), key
    assert processor.size == {"shortest_edge": 32}
    tokens, pixels = texts(sizes["context"], largest_last=legacy), torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected, found = (m(input_ids=tokens, pixel_values=pixels).logits_per_image for m in (theirs, back))
    assert torch.equal(found, expected)


RECIPE = CLIPRecipe(
    architecture="openai",
    image_size=32,
    width=64,
    layers=2,
    heads=1,
    text_width=64,
    text_layers=2,
    text_heads=1,
    embed_dim=24,
)
TEXTS = ["a red circle", "A blue square!", "two green triangles on a red circle"]


@pytest.mark.parametrize("kind", ["bpe", "wordpiece"])
def test_a_clip_of_openais_architecture_trained_here_opens_in_transformers(kind: str, tmp_path: Path) -> None:
    tokenizer = Tokenizer.wordpiece() if kind == "wordpiece" else train_bpe(TEXTS, 300)
    clip = make_clip(RECIPE, tokenizer).eval()
    with torch.no_grad():
        for name, value in clip.named_parameters():
            if name != "logit_bias":
                value.add_(0.05 * torch.randn_like(value))
    clip.save_pretrained(tmp_path / "ours")
    tokenizer.save(tmp_path / "ours")
    convert(tmp_path / "ours", tmp_path / "theirs", to="huggingface")
    theirs = transformers.CLIPModel.from_pretrained(tmp_path / "theirs")
    their_words = transformers.AutoTokenizer.from_pretrained(tmp_path / "theirs", use_fast=True)
    read = their_words(TEXTS, padding="max_length", max_length=tokenizer.context_length, return_tensors="pt")
    assert torch.equal(read.input_ids, tokenizer(TEXTS))
    pixels = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        output = theirs(input_ids=read.input_ids, attention_mask=read.attention_mask, pixel_values=pixels)
        close(clip.encode_text(tokenizer(TEXTS)), output.text_embeds, "texts")
        image = torch.nn.functional.normalize(clip.image_encoder(pixels), dim=1)
        close(image, output.image_embeds, "images")
