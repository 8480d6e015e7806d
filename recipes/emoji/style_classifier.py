"""Trains a small network that classifies the ten styles of the emoji, and measures its accuracy.

    python recipes/emoji/style_classifier.py drawings.parquet --out runs/emoji/style_classifier

It serves to measure whether generated pictures follow the style in their prompt. It reads the means and standard
deviations of its features over the whole picture, at each scale, which describe style rather than content (Gatys et al.
2016, Huang and Belongie 2017). It is trained on the training split without skin tones, at 128 x 128, half of it
blurred, and half of it as it comes through the codes of a pack's VQGAN (`--through`), so that what every drawing has
from there does not count as another style. The validation split gives its accuracy, of pictures as they are and through
the codes.
The colour and 3-D drawings of Fluent are renderings of the same shapes and hard to distinguish by eye, so they count as
one style (`KINDS`), which leaves nine.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_model, save_model
from torch import Tensor, nn

from codebrush import Codebrush
from codebrush.data.decoding.images import stack
from codebrush.models.vqgan import VQGAN
from codebrush.training.dataset import Captioned, SourceConfig, load_captioned

ASKED = ("noto", "twemoji", "fluent-flat", "fluent-color", "fluent-3d")  # in prompts, when a pack is measured
STYLES = (*ASKED, "fluent-high-contrast", "noto-v1", "emojione", "fxemoji", "streamline-emojis")
KINDS = {
    **{style: style for style in STYLES},
    "fluent-color": "fluent-color or -3d",
    "fluent-3d": "fluent-color or -3d",
}
SIZE, BATCH, SHIFT, LEAST = 128, 64, 6, 64
CODED = 8  # pictures at once through a VQGAN
WIDTHS = (24, 48, 96, 128)


class StyleClassifier(nn.Module):
    """Pictures (B, 3, S, S) in [-1, 1] -> logits of STYLES (B, 10)."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(before, width, 3, 2, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
            for before, width in zip((3, *WIDTHS), WIDTHS, strict=False)
        )
        self.head = nn.Linear(2 * sum(WIDTHS), len(STYLES))

    def forward(self, images: Tensor) -> Tensor:
        x, found = images.contiguous(memory_format=torch.channels_last), []
        for block in self.blocks:
            x = block(x)
            found += [x.mean((2, 3)), (x.var((2, 3), unbiased=False) + 1e-5).sqrt()]
        return self.head(torch.cat(found, 1))


def load(folder: Path) -> StyleClassifier:
    model = StyleClassifier()
    load_model(model, folder / "model.safetensors")
    return model.eval()


@torch.no_grad()
def predicted_styles(model: StyleClassifier, pictures: list) -> list[str]:
    """The most probable style of each picture."""
    found = [model(stack([picture], SIZE) * 2 - 1)[0] for picture in pictures]
    return [STYLES[int(logits.argmax())] for logits in found]


def augmented(images: Tensor, rng: np.random.Generator) -> Tensor:
    """Images (B, 3, S, S): mirrored or not, shifted, and half of the time blurred by making them smaller and larger."""
    images = images.flip(3) if rng.random() < 0.5 else images
    images = torch.roll(images, tuple(rng.integers(-SHIFT, SHIFT + 1, 2).tolist()), (2, 3))
    if rng.random() < 0.5:
        small = F.interpolate(images, size=int(rng.integers(LEAST, SIZE + 1)), mode="bilinear", antialias=True)
        images = F.interpolate(small, size=SIZE, mode="bilinear")
    return images


def rows(parquet: str, split: str, cache: Path) -> tuple[Captioned, np.ndarray]:
    where = ("skin_tone is null", f"style in {', '.join(STYLES)}")
    source = SourceConfig(parquet, split=split, where=where, captions=("{label}",), group="concept")
    data = load_captioned(source.open(), SIZE, cache)
    return data, np.array([STYLES.index(data.source.row(row)["style"]) for row in data.pixels.rows])


@torch.no_grad()
def through_codes(vqgan: VQGAN, data: Captioned) -> Tensor:
    """All pictures as they come through the codes of a VQGAN, uint8 (N, 3, S, S)."""
    made = torch.empty(len(data), 3, SIZE, SIZE, dtype=torch.uint8)
    for part in torch.arange(len(data)).split(CODED):
        images = data.images(part.numpy()).float() / 255
        made[part] = (vqgan.decode(vqgan.quantize(vqgan.encode(images))[0]).clamp(0, 1) * 255).round().byte()
    return made


@torch.no_grad()
def confusion(model: StyleClassifier, pictures: Callable[[np.ndarray], Tensor], styles: np.ndarray) -> Tensor:
    """Confusion matrix (10, 10): how many pictures of each style (rows) are classified as each (columns). `pictures`
    gives those of some rows, uint8 (B, 3, S, S)."""
    model.eval()
    counts = torch.zeros(len(STYLES), len(STYLES), dtype=torch.int64)
    for part in np.array_split(np.arange(len(styles)), max(1, len(styles) // BATCH)):
        predicted = model(pictures(part).float() / 127.5 - 1).argmax(1)
        counts.index_put_(
            (torch.from_numpy(styles[part]), predicted), torch.ones(len(part), dtype=torch.int64), accumulate=True
        )
    return counts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parquet")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=2500)
    parser.add_argument("--through", default="emoji", help="pack whose VQGAN half of the pictures go through")
    options = parser.parse_args()
    torch.manual_seed(0)
    rng, cache = np.random.default_rng(0), options.out.parent / "cache"
    (train, styles), (val, val_styles) = (rows(options.parquet, split, cache) for split in ("train", "val"))
    vqgan = Codebrush.from_pretrained(options.through).vqgan
    coded, val_coded = through_codes(vqgan, train), through_codes(vqgan, val)
    model = StyleClassifier()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, options.steps)
    for step in range(options.steps):
        model.train()
        picked = rng.integers(len(train), size=BATCH)
        images = coded[torch.from_numpy(picked)] if step % 2 else train.images(picked)
        logits = model(augmented(images.float() / 127.5 - 1, rng))
        loss = F.cross_entropy(logits, torch.from_numpy(styles[picked]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 100 == 0:
            print(f"step {step}: loss {loss.item():.3f}", flush=True)
    counts = confusion(model, val.images, val_styles)
    of_coded = confusion(model, lambda some: val_coded[torch.from_numpy(some)], val_styles)
    same, own = torch.tensor([[KINDS[a] == KINDS[b] for b in STYLES] for a in STYLES]), torch.eye(len(STYLES))

    def share(counts: Tensor, right: Tensor) -> float:
        return (counts * right).sum().item() / counts.sum().item()

    options.out.mkdir(parents=True, exist_ok=True)
    save_model(model, str(options.out / "model.safetensors"))
    report = {
        "val_accuracy": share(counts, same),
        "through_codes": share(of_coded, same),
        "every_style": share(counts, own),
        "styles": STYLES,
        "confusion": counts.tolist(),
        "confusion_through_codes": of_coded.tolist(),
        "steps": options.steps,
    }
    (options.out / "report.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(report))


if __name__ == "__main__":
    main()
