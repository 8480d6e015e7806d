"""Decoys: their loss against plain loops, the start of the sigmoid loss, and a CLIP that learns not to be deceived."""

import math
from copy import deepcopy
from dataclasses import replace
from multiprocessing.context import ForkServerContext
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
import yaml
from gloo import run_together
from torch import Tensor

from codebrush.data.decoding.images import save_png, to_pil
from codebrush.errors import TrainingError
from codebrush.models.clip import CLIP
from codebrush.training.dataset import Captioned, SourceConfig, load_captioned
from codebrush.training.engine.loop_config import LoopConfig
from codebrush.training.recipes import read_recipe
from codebrush.training.run_stage import make_network, make_task, run_stage
from codebrush.training.stage import Materials, StagePlan
from codebrush.training.tasks.augmentation import Augmentation
from codebrush.training.tasks.clip import CLIPRecipe, make_clip
from codebrush.training.tasks.contrastive_loss import own_share, sigmoid_loss
from codebrush.training.tasks.decoys import decoy_loss, fit_logits
from codebrush.training.tokenizers import make_tokenizer

STILL = Augmentation(shift=0, zoom=0, turn=0)
RECIPE = CLIPRecipe(
    image_size=32, patch_size=8, width=32, layers=2, heads=2, text="bag", text_width=32, embed_dim=32,
    loss="sigmoid", token_table=False, learning_rate=3e-3, augmentation=STILL,
)  # fmt: skip
LOOP = LoopConfig(
    steps=60, batch_size=16, seed=0, warmup=5, ema_decay=0.9, precision="32-true", threads=1, log_every=20,
)  # fmt: skip


def unit_rows(*shape: int) -> Tensor:
    return F.normalize(torch.randn(*shape), dim=-1)


def test_the_loss_is_that_of_plain_loops():
    image, own, text = unit_rows(3, 5), unit_rows(3, 5), unit_rows(4, 5)
    scale, bias = torch.tensor(12.0), torch.tensor(-3.0)
    pairs = [(i, j) for i in image for j in text] + list(zip(image, own, strict=True))
    expected = sum(math.log1p(math.exp(12 * float(i @ j) - 3)) for i, j in pairs) / 4
    assert float(decoy_loss(image, own, text, scale, bias)) == pytest.approx(expected, rel=1e-5)


