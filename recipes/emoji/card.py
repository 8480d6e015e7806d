"""A trained pack, its data and the control run in; the pack's card (README.md and sheets) and figures out.

    python recipes/emoji/card.py PACK emoji.parquet --control runs/emoji/clip-without-noto-2

Every figure is measured here and now or read from the pack's own provenance.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ask_scenes import answers, fixed_scenes, varied_scenes
from torch import Tensor

from codebrush import Codebrush
from codebrush.data.captions import CaptionedImages, open_source
from codebrush.data.images import contact_sheet, stack, to_pil
from codebrush.data.questions import KINDS
from codebrush.evaluation.alignment import cross_retrieval, zero_shot
from codebrush.evaluation.fidelity import reconstruction
from codebrush.models.clip import CLIP
from codebrush.text.tokenizer import Tokenizer
from codebrush.training.stages import MODEL_FOLDER

BATCH = 64
NO_TONE = "skin_tone is null"
SEEN = ("red apple", "cat face", "pizza", "rocket", "red heart", "snowman", "crown", "grinning face")
UNSEEN_COUNT = 24
EDITED = 12


class Rows:
    """Pictures and labels of a part of the data, embedded once."""

    def __init__(self, source: CaptionedImages, size: int):
        self.labels = [source.captions(index)[0] for index in range(len(source))]
        self.images = torch.cat([stack([source.image(i)], size) for i in range(len(source))])  # (N, 3, S, S)

    def batches(self) -> list[Tensor]:
        return list(self.images.split(BATCH))


SCENES = 150


def rows(parquet: str, size: int, *where: str, split: str | None = None) -> Rows:
    return Rows(open_source(parquet, split=split, where=(NO_TONE, *where), captions=("{label}",)), size)


@torch.no_grad()
def embed(clip: CLIP, part: Rows) -> Tensor:
    return torch.cat([clip.encode_image(batch) for batch in part.batches()])


@torch.no_grad()
def embed_labels(clip: CLIP, tokenizer: Tokenizer, labels: list[str]) -> Tensor:
    return torch.cat([clip.encode_text(tokenizer(labels[i : i + BATCH])) for i in range(0, len(labels), BATCH)])


def clip_figures(clip: CLIP, tokenizer: Tokenizer, part: Rows, labels: list[str]) -> dict[str, float]:
    return zero_shot(embed(clip, part), labels, embed_labels(clip, tokenizer, labels), part.labels)


def measure(brush: Codebrush, parquet: str, control: Path) -> dict[str, Any]:
    size = brush.pack.image_size
    test, val = rows(parquet, size, split="test"), rows(parquet, size, split="val")
    noto_seen = rows(parquet, size, "style == noto", split="train")
    noto_test = rows(parquet, size, "style == noto", split="test")
    noto_labels = sorted(set(rows_labels(parquet, "style == noto")))
    every = sorted(set(rows_labels(parquet)))
    blind = CLIP.from_pretrained(control / MODEL_FOLDER)
    words = Tokenizer.from_pretrained(control / MODEL_FOLDER)
    test_labels = sorted(set(test.labels))
    texts = embed_labels(brush.clip, brush.tokenizer, test_labels)
    owners = [[test_labels.index(label)] for label in test.labels]
    return {
        "control": {
            "Noto, train concepts": clip_figures(blind, words, noto_seen, noto_labels),
            "Noto, test concepts": clip_figures(blind, words, noto_test, sorted(set(noto_test.labels))),
            "Noto, test concepts, all Noto labels": clip_figures(blind, words, noto_test, noto_labels),
        },
        "clip": {
            "test concepts": clip_figures(brush.clip, brush.tokenizer, test, test_labels),
            "test concepts, all labels": clip_figures(brush.clip, brush.tokenizer, test, every),
            "test, text to picture": cross_retrieval(embed(brush.clip, test), texts, owners)["text_to_image"],
        },
        "vqgan": {
            "test": reconstruction(brush.vqgan, test.batches()),
            "val": reconstruction(brush.vqgan, val.batches()),
            "train, Noto only": reconstruction(brush.vqgan, noto_seen.batches()),
        },
    }


def rows_labels(parquet: str, *where: str) -> list[str]:
    source = open_source(parquet, where=(NO_TONE, *where), captions=("{label}",))
    return [source.captions(index)[0] for index in range(len(source))]


def drawn_right(
    brush: Codebrush, prompts: list[str], labels: list[str], judge: CLIP, words: Tokenizer
) -> dict[str, float]:
    """Draw each prompt, the best of 4 by the pack's CLIP; how often another CLIP finds it among 100 labels."""
    rng = np.random.default_rng(0)
    right, started = 0, time.monotonic()
    for prompt in prompts:
        others = [labels[i] for i in rng.choice(len(labels), 100, replace=False) if labels[i] != prompt][:99]
        result = brush.generate(prompt, n=1, seed=0, rerank=4)[0]
        with torch.no_grad():
            image = judge.encode_image(stack([result.image], judge.image_size))
            right += int((image @ embed_labels(judge, words, [prompt, *others]).T).argmax() == 0)
    seconds = (time.monotonic() - started) / len(prompts)
    return {"r_precision_at_1_of_100": right / len(prompts), "prompts": len(prompts), "seconds_a_prompt": seconds}


