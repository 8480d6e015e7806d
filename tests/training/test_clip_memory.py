"""Earlier embeddings as more negatives: what is held, what it adds to the loss, and that a resumed run remembers."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from stopped_runs import run_part

from codebrush.training.captioned import SourceConfig, load_captioned
from codebrush.training.clip import CLIPRecipe
from codebrush.training.loop import LoopConfig
from codebrush.training.losses import contrastive_loss
from codebrush.training.memory import Memory
from codebrush.training.stages import Materials, StagePlan, run_stage
from packs import micro_tokenizer


def pairs(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    numbers = torch.Generator().manual_seed(seed)
    image, text = (F.normalize(torch.randn(count, 5, generator=numbers), dim=-1) for _ in range(2))
    return image, text, torch.randint(0, 6, (count,), generator=numbers)


def test_the_last_pairs_are_held_and_the_oldest_go() -> None:
    memory = Memory(7, 5)
    assert [len(part) for part in memory.earlier()] == [0, 0, 0]
    batches = [pairs(3, seed) for seed in range(4)]
    for number, batch in enumerate(batches, 1):
        memory.add(*batch)
        assert len(memory.earlier().groups) == min(3 * number, 7)
    everything = [torch.cat(parts)[-7:] for parts in zip(*batches, strict=True)]
    for ours, theirs in zip(memory.earlier(), everything, strict=True):
        assert sorted(map(str, ours.tolist())) == sorted(map(str, theirs.tolist()))
    small = Memory(2, 5)
    small.add(*batches[0])  # a batch larger than the memory
    assert torch.equal(small.earlier().image, batches[0][0][-2:])


def test_the_loss_and_its_gradient_are_those_of_more_columns() -> None:
    (image, text, groups), (images, texts, known) = pairs(4, 0), pairs(9, 1)
    image.requires_grad_()
    loss = contrastive_loss(image, text, torch.tensor(9.0), groups, (images, texts, known))
    (slope,) = torch.autograd.grad(loss, image)
    total = torch.zeros(())
    for one, other, far in ((image, text, texts), (text, image, images)):
        for row in range(4):
            near = groups == groups[row]
            others = far[known != groups[row]]
            logits = 9.0 * torch.cat([one[row] @ other.T, one[row] @ others.T])
            total = total - logits.log_softmax(0)[:4][near].mean() / 8
    (expected,) = torch.autograd.grad(total, image)
    assert loss.item() == pytest.approx(total.item(), rel=1e-5)
    torch.testing.assert_close(slope, expected, rtol=1e-4, atol=1e-6)
    assert torch.equal(
        contrastive_loss(image, text, torch.tensor(9.0), groups),
        contrastive_loss(image, text, torch.tensor(9.0), groups, Memory(3, 5).earlier()),
    )


def test_a_resumed_run_remembers(shapes: Path, tmp_path: Path) -> None:
    recipe = CLIPRecipe(
        image_size=16, patch_size=8, width=16, layers=1, heads=2, text_width=16, text_layers=1, text_heads=2,
        embed_dim=8, token_table=False, memory=20,
    )  # fmt: skip
    loop = LoopConfig(steps=4, batch_size=8, warmup=1, threads=1, checkpoint_every=2, ema_decay=0.5)
    data = load_captioned(SourceConfig(str(shapes)).open(), 16, tmp_path / "cache")
    plan, materials = StagePlan("clip", recipe, loop), Materials(data, micro_tokenizer())
    whole = run_stage(plan, materials, tmp_path / "whole")
    run_part(plan, materials, tmp_path / "part", stop_after=2)
    held = torch.load(tmp_path / "part" / "checkpoint.pt", weights_only=True)["memory"]
    assert int(held["count"]) == 16
    assert np.all(held["groups"][:16].numpy() >= 0)
    again = run_stage(plan, materials, tmp_path / "part", resume=True)
    for name, value in whole.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name
    forgetful = run_stage(replace(plan, recipe=replace(recipe, memory=0)), materials, tmp_path / "plain")
    assert any(not torch.equal(value, whole.state_dict()[name]) for name, value in forgetful.state_dict().items())


def test_the_sigmoid_loss_has_no_memory() -> None:
    with pytest.raises(ValueError, match="memory is for the softmax loss"):
        CLIPRecipe(memory=8, loss="sigmoid")
