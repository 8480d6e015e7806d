"""Compares painters of one training cost: single drawings of trained and of unseen concepts, judged by other CLIPs.

    python recipes/emoji/bake_off.py emoji.parquet --painter runs/emoji/flow --painter runs/emoji/transformer-b \
        --judge runs/emoji/judge/model --out runs/bake-off

A painter is a run folder of a code transformer or a flow that was trained with the CLIP and the VQGAN of PACK. Each
draws one picture for 100 labels of the train split and for those of the val split, as its kind draws by default. For
each painter OUT gets every drawing and a sheet of 64; the table says the CPU seconds of a picture, and how often a
judge finds the label among 100 and the nearest training picture has it. With `--drawn` nothing is drawn: what is in OUT
is judged again.
"""

import argparse
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from drawing_figures import Known, drawn, found_by
from judging import emoji, labels_of, some_of
from PIL import Image

from codebrush import Codebrush
from codebrush.data.contact_sheet import contact_sheet
from codebrush.data.decoding.images import save_png
from codebrush.models.code_transformer import CodeTransformer
from codebrush.models.flow_transformer import FlowTransformer
from codebrush.pack.pack import open_clip, open_pack
from codebrush.pack.writing import PackMembers, write_pack
from codebrush.training.run_folder import MODEL_FOLDER, read_plan

SEEN, SHEET, COLUMNS = 100, (48, 16), 16  # labels of the train split; of the sheet, trained and unseen
KINDS = {"transformer": CodeTransformer, "flow": FlowTransformer}


@dataclass(frozen=True)
class Drawn:
    """The drawings of a painter for some labels, and the CPU seconds of one; None if they were drawn before."""

    labels: list[str]
    pictures: list[Image.Image]
    seconds: float | None


def painter_pack(pack: str, run: Path, folder: Path) -> Codebrush:
    """`pack` with the painter of a run in place of its own."""
    stage, base = read_plan(run).stage, open_pack(pack)
    painter = KINDS[stage].from_pretrained(run / MODEL_FOLDER)
    models = {"clip": base.clip, "vqgan": base.vqgan, stage: painter}
    facts = {"name": run.name, "version": "0", "licence": "none", "provenance": {}}
    written = write_pack(folder, PackMembers(models, {"clip": base.tokenizer}), **facts, defaults=base.info["defaults"])
    return Codebrush.from_pretrained(written.folder)


def drawn_to(folder: Path, brush: Codebrush, labels: list[str]) -> Drawn:
    """One picture for each label, kept in `folder`."""
    began = time.process_time()
    pictures, _ = drawn(brush, labels, 1)
    seconds = (time.process_time() - began) / len(labels)
    for number, picture in enumerate(pictures):
        save_png(picture, folder / f"{number:03d}.png")
    return Drawn(labels, pictures, seconds)


def kept(labels: list[str], folder: Path) -> Drawn:
    """What was drawn before."""
    pictures = [Image.open(folder / f"{number:03d}.png").convert("RGB") for number in range(len(labels))]
    return Drawn(labels, pictures, None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parquet", help="emoji.parquet")
    parser.add_argument("--painter", type=Path, action="append", required=True, help="run folder (repeatable)")
    parser.add_argument("--judge", action="append", default=[], help="folder of a CLIP that judges (repeatable)")
    parser.add_argument("--pack", default="emoji", help="pack whose CLIP and VQGAN the painters were trained with")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--drawn", action="store_true", help="judge what was drawn before")
    given = parser.parse_args()
    train, val = (labels_of(emoji(given.parquet, split)) for split in ("train", "val"))
    seen = some_of(train, SEEN)
    known, judges = Known(given.parquet, "train"), {judge: open_clip(judge) for judge in given.judge}
    header = [f"{judge}: {kind}" for judge in judges for kind in ("trained", "unseen")]
    print("| painter | CPU seconds a picture | nearest picture is right |", *(f"{each} |" for each in header))
    print("|---|---|---|" + "---|" * len(header))
    for run in given.painter:
        places = {name: given.out / run.name / name for name in ("trained", "unseen")}
        if given.drawn:
            parts = [kept(labels, places[name]) for name, labels in zip(places, (seen, val), strict=True)]
        else:
            brush = painter_pack(given.pack, run, given.out / run.name / "pack")
            brush.generate(seen[0], n=1, rerank=1)  # loads the models before any time is taken
            parts = [drawn_to(places[name], brush, labels) for name, labels in zip(places, (seen, val), strict=True)]
        near = [known.nearest(picture) == label for picture, label in zip(parts[0].pictures, seen, strict=True)]
        cells = ["" if parts[0].seconds is None else f"{parts[0].seconds:.2f}", f"{np.mean(near):.0%}"]
        for judge in judges.values():
            for part, labels in zip(parts, (train, sorted({*train, *val})), strict=True):
                found = found_by(*judge, part.pictures, part.labels, labels)
                cells.append(f"{found['r_precision']:.0%}")
        print(f"| {run.name} | {' | '.join(cells)} |", flush=True)
        shown = [pair for part, count in zip(parts, SHEET, strict=True) for pair in _some(part, count)]
        sheet = contact_sheet([picture for _, picture in shown], [label for label, _ in shown], columns=COLUMNS)
        save_png(sheet, given.out / f"{run.name}.png")


def _some(part: Drawn, count: int) -> list[tuple[str, Image.Image]]:
    """`count` of the drawings, evenly."""
    places = np.linspace(0, len(part.labels) - 1, count).round().astype(int)
    return [(part.labels[place], part.pictures[place]) for place in places]


if __name__ == "__main__":
    torch.set_num_threads(2)
    main()
