"""Heat lies where the named object is: a micro CLIP of each kind, trained on drawn scenes of several objects.

The pointing game (Zhang et al. 2016): a map hits if its largest value, once smoothed, lies in the box of the object
that the text names. Every scene holds other objects too, so a map that only finds what is not background must fail.
"""

import itertools
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from codebrush.data.decoding.images import stack
from codebrush.data.synthetic.shapes import Scene, SceneObject, scene
from codebrush.models.clip import CLIP
from codebrush.text.tokenizer import Tokenizer
from codebrush.training.engine.loop_config import LoopConfig
from codebrush.training.stage import Materials, StagePlan
from codebrush.training.tasks.augmentation import Augmentation
from codebrush.training.tasks.clip import CLIPRecipe
from codebrush.understanding.attribution import heat_maps, text_directions
from micro_models import scene_set, train_once

pytestmark = pytest.mark.long  # two models that point at what is named take minutes to train

SIZE = 32
COLOURS = ("red", "yellow", "green", "blue")
SHAPES = ("circle", "square", "triangle", "cross")
SEEN, UNSEEN = 0, 7  # seeds of the scenes trained on and of those judged by
ASKED = 100  # objects asked for

RESNET = CLIPRecipe(
    image_size=SIZE, image="resnet", width=16, blocks=(1, 1, 1, 1), heads=4, text_width=64, text_layers=1,
    text_heads=2, embed_dim=64, learning_rate=3e-3, augmentation=Augmentation(),
)  # fmt: skip
VIT = replace(RESNET, image="vit", patch_size=4, width=64, layers=2, learning_rate=2e-3)


def named(thing: SceneObject) -> str:
    return f"a {thing.colour} {thing.shape}"


def scenes(seed: int, count: int, objects: int | None) -> Iterator[Scene]:
    """The first `count` scenes of so many different objects, None: of one, in any place, of our colours and shapes."""
    series = (scene(seed, index, SIZE, objects) for index in itertools.count())
    fitting = (
        each
        for each in series
        if len(each.objects) == (objects or 1)
        and len({named(thing) for thing in each.objects}) == len(each.objects)
        and all(thing.colour in COLOURS and thing.shape in SHAPES for thing in each.objects)
    )
    return itertools.islice(fitting, count)


@pytest.fixture(scope="module")
def materials(kept: Path) -> Materials:
    """Scenes of one, two and three objects, each captioned with all that is in it."""
    parts = [scenes(SEEN, 800, None), scenes(SEEN, 1200, 2), scenes(SEEN, 800, 3)]
    drawn = ((each, cells_of(each)) for each in itertools.chain(*parts))
    data = scene_set(kept / "scenes-of-several", drawn, ("{said}", "{again}"), "group")
    return Materials(data, {"clip": Tokenizer.wordpiece()})


def cells_of(drawn: Scene) -> dict[str, str]:
    names = [named(thing) for thing in drawn.objects]
    return {"said": " and ".join(names), "again": " and ".join(names[::-1]), "group": " ".join(sorted(names))}


@pytest.fixture(scope="module", params=["vit", "resnet"])
def clip(request: pytest.FixtureRequest, kept: Path, materials: Materials) -> CLIP:
    recipe, steps = {"vit": (VIT, 1200), "resnet": (RESNET, 600)}[request.param]
    loop = LoopConfig(
        steps=steps, batch_size=64, warmup=20, ema_decay=0.98, threads=1,
        log_every=steps // 4, checkpoint_every=steps, preview_every=0,
    )  # fmt: skip
    trained = train_once(StagePlan("clip", recipe, loop), materials, kept / f"explaining-{request.param}")
    assert isinstance(trained, CLIP)
    return trained.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def asked() -> list[tuple[Tensor, SceneObject]]:
    """Unseen pictures (3, S, S) of two or three different objects, and the one that is asked for."""
    drawn = [*scenes(UNSEEN, ASKED // 2, 2), *scenes(UNSEEN, ASKED // 2, 3)]
    return [(stack([each.image], SIZE)[0], each.objects[index % 2]) for index, each in enumerate(drawn)]


def hits(heat: Tensor, thing: SceneObject) -> bool:
    """Whether the largest value of a map (H, W), smoothed over 3 pixels, lies in the object's box."""
    smooth = F.avg_pool2d(heat[None, None], 3, 1, 1, count_include_pad=False)[0, 0]
    row, column = divmod(int(smooth.argmax()), heat.shape[1])
    left, top, right, bottom = thing.box
    return left <= column + 0.5 <= right and top <= row + 0.5 <= bottom


@pytest.mark.parametrize("method", ["gradient", "occlusion"])
def test_heat_lies_in_the_box_of_the_object_that_is_named(method, clip: CLIP, materials: Materials, asked):
    found, random = [], []
    draw = torch.Generator().manual_seed(0)
    for image, thing in asked:
        _, directions = text_directions(clip, materials.tokenizer, named(thing).split())
        found.append(hits(heat_maps(clip, image, directions[:1], method)[0], thing))
        noise = F.interpolate(torch.rand(1, 1, 8, 8, generator=draw), (SIZE, SIZE), mode="bicubic")
        random.append(hits(noise[0, 0], thing))
    share, chance = sum(found) / len(found), sum(random) / len(random)
    print(type(clip.image_encoder).__name__, method, "two objects", sum(found[:50]) / 50, "three", sum(found[50:]) / 50)
    print("all", share, "random maps", chance)
    assert share >= 0.8
    assert chance <= 0.2
