"""The emoji data in; a small network that tells the five styles apart, and how often it is right, out.

    python recipes/emoji/style_judge.py emoji.parquet --out runs/emoji/style_judge

It is trained for one purpose: to say whether drawings follow the style that they are asked for. It sees the training
split without skin tones, at 64 x 64, moved and a little recoloured; the validation split says how far it can be
believed.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from codebrush.data.images import stack
from codebrush.models.image_encoder import ModifiedResNet, ModifiedResNetConfig
from codebrush.training.augmentation import Augmentation, change_looks, draw_affine, draw_looks, move
from codebrush.training.captioned import Captioned, SourceConfig, load_captioned

STYLES = ("noto", "twemoji", "fluent-flat", "fluent-color", "fluent-3d")
SIZE, BATCH = 64, 64
CHANGES = Augmentation(shift=0.05, zoom=0.1, turn=5, colour=0.05)


def network() -> ModifiedResNet:
    return ModifiedResNet(ModifiedResNetConfig(SIZE, 24, (1, 1, 1, 1), 4, len(STYLES)))


def load(folder: Path) -> ModifiedResNet:
    model = network()
    model.load_state_dict(load_file(folder / "model.safetensors"))
    return model.eval()


@torch.no_grad()
def told(model: ModifiedResNet, pictures: list) -> list[str]:
    """The style of each picture."""
    found = [model(stack([picture], SIZE) * 2 - 1)[0] for picture in pictures]
    return [STYLES[int(logits.argmax())] for logits in found]


def rows(parquet: str, split: str, cache: Path) -> tuple[Captioned, np.ndarray]:
    source = SourceConfig(parquet, split=split, where=("skin_tone is null",), captions=("{label}",), group="concept")
    data = load_captioned(source.open(), SIZE, cache)
    return data, np.array([STYLES.index(data.source.row(row)["style"]) for row in data.pixels.rows])


@torch.no_grad()
def confusion(model: ModifiedResNet, data: Captioned, styles: np.ndarray) -> Tensor:
    """How many pictures of each style (rows) are taken for each (columns)."""
    model.eval()
    counts = torch.zeros(len(STYLES), len(STYLES), dtype=torch.int64)
    for part in np.array_split(np.arange(len(data)), max(1, len(data) // BATCH)):
        said = model(data.images(part).float() / 127.5 - 1).argmax(1)
        counts.index_put_(
            (torch.from_numpy(styles[part]), said), torch.ones(len(part), dtype=torch.int64), accumulate=True
        )
    return counts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parquet")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=1200)
    options = parser.parse_args()
    torch.manual_seed(0)
    rng, cache = np.random.default_rng(0), options.out.parent / "cache"
    (train, styles), (val, val_styles) = (rows(options.parquet, split, cache) for split in ("train", "val"))
    model = network()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, options.steps)
    for step in range(options.steps):
        model.train()
        picked = rng.integers(len(train), size=BATCH)
        images = move(train.images(picked).float() / 255, draw_affine(BATCH, CHANGES, rng))
        logits = model(change_looks(images, draw_looks(BATCH, CHANGES, rng)) * 2 - 1)
        loss = F.cross_entropy(logits, torch.from_numpy(styles[picked]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 100 == 0:
            print(f"step {step}: loss {loss.item():.3f}", flush=True)
    counts = confusion(model, val, val_styles)
    right = counts.diagonal().sum().item() / counts.sum().item()
    options.out.mkdir(parents=True, exist_ok=True)
    save_file(model.state_dict(), options.out / "model.safetensors")
    report = {"val_accuracy": right, "styles": STYLES, "confusion": counts.tolist(), "steps": options.steps}
    (options.out / "report.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(report))


if __name__ == "__main__":
    main()
