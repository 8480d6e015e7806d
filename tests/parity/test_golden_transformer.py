"""Code transformers in every published layout, against what the original code computes."""

import warnings

import pytest
import torch
from torch import Tensor

from codebrush.conversion.load import load_code_transformer, load_vqgan
from codebrush.generation.options import SamplingFilters
from codebrush.generation.sampling.decoding import draw_codes
from codebrush.models.code_transformer import CodeTransformer
from codebrush.models.condition import Condition
from golden_files import both_batches, check_acts, close, golden, recorded

COLD = 1e-6  # a temperature at which the most likely code is drawn


def greedy(model: CodeTransformer, condition: Condition, given: Tensor, steps: int, cached: bool) -> Tensor:
    """The most likely continuation of `given` (B, n), one code at a time."""
    codes, (logits, cache) = given, model.prefill(given, condition)
    for _ in range(steps):
        new = logits[:, -1].argmax(1, keepdim=True)  # (B, 1)
        codes = torch.cat([codes, new], dim=1)
        logits = model.step(new, cache) if cached else model(codes, condition)
    return codes


def test_taming() -> None:
    reference = golden("taming_net2net_a")
    model = load_code_transformer(reference.weights, reference.config)
    vqgan = load_vqgan(reference.weights, reference.config)
    io, codes = reference.io, reference.io["input.z_indices"]
    assert model.config.grid == (4, 4)
    inner = {f"blocks.{layer}": f"transformer.blocks.{layer}" for layer in (0, 1)}
    names = inner | {f"{name}.attn": f"{ours}.attention" for name, ours in inner.items()}
    names |= {f"{name}.mlp": f"{ours}.mlp" for name, ours in inner.items()} | {"ln_f": "final_norm"}
    acts = {name: value for name, value in reference.acts().items() if name in names}

    def run(rows: slice) -> None:
        condition = Condition(labels=io["input.class_label"][rows])
        with recorded(model, names) as found:
            logits = model(codes[rows], condition)
        check_acts(found, acts)
        close(logits[:, :16], io["output.logits"][rows], "logits")
        pixels = (io["input.image"][rows] + 1) / 2
        seen = vqgan.quantize(vqgan.encode(pixels))[1].flatten(1)
        assert torch.equal(seen, io["output.image_indices"][rows])
        close(model(seen, condition)[:, :16], io["output.image_logits"][rows], "logits of a picture")
        for cached in (False, True):
            drawn = greedy(model, condition, codes[rows, :0], 16, cached)
            assert torch.equal(drawn, io["output.greedy"][rows])
            half = greedy(model, condition, codes[rows, :8], 8, cached)
            assert torch.equal(half, io["output.greedy_half"][rows])
        close(model(drawn, condition)[:, :16], io["output.greedy_logits"][rows], "logits along the drawn codes")
        close(vqgan.decode_codes(drawn.view(-1, 4, 4)) * 2 - 1, io["output.greedy_decoded"][rows], "drawn picture")

    both_batches(run)


def test_taming_drawn_by_the_generator() -> None:
    reference = golden("taming_net2net_a")
    model = load_code_transformer(reference.weights, reference.config)
    condition = Condition(labels=reference.io["input.class_label"])
    drawn = draw_codes(
        model, condition, torch.full((2, 16), 0.5, dtype=torch.float64), SamplingFilters(temperature=COLD)
    )
    assert torch.equal(drawn.flatten(1), reference.io["output.greedy"])


def test_llamagen() -> None:
    reference = golden("llamagen_gpt_a")
    model, io = load_code_transformer(reference.weights, reference.config), reference.io
    assert model.config.grid == (4, 4)
    assert model.config.prefix_length == 120
    close(model.rotary.movedim(0, -1), io["output.rope"], "rotary factors")
    codes, mask = io["input.idx"], io["input.cond_mask"].bool()
    names = {
        "layers.0": "transformer.blocks.0",
        "layers.0.attention": "transformer.blocks.0.attention",
        "layers.0.attention_norm": "transformer.blocks.0.attention_norm",
        "layers.0.feed_forward": "transformer.blocks.0.mlp",
        "layers.1": "transformer.blocks.1",
        "norm": "final_norm",
        "tok_embeddings": "code_embedding",
    }

    def run(rows: slice) -> None:
        text = io["input.cond"][rows]
        condition = Condition(text_features=text)
        with recorded(model, names) as found:
            close(model(codes[rows], condition), io["output.logits"][rows], "logits")
        # Stored are the last 24 positions, of which our final norm sees 16.
        acts = {name: value for name, value in reference.acts().items() if name in names}
        tails = {name: value[:, -min(24, value.shape[1]) :] for name, value in found.items()}
        acts["norm"] = acts["norm"][:, -16:]
        check_acts(tails, acts)
        close(model.projections["text_features"](text)[:, -24:], io["output.cond_embedding"][rows], "projected text")
        close(model(codes[rows], None), io["output.logits_uncond"][rows], "logits without a text")
        masked = Condition(text_features=text, text_mask=mask[rows])
        along = io["output.greedy_masked"][rows, :15]
        close(model(along, masked), io["output.masked_logits"][rows], "logits with a caption mask")
        along = io["output.greedy"][rows, :15]
        close(model(along, condition), io["output.greedy_logits"][rows], "logits along the drawn codes")
        for cached in (False, True):
            empty = codes[rows, :0]
            assert torch.equal(greedy(model, condition, empty, 16, cached), io["output.greedy"][rows])
            assert torch.equal(greedy(model, masked, empty, 16, cached), io["output.greedy_masked"][rows])

    both_batches(run)


@pytest.mark.parametrize(("stored", "masked"), [("greedy_cfg", False), ("greedy_cfg_masked", True)])
def test_llamagen_with_guidance(stored: str, masked: bool) -> None:
    reference = golden("llamagen_gpt_a")
    model, io = load_code_transformer(reference.weights, reference.config), reference.io
    mask = io["input.cond_mask"].bool() if masked else None
    condition = Condition(text_features=io["input.cond"], text_mask=mask)
    middle = torch.full((2, 16), 0.5, dtype=torch.float64)
    drawn = draw_codes(model, condition, middle, SamplingFilters(cfg=reference.config["cfg_scale"], temperature=COLD))
    assert torch.equal(drawn.flatten(1), io[f"output.{stored}"])


def test_llamagen_with_guidance_for_the_first_codes_alone() -> None:
    reference = golden("llamagen_gpt_a")
    model, io = load_code_transformer(reference.weights, reference.config), reference.io
    scale, last = reference.config["cfg_scale"], reference.config["cfg_interval"]
    codes = io["input.idx"][:, :0]
    with torch.no_grad():
        for position in range(16):  # the original counts its steps from the second code on
            logits = model(codes, Condition(text_features=io["input.cond"]))[:, -1]
            if position - 1 <= last:
                without = model(codes, None)[:, -1]
                logits = without + (logits - without) * scale
            codes = torch.cat([codes, logits.argmax(1, keepdim=True)], dim=1)
    assert torch.equal(codes, io["output.greedy_cfg_interval"])


def test_what_the_tensors_do_not_say_is_assumed_with_a_warning() -> None:
    with pytest.warns(UserWarning, match="heads and no condition are assumed"):
        model = load_code_transformer(golden("taming_net2net_a").weights)
    assert model.config.start_token
    assert model.config.heads == 16
    with pytest.warns(UserWarning, match="256 codes"):
        model = load_code_transformer(golden("llamagen_gpt_a").weights, {"n_head": 4})
    assert model.config.grid == (16, 16)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_code_transformer(golden("taming_net2net_a").weights, golden("taming_net2net_a").config)
