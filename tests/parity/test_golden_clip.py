"""CLIPs in every published layout, against what the original code computes."""

import re
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from codebrush.conversion.load import load_clip
from codebrush.conversion.openai import SCALARS
from codebrush.models.clip import CLIP
from golden_files import Golden, both_batches, check_acts, close, golden, recorded

OPENAI = [
    (r"(text\.)?token_embedding", "text_encoder.token_embedding"),
    (r"(text\.)?ln_final", "text_encoder.final_norm"),
    (r"(?:text\.)?transformer\.resblocks\.(\d+)(.*)", r"text_encoder.transformer.blocks.\1\2"),
    (r"visual\.(?:transformer\.resblocks|trunk\.blocks)\.(\d+)(.*)", r"image_encoder.transformer.blocks.\1\2"),
    (r"visual\.ln_pre", "image_encoder.input_norm"),
    (r"visual\.(ln_post|trunk\.norm)", "image_encoder.final_norm"),
    (r"visual\.(attnpool|trunk\.attn_pool)", "image_encoder.pool"),
    (r"visual\.avgpool", "image_encoder.stem"),
    (r"visual\.bn1", "image_encoder.stem.1"),
    (r"visual\.layer1", "image_encoder.stages.0"),
    (r"visual\.layer2", "image_encoder.stages.1"),
    (r"visual\.layer3", "image_encoder.stages.2"),
    (r"visual\.layer4", "image_encoder.stages.3"),
    (r"text_model\.encoder\.layers\.(\d+)(.*)", r"text_encoder.transformer.blocks.\1\2"),
    (r"text_model\.final_layer_norm", "text_encoder.final_norm"),
    (r"text_model\.head", "text_encoder.projection"),
    (r"vision_model\.encoder\.layers\.(\d+)(.*)", r"image_encoder.transformer.blocks.\1\2"),
    (r"vision_model\.pre_layrnorm", "image_encoder.input_norm"),
    (r"vision_model\.post_layernorm", "image_encoder.final_norm"),
    (r"vision_model\.head", "image_encoder.pool"),
]
INSIDE = {
    ".attn": ".attention",
    ".self_attn": ".attention",
    ".ln_1": ".attention_norm",
    ".norm1": ".attention_norm",
    ".layer_norm1": ".attention_norm",
}
# Sums of embeddings, and an image's first convolution, which here is a product: none of our modules outputs them.
UNNAMED = re.compile(r".*(embeddings|conv1|patch_embed|patch_dropout)|visual\.ln_pre")


def our_name(name: str) -> str:
    for theirs, ours in OPENAI:
        match = re.fullmatch(theirs, name)
        if match:
            found = match.expand(ours)
            return next((found.removesuffix(a) + b for a, b in INSIDE.items() if found.endswith(a)), found)
    raise AssertionError(name)


def check(clip: CLIP, reference: Golden, pixels: torch.Tensor, tokens: torch.Tensor, unit: str) -> None:
    """Features, unit features, logits and intermediate results, for the batch and for a batch of one."""
    io, acts = reference.io, reference.acts()
    acts = {name: value for name, value in acts.items() if not UNNAMED.fullmatch(name)}
    if "input.attention_mask" in io:  # padding, which nobody reads, was hidden from the original's attention
        length = int(io["input.attention_mask"][0].sum())
        acts = {name: value[:, :length] if value.shape[1] == 77 else value for name, value in acts.items()}
    images, texts = f"output.image_{unit}", f"output.text_{unit}"

    def run(rows: slice) -> None:
        with recorded(clip, {name: our_name(name) for name in acts}) as found:
            image, text = clip.image_encoder(pixels[rows]), clip.text_encoder(tokens[rows])
            clip.image_encoder.features(pixels[rows])  # the last block whole, of which a class token needs one row
        check_acts(found, acts)
        close(image, io["output.image_features"][rows], "image features")
        close(text, io["output.text_features"][rows], "text features")
        image, text = (torch.nn.functional.normalize(side, dim=-1) for side in (image, text))
        if images in io:
            close(image, io[images][rows], "unit image features")
            close(text, io[texts][rows], "unit text features")
        logits = clip.log_scale.exp() * image @ text.T + clip.logit_bias
        close(logits, io["output.logits_per_image"][rows, : len(text)], "logits")

    both_batches(run)


