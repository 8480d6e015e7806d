"""Real learning in seconds: a micro CLIP, VQGAN and code transformer on drawn shapes, each held to a figure.

The three are trained once by the recipes and the loop that train every pack, and judged on scenes that none of them
has seen; the drawings are judged by a rule on their pixels.
"""

import itertools
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from codebrush import Codebrush
from codebrush.data.codes import encode_once
from codebrush.data.images import stack, to_pil
from codebrush.data.shapes import Scene, read_scene, scene
from codebrush.evaluation.alignment import zero_shot
from codebrush.evaluation.fidelity import reconstruction
from codebrush.generation.decoding import draw_codes, picture_uniforms
from codebrush.models.captioner import Captioner
from codebrush.models.clip import CLIP
from codebrush.models.code_transformer import CodeTransformer
from codebrush.models.vqgan import VQGAN
from codebrush.pack import encode_condition
from codebrush.pack_writing import write_pack
from codebrush.text.tokenizer import Tokenizer
from codebrush.training.augmentation import Augmentation
from codebrush.training.captioned import SourceConfig, load_captioned
from codebrush.training.captioner import AskRule, CaptionerRecipe
from codebrush.training.clip import CLIPRecipe
from codebrush.training.code_transformer import TransformerRecipe
from codebrush.training.loop import LoopConfig
from codebrush.training.stages import MODEL_FOLDER, Materials, StagePlan, run_stage
from codebrush.training.vqgan import VQGANRecipe
from codebrush.understanding.captioning import Reader

pytestmark = pytest.mark.xdist_group("learning")  # so that one process trains the three for all tests

SIZE = 32
COLOURS = ("red", "yellow", "green", "blue")
SHAPES = ("circle", "square", "triangle", "cross")
LABELS = [f"{colour} {shape}" for colour in COLOURS for shape in SHAPES]
SEEN, UNSEEN = 0, 1  # seeds of the scenes trained on and of those judged by

CLIP_RECIPE = CLIPRecipe(
    image_size=SIZE, image="resnet", width=16, blocks=(1, 1, 1, 1), heads=4,
    text_width=64, text_layers=1, text_heads=2, embed_dim=64, learning_rate=3e-3,
)  # fmt: skip
VQGAN_RECIPE = VQGANRecipe(
    image_size=SIZE, channels=16, channel_multipliers=(1, 2, 2), latent_channels=32, code_dim=8, codebook_size=128,
    l2=10.0, perceptual=0.0, adversarial=0.0, learning_rate=3e-3, augmentation=Augmentation(),
)  # fmt: skip
TRANSFORMER_RECIPE = TransformerRecipe(width=128, layers=3, heads=4, text_length=8, dropout=0.0, learning_rate=2e-3)
CAPTIONER_RECIPE = CaptionerRecipe(
    width=64, layers=2, heads=4, vocab_size=300, context_length=24, stem=32, segments=3, learning_rate=3e-3,
    questions=(AskRule(("what colour is it?",), "{colour}"), AskRule(("which shape is it?",), "{shape}")),
)  # fmt: skip


def single_shapes(seed: int, count: int) -> Iterator[Scene]:
    """The first `count` scenes of a series whose one object has our colours and shapes."""
    series = (scene(seed, index, SIZE, objects=1) for index in itertools.count())
    return itertools.islice((each for each in series if label_of(each) in LABELS), count)


def label_of(drawn: Scene) -> str:
    return f"{drawn.objects[0].colour} {drawn.objects[0].shape}"


def loop(steps: int, batch_size: int) -> LoopConfig:
    return LoopConfig(
        steps=steps, batch_size=batch_size, warmup=20, ema_decay=0.98, threads=1,
        log_every=steps // 4, checkpoint_every=steps, preview_every=0,
    )  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("learning")


