"""One guided step at published sizes against a plain one in the manner of the widely used script, in alternation.

    python benchmarks/guided_step.py [--rounds 3] [--threads 2] [--precision auto]

VQGAN f16 with 16,384 codes at 256x256, CLIP ViT-B/32, 32 views with flip, affine, perspective, colours and noise.
Random weights: speed does not depend on what they say. The plain step is PyTorch's own layers and transformers' CLIP in
float32, then with bf16 autocast: the picture is pooled for each of the views, and moved, tilted, coloured (hue by way
of HSV) and partly erased one after the other. Prints the peak memory of a process that takes two steps of one kind,
the seconds of each round, the median ratios with their range, and the machine's load.
"""

import argparse
import contextlib
import os
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from alternation import alternated, flops_of, note
from published_models import SIDE, VIT_B32, PlainDecoder, of_plain_layers
from torch import Tensor, nn

from codebrush.generation.guided.guidance import Guidance
from codebrush.generation.guided.guide_options import GuideOptions
from codebrush.generation.guided.guided_batch import GuidedBatch, GuidingCLIP
from codebrush.generation.guided.losses.prompt_loss import PromptEmbeddings
from codebrush.generation.guided.memory.plan import MemoryPlan
from codebrush.models.clip import CLIP, OPENAI_MEAN, OPENAI_STD, CLIPConfig
from codebrush.models.encoders.text_transformer import TextTransformerConfig
from codebrush.models.vqgan import VQGAN
from codebrush.models.vqgan_sizes import vqgan_taming_f16

VIEWS = 32
TITLE = f"guided step, f16 at 256 px, ViT-B/32, {VIEWS} views"
KINDS = ("plain float32", "plain bf16", "codebrush")


def plain_views(image: Tensor) -> Tensor:
    """Image (1, 3, H, W) -> views (V, 3, side, side), each step an operation of its own."""
    pooled = [(F.adaptive_avg_pool2d(image, SIDE) + F.adaptive_max_pool2d(image, SIDE)) / 2 for _ in range(VIEWS)]
    x = torch.cat(pooled)
    x = torch.where(torch.rand(VIEWS, 1, 1, 1) < 0.5, x.flip(3), x)
    angle = (torch.rand(VIEWS) * 2 - 1) * 0.26
    shift = (torch.rand(VIEWS, 2, 1) * 2 - 1) * 0.2
    turn = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], dim=1).view(VIEWS, 2, 2)
    grid = F.affine_grid(torch.cat([turn, shift], dim=2), list(x.shape), align_corners=False)
    x = F.grid_sample(x, grid, align_corners=False)
    tilt = torch.cat([(torch.rand(VIEWS, 1, 2) * 2 - 1) * 0.25, torch.ones(VIEWS, 1, 1)], dim=2)
    matrix = torch.cat([torch.eye(2, 3).expand(VIEWS, 2, 3), tilt], dim=1)  # (V, 3, 3)
    centres = (torch.arange(SIDE) * 2 + 1) / SIDE - 1
    down, across = torch.meshgrid(centres, centres, indexing="ij")
    points = torch.stack([across, down, torch.ones_like(down)], dim=-1).view(-1, 3) @ matrix.transpose(1, 2)
    x = F.grid_sample(x, (points[..., :2] / points[..., 2:]).view(VIEWS, SIDE, SIDE, 2), align_corners=False)
    brightness, contrast, saturation = (1 + (torch.rand(VIEWS, 1, 1, 1) * 2 - 1) * 0.1 for _ in range(3))
    x = (x * brightness).clamp(0, 1)
    x = ((x - x.mean((1, 2, 3), keepdim=True)) * contrast + x.mean((1, 2, 3), keepdim=True)).clamp(0, 1)
    grey = (x * torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)).sum(1, keepdim=True)
    x = ((x - grey) * saturation + grey).clamp(0, 1)
    x = turn_hue(x, (torch.rand(VIEWS, 1, 1) * 2 - 1) * 0.1)
    gone = (across.abs() < torch.rand(1) / 2) & (down.abs() < torch.rand(1) / 2)  # the same place in all views
    x = torch.where(gone & (torch.rand(VIEWS, 1, 1, 1) < 0.7), torch.zeros(()), x)
    return x + torch.rand(VIEWS, 1, 1, 1) * 0.1 * torch.randn_like(x)


def turn_hue(x: Tensor, by: Tensor) -> Tensor:
    """Turn the hue of (V, 3, H, W) in [0, 1] by a share of the circle, through HSV and back (Smith 1978)."""
    value, largest = x.max(1)  # each (V, H, W)
    span = value - x.min(1).values
    saturation, divisor = span / (value + 1e-8), torch.where(span == 0, torch.ones(()), span)
    red, green, blue = x.unbind(1)
    sixths = torch.stack([green - blue, blue - red, red - green], dim=1) / divisor.unsqueeze(1)
    sixths = sixths + torch.tensor([0.0, 2.0, 4.0]).view(1, 3, 1, 1)
    hue = (sixths.gather(1, largest.unsqueeze(1)).squeeze(1) / 6 + by).remainder(1) * 6
    sector = hue.detach().floor()
    part = hue - sector
    p, q = value * (1 - saturation), value * (1 - part * saturation)
    t = value * (1 - (1 - part) * saturation)
    table = torch.stack([value, q, p, p, t, value, t, value, value, q, p, p, p, p, t, value, value, q], dim=1)
    places = sector.long().clamp(0, 5).unsqueeze(1) + torch.tensor([0, 6, 12]).view(1, 3, 1, 1)
    return table.gather(1, places)


