"""Measures whether guidance makes drawn pictures better, by a CLIP that takes no part, and which step it should keep.

    python recipes/emoji/guidance_figures.py emoji emoji.parquet --judge runs/emoji/judge/model --out guidance

Each prompt of the val split is drawn and then guided for `--steps` steps, with everything else as by default. Three
CLIPs look at every fifth step: the one that guides, the pack's scorer and the judge. So every rule of which step to
keep is compared on the same runs: the start, the last step, the best one by the scorer with the patience that ends it.
OUT/steps.jsonl has a line for each prompt; a run that is there is not made again. OUT/sheet.png shows pictures.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from judging import Judge, emoji, labels_of
from PIL import Image

from codebrush import Codebrush
from codebrush.data.contact_sheet import contact_sheet
from codebrush.data.decoding.images import save_png

EVERY = 5  # steps
LEAST = 0.005  # cosine of the judge below which two pictures are as good as each other
SHOWN = 12
KEYS = ("judge", "found", "scorer", "guide")  # the figures of each step


def kept(scores: list[float], patience: int) -> int:
    """The place of the best score before `patience` places without a better one."""
    best = 0
    for place, score in enumerate(scores):
        if score > scores[best]:
            best = place
        elif patience and place - best >= patience:
            break
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pack")
    parser.add_argument("parquet")
    parser.add_argument("--judge", required=True, help="folder of a CLIP that takes no part")
    parser.add_argument("--prompts", type=int, default=40)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--options", default="{}", help="options of guidance, as JSON")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    brush = Codebrush.from_pretrained(given.pack)
    labels = labels_of(emoji(given.parquet, "val"))
    prompts = [labels[place] for place in np.random.default_rng(0).permutation(len(labels))[: given.prompts]]
    judge, log = Judge(given.judge, labels), given.out / "steps.jsonl"
    lines = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    options = {"steps": given.steps, "keep": "last", "show_every": EVERY, **json.loads(given.options)}
    for number, prompt in enumerate(prompts):
        if prompt not in {line["prompt"] for line in lines}:
            folder = given.out / "runs" / f"{number:02d}"
            if not (folder / "picture_00.png").exists():
                run = brush.resume(folder) if folder.exists() else brush.guide(prompt, folder=folder, **options)
                for _ in run:
                    pass
            pictures = [Image.open(file) for file in sorted((folder / "pictures").glob("*.png"))]
            lines.append({"prompt": prompt, **scores_of(brush, judge, prompt, pictures, labels)})
            with log.open("a") as file:
                file.write(json.dumps(lines[-1]) + "\n")
    report(lines, given.out)


def scores_of(
    brush: Codebrush, judge: Judge, prompt: str, pictures: Sequence[Image.Image], labels: list[str]
) -> dict[str, list[float]]:
    """The scores of a prompt's pictures by all three CLIPs, and whether the judge finds the prompt among the labels."""
    assert brush.scorer is not None
    others = [place for place, label in enumerate(labels) if label != prompt]
    seen = [judge(picture, prompt, others) for picture in pictures]
    return {
        "guide": [brush.score(picture, prompt) for picture in pictures],
        "scorer": brush.scorer.scores(pictures, brush.scorer.embed([prompt]), [1.0]),
        "judge": [cosine for cosine, _ in seen],
        "found": [float(right) for _, right in seen],
    }


def report(lines: list[dict], out: Path) -> None:
    """Print a table of the rules, and write a sheet of starts, kept and last pictures."""
    rules = {"start": lambda line: 0, "last": lambda line: -1, "best by the guide": lambda line: kept(line["guide"], 0)}
    for patience in (2, 4, 0):
        name = f"best by the scorer, patience {EVERY * patience or 'none'}"
        rules[name] = lambda line, patience=patience: kept(line["scorer"], patience)
    print(
        "| kept | judge | finds it | scorer | guide | better, worse than the start | step |", "|---" * 7 + "|", sep="\n"
    )
    for name, rule in rules.items():
        places = [rule(line) % len(line["judge"]) for line in lines]
        values = {key: np.array([line[key][at] for line, at in zip(lines, places, strict=True)]) for key in KEYS}
        change = values["judge"] - np.array([line["judge"][0] for line in lines])
        spread = values["judge"].std() / len(lines) ** 0.5
        cells = [f"{values['judge'].mean():.3f} ± {spread:.3f}", f"{values['found'].mean():.0%}"]
        cells += [f"{values[key].mean():.3f}" for key in ("scorer", "guide")]
        better, worse = int((change > LEAST).sum()), int((change < -LEAST).sum())
        cells += [f"{better}, {worse} of {len(lines)}", f"{EVERY * np.mean(places):.0f}"]
        print(f"| {name} | {' | '.join(cells)} |")
    shown: list[Image.Image] = []
    said: list[str] = []
    for number, line in enumerate(lines[:SHOWN]):
        files = sorted((out / "runs" / f"{number:02d}" / "pictures").glob("*.png"))
        for what, at in (("start", 0), ("kept", kept(line["scorer"], 2)), ("last", len(files) - 1)):
            shown.append(Image.open(files[at]))
            said.append(f"{line['prompt']}: {what}, step {EVERY * at}")
    save_png(contact_sheet(shown, said, 6), out / "sheet.png")


if __name__ == "__main__":
    main()
