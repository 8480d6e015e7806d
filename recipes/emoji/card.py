"""Measures the built-in pack and writes its card: README.md, figures.json and sheets of pictures.

    python recipes/emoji/card.py PACK emoji.parquet --control runs/emoji/clip-without-noto --judge runs/emoji/judge-2 \
        --style-classifier runs/emoji/style_classifier --before before.png

Every figure is measured anew (those of the test split by `codebrush evaluate`), except that of the control run without
--control, which is read from the pack's provenance. `before.png` is the sheet that `sheet.py` made of the previous
pack, and `--earlier-figures` what `drawing_figures.py` says of it.
"""

import argparse
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ask_scenes import answers, fixed_scenes, varied_scenes
from card_text import card
from curves import curves_sheet
from drawing_figures import drawing
from judging import emoji, evaluated, labels_of
from open_words import open_words
from PIL import Image
from sheet import COLUMNS, PROMPTS, drawn_sheet

from codebrush import Codebrush
from codebrush.data.contact_sheet import contact_sheet
from codebrush.data.decoding.images import stack, to_pil
from codebrush.data.synthetic.questions import KINDS
from codebrush.evaluation.alignment import zero_shot
from codebrush.evaluation.rows import embed_texts
from codebrush.models.clip import CLIP
from codebrush.text.tokenizer import Tokenizer
from codebrush.training.dataset import evenly
from codebrush.training.run_folder import MODEL_FOLDER

BATCH, SCENES, RERANK = 64, 150, 8
EDITED = 12
COMPOSED = (
    "a red cat", "a blue dog", "a green heart", "a purple apple", "a cat and a dog", "a dog with glasses",
    "a cat with a crown", "a robot holding a flower", "a house in the snow", "a fish on a plate", "two red hearts",
    "three stars", "a heart on fire", "a moon with a face", "an apple with a worm", "a pizza with a crown",
)  # fmt: skip


class Rows:
    """Pictures and labels of a part of the data."""

    def __init__(self, parquet: str, size: int, *where: str, split: str | None = None):
        source = emoji(parquet, split, *where)
        self.labels = [source.captions(index)[0] for index in range(len(source))]
        self.images = torch.cat([stack([source.image(i)], size) for i in range(len(source))])  # (N, 3, S, S)


@torch.no_grad()
def found_among(clip: CLIP, tokenizer: Tokenizer, part: Rows, labels: list[str]) -> dict[str, float]:
    """Zero-shot accuracy of a part's pictures among `labels`."""
    images = torch.cat([clip.encode_image(batch) for batch in part.images.split(BATCH)])
    return zero_shot(images, labels, embed_texts(clip, tokenizer, labels), part.labels)


def zero_shot_figures(brush: Codebrush, parquet: str, control: Path | None) -> dict[str, dict[str, float]]:
    """Zero-shot accuracy by several CLIPs and among several sets of labels."""
    size, every = brush.clip.image_size, labels_of(emoji(parquet))
    noto, test = Rows(parquet, size, "style == noto", split="train"), Rows(parquet, size, split="test")
    found = {}
    if control is not None:
        blind, words = CLIP.from_pretrained(control / MODEL_FOLDER), Tokenizer.from_pretrained(control / MODEL_FOLDER)
        found["a CLIP that never saw a Noto picture: Noto, train concepts"] = found_among(blind, words, noto, every)
    return found | {
        "this pack: Noto, train concepts (seen in training)": found_among(brush.clip, brush.tokenizer, noto, every),
        "this pack: test concepts": found_among(brush.clip, brush.tokenizer, test, sorted(set(test.labels))),
        "this pack: test concepts, all labels": found_among(brush.clip, brush.tokenizer, test, every),
    }


def figures_of_test_split(pack: str, parquet: str, judge: Path) -> dict[str, Any]:
    """The report of `codebrush evaluate` on the test split."""
    report = evaluated(pack, parquet, "test", "--judge", str(judge / MODEL_FOLDER))
    named = {"source": Path(parquet).name, "judge": report["judge"] | {"clip": judge.name}}
    return report | named  # only names are published, not where things were


def speed(pack: str) -> dict[str, float]:
    """Seconds to open the pack and to generate four pictures, without imports; the median of three processes."""
    code = (
        "import time, sys, json; from codebrush import Codebrush; a = time.perf_counter();"
        "brush = Codebrush.from_pretrained(sys.argv[1]); brush.clip, brush.vqgan, brush.flow_sampler;"
        "b = time.perf_counter(); brush.generate('a red apple', n=4);"
        "print(json.dumps([b - a, time.perf_counter() - b]))"
    )
    out = [json.loads(subprocess.check_output([sys.executable, "-c", code, pack])) for _ in range(3)]
    return {name: float(np.median([run[place] for run in out])) for place, name in enumerate(("open", "draw four"))}