def sheets(brush: Codebrush, parquet: str, out: Path) -> None:
    test = rows(parquet, brush.pack.image_size, split="test")
    picked = np.linspace(0, len(test.labels) - 1, 16).astype(int)
    originals = test.images[torch.from_numpy(picked)]
    with torch.no_grad():
        made = brush.vqgan.decode(brush.vqgan.quantize(brush.vqgan.encode(originals))[0])
    halves = (originals[:8], made[:8], originals[8:], made[8:])
    pairs = [to_pil(image) for half in halves for image in half]
    contact_sheet(pairs, columns=8).save(out / "reconstructions.png")
    drawn = [(result.image, label) for label in SEEN for result in brush.generate(label, n=2, seed=0)]
    contact_sheet([image for image, _ in drawn], [label for _, label in drawn], columns=8).save(out / "seen.png")
    unseen = sorted(set(test.labels))[:: max(1, len(set(test.labels)) // UNSEEN_COUNT)][:UNSEEN_COUNT]
    drawn = [(brush.generate(label, n=1, seed=0)[0].image, label) for label in unseen]
    contact_sheet([image for image, _ in drawn], [label for _, label in drawn], columns=8).save(out / "unseen.png")


def edits(brush: Codebrush, parquet: str, out: Path) -> None:
    """A sheet of what can be made of pictures of the test split: each given, varied, translated, with a hole filled."""
    size = brush.pack.image_size
    test = rows(parquet, size, split="test")
    picked = np.linspace(0, len(test.labels) - 1, EDITED).astype(int).tolist()
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


def percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def zero_shot_rows(title: str, found: dict[str, dict[str, float]]) -> list[str]:
    return [
        f"| {title}: {name} | {part['labels']:.0f} | {percent(part['top1'])} | {percent(part['top5'])} |"
        for name, part in found.items()
    ]


def origin_lines(brush: Codebrush, figures: dict[str, Any]) -> list[str]:
    info, origin = brush.pack.info, brush.pack.info["provenance"]
    hours = sum(stage["seconds"] for stage in origin["stages"].values()) / 3600
    lines = [
        "# The `emoji` pack",
        "",
        f"Draws and judges small pictures in the manner of emoji, {info['image_size']} pixels square. "
        f"Version {info['version']}, {figures['megabytes']:.1f} MB. A first pack, trained on a CPU alone: it shows "
        "that the whole road works. It is soft, and knows single things better than scenes.",
        "",
        "## Made from",
        "",
        f"- **Data**: `{origin['data']}` (sha256 `{origin['data_sha256'][:16]}...`), its `train` split without "
        "skin-tone variants: 7,576 pictures of 1,757 concepts in five styles. `val` and `test` hold other concepts.",
        f"- **Licence**: {info['licence']}. The text tower starts from a table distilled from all-MiniLM-L6-v2 "
        "(Apache-2.0); see NOTICE.",
        f"- **Recipe**: `{origin['recipe']}/`, seed 0, at commit `{origin['commit'][:12]}`, torch {origin['torch']}.",
        f"- **Machine**: {origin['machine']}. {hours:.1f} hours of training in all, the stages partly side by side.",
        "",
        "| stage | steps | batch | seconds | last training figures |",
        "|---|---|---|---|---|",
    ]
    for stage, facts in origin["stages"].items():
        loop, last = facts["plan"]["loop"], facts["last"]
        kind = stage.rstrip("-0123456789")
        shown = {"clip": "accuracy", "transformer": "transformer_loss", "captioner": "accuracy", "prior": "cosine"}.get(
            kind, "psnr"
        )
        lines.append(
            f"| {stage} | {last['step']} | {loop['batch_size']} | {facts['seconds']} | {shown} {last[shown]:.3f} |"
        )
    return lines


def measured_lines(figures: dict[str, Any], control: Path) -> list[str]:
    recall = figures["clip"].pop("test, text to picture")
    lines = ["", "## Measured", "", "Picture to label without training on it (zero-shot), the label as the text.", ""]
    lines += ["| pictures | labels to choose from | top-1 | top-5 |", "|---|---|---|---|"]
    lines += zero_shot_rows("this pack", figures["clip"])
    lines += zero_shot_rows(f"control run that never saw a Noto picture ({control.name})", figures["control"])
    lines += [
        "",
        f"Text to picture on the test split ({recall['queries']:.0f} labels, none seen in training): a right picture "
        f"is first for {percent(recall['recall_at_1'])}, among ten for {percent(recall['recall_at_10'])}.",
        "",
        "| reconstruction | PSNR | SSIM | codebook in use |",
        "|---|---|---|---|",
    ]
    for name, part in figures["vqgan"].items():
        usage = percent(part["codebook_usage"])
        lines.append(f"| {name} | {part['psnr']:.2f} dB | {part['ssim']:.3f} | {usage} |")
    lines += ["", "| drawing, best of 4 by the pack's CLIP | the control CLIP finds the label among 100 |", "|---|---|"]
    for name, part in figures["drawing"].items():
        lines.append(f"| {name} ({part['prompts']} prompts) | {percent(part['r_precision_at_1_of_100'])} |")
    lines += [
        "",
        "The control CLIP has this pack's architecture. It ran for 500 steps and 1,500 more with stronger augmentation "
        "(recipes `clip-without-noto.yaml` and `-2.yaml`), this pack's for 1,000 without: it is the better one.",
        "",
        *answer_lines(figures["answers"]),
        "",
        "Reconstructions of unseen concepts, originals above:",
        "",
        "![reconstructions](reconstructions.png)",
        "",
        "Concepts of the training split, two each, best of 8:",
        "",
        "![seen](seen.png)",
        "",
        "Concepts that no model of this pack has seen, one each, best of 4, good and bad:",
        "",
        "![unseen](unseen.png)",
        "",
        "What `vary`, `translate` and `edit --box` make of pictures that no model of this pack has seen:",
        "",
        "![edits](edits.png)",
        "",
    ]
    return lines


def answered(brush: Codebrush) -> dict[str, dict[str, float]]:
    """The share of questions about unseen drawn scenes that are answered exactly, by kind."""
    found = {}
    for name, asked in (("fixed palette", fixed_scenes(SCENES, 64)), ("any palette", varied_scenes(SCENES, 64))):
        pairs = answers(brush.reader, asked)
        of = {kind: [answer.guess == each.answer for each, answer in pairs if each.kind == kind] for kind in KINDS}
        found[name] = {kind: float(np.mean(right)) for kind, right in of.items()}
    return found


def answer_lines(found: dict[str, dict[str, float]]) -> list[str]:
    lines = [f"Questions about {SCENES} unseen drawn scenes of each sort, answered in exactly the right words:", ""]
    lines += ["| question | " + " | ".join(found) + " |", "|---" * (1 + len(found)) + "|"]
    return lines + [
        f"| {kind} | " + " | ".join(percent(part[kind]) for part in found.values()) + " |" for kind in KINDS
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pack")
    parser.add_argument("parquet")
    parser.add_argument("--control", type=Path, required=True)
    parser.add_argument("--out", type=Path, help="default: the pack's folder")
    parser.add_argument("--prompts", type=int, default=50)
    options = parser.parse_args()
    brush = Codebrush.from_pretrained(options.pack)
    out = options.out or brush.pack.folder
    figures = measure(brush, options.parquet, options.control)
    judge = CLIP.from_pretrained(options.control / MODEL_FOLDER)
    words = Tokenizer.from_pretrained(options.control / MODEL_FOLDER)
    labels = sorted(set(rows_labels(options.parquet, "split == train")))
    rng = np.random.default_rng(1)
    prompts = [labels[index] for index in rng.choice(len(labels), options.prompts, replace=False)]
    unseen = sorted(set(rows_labels(options.parquet, "split == test")))[: options.prompts]
    figures["drawing"] = {
        "seen concepts": drawn_right(brush, prompts, labels, judge, words),
        "unseen concepts": drawn_right(brush, unseen, sorted(set(labels + unseen)), judge, words),
    }
    figures["answers"] = answered(brush)
    figures["megabytes"] = sum(path.stat().st_size for path in brush.pack.folder.rglob("*.safetensors")) / 1e6
    sheets(brush, options.parquet, out)
    edits(brush, options.parquet, out)
    (out / "figures.json").write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    card = "\n".join(origin_lines(brush, figures) + measured_lines(figures, options.control))
    (out / "README.md").write_text(card, encoding="utf-8")
    print((out / "README.md").read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
