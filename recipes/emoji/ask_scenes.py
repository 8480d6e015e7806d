"""Measures how many questions about unseen synthetic scenes a captioner answers correctly, for each kind of question.

    python recipes/emoji/ask_scenes.py emoji
    python recipes/emoji/ask_scenes.py emoji --captioner runs/emoji/captioner/model --scenes 300

There are two kinds of scenes: those of `codebrush data shapes` (a fixed palette) and those of any palette, size and
place. An answer is correct if it matches word for word. Prints accuracies, also by confidence, and common mistakes.
"""

import argparse
import itertools
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from codebrush.data.decoding.images import stack
from codebrush.data.synthetic.outlines import COLOURS
from codebrush.data.synthetic.questions import KINDS, Question, scene_questions
from codebrush.data.synthetic.shapes import scene
from codebrush.data.synthetic.varied_scenes import PALETTE, varied_scene
from codebrush.models.captioner import Captioner
from codebrush.pack.pack import Pack, open_pack
from codebrush.text.tokenizer import Tokenizer
from codebrush.understanding.captioning import Answer, CaptionPipeline

UNSEEN = 1_000_003  # a seed that no training uses
BINS = (0.0, 0.4, 0.6, 0.8, 0.9, 0.95, 1.0)
Asked = list[tuple[Image.Image, list[Question]]]


def fixed_scenes(count: int, size: int) -> Asked:
    """Scenes of the fixed palette, with their questions."""
    rng, found = np.random.default_rng(UNSEEN), []
    for index in range(count):
        drawn = scene(UNSEEN, index, size)
        found.append((drawn.image, scene_questions(drawn.objects, drawn.background, size, tuple(COLOURS), rng)))
    return found


def varied_scenes(count: int, size: int) -> Asked:
    """Scenes of any palette, with their questions."""
    rng, found = np.random.default_rng(UNSEEN), []
    for _ in range(count):
        drawn = varied_scene(rng, size)
        found.append((drawn.image, scene_questions(drawn.objects, drawn.background, size, tuple(PALETTE), rng)))
    return found


def open_reader(pack: Pack, captioner: Path | None) -> CaptionPipeline:
    """The pack's CLIP with the pack's captioner, or with the one in the folder `captioner`."""
    if captioner is None:
        return CaptionPipeline(pack.clip, pack.tokenizer, pack.captioner, pack.captioner_tokenizer)
    model, words = Captioner.from_pretrained(captioner), Tokenizer.from_pretrained(captioner)
    return CaptionPipeline(pack.clip, pack.tokenizer, model, words)


@torch.no_grad()
def answers(reader: CaptionPipeline, asked: Asked) -> list[tuple[Question, Answer]]:
    """Every question with the captioner's best guess, however low its confidence."""
    found = []
    for image, questions in asked:
        pixels = stack([image], reader.clip.image_size).expand(len(questions), -1, -1, -1)
        given = reader.ask(pixels, [question.ask for question in questions], threshold=0.0)
        found += list(zip(questions, given, strict=True))
    return found


def main() -> None:
    """See the top of the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pack")
    parser.add_argument("--captioner", type=Path)
    parser.add_argument("--scenes", type=int, default=200)
    parser.add_argument("--size", type=int, default=64)
    options = parser.parse_args()
    pack = open_pack(options.pack)
    reader = open_reader(pack, options.captioner)
    found = {
        "fixed palette": answers(reader, fixed_scenes(options.scenes, options.size)),
        "any palette": answers(reader, varied_scenes(options.scenes, options.size)),
    }
    print("| question | " + " | ".join(found) + " |\n|---" + "|---" * len(found) + "|")
    for kind in (*KINDS, "all"):
        cells = []
        for pairs in found.values():
            right = [answer.guess == question.answer for question, answer in pairs if kind in (question.kind, "all")]
            cells.append(f"{np.mean(right):.1%} of {len(right)}" if right else "-")
        print(f"| {kind} | " + " | ".join(cells) + " |")
    everything = [pair for pairs in found.values() for pair in pairs]
    print("\n| confidence | right |\n|---|---|")
    for low, high in itertools.pairwise(BINS):
        right = [answer.guess == question.answer for question, answer in everything if low <= answer.confidence < high]
        if right:
            print(f"| {low} to {high} | {np.mean(right):.1%} of {len(right)} |")
    wrong = Counter((q.kind, q.answer, a.guess) for q, a in everything if a.guess != q.answer)
    print("\nmost frequent mistakes (kind, right answer, given answer):", *wrong.most_common(12), sep="\n  ")


if __name__ == "__main__":
    main()
