"""Editing by one micro code transformer that was taught all of it, judged by a rule on pixels."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from codebrush import Codebrush
from codebrush.data.synthetic.shape_recognition import recognise_shape
from codebrush.data.synthetic.shapes import Scene
from codebrush.generation.editing.canvas import BORDER, soft_edge
from codebrush.models.clip import CLIP
from codebrush.models.code_transformer import CodeTransformer
from codebrush.models.vqgan import VQGAN
from codebrush.pack.writing import PackMembers, write_pack
from codebrush.training.make_bank import make_bank
from codebrush.training.stage import Materials, StagePlan
from micro_models import LABELS, SIZE, TRANSFORMER_RECIPE, UNSEEN, around, label_of, loop, single_shapes, train_once

pytestmark = pytest.mark.long  # minutes to teach all of it

EDITOR_RECIPE = replace(
    TRANSFORMER_RECIPE, image_share=0.15, hole_share=0.35, pair_share=0.3, pair_captions=("a {size} one",)
)
PICTURES = 24


@pytest.fixture(scope="module")
def brush(
    folder: Path, kept: Path, materials: Materials, clip: CLIP, vqgan: VQGAN, transformer: CodeTransformer
) -> Codebrush:
    """A pack whose code transformer goes on from the one of texts."""
    plan = StagePlan("transformer", EDITOR_RECIPE, loop(800, 32))
    trained = train_once(plan, materials, kept / "editor", start=transformer)
    assert isinstance(trained, CodeTransformer)
    pack = folder / "editing"
    members = {"clip": clip, "vqgan": vqgan, "transformer": trained, "bank": make_bank(clip, materials.data)}
    write_pack(
        pack, PackMembers(members, materials.tokenizers), name="editing", version="1", licence="CC0-1.0", provenance={},
        extras={"translation": {"text": "a {style} one", "styles": ["small", "large"]}}, dtype=torch.float32,
    )  # fmt: skip
    return Codebrush.from_pretrained(pack, device="cpu")


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    """Pictures that nothing was trained on."""
    return list(single_shapes(UNSEEN, PICTURES))


def right(images: Sequence[Image.Image], labels: Sequence[str]) -> float:
    """The share of pictures that show their label's colour and shape."""
    found = [recognise_shape(image) for image in images]
    return float(
        np.mean([each is not None and " ".join(each) == label for each, label in zip(found, labels, strict=True)])
    )


def test_a_hole_is_filled_with_what_is_asked_and_the_rest_stays(brush: Codebrush, scenes: list[Scene]) -> None:
    done, labels = [], []
    for number, drawn in enumerate(scenes):
        label, mask = LABELS[number % len(LABELS)], around(drawn)
        (result,) = brush.edit(drawn.image, f"a {label}", mask=mask, n=1, rerank=8, seed=number)
        kept = soft_edge(np.asarray(mask) > 0, SIZE // BORDER) == 0
        assert (np.asarray(result.image)[kept] == np.asarray(drawn.image)[kept]).all()
        done.append(result.image)
        labels.append(label)
    print("inpainted right", right(done, labels))
    assert right(done, labels) >= 0.8


def test_a_bank_of_scenes_gives_what_is_asked(brush: Codebrush) -> None:
    labels = [LABELS[number % len(LABELS)] for number in range(PICTURES)]
    results = [
        brush.generate(f"a {label}", 1, seed, method="retrieve", rerank=4)[0] for seed, label in enumerate(labels)
    ]
    named = [near["name"] for result in results for near in result.manifest["retrieval"]["found"]]
    told = np.mean([label in name for label, name in zip(np.repeat(labels, 4), named, strict=True)])
    print("drawn right from neighbours", right([result.image for result in results], labels), "named right", told)
    assert right([result.image for result in results], labels) >= 0.8


def test_variations_keep_colour_and_shape(brush: Codebrush, scenes: list[Scene]) -> None:
    results = [brush.vary(drawn.image, n=1, rerank=4) for drawn in scenes]
    labels = [label_of(drawn) for drawn in scenes]
    pictures = [found[0].image for found in results]
    print("varied right", right(pictures, labels))
    assert right(pictures, labels) >= 0.8
    assert all(
        np.abs(np.asarray(picture, dtype=int) - np.asarray(drawn.image)).mean() > 0.5
        for picture, drawn in zip(pictures, scenes, strict=True)
    )


def test_a_translation_changes_the_size_and_keeps_the_rest(brush: Codebrush, scenes: list[Scene]) -> None:
    sizes = [{"small": "large", "large": "small"}[drawn.objects[0].size] for drawn in scenes]
    pictures = [brush.translate(drawn.image, size, n=1)[0].image for drawn, size in zip(scenes, sizes, strict=True)]
    ink = [float((np.abs(np.asarray(image, dtype=int) - 255).sum(-1) > 120).mean()) for image in pictures]
    was = [float((np.abs(np.asarray(drawn.image, dtype=int) - 255).sum(-1) > 120).mean()) for drawn in scenes]
    turned = np.mean([(now > before) == (size == "large") for now, before, size in zip(ink, was, sizes, strict=True)])
    print("translated right", right(pictures, [label_of(drawn) for drawn in scenes]), "to the size asked", turned)
    assert right(pictures, [label_of(drawn) for drawn in scenes]) >= 0.8
    assert turned >= 0.9


def test_the_stronger_an_edit_the_more_is_new(brush: Codebrush, scenes: list[Scene]) -> None:
    drawn = scenes[0]
    distance = [
        np.abs(
            np.asarray(brush.edit(drawn.image, "a green square", strength=strength, n=1)[0].image, dtype=int)
            - np.asarray(drawn.image)
        ).mean()
        for strength in (0.1, 0.5, 1.0)
    ]
    assert distance[0] < distance[2]
    assert recognise_shape(brush.edit(drawn.image, "a green square", strength=1.0, n=1)[0].image) == ("green", "square")