@pytest.mark.parametrize("name", ["openai_clip_vit_a", "openai_clip_rn_a", "openai_clip_vit_fp16_a"])
@pytest.mark.parametrize("configured", [True, False])
def test_openai(name: str, configured: bool) -> None:
    reference = golden(name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore" if not configured else "error")
        clip = load_clip(reference.weights, reference.config if configured else None)
    assert all(parameter.dtype == torch.float32 for parameter in clip.parameters())
    assert clip.config.resize_mode == "crop"
    check(clip, reference, reference.io["input.image"], reference.io["input.text"], "features_normalized")
    if "half.image_features" in reference.io:  # a sanity check: what the weights give in their own precision
        found = clip.image_encoder(reference.io["input.image"])
        assert (found - reference.io["half.image_features"]).abs().max() < 2e-2


def test_without_a_config_quick_gelu_is_assumed_with_a_warning_unless_the_file_is_plainly_openais() -> None:
    with pytest.warns(UserWarning, match="QuickGELU is assumed; name its config"):
        load_clip(golden("openai_clip_rn_a").weights)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_clip(golden("openai_clip_vit_fp16_a").weights)


@pytest.mark.parametrize("name", ["open_clip_vit_a", "open_clip_custom_text_a", "open_clip_siglip_a"])
def test_open_clip(name: str) -> None:
    reference = golden(name)
    clip = load_clip(reference.weights, reference.config)
    check(clip, reference, reference.io["input.image"], reference.io["input.text"], "features_normalized")


@pytest.mark.parametrize("name", ["hf_clip_a", "hf_siglip_a"])
def test_hugging_face(name: str) -> None:
    reference = golden(name)
    clip = load_clip(reference.weights)
    check(clip, reference, reference.io["input.pixel_values"], reference.io["input.input_ids"], "embeds")


@pytest.mark.parametrize("name", ["hf_clip_a", "hf_siglip_a"])
def test_all_hidden_states_agree_where_the_text_is_read(name: str) -> None:
    reference: Any = golden(name)
    clip, tokens = load_clip(reference.weights), reference.io["input.input_ids"]
    mask = reference.io.get("input.attention_mask", torch.ones_like(tokens)).bool()
    with torch.no_grad():
        found = clip.text_encoder.features(tokens)
    close(found[mask], reference.io["output.text_last_hidden"][mask], "text hidden states")


class Holder(torch.nn.Module):
    """A tree of modules whose state dict is the one it is given."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x

    def put(self, name: str, tensor: torch.Tensor) -> None:
        head, _, rest = name.partition(".")
        if not rest:
            self.register_parameter(head, torch.nn.Parameter(tensor, requires_grad=False))
            return
        if head not in dict(self.named_children()):
            self.add_module(head, Holder())
        self.get_submodule(head).put(rest, tensor)  # pyright: ignore[reportCallIssue]


def test_openais_archive_is_a_program_that_is_read_and_not_run(tmp_path: Path) -> None:
    reference = golden("openai_clip_vit_fp16_a")
    tensors = load_file(reference.weights)
    root = Holder()
    for name, tensor in tensors.items():
        root.put(name, tensor) if name not in SCALARS else root.register_buffer(name, tensor)
    torch.jit.save(torch.jit.trace(root, torch.zeros(1)), tmp_path / "ViT.pt")
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # the three scalars say that it is OpenAI's
        clip = load_clip(tmp_path / "ViT.pt")
    for name, value in load_clip(reference.weights, reference.config).state_dict().items():
        assert torch.equal(clip.state_dict()[name], value), name