def plain_step(bf16: bool) -> Callable[[], object]:
    """A function that takes one step: the codes nearest to the latent, decoded, seen, judged and improved."""
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    decoder = of_plain_layers(PlainDecoder(vqgan_taming_f16())).eval().requires_grad_(False)
    post = nn.Conv2d(256, 256, 1).requires_grad_(False)
    codebook = torch.randn(16384, 256)
    config = CLIPVisionConfig(
        hidden_size=768, intermediate_size=3072, projection_dim=512, num_hidden_layers=12, num_attention_heads=12,
        image_size=SIDE, patch_size=32, hidden_act="quick_gelu",
    )  # fmt: skip
    config._attn_implementation = "sdpa"
    clip = CLIPVisionModelWithProjection(config).eval().requires_grad_(False)
    target = F.normalize(torch.randn(1, 512), dim=1)
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (OPENAI_MEAN, OPENAI_STD))
    latent = torch.randn(1, 256, 16, 16, requires_grad=True)
    optimizer = torch.optim.Adam([latent], lr=0.1)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16) if bf16 else contextlib.nullcontext():
            rows = latent.movedim(1, 3).flatten(0, 2)
            distance = rows.square().sum(1, keepdim=True) + codebook.square().sum(1) - 2 * rows @ codebook.T
            nearest = codebook[distance.argmin(1)].view(1, 16, 16, 256).movedim(3, 1)
            image = (decoder(post(latent + (nearest - latent).detach())) + 1) / 2
            views = plain_views(image.float().clamp(0, 1))
            embeddings = clip(pixel_values=(views - mean) / std).image_embeds
        embeddings = F.normalize(embeddings.float(), dim=1)
        loss = ((embeddings - target).norm(dim=1) / 2).arcsin().square().mul(2).mean()
        loss.backward()
        optimizer.step()

    return step


def our_step(precision: str) -> Callable[[], object]:
    """A function that takes one step of guidance as the package takes it."""
    vqgan = VQGAN(vqgan_taming_f16()).eval().requires_grad_(False)
    text = TextTransformerConfig(vocab_size=8, context_length=8, width=8, layers=1, heads=1, embed_dim=512)
    clip = CLIP.from_config(CLIPConfig(VIT_B32, text)).eval().requires_grad_(False)
    options = GuideOptions(
        steps=1_000_000, cutouts=VIEWS, turn=15.0, shift=0.1, perspective=0.5, colour=0.1, noise=0.1,
        precision=precision,
    )  # fmt: skip
    prompt = PromptEmbeddings(F.normalize(torch.randn(1, 512), dim=1), torch.ones(1), torch.full((1,), -torch.inf))
    initial = torch.randn(1, 256, 16, 16)
    batch = GuidedBatch(vqgan, [GuidingCLIP(clip, 1.0, (prompt,))], options, 0, range(1), (256, 256), initial)
    steps: Iterator[object] = Guidance(batch, MemoryPlan(VIEWS)).steps()
    return lambda: next(steps)


def make_step(kind: str, precision: str) -> Callable[[], object]:
    return our_step(precision) if kind == "codebrush" else plain_step(kind == "plain bf16")


def peak_memory(kind: str, options: argparse.Namespace) -> float:
    """GB of a process of its own that takes two steps."""
    flags = ["--alone", kind, "--threads", str(options.threads), "--precision", options.precision]
    run = subprocess.run([sys.executable, __file__, *flags], check=True, stdout=subprocess.PIPE, text=True)
    return float(run.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--precision", choices=("auto", "bf16", "float32"), default="auto", help="of codebrush's step")
    parser.add_argument("--alone", choices=KINDS, help="take two steps of this kind and print the peak memory in GB")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    if options.alone:
        step = make_step(options.alone, options.precision)
        step()
        step()
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9)
        return
    for kind in KINDS:  # before this process grows: on Linux a new process begins with the peak of the one it came from
        peak = peak_memory(kind, options)
        print(f"{kind}: {peak:.2f} GB", flush=True)
        note(title=TITLE, way=kind, megabytes=round(peak * 1000))
    ways = {kind: make_step(kind, options.precision) for kind in KINDS}
    alternated(TITLE, ways, options.rounds, flops_of(ways["codebrush"]))
    print(
        f"load of the last minute: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores, {options.threads} threads used"
    )


if __name__ == "__main__":
    main()