def loss_of_share(processes: int, rank: int) -> tuple[Tensor, Tensor]:
    """The loss of three decoys among four texts, or of a process's part of both, and its gradient of the texts."""
    torch.manual_seed(2)
    image, own, text = unit_rows(3, 5), unit_rows(3, 5), unit_rows(4, 5).requires_grad_()
    decoys = slice(rank, None, processes)
    mine = text[rank * 4 // processes : (rank + 1) * 4 // processes]
    loss = decoy_loss(image[decoys], own[decoys], mine, torch.tensor(12.0), torch.tensor(-3.0))
    loss.backward()
    assert text.grad is not None
    return loss.detach(), text.grad


def share(rank: int, folder: str) -> None:
    assert own_share(3, "decoys_per_batch") == (2, 1)[rank] == len(range(rank, 3, 2))
    with pytest.raises(TrainingError, match=r"recipe\.decoys_per_batch is 1, but there are 2 processes"):
        own_share(1, "decoys_per_batch")
    found = loss_of_share(2, rank)
    for part in found:
        dist.all_reduce(part)
        part /= 2
    if rank == 0:
        torch.save(found, f"{folder}/found.pt")


def test_two_processes_share_the_decoys_of_one(tmp_path: Path, processes: ForkServerContext):
    assert run_together(processes, 2, share, str(tmp_path)) == [0, 0]
    torch.testing.assert_close(torch.load(tmp_path / "found.pt"), loss_of_share(1, 0))


def test_a_batch_has_as_many_decoys_as_the_recipe_says(materials: Materials):
    plan = StagePlan("clip", replace(RECIPE, decoys_per_batch=5), LOOP)
    task = make_task(plan, materials, make_network(plan, materials))
    assert len(task.batch(np.arange(4), np.random.default_rng(0))["images"]) == 4 + 5


def test_the_fitted_scale_and_bias_have_the_least_loss():
    text, groups = unit_rows(24, 8), torch.arange(24)
    image = F.normalize(text + 0.5 * torch.randn(24, 8), dim=1)

    def loss(log_scale: float, bias: float) -> float:
        return float(sigmoid_loss(image, text, torch.tensor(log_scale).exp(), torch.tensor(bias), groups))

    log_scale, bias = fit_logits(image, text, groups, 20.0)
    least = loss(log_scale, bias)
    assert least < loss(math.log(20.0), -10.0)
    for away in (-0.3, 0.3):
        assert least < loss(log_scale + away, bias)
        assert least < loss(log_scale, bias + away)


@pytest.fixture(scope="module")
def materials(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Materials:
    """Forty scenes, and as decoys the same with a black corner, under the same captions."""
    folder = tmp_path_factory.mktemp("decoys")
    data = load_captioned(SourceConfig(str(shapes)).open(), 32, folder)
    for row in range(len(data)):
        picture = to_pil(data.images([row])[0].float() / 255)
        picture.paste((0, 0, 0), (0, 0, 8, 8))
        save_png(picture, folder / "set" / f"{row}.png")
        (folder / "set" / f"{row}.txt").write_text(data.captions(row)[0])
    tokenizer = make_tokenizer("bpe", data)
    decoys = load_captioned(SourceConfig(str(folder / "set")).open(), 32, folder)
    return Materials(data, {"clip": tokenizer}, decoys=decoys)


@torch.no_grad()
def own_cosine(clip: CLIP, rows: Captioned, materials: Materials) -> float:
    """The mean cosine of pictures with their own captions."""
    images = clip.encode_image(rows.images(range(len(rows))).float() / 255)
    texts = clip.encode_text(materials.tokenizer([rows.captions(row)[0] for row in range(len(rows))]))
    return float((images * texts).sum(1).mean())


@pytest.mark.slow
def test_a_clip_trained_with_decoys_is_not_deceived_by_them(materials: Materials, tmp_path: Path):
    assert materials.decoys is not None
    softmax = StagePlan("clip", replace(RECIPE, loss="softmax"), LOOP)
    start = run_stage(softmax, materials, tmp_path / "start")
    deceived = {}
    for count in (0, 16):
        plan = StagePlan("clip", replace(RECIPE, decoys_per_batch=count), LOOP)
        clip = run_stage(plan, materials, tmp_path / str(count), start=deepcopy(start))
        assert isinstance(clip, CLIP)
        cosines = [own_cosine(clip, rows, materials) for rows in (materials.decoys, materials.data)]
        deceived[count] = cosines[0] / cosines[1]
    assert deceived[0] > 0.7, deceived
    assert deceived[16] < 0.3, deceived


def test_a_start_of_the_softmax_loss_begins_with_a_bias_that_suits_it(materials: Materials, tmp_path: Path):
    torch.manual_seed(0)
    start = make_clip(replace(RECIPE, loss="softmax"), materials.tokenizer)
    assert start.logit_bias.item() == 0
    plan = StagePlan("clip", RECIPE, replace(LOOP, steps=1, warmup=0, ema_decay=0.0))
    clip = run_stage(replace(plan, recipe=replace(RECIPE, learning_rate=1e-9)), materials, tmp_path, start=start)
    assert isinstance(clip, CLIP)
    rows = range(len(materials.data))
    with torch.no_grad():
        output = clip(
            materials.data.images(rows).float() / 255,
            materials.tokenizer([materials.data.captions(row)[0] for row in rows]),
        )
        loss = sigmoid_loss(*output, torch.from_numpy(materials.data.groups))
        plain = sigmoid_loss(
            output.image, output.text, output.logit_scale, torch.tensor(0.0), torch.from_numpy(materials.data.groups)
        )
    assert float(output.logit_bias) < 0
    assert float(loss) < float(plain) / 2


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"recipe": {"loss": "sigmoid", "decoys_per_batch": 4}}, "is 4 but there are no decoys"),
        ({"decoys": {"source": "x"}}, "is 0 but there are decoys"),
        ({"decoys": {"source": "x"}, "recipe": {"decoys_per_batch": 4}}, "decoys_per_batch needs the sigmoid loss"),
        ({"stage": "vqgan", "decoys": {"source": "x"}}, "decoys"),
    ],
)
def test_a_recipe_of_half_a_decoy_is_refused(tmp_path: Path, change: dict, line: str):
    values = {"stage": "clip", "source": {"source": "x"}, "loop": {"steps": 1, "batch_size": 4}} | change
    file = tmp_path / "clip.yaml"
    file.write_text(yaml.safe_dump(values))
    with pytest.raises(TrainingError, match=line):
        read_recipe(file)
