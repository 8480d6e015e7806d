"""How time and memory grow with the size of what is asked for, beside how the number of operations grows.

    python benchmarks/cost_growth.py [--only WORD ...]

Along each axis (picture size, cutouts, batch, length, codebook, vectors, rows) the work runs at four sizes, each in a
process of its own with one thread. Seconds are CPU seconds, the least of three runs; megabytes are the peak over what
the process held before. The exponents are slopes through the logarithms of the three larger sizes: 1 is linear, 2 is
quadratic. Small networks with random weights.
"""

import argparse
import atexit
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from alternation import flops_of, note

from codebrush.generation.guided.guidance import Guidance
from codebrush.generation.guided.guide_options import GuideOptions
from codebrush.generation.guided.guided_batch import GuidedBatch, GuidingCLIP
from codebrush.generation.guided.losses.prompt_loss import PromptEmbeddings
from codebrush.generation.guided.memory.plan import MemoryPlan
from codebrush.generation.sampling.decoding import draw_codes, picture_uniforms
from codebrush.models.clip import CLIP, CLIPConfig
from codebrush.models.code_transformer import CodeTransformer, CodeTransformerConfig
from codebrush.models.condition import Condition
from codebrush.models.encoders.text_transformer import TextTransformerConfig
from codebrush.models.encoders.vision_transformer import VisionTransformerConfig
from codebrush.models.quantizers.quantizer import nearest_codes
from codebrush.models.vqgan import VQGAN, VQGANConfig
from codebrush.process_memory import MIB, peak_memory, resident_memory
from codebrush.training.tasks.contrastive_loss import contrastive_loss

RUNS, WIDTH = 3, 8  # repetitions; channels of a latent
MARGIN = 0.15  # by which an exponent of seconds may exceed that of operations, for the noise of a busy machine
Work = Callable[[], object]


def small_clip() -> CLIP:
    image = VisionTransformerConfig(64, 8, 128, 4, 4, 64)
    text = TextTransformerConfig(vocab_size=512, context_length=77, width=128, layers=4, heads=4, embed_dim=64)
    return CLIP.from_config(CLIPConfig(image, text)).eval().requires_grad_(False)


def small_vqgan() -> VQGAN:
    return VQGAN(VQGANConfig(32, 16, (1, 2, 2, 4), latent_channels=16, codebook_size=512)).eval().requires_grad_(False)


def small_painter(side: int) -> CodeTransformer:
    config = CodeTransformerConfig(1024, (side, side), 256, 6, 8, text_features=64, text_length=16)
    return CodeTransformer(config).eval().requires_grad_(False)


