import math

import numpy as np
import pytest
import torch

from codebrush.data.synthetic.outlines import SHAPES
from codebrush.data.synthetic.shapes import SceneObject
from codebrush.data.synthetic.varied_scenes import PALETTE, varied_scene
from codebrush.training.tasks.patch_labels import (
    PARTS,
    UNKNOWN,
    label_patches,
    named_cells,
    patch_label_loss,
    place_loss,
)


def test_labelled_patches_lie_within_their_objects() -> None:
    objects = [
        SceneObject("red", "star", "large", (8.0, 8.0, 40.0, 32.0)),
        SceneObject("blue", "ring", "", (50, 50, 53, 53)),
    ]
    found = label_patches(objects, 64, 8).reshape(8, 8, 3)
    star, red = 1 + SHAPES.index("star"), 1 + list(PALETTE).index("red")
    assert (found[1:4, 1:5, :2] == (star, red)).all()
    assert found[2, 3].tolist() == [star, red, 1]
    assert found[6, 6].tolist() == [1 + SHAPES.index("ring"), 1 + list(PALETTE).index("blue"), 1]
    assert (found[..., 0] > 0).sum() == 3 * 4 + 1
    assert (found[..., 2] == 1).sum() == 2


def test_every_object_of_a_scene_has_its_patch() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        scene = varied_scene(rng, 64)
        found = label_patches(scene.objects, 64, 8)
        assert found.max(0)[0] <= PARTS[0] - 1
        middles = {tuple(int(value / 8) for value in each.centre) for each in scene.objects}
        assert found[:, 2].sum() == len(middles)


def test_the_loss_is_that_of_known_patches() -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(2, 4, sum(PARTS)), torch.zeros(2, 4, 3, dtype=torch.int64)
    labels[1] = UNKNOWN
    expected = patch_label_loss(logits[:1], labels[:1])
    assert patch_label_loss(logits, labels) == pytest.approx(float(expected), rel=1e-6)
    by_chance = sum(math.log(count) for count in PARTS) / 3
    assert patch_label_loss(torch.zeros(2, 4, sum(PARTS)), labels) == pytest.approx(by_chance, rel=1e-5)


def test_a_batch_without_scenes_has_no_loss() -> None:
    logits = torch.randn(1, 4, sum(PARTS), requires_grad=True)
    loss = patch_label_loss(logits, torch.full((1, 4, 3), UNKNOWN))
    loss.backward()
    assert float(loss.detach()) == 0
    assert logits.grad is not None
    assert float(logits.grad.abs().max()) == 0


RED, BLUE = (SceneObject(colour, "star", "", (8, 8, 40, 32)) for colour in ("red", "blue"))
RING = SceneObject("blue", "ring", "", (50, 50, 63, 63))


@pytest.mark.parametrize(
    ("text", "ends"),
    [
        (
            "is the red star above the ring?",
            {"is the red star": 2 * 8 + 3, "is the red star above the ring": 7 * 8 + 7},
        ),
        ("where is the star", {}),  # of two
        ("a green star", {}),  # of none
        ("a green ring", {}),
        ("how many rings are there?", {}),
        ("is there a blue ring?", {"is there a blue ring": 63}),
        ("", {}),
    ],
)
def test_a_name_points_to_its_object_where_it_fits_one_alone(text: str, ends: dict[str, int]) -> None:
    found = {text[:end]: cell for end, cell in named_cells(text, [RED, BLUE, RING], 64, 8)}
    assert found == ends


def test_places_are_a_column_and_a_row() -> None:
    logits = torch.zeros(2, 2, 8)
    assert place_loss(logits, torch.tensor([3, 63])) == pytest.approx(2 * math.log(8), rel=1e-6)
    logits[0, 0, 3] = logits[0, 1, 2] = logits[1, :, 7] = 50.0
    assert place_loss(logits, torch.tensor([2 * 8 + 3, 63])) == pytest.approx(0, abs=1e-6)
    assert place_loss(logits, torch.tensor([3 * 8 + 2, 63])) > 10
    nothing = place_loss(torch.zeros(0, 2, 8, requires_grad=True), torch.zeros(0, dtype=torch.int64))
    assert float(nothing.detach()) == 0
    nothing.backward()  # part of the graph, as other processes wait for its gradient
