"""How much the key-value cache saves in sampling codes: the cached loop and the plain one take turns.

    python benchmarks/kv_cache.py [--pictures 4] [--rounds 5] [--threads 2]

Random weights in the sizes of a small pack. The plain loop reads the whole prefix and all earlier codes again for every
new code. Prints the seconds of each round and the median ratio.
"""

import argparse
from functools import partial

import torch
from alternation import alternated

from codebrush.generation.sampling.decoding import draw_codes, picture_uniforms
from codebrush.models.code_transformer import CodeTransformer, CodeTransformerConfig
from codebrush.models.condition import Condition
from codebrush.models.sampling import sample


def plain(transformer: CodeTransformer, condition: Condition, uniforms: torch.Tensor) -> torch.Tensor:
    """The same codes (B, h, w) as `draw_codes`, without a cache."""
    codes = torch.zeros(len(uniforms), 0, dtype=torch.int64)
    with torch.inference_mode():
        for position in range(uniforms.shape[1]):
            logits = transformer(codes, condition)[:, -1]  # (B, K)
            codes = torch.cat([codes, sample(logits, uniforms[:, position])[:, None]], dim=1)
    return codes.unflatten(1, transformer.config.grid)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    config = CodeTransformerConfig(1024, (8, 8), 256, 6, 4, text_features=256, text_length=16, text_embedding=256)
    transformer = CodeTransformer(config).eval()
    condition = Condition(
        text_features=torch.randn(options.pictures, 16, 256), text_embedding=torch.randn(options.pictures, 256)
    )
    uniforms = picture_uniforms(0, range(options.pictures), config.code_count)
    draws = {"plain": plain, "cached": draw_codes}
    ways = {name: partial(draw, transformer, condition, uniforms) for name, draw in draws.items()}
    alternated("drawing", ways, options.rounds)


if __name__ == "__main__":
    main()
