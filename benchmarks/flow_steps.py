"""How long a flow transformer takes to draw: Euler's steps with and without guidance, and fewer ones of DPM-Solver.

    python benchmarks/flow_steps.py [--pictures 4] [--steps 25] [--rounds 3] [--threads 2] [--width 256] [--layers 6]

Random weights, in the sizes of the flow of the bake-off (docs/log.md): latents of 16 x 16, 64 patches and 12 text
tokens. With guidance the network runs twice a step. Prints the seconds of each round; latents alone, without the
decoder.
"""

import argparse
from functools import partial
from typing import Any

import torch
from alternation import alternated

from codebrush.generation.options import FlowSettings
from codebrush.generation.sampling.flow import draw_latents, picture_noise
from codebrush.models.condition import Condition
from codebrush.models.flow_transformer import FlowTransformer, FlowTransformerConfig


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, usual in (("pictures", 4), ("steps", 25), ("rounds", 3), ("threads", 2), ("width", 256), ("layers", 6)):
        parser.add_argument(f"--{name}", type=int, default=usual)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    conditions: Any = {"text_features": 128, "text_length": 12, "text_embedding": 256, "image_embedding": 256}
    config = FlowTransformerConfig(8, (16, 16), options.width, options.layers, options.width // 64, **conditions)
    flow = FlowTransformer(config).eval()
    size = sum(parameter.numel() for parameter in flow.parameters())
    print(f"{size / 1e6:.1f} million parameters, {options.pictures} pictures, {options.threads} threads")
    condition = Condition(text_features=torch.randn(1, 12, 128), text_embedding=torch.randn(1, 256))
    noise = picture_noise(0, range(options.pictures), (8, 16, 16))
    few = max(1, options.steps // 2)
    ways = {
        f"codebrush {options.steps} steps, CFG 3": partial(
            draw_latents, settings=FlowSettings(options.steps, "euler"), cfg=3.0
        ),
        f"codebrush {options.steps} steps, CFG 1": partial(
            draw_latents, settings=FlowSettings(options.steps, "euler"), cfg=1.0
        ),
        f"codebrush {few} steps of dpm, CFG 3": partial(draw_latents, settings=FlowSettings(few, "dpm"), cfg=3.0),
    }
    title = f"flow of {size / 1e6:.0f} M, {options.pictures} latents"
    alternated(title, {name: partial(way, flow, condition, noise) for name, way in ways.items()}, options.rounds)


if __name__ == "__main__":
    main()