@pytest.fixture(scope="module")
def materials(folder: Path) -> Materials:
    """Scenes to train on as a folder of captioned pictures, read back as any source is."""
    (folder / "scenes").mkdir()
    rows = []
    for index, drawn in enumerate(single_shapes(SEEN, 1500)):
        drawn.image.save(folder / "scenes" / f"{index}.png")
        (each,) = drawn.objects
        cells = {"label": label_of(drawn), "size": each.size, "colour": each.colour, "shape": each.shape}
        rows.append({"file_name": f"{index}.png", **cells})
    (folder / "scenes" / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = SourceConfig(str(folder / "scenes"), captions=("a {label}", "a {size} {label}"), group="label")
    return Materials(load_captioned(source.open(), SIZE, folder / "cache"), Tokenizer.wordpiece())


@pytest.fixture(scope="module")
def unseen() -> tuple[Tensor, list[str]]:
    """Pictures (B, 3, S, S) that nothing was trained on, and their labels."""
    scenes = list(single_shapes(UNSEEN, 256))
    return stack([each.image for each in scenes], SIZE), [label_of(each) for each in scenes]


@pytest.fixture(scope="module")
def clip(folder: Path, materials: Materials) -> CLIP:
    trained = run_stage(StagePlan("clip", CLIP_RECIPE, loop(160, 64)), materials, folder / "clip")
    assert isinstance(trained, CLIP)
    materials.clip = trained
    return trained


@pytest.fixture(scope="module")
def vqgan(folder: Path, materials: Materials) -> VQGAN:
    trained = run_stage(StagePlan("vqgan", VQGAN_RECIPE, loop(800, 8)), materials, folder / "vqgan")
    assert isinstance(trained, VQGAN)
    materials.vqgan = trained
    return trained


@pytest.fixture(scope="module")
def transformer(folder: Path, materials: Materials, clip: CLIP, vqgan: VQGAN) -> CodeTransformer:
    materials.codes = encode_once(vqgan, materials.data.pixels, folder / "cache")
    plan = StagePlan("transformer", TRANSFORMER_RECIPE, loop(400, 32))
    trained = run_stage(plan, materials, folder / "transformer")
    assert isinstance(trained, CodeTransformer)
    return trained


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
    codes = draw_codes(transformer, condition, uniforms, cfg=3.0)
    found = [read_scene(to_pil(image)) for image in vqgan.decode_codes(codes)]
    right = np.mean([each is not None and " ".join(each) == label for each, label in zip(found, asked, strict=True)])
    print("drawn right", right)
    assert right >= 0.8


def test_the_captioner_says_what_unseen_scenes_show(folder: Path, materials: Materials, clip: CLIP, unseen):
    materials = replace(materials, clip=clip)
    captioner = run_stage(StagePlan("captioner", CAPTIONER_RECIPE, loop(180, 32)), materials, folder / "captioner")
    assert isinstance(captioner, Captioner)
    words = Tokenizer.from_pretrained(folder / "captioner" / MODEL_FOLDER)
    reader, (images, labels) = Reader(clip, materials.tokenizer, captioner, words), unseen
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
    assert materials.clip is not None
    assert materials.vqgan is not None
    pack = folder / "pack"
    if not pack.exists():
        write_pack(
            pack, name="shapes", clip=materials.clip, tokenizer=materials.tokenizer, vqgan=materials.vqgan,
            transformer=transformer, version="1", licence="CC0-1.0", provenance={}, dtype=torch.float32,
        )  # fmt: skip
    brush = Codebrush.from_pretrained(pack, device="cpu")
    results = brush.generate("a red circle", n=4, seed=0, method="guide", batch_size=4, **options)
    return [result.image for result in sorted(results, key=lambda result: result.manifest["index"])]


@torch.no_grad()
def cosines(clip: CLIP, tokenizer: Tokenizer, images: list[Image.Image], text: str) -> Tensor:
    return clip.encode_image(stack(images, SIZE)) @ judge_of(clip, tokenizer, text)


def test_guidance_draws_red_from_a_random_latent(folder: Path, materials: Materials, transformer, clip):
    before, after = (guided_scenes(folder, materials, transformer, steps=steps) for steps in (0, 120))
    rise = cosines(clip, materials.tokenizer, after, "a red circle") - cosines(
        clip, materials.tokenizer, before, "a red circle"
    )
    found = [read_scene(image) for image in after]
    print("guided", rise, found)
    assert float(rise.min()) >= 0.3
    assert sum(each is not None and each[0] == "red" for each in found) >= 3


def test_guidance_turns_away_from_what_is_excluded(folder: Path, materials: Materials, transformer, clip):
    plain, excluded = (
        guided_scenes(folder, materials, transformer, steps=60, exclude=exclude, beta=1.0)
        for exclude in ((), ("a circle",))
    )
    falls = [cosines(clip, materials.tokenizer, images, "a circle").mean() for images in (plain, excluded)]
    print("excluded", falls)
    assert falls[1] < falls[0] - 0.05
