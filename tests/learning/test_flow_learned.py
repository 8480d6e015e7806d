"""What a micro flow that was taught texts alone does beside drawing: it fills holes, and CLIP corrects it."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from codebrush import Codebrush
from codebrush.data.decoding.images import stack
from codebrush.data.synthetic.shape_recognition import recognise_shape
from codebrush.generation.editing.canvas import BORDER, soft_edge
from codebrush.generation.result import Result
from codebrush.models.clip import CLIP
from codebrush.models.flow_transformer import FlowTransformer
from codebrush.models.vqgan import VQGAN
from codebrush.pack.writing import PackMembers, write_pack
from codebrush.training.stage import Materials, StagePlan
from micro_models import CLIP_RECIPE, LABELS, SIZE, UNSEEN, around, loop, single_shapes, train_once

pytestmark = pytest.mark.slow  # a flow that learns for half a minute


@pytest.fixture(scope="module")
def brush(folder: Path, materials: Materials, clip: CLIP, vqgan: VQGAN, flow: FlowTransformer) -> Codebrush:
    """A pack with a flow alone."""
    members = {"clip": clip, "vqgan": vqgan, "flow": flow}
    write_pack(
        folder / "flowing", PackMembers(members, materials.tokenizers),
        name="flowing", version="1", licence="CC0-1.0", provenance={}, dtype=torch.float32,
    )  # fmt: skip
    return Codebrush.from_pretrained(folder / "flowing", device="cpu")


@pytest.fixture(scope="module")
def second_clip(kept: Path, materials: Materials) -> CLIP:
    """A CLIP that guides nothing."""
    plan = StagePlan("clip", CLIP_RECIPE, replace(loop(100, 64), seed=1))
    trained = train_once(plan, materials, kept / "second-clip")
    assert isinstance(trained, CLIP)
    return trained.eval()


def right(image: Image.Image, label: str) -> bool:
    """Whether a picture shows the label's colour and shape."""
    found = recognise_shape(image)
    return found is not None and " ".join(found) == label


def test_a_hole_is_filled_with_what_is_asked_and_the_rest_stays(brush: Codebrush) -> None:
    found = []
    for number, drawn in enumerate(single_shapes(UNSEEN, 24)):
        label, mask = LABELS[number % len(LABELS)], around(drawn)
        (result,) = brush.edit(drawn.image, f"a {label}", mask=mask, n=1, rerank=8, seed=number, steps=10, cfg=3)
        kept = soft_edge(np.asarray(mask) > 0, SIZE // BORDER) == 0
        assert (np.asarray(result.image)[kept] == np.asarray(drawn.image)[kept]).all()
        found.append(right(result.image, label))
    print("filled right", np.mean(found))
    assert np.mean(found) >= 0.8


def test_clip_corrects_what_the_flow_alone_gets_wrong(
    brush: Codebrush, second_clip: CLIP, materials: Materials
) -> None:
    def draw(label: str, seed: int, **options: Any) -> Result:
        return brush.generate(f"a {label}", 1, seed, method="flow", steps=10, cfg=1, rerank=1, **options)[0]

    alone = {(label, seed): draw(label, seed).image for label in LABELS for seed in range(4)}
    wrong = [key for key, image in alone.items() if not right(image, key[0])]
    assert len(wrong) >= 5
    led = [draw(*key, clip_guidance=0.5, cutouts=4).image for key in wrong]
    corrected = np.mean([right(image, label) for image, (label, _) in zip(led, wrong, strict=True)])
    with torch.no_grad():
        texts = second_clip.encode_text(materials.tokenizer([f"a {label}" for label, _ in wrong]))
        before, after = (
            (second_clip.encode_image(stack(images, SIZE)) * texts).sum(1).mean()
            for images in ([alone[key] for key in wrong], led)
        )
    print(f"{len(wrong)} of {len(alone)} wrong, corrected {corrected}, second CLIP {before:.3f} -> {after:.3f}")
    assert after > before + 0.05
    assert corrected >= 0.5