def guided(side: int, cutouts: int) -> Work:
    """A step of guidance of a picture of `side` pixels."""
    prompt = PromptEmbeddings(F.normalize(torch.randn(1, 64), dim=1), torch.ones(1), torch.full((1,), -torch.inf))
    options, vqgan = GuideOptions(steps=1_000_000, cutouts=cutouts), small_vqgan()
    initial = torch.randn(1, WIDTH, side // vqgan.factor, side // vqgan.factor)
    batch = GuidedBatch(vqgan, [GuidingCLIP(small_clip(), 1.0, (prompt,))], options, 0, range(1), (side, side), initial)
    steps = Guidance(batch, MemoryPlan(cutouts)).steps()
    return lambda: next(steps)


def drawn(pictures: int, side: int) -> Work:
    """The codes of `pictures` pictures, `side` x `side` each."""
    painter, condition = small_painter(side), Condition(text_features=torch.randn(pictures, 16, 64))
    uniforms = picture_uniforms(0, range(pictures), side * side)
    return lambda: draw_codes(painter, condition, uniforms)


def decoded(side: int) -> Work:
    vqgan = small_vqgan()
    latent = torch.randn(1, WIDTH, side // vqgan.factor, side // vqgan.factor)
    return torch.no_grad()(lambda: vqgan.decode(latent))


def quantised(size: int) -> Work:
    vectors, codebook = torch.randn(4096, 32), torch.randn(size, 32)
    return lambda: nearest_codes(vectors, codebook)


def embedded(pictures: int) -> Work:
    clip, images = small_clip(), torch.rand(pictures, 3, 64, 64)
    return torch.inference_mode()(lambda: clip.encode_image(images))


def read(length: int) -> Work:
    """Texts of `length` tokens through a text encoder."""
    text = TextTransformerConfig(vocab_size=512, context_length=length, width=128, layers=4, heads=4, embed_dim=64)
    clip = CLIP.from_config(CLIPConfig(VisionTransformerConfig(32, 16, 32, 1, 1, 64), text)).eval()
    tokens = torch.randint(1, 512, (16, length))
    return torch.inference_mode()(lambda: clip.encode_text(tokens))


def contrasted(batch: int) -> Work:
    """The contrastive loss of a batch, with its gradient."""
    image, text = (F.normalize(torch.randn(batch, 64), dim=1).requires_grad_() for _ in range(2))
    scale = torch.tensor(10.0)
    return lambda: contrastive_loss(image, text, scale).backward()


def scratch() -> Path:
    """A folder that goes with this process."""
    folder = tempfile.TemporaryDirectory()
    atexit.register(folder.cleanup)
    return Path(folder.name)


def searched(rows: int) -> Work:
    """50 queries among `rows` indexed pictures."""
    from search_100k import build, make_vectors

    from codebrush.search.queries import search

    vectors, queries = make_vectors(rows, 64, 50)
    database, _, _ = build(scratch() / "db", vectors)
    return lambda: [search(database, torch.from_numpy(query), k=10) for query in queries["picture"]]


def opened(rows: int) -> Work:
    """Opening a table of pictures and reading 64 of them."""
    import io

    import pyarrow as pa
    import pyarrow.parquet as pq
    from PIL import Image

    from codebrush.data.sources.captioned_images import open_source

    png = io.BytesIO()
    Image.fromarray(np.zeros((16, 16, 3), np.uint8)).save(png, "PNG")
    file = scratch() / "pictures.parquet"
    pictures = pa.array([{"bytes": png.getvalue(), "path": None}] * rows)
    pq.write_table(pa.table({"image": pictures, "caption": [f"picture {row}" for row in range(rows)]}), file)

    def work() -> None:
        source = open_source(file)
        assert len(source) == rows
        for row in range(0, rows, rows // 64):
            source.image(row)

    return work


@dataclass(frozen=True)
class Axis:
    """Work that grows: `make` prepares it at one of `sizes`; `operations` is the expected exponent where none are
    counted."""

    title: str
    sizes: Sequence[int]
    make: Callable[[int], Work]
    operations: float | None = None


AXES = {
    axis.title: axis
    for axis in (
        Axis("guided step by side of the picture, pixels", (64, 128, 256, 384), lambda side: guided(side, 8)),
        Axis("guided step by cutouts", (8, 16, 32, 64), lambda cutouts: guided(64, cutouts)),
        Axis("decoding by side of the picture, pixels", (128, 256, 384, 512), decoded),
        Axis("drawing by pictures at once", (1, 4, 8, 16), lambda pictures: drawn(pictures, 8)),
        Axis("drawing by codes of a side", (8, 12, 16, 24), lambda side: drawn(1, side)),
        Axis("nearest codes by codebook", (1024, 4096, 16_384, 65_536), quantised),
        Axis("pictures embedded at once", (8, 16, 32, 64), embedded),
        Axis("texts by tokens", (64, 128, 256, 512), read),
        Axis("contrastive loss by batch", (256, 512, 1024, 2048), contrasted),
        Axis("search by vectors", (5000, 20_000, 50_000, 100_000), searched, operations=1),
        Axis("opening a source by rows", (1000, 4000, 16_000, 64_000), opened, operations=1),
    )
}


def measure(axis: Axis, size: int) -> dict[str, float]:
    """CPU seconds, megabytes and operations at one size; in a process of its own."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    work = axis.make(size)
    held, seconds = resident_memory(), []
    for _ in range(RUNS):
        started = time.process_time()
        work()
        seconds.append(time.process_time() - started)
    grown = max(0, peak_memory() - held) / MIB
    operations = flops_of(work) if axis.operations is None else size**axis.operations
    return {"seconds": min(seconds), "megabytes": grown, "operations": operations}


def exponent(sizes: Sequence[int], values: Sequence[float]) -> float:
    """The slope through the logarithms of the three larger sizes."""
    x, y = np.log(sizes[-3:]), np.log(np.maximum(values[-3:], 1e-9))
    return float(np.polyfit(x, y, 1)[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=(), help="axes whose title has one of these words")
    parser.add_argument("--alone", nargs=2, metavar=("AXIS", "SIZE"), help="measure one size and print it as JSON")
    given = parser.parse_args()
    if given.alone:
        print(json.dumps(measure(AXES[given.alone[0]], int(given.alone[1]))))
        return
    print("| work | sizes | seconds | MB | operations, exponent | seconds, exponent | MB, exponent |")
    print("|---|---|---|---|---|---|---|")
    above = []
    for axis in AXES.values():
        if given.only and not any(word in axis.title for word in given.only):
            continue
        points = [_alone(axis, size) for size in axis.sizes]
        columns = {name: [point[name] for point in points] for name in ("operations", "seconds", "megabytes")}
        slopes = {name: exponent(axis.sizes, values) for name, values in columns.items()}
        cells = [
            axis.title,
            " / ".join(map(str, axis.sizes)),
            " / ".join(f"{value:.3g}" for value in columns["seconds"]),
            " / ".join(f"{value:.0f}" for value in columns["megabytes"]),
            *(f"{slopes[name]:.2f}" for name in ("operations", "seconds", "megabytes")),
        ]
        print(f"| {' | '.join(cells)} |", flush=True)
        note(growth=axis.title, cells=cells)
        if slopes["seconds"] > slopes["operations"] + MARGIN:
            above.append(axis.title)
    print("above their operations: " + (", ".join(above) or "none"))


def _alone(axis: Axis, size: int) -> dict[str, float]:
    command = [sys.executable, __file__, "--alone", axis.title, str(size)]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1])


if __name__ == "__main__":
    main()
