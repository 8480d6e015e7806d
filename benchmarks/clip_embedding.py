"""Pictures and texts a second through CLIP ViT-B/32, ours in bfloat16, float32 and int8 beside transformers' and, where
it is installed, ONNX Runtime's of transformers' network, in float32 and with weights and activations in 8 bits.

    pip install transformers
    pip install onnx onnxscript onnxruntime   # or none of them
    python benchmarks/clip_embedding.py [--rounds 5] [--threads 2] [--pictures 32] [--texts 64]

Random weights: speed does not depend on what they say. The texts are short captions of 10 tokens among 77: transformers
is given them cut to the longest, as its tokenizer pads them, ours in full, as it cuts them itself. Prints the seconds
of each round, the median ratios with their range, and the load.
"""

import argparse
import os
import tempfile
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch
from alternation import alternated, flops_of
from published_models import CAPTION, SIDE, clip_vit_b32, short_captions, transformers_clip_vit_b32
from torch import Tensor

from codebrush.models.precision import has_bf16


def peer(dtype: torch.dtype) -> tuple[Callable[[Tensor], object], Callable[[Tensor], object]]:
    """How transformers embeds pictures and texts."""
    model = transformers_clip_vit_b32().eval().to(dtype)
    return (
        lambda images: model.get_image_features(pixel_values=images.to(dtype)),
        lambda tokens: model.get_text_features(input_ids=tokens[:, :CAPTION]),
    )


class _Pictures(torch.nn.Module):
    def __init__(self, model: Any):
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        return self.model.visual_projection(self.model.vision_model(pixel_values=images).pooler_output)


class _Texts(_Pictures):
    def forward(self, tokens: Tensor) -> Tensor:
        return self.model.text_projection(self.model.text_model(input_ids=tokens).pooler_output)


def onnx_peers(images: Tensor, tokens: Tensor, threads: int) -> dict[str, tuple[Callable[[Tensor], object], ...]]:
    """How ONNX Runtime embeds batches of these sizes; none where it or what exports to it is not installed."""
    if not all(map(find_spec, ("onnx", "onnxscript", "onnxruntime"))):
        print("ONNX Runtime is left out: pip install onnx onnxscript onnxruntime")
        return {}
    import onnxruntime  # pyright: ignore[reportMissingImports]
    from onnxruntime.quantization import QuantType, quantize_dynamic  # pyright: ignore[reportMissingImports]

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    model = transformers_clip_vit_b32().eval()
    ways: dict[str, list[Callable[[Tensor], object]]] = {"ONNX Runtime float32": [], "ONNX Runtime int8": []}
    with tempfile.TemporaryDirectory() as folder:
        for part, sample in ((_Pictures(model), images), (_Texts(model), tokens[:, :CAPTION])):
            whole, small = Path(folder) / "whole.onnx", Path(folder) / "int8.onnx"
            torch.onnx.export(part, (sample,), str(whole), dynamo=True, external_data=False, verbose=False)
            quantize_dynamic(whole, small, weight_type=QuantType.QInt8)
            for name, file in zip(ways, (whole, small), strict=True):
                session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
                ways[name].append(partial(_run, session, session.get_inputs()[0].name, sample.shape[1]))
    return {name: tuple(both) for name, both in ways.items()}


def _run(session: Any, name: str, width: int, rows: Tensor) -> object:
    return session.run(None, {name: rows[:, :width].numpy()})


def ours(
    precision: Literal["auto", "float32", "int8"],
) -> tuple[Callable[[Tensor], object], Callable[[Tensor], object]]:
    """How this package embeds pictures and texts."""
    clip = clip_vit_b32().eval().requires_grad_(False)
    clip.precision = precision
    return clip.encode_image, clip.encode_text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, usual in (("rounds", 5), ("threads", 2), ("pictures", 32), ("texts", 64)):
        parser.add_argument(f"--{name}", type=int, default=usual)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    images, tokens = torch.rand(given.pictures, 3, SIDE, SIDE), short_captions(given.texts)
    models = {
        **onnx_peers(images, tokens, given.threads),
        "transformers float32": peer(torch.float32),
        "transformers bf16": peer(torch.bfloat16),
        "codebrush float32": ours("float32"),
        "codebrush": ours("auto"),
        "codebrush int8": ours("int8"),
    }
    speed = "fast" if has_bf16(images.device) else "slow"
    print(f"load {os.getloadavg()[0]:.1f}; {given.threads} threads; bfloat16 is {speed} here")
    with torch.inference_mode():
        for title, given_rows, place in (("pictures", images, 0), ("texts", tokens, 1)):
            ways = {name: partial(model[place], given_rows) for name, model in models.items()}
            count = flops_of(ways["codebrush float32"])
            alternated(f"CLIP ViT-B/32, {len(given_rows)} {title}", ways, given.rounds, count)


if __name__ == "__main__":
    main()
