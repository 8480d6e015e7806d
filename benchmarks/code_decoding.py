"""Codes a second of a 336 M code transformer, ours with three kinds of weights beside transformers' Llama in bf16.

    pip install transformers
    python benchmarks/code_decoding.py [--pictures 1] [--codes 96] [--rounds 3] [--threads 2]

Both have 24 layers of width 1024 and 16,384 codes, with random weights: speed does not depend on what they say. The
peer is `LlamaForCausalLM.generate` with its cache, as a user would call it. Prints the seconds of each round, the codes
a second, the median ratios with their range, and the share of the memory's bandwidth that reading the weights reaches.
"""

import argparse
import os
import statistics
from collections.abc import Callable
from typing import Any

import torch
from alternation import alternated, bandwidth

from codebrush.generation.options import WEIGHTS
from codebrush.generation.sampling.decoding import PLAIN as FILTERS
from codebrush.generation.sampling.decoding import Drawer, picture_uniforms
from codebrush.generation.sampling.painters import CodePainter
from codebrush.models.code_transformer import CodeTransformer, CodeTransformerConfig
from codebrush.models.condition import Condition
from codebrush.models.layers.transformer import TransformerConfig

WIDTH, LAYERS, HEADS, CODES, TEXT = 1024, 24, 16, 16_384, 16
BYTES = {"float32": 4, "bf16": 2, "float16": 2, "int8": 1}


def peer(pictures: int, codes: int) -> Callable[[], object]:
    """A function that draws `codes` codes of each picture with transformers."""
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = LlamaConfig(
        vocab_size=CODES,
        hidden_size=WIDTH,
        intermediate_size=TransformerConfig(WIDTH, LAYERS, HEADS, activation="swiglu").mlp_width,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        pad_token_id=0,
        eos_token_id=None,
        bos_token_id=None,
    )
    network: Any = LlamaForCausalLM(sizes).eval()
    network.to(torch.bfloat16)
    start = torch.zeros(pictures, TEXT + 1, dtype=torch.int64)
    asked = {"max_new_tokens": codes, "min_new_tokens": codes, "do_sample": True, "top_k": 0}
    return lambda: network.generate(start, attention_mask=torch.ones_like(start), **asked)


def ours(painter: CodePainter, weights: str, pictures: int, codes: int) -> Callable[[], object]:
    """A function that draws `codes` codes of each picture with this package."""
    network = painter.network(weights)
    condition = Condition(text_features=torch.randn(pictures, TEXT, 512))
    uniforms = picture_uniforms(0, range(pictures), codes)

    @torch.inference_mode()
    def draw() -> None:
        drawer = Drawer(network, [(condition, 1.0)], slice(0, pictures))
        for number in range(codes):
            if number:
                drawer.step()
            drawer.take(drawer.draw(uniforms[:, number], FILTERS))

    return draw


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=1)
    parser.add_argument("--codes", type=int, default=96)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    config = CodeTransformerConfig(CODES, (16, 16), WIDTH, LAYERS, HEADS, text_features=512, text_length=TEXT)
    painter = CodePainter(CodeTransformer(config).eval().requires_grad_(False))
    ways: dict[str, Callable[[], object]] = {"transformers bf16": peer(given.pictures, given.codes)}
    ways |= {f"codebrush {weights}": ours(painter, weights, given.pictures, given.codes) for weights in WEIGHTS}
    print(f"load {os.getloadavg()[0]:.1f}; {config.linear_weights / 1e6:.0f} M weights a step")
    read = {name: config.linear_weights * BYTES[name.split()[-1]] * given.codes for name in ways}
    times = alternated(f"336 M code transformer, {given.pictures} x {given.codes} codes", ways, given.rounds, read=read)
    reach = bandwidth()
    for name, seconds in times.items():
        median = statistics.median(seconds)
        pace, speed = given.pictures * given.codes / median, read[name] / median
        print(
            f"{name}: {pace:.1f} codes/s, weights at {speed / 1e9:.1f} GB/s, {speed / reach:.0%} of what a sum reaches"
        )


if __name__ == "__main__":
    main()