def answered(brush: Codebrush) -> dict[str, dict[str, float]]:
    """The share of questions about unseen synthetic scenes that are answered word for word, by kind."""
    found = {}
    for name, asked in (("fixed palette", fixed_scenes(SCENES, 64)), ("any palette", varied_scenes(SCENES, 64))):
        pairs = answers(brush.reader, asked)
        of = {kind: [answer.guess == each.answer for each, answer in pairs if each.kind == kind] for kind in KINDS}
        found[name] = {kind: float(np.mean(right)) for kind, right in of.items()}
    return found


def sheets(brush: Codebrush, parquet: str, unseen: list[Image.Image], out: Path) -> None:
    """Sheets of reconstructions, of pictures of unseen concepts, and of compositions."""
    test = Rows(parquet, brush.pack.image_size, split="test")
    picked = evenly(len(test.labels), 16)
    originals = test.images[torch.from_numpy(picked)]
    with torch.no_grad():
        made = brush.vqgan.decode(brush.vqgan.quantize(brush.vqgan.encode(originals))[0])
    halves = (originals[:8], made[:8], originals[8:], made[8:])
    contact_sheet([to_pil(image) for half in halves for image in half], columns=8).save(out / "reconstructions.png")
    contact_sheet(unseen, sorted(set(test.labels)), columns=COLUMNS).save(out / "unseen.png")
    drawn_sheet(brush, list(COMPOSED), RERANK).save(out / "composed.png")


def edits(brush: Codebrush, parquet: str, out: Path) -> None:
    """A sheet of edits of pictures of the test split: source, variation, translations, inpainting."""
    size = brush.pack.image_size
    test = Rows(parquet, size, split="test")
    picked = evenly(len(test.labels), EDITED).tolist()
    box = (size // 4, size // 2, size // 2, size // 3)
    cells = []
    for row in picked:
        given = to_pil(test.images[row])
        holed = given.copy()
        holed.paste("grey", (box[0], box[1], box[0] + box[2], box[1] + box[3]))
        label = test.labels[row]
        cells += [(given, label), (brush.vary(given, n=1)[0].image, "varied")]
        cells += [(brush.translate(given, style, n=1)[0].image, f"to {style}") for style in ("twemoji", "fluent-3d")]
        cells += [(holed, "with a hole"), (brush.edit(given, label, n=1, box=box)[0].image, "filled")]
    contact_sheet([image for image, _ in cells], [text for _, text in cells], columns=12).save(out / "edits.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pack")
    parser.add_argument("parquet")
    parser.add_argument("--control", type=Path)
    parser.add_argument("--judge", type=Path, required=True)
    parser.add_argument("--style-classifier", type=Path, required=True)
    parser.add_argument("--before", type=Path, required=True)
    parser.add_argument(
        "--earlier-figures", type=Path, help="those of an earlier pack's drawings by the same two models"
    )
    parser.add_argument("--prompts", type=int, default=100)
    parser.add_argument("--out", type=Path, help="default: the pack's folder")
    options = parser.parse_args()
    started = time.monotonic()
    brush = Codebrush.from_pretrained(options.pack)
    out = options.out or brush.pack.folder
    judges = options.judge / MODEL_FOLDER, options.style_classifier
    drawn, unseen = drawing(brush, options.parquet, *judges, options.prompts)
    figures = {
        "speed": speed(options.pack),
        "zero-shot": zero_shot_figures(brush, options.parquet, options.control),
        "test": figures_of_test_split(options.pack, options.parquet, options.judge),
        "open words": {
            by.replace(options.pack, brush.pack.info["name"]): found  # not where it lies
            for by, found in open_words(options.parquet, [options.pack], "fluent-3d").items()
        },
        "drawing": drawn,
        "style judge": json.loads((options.style_classifier / "report.json").read_text()),
        "answers": answered(brush),
        "megabytes": sum(path.stat().st_size for path in brush.pack.folder.rglob("*.safetensors")) / 1e6,
    }
    if options.earlier_figures is not None:
        figures["earlier drawing"] = json.loads(options.earlier_figures.read_text(encoding="utf-8"))
    (out / "figures.json").write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    sheets(brush, options.parquet, unseen, out)
    edits(brush, options.parquet, out)
    curves_sheet(brush.pack.info["provenance"]["stages"], out / "curves.png")
    drawn_sheet(brush, PROMPTS.read_text(encoding="utf-8").splitlines(), RERANK).save(out / "after.png")
    shutil.copyfile(options.before, out / "before.png")
    (out / "README.md").write_text(card(brush.pack.info, figures), encoding="utf-8")
    print(f"{out / 'README.md'} and its sheets are written after {time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main()
