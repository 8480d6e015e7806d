"""Small tasks of five stages, whose steps are the same in any number of processes: batches are drawn as by one."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from codebrush.data.stored_codes import latents_once
from codebrush.training.dataset import SourceConfig, load_captioned
from codebrush.training.engine.loop import Loop
from codebrush.training.engine.loop_config import LoopConfig
from codebrush.training.engine.parts import cut
from codebrush.training.engine.rows import step_rng
from codebrush.training.engine.task import Hooks
from codebrush.training.guards import guarded
from codebrush.training.registry import STAGES
from codebrush.training.run_stage import make_network, make_task
from codebrush.training.stage import Materials, StagePlan
from codebrush.training.tasks.captioner import CaptionerRecipe
from codebrush.training.tasks.clip import CLIPRecipe
from codebrush.training.tasks.code_transformer import TransformerRecipe
from codebrush.training.tasks.flow import FlowRecipe
from codebrush.training.tasks.vqgan import VQGANRecipe
from packs import micro_clip, micro_tokenizer, micro_vqgan

LOOP = LoopConfig(
    steps=4, batch_size=12, warmup=1, ema_decay=0.5, precision="32-true", threads=1, log_every=1, checkpoint_every=2,
    preview_every=4, accelerator="cpu",
)  # fmt: skip
VQGAN = VQGANRecipe(
    image_size=32, channels=8, channel_multipliers=(1, 1, 2), norm_groups=4, latent_channels=8, code_dim=4,
    codebook_size=512, perceptual=0, adversarial_from=0.25, discriminator_channels=8, discriminator_layers=1,
)  # fmt: skip
# times; the share of right texts among those of its own process; codes by the trained network or by its average
NOT_COMPARED = {"step", "steps_per_second", "data_wait", "schedule", "accuracy", "codes_used"}
RECIPES: dict[str, Any] = {
    "clip": CLIPRecipe(
        image_size=32, patch_size=8, width=16, layers=2, heads=2, text_width=16, text_layers=1, text_heads=2,
        embed_dim=8, token_table=False, loss="sigmoid",
    ),
    "vqgan": VQGAN,  # collects latents all the time; the discriminator joins in after the first step
    # rows with a source and those without go through the network one after the other
    "transformer": TransformerRecipe(
        width=16, layers=2, heads=2, image_share=1 / 3, hole_share=1 / 3, modulation=True
    ),
    "flow": FlowRecipe(width=16, layers=2, heads=2, stem=8, text_length=4, image_share=0.3, hole_share=0.3),
    # the labels of patches alone in the first step
    "captioner": CaptionerRecipe(
        width=16, layers=2, heads=2, patch_label_steps=1, scene_share=0.5, vocab_size=300
    ),
}  # fmt: skip


def small_materials(data: Path, cache: Path) -> Materials:
    """What the stages are trained with: captioned pictures, and models with random weights."""
    torch.manual_seed(0)
    rows = load_captioned(SourceConfig(str(data)).open(), 32, cache)
    vqgan = micro_vqgan()
    grid = vqgan.code_grid(32)
    codes = np.random.default_rng(0).integers(0, vqgan.codebook_size, (len(rows), grid[0] * grid[1]))
    models: dict[str, Any] = {"clip": micro_clip(), "vqgan": vqgan}
    latents = latents_once(vqgan, rows.pixels, cache)
    given = Materials(rows, {"clip": micro_tokenizer()}, models, codes=codes.astype(np.int16), latents=latents)
    return STAGES["captioner"].prepare(StagePlan("captioner", RECIPES["captioner"], LOOP), given, cache)


class JoinedLoop(Loop):
    """Trains on the same batches in any number of processes: each takes its part of what a single one would draw."""

    def _load(self, step: int) -> list[dict[str, Tensor]]:
        batch = self.task.batch(self.rows(step), step_rng(self.config.seed, step, 1))
        alone = {name: value for name, value in batch.items() if not value.ndim}
        parts = cut({name: value for name, value in batch.items() if value.ndim}, self.count)
        return [{**parts[number], **alone} for number in self.numbers]


def train(stage: str, materials: Materials, folder: Path, recipe: Any = None, **loop: Any) -> dict[str, Tensor]:
    """Train a stage in all processes, with its guard; returns the averaged weights, and the values of the log."""
    folder.mkdir(parents=True, exist_ok=True)
    plan = StagePlan(stage, recipe or RECIPES[stage], replace(LOOP, **loop))
    task = make_task(plan, materials, make_network(plan, materials))
    for optimizer in task.optimizers.values():
        for group in optimizer.param_groups:
            group["eps"] = 1e-3  # otherwise Adam divides rounding errors by themselves
    hooks = guarded(Hooks(), STAGES[stage].guard(plan, materials, task), 2, folder)
    trained = JoinedLoop(task, plan.loop, folder, hooks=hooks).run()
    found = {name: value.detach().clone() for name, value in trained.state_dict().items()}
    found.pop("quantizer.collected", None)  # the rows of one process
    for line in map(json.loads, (folder / "metrics.jsonl").read_text().splitlines()):
        for name in line.keys() - NOT_COMPARED:
            found[f"step {line['step']} {name}"] = torch.tensor(line[name])
    return found


def parts_of(stage: str, processes: int) -> int:
    """How many parts a single process cuts a step into, to draw the random numbers that `processes` draw."""
    return 1 if stage == "clip" else processes
