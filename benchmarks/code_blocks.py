"""How much faster a code transformer with blocks of 2 x 2 codes is than one without, in training and in sampling.

    python benchmarks/code_blocks.py [--batch 8] [--rounds 3] [--threads 2]

Random weights, 16 x 16 codes, width 256, 8 layers. "plain" takes one step for each code, "blocks" one step of its main
transformer for 2 x 2 codes. The two take turns. Prints seconds and ratios.
"""

import argparse
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from alternation import alternated

from codebrush.generation.options import SamplingFilters
from codebrush.generation.sampling.decoding import draw_codes, picture_uniforms
from codebrush.models.code_transformer import CodeTransformer, CodeTransformerConfig
from codebrush.models.condition import Condition

CODES, GRID, TEXT = 2048, (16, 16), 128


def train(model: CodeTransformer, condition: Condition, codes: torch.Tensor) -> None:
    """The loss and gradients of one batch."""
    with torch.autocast("cpu", torch.bfloat16):
        logits = model.train()(codes[:, :-1], condition)
        F.cross_entropy(logits.flatten(0, 1), codes.flatten()).backward()
    model.zero_grad()


def draw(model: CodeTransformer, condition: Condition, codes: torch.Tensor) -> None:
    """Sample the codes of a batch of pictures, with classifier-free guidance."""
    uniforms = picture_uniforms(0, range(len(codes)), codes.shape[1])
    draw_codes(model.eval(), condition, uniforms, SamplingFilters(cfg=2.0))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    sizes: Any = {"width": 256, "layers": 8, "heads": 4, "text_features": TEXT, "text_length": 16}
    models = {
        name: CodeTransformer(CodeTransformerConfig(CODES, GRID, block=side, **sizes))
        for name, side in (("plain", 1), ("blocks", 2))
    }
    codes = torch.randint(0, CODES, (options.batch, GRID[0] * GRID[1]))
    condition = Condition(text_features=torch.randn(options.batch, 16, TEXT))
    for work in (train, draw):
        ways = {name: partial(work, model, condition, codes) for name, model in models.items()}
        alternated(work.__name__, ways, options.rounds)


if __name__ == "__main__":
    main()
