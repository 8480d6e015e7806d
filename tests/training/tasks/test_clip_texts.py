"""Texts of other rows as more negatives: what they add to the loss, and that training draws and reads them."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from stopped_runs import run_in_two, run_stage

from codebrush.text.tokenizer import Tokenizer
from codebrush.training.dataset import SourceConfig, load_captioned
from codebrush.training.engine.loop_config import LoopConfig
from codebrush.training.run_stage import make_network, make_task
from codebrush.training.stage import Materials, StagePlan
from codebrush.training.tasks.clip import CLIPRecipe, TextMeanings
from codebrush.training.tasks.contrastive_loss import TextLikeness, contrastive_loss
from packs import micro_tokenizer

RECIPE = CLIPRecipe(
    image_size=16, patch_size=8, width=16, layers=1, heads=2, text="bag", text_width=16, embed_dim=8,
    token_table=False, texts=20,
)  # fmt: skip
LOOP = LoopConfig(steps=4, batch_size=8, warmup=1, threads=1, checkpoint_every=2, ema_decay=0.5)


def pairs(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    numbers = torch.Generator().manual_seed(seed)
    image, text = (F.normalize(torch.randn(count, 5, generator=numbers), dim=-1) for _ in range(2))
    return image, text, torch.randint(0, 6, (count,), generator=numbers)


def test_the_loss_and_its_gradients_are_those_of_more_columns_for_pictures() -> None:
    (image, text, groups), (_, texts, known) = pairs(4, 0), pairs(9, 1)
    inputs = [part.requires_grad_() for part in (image, text, texts)]
    loss = contrastive_loss(image, text, torch.tensor(9.0), groups, (texts, known))
    total = torch.zeros(())
    for row in range(4):
        near = groups == groups[row]
        columns = torch.cat([image[row] @ text.T, image[row] @ texts[known != groups[row]].T])
        total = total - (9.0 * columns).log_softmax(0)[:4][near].mean() / 8
        total = total - (9.0 * text[row] @ image.T).log_softmax(0)[near].mean() / 8
    assert loss.item() == pytest.approx(total.item(), rel=1e-5)
    for ours, theirs in zip(torch.autograd.grad(loss, inputs), torch.autograd.grad(total, inputs), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


@pytest.fixture
def materials(shapes: Path, tmp_path: Path) -> Materials:
    data = load_captioned(SourceConfig(str(shapes)).open(), 16, tmp_path / "cache")
    return Materials(data, {"clip": micro_tokenizer()})


def test_a_batch_brings_captions_of_other_rows_and_their_groups(materials: Materials) -> None:
    plan = StagePlan("clip", RECIPE, LOOP)
    task = make_task(plan, materials, make_network(plan, materials))
    batch = task.batch(np.arange(8), np.random.default_rng(0))
    assert batch["other_tokens"].shape == (20, micro_tokenizer().context_length)
    said = {tuple(row.tolist()): group for row, group in zip(batch["other_tokens"], batch["other_groups"], strict=True)}
    data = materials.data
    for row in range(len(data)):
        tokens = tuple(materials.tokenizer(data.captions(row)[:1], on_long="truncate")[0].tolist())
        assert tokens not in said or len(data.captions(row)) > 1 or data.groups[row] == int(said[tokens])
    (objective,) = task.objectives(batch, 0)
    bare = make_task(replace(plan, recipe=replace(RECIPE, texts=0)), materials, task.networks["clip"])  # pyright: ignore
    (other,) = bare.objectives({name: part for name, part in batch.items() if not name.startswith("other")}, 0)
    assert objective.loss.item() > other.loss.item()  # more to be told from


def test_a_stopped_run_ends_at_the_same_bits(materials: Materials, tmp_path: Path) -> None:
    plan = StagePlan("clip", RECIPE, LOOP)
    whole = run_stage(plan, materials, tmp_path / "whole")
    again = run_in_two(plan, materials, tmp_path / "part", stop_after=2)
    for name, value in whole.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name


def test_the_sigmoid_loss_takes_none() -> None:
    with pytest.raises(ValueError, match="texts are additional negatives of the softmax loss"):
        CLIPRecipe(texts=8, loss="sigmoid")


@pytest.mark.parametrize("with_others", [False, True])
def test_soft_targets_go_to_texts_of_like_meaning(with_others: bool) -> None:
    (image, text, groups), (_, texts, known) = pairs(4, 0), pairs(9, 1)
    meaning, more = pairs(4, 2)[0], pairs(9, 3)[0]
    if not with_others:
        texts, known, more = texts[:0], known[:0], more[:0]
    likeness = TextLikeness(meaning, more, share=0.3, temperature=0.2)
    loss = contrastive_loss(image, text, torch.tensor(9.0), groups, (texts, known) if with_others else None, likeness)

    def target(row: int, columns: torch.Tensor, their: torch.Tensor) -> torch.Tensor:
        hard = (their == groups[row]).float()
        return 0.7 * hard / hard.sum() + 0.3 * (meaning[row] @ columns.T / 0.2).softmax(0)

    total = torch.zeros(())
    for row in range(4):
        all_texts, all_groups = torch.cat([text, texts]), torch.cat([groups, known])
        wanted = target(row, torch.cat([meaning, more]), all_groups)
        total = total - (wanted * (9.0 * image[row] @ all_texts.T).log_softmax(0)).sum() / 8
        total = total - (target(row, meaning, groups) * (9.0 * text[row] @ image.T).log_softmax(0)).sum() / 8
    torch.testing.assert_close(loss, total)


def test_texts_mean_what_their_words_mean_before_any_picture() -> None:
    tokenizer = Tokenizer.wordpiece()
    mail, envelope, tiger = TextMeanings(tokenizer)(tokenizer(["mail", "envelope", "tiger"]))
    assert mail @ envelope > mail @ tiger + 0.2
    assert float(mail.norm()) == pytest.approx(1, abs=1e-5)


def test_soft_targets_need_the_distilled_table() -> None:
    with pytest.raises(ValueError, match="soft_share needs token_table"):
        CLIPRecipe(soft_share=0.2, token_table=False)
