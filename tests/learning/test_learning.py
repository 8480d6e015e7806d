"""Real learning in seconds: a micro CLIP, VQGAN and code transformer on drawn shapes, each held to a figure.

The three are trained once by the recipes and the loop that train every pack, and judged on scenes that none of them
has seen; the drawings are judged by a rule on their pixels.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from codebrush import Codebrush
from codebrush.data.decoding.images import stack, to_pil
from codebrush.data.synthetic.shape_recognition import recognise_shape
from codebrush.evaluation.alignment import zero_shot
from codebrush.generation.options import FlowSettings, SamplingFilters
from codebrush.generation.sampling.decoding import draw_codes, picture_uniforms
from codebrush.generation.sampling.flow import draw_latents, picture_noise
from codebrush.models.captioner import Captioner
from codebrush.models.clip import CLIP
from codebrush.models.code_transformer import CodeTransformer
from codebrush.models.vqgan import VQGAN
from codebrush.pack.pack import encode_condition
from codebrush.pack.writing import PackMembers, write_pack
from codebrush.text.tokenizer import Tokenizer
from codebrush.training.run_folder import MODEL_FOLDER
from codebrush.training.run_stage import run_stage
from codebrush.training.stage import Materials, StagePlan
from codebrush.training.tasks.captioner import AskRule, CaptionerRecipe
from codebrush.understanding.captioning import CaptionPipeline
from figures import reconstruction
from micro_models import LABELS, SIZE, loop

pytestmark = pytest.mark.slow  # models that learn for a minute; what they are made of has its tests in tests/training
CAPTIONER_RECIPE = CaptionerRecipe(
    width=64, layers=2, heads=4, vocab_size=300, context_length=24, stem=32, segments=3, learning_rate=3e-3,
    questions=(AskRule(("what colour is it?",), "{colour}"), AskRule(("which shape is it?",), "{shape}")),
)  # fmt: skip


@torch.no_grad()
def test_clip_names_colour_and_shape_of_unseen_scenes(clip: CLIP, materials: Materials, unseen):
    images, labels = unseen
    texts = clip.encode_text(materials.tokenizer([f"a {label}" for label in LABELS]))
    figures = zero_shot(clip.encode_image(images), LABELS, texts, labels)
    print("zero-shot", figures)
    assert figures["top1"] >= 0.9


def test_vqgan_reconstructs_unseen_scenes(vqgan: VQGAN, unseen):
    figures = reconstruction(vqgan, [unseen[0]])
    print("reconstruction", figures)
    assert figures["psnr"] >= 25
    assert figures["codebook_usage"] >= 0.8


@torch.no_grad()
def test_transformer_draws_the_colour_and_shape_asked_for(transformer, clip, vqgan, materials: Materials):
    asked = [label for label in LABELS for _ in range(5)]
    texts = [f"a large {label}" for label in asked]
    condition = encode_condition(clip, materials.tokenizer, texts, transformer.config)
    uniforms = picture_uniforms(0, range(len(asked)), transformer.config.code_count)
    codes = draw_codes(transformer, condition, uniforms, SamplingFilters(cfg=3.0))
    found = [recognise_shape(to_pil(image)) for image in vqgan.decode_codes(codes)]
    right = np.mean([each is not None and " ".join(each) == label for each, label in zip(found, asked, strict=True)])
    print("drawn right", right)
    assert right >= 0.8


@torch.no_grad()
def test_the_flow_draws_the_colour_and_shape_asked_for(flow, clip, vqgan, materials: Materials):
    asked = [label for label in LABELS for _ in range(5)]
    condition = encode_condition(clip, materials.tokenizer, [f"a large {label}" for label in asked], flow.config)
    noise = picture_noise(0, range(len(asked)), (flow.config.latent_channels, *flow.config.grid))
    latents = draw_latents(flow, condition, noise, FlowSettings(10), cfg=2.0)
    found = [recognise_shape(to_pil(image)) for image in vqgan.decode(vqgan.quantize(latents)[0])]
    right = np.mean([each is not None and " ".join(each) == label for each, label in zip(found, asked, strict=True)])
    print("flow right", right)
    assert right >= 0.9


@pytest.mark.long  # a minute and a half; tests/training/tasks/test_captioner.py has a shorter one
def test_the_captioner_says_what_unseen_scenes_show(folder: Path, materials: Materials, clip: CLIP, unseen):
    materials = replace(materials, models={**materials.models, "clip": clip})
    captioner = run_stage(StagePlan("captioner", CAPTIONER_RECIPE, loop(180, 32)), materials, folder / "captioner")
    assert isinstance(captioner, Captioner)
    words = Tokenizer.from_pretrained(folder / "captioner" / MODEL_FOLDER)
    reader, (images, labels) = CaptionPipeline(clip, materials.tokenizer, captioner, words), unseen
    found = {}
    for place, question in enumerate(("what colour is it?", "which shape is it?")):
        answers = reader.ask(images, [question] * len(images), threshold=0.0)
        right = [answer.guess == label.split()[place] for answer, label in zip(answers, labels, strict=True)]
        found[question] = np.mean(right)
    captions = [best[0].text for best in reader.caption(images)]
    found["caption"] = np.mean([text.endswith(label) for text, label in zip(captions, labels, strict=True)])
    print("captioner", found)
    assert min(found.values()) >= 0.9


def judge_of(clip: CLIP, tokenizer: Tokenizer, text: str) -> Tensor:
    with torch.no_grad():
        return clip.encode_text(tokenizer([text]))[0]


def guided_scenes(
    folder: Path, materials: Materials, transformer: CodeTransformer, **options: Any
) -> list[Image.Image]:
    """Four pictures guided from random latents by the micro models, as a user would have them."""
    pack = folder / "pack"
    if not pack.exists():
        write_pack(
            pack, PackMembers({**materials.models, "transformer": transformer}, materials.tokenizers),
            name="shapes", version="1", licence="CC0-1.0", provenance={}, dtype=torch.float32,
        )  # fmt: skip
    brush = Codebrush.from_pretrained(pack, device="cpu")
    results = brush.generate(
        "a red circle", n=4, seed=0, method="guide", batch_size=4, cutouts=16, init="random", **options
    )
    return [result.image for result in sorted(results, key=lambda result: result.manifest["index"])]


@torch.no_grad()
def cosines(clip: CLIP, tokenizer: Tokenizer, images: list[Image.Image], text: str) -> Tensor:
    return clip.encode_image(stack(images, SIZE)) @ judge_of(clip, tokenizer, text)


def test_guidance_draws_red_from_a_random_latent(folder: Path, materials: Materials, transformer, clip):
    before, after = (guided_scenes(folder, materials, transformer, steps=steps) for steps in (0, 60))
    rise = cosines(clip, materials.tokenizer, after, "a red circle") - cosines(
        clip, materials.tokenizer, before, "a red circle"
    )
    found = [recognise_shape(image) for image in after]
    print("guided", rise, found)
    assert float(rise.min()) >= 0.3
    assert sum(each is not None and each[0] == "red" for each in found) >= 3


def test_guidance_turns_away_from_what_is_excluded(folder: Path, materials: Materials, transformer, clip):
    plain, excluded = (
        guided_scenes(folder, materials, transformer, steps=30, exclude=exclude, beta=1.0)
        for exclude in ((), ("a circle",))
    )
    falls = [cosines(clip, materials.tokenizer, images, "a circle").mean() for images in (plain, excluded)]
    print("excluded", falls)
    assert falls[1] < falls[0] - 0.05
