"""One stage of a pack: its plan and its materials in, a folder with the trained model out.

A stage's folder holds stage.json (the plan, fixed when the stage starts), the checkpoint, metrics.jsonl, previews,
and at the end model/ in the layout of `save_pretrained`. A stage whose model/ is there is done and is not run again.
"""

import dataclasses
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from codebrush.conversion.load import MODELS
from codebrush.errors import TrainingError
from codebrush.models.captioner import Captioner
from codebrush.models.clip import CLIP
from codebrush.models.code_transformer import CodeTransformer
from codebrush.models.perceptual import CLIPPerceptual, Perceptual, VGGPerceptual
from codebrush.models.pretrained import PretrainedModel
from codebrush.models.prior import Bank, Prior
from codebrush.models.translator import Translator
from codebrush.models.upscaler import Upscaler
from codebrush.models.vqgan import VQGAN
from codebrush.text.tokenizer import Tokenizer
from codebrush.training.dataset import Captioned, Joined, SourceConfig, load_captioned
from codebrush.training.engine.forgetting import Gate, GateConfig, ZeroShot
from codebrush.training.engine.loop import Hooks, Loop, LoopConfig, Task, launch
from codebrush.training.fine_tuning import joined_rows, replayed_rows
from codebrush.training.tasks.captioner import CaptionerRecipe, CaptionerTask, make_captioner, make_words, with_heads
from codebrush.training.tasks.clip import CLIPRecipe, CLIPTask, make_clip
from codebrush.training.tasks.clip_diagnostics import Watch
from codebrush.training.tasks.code_transformer import (
    CodeTransformerTask,
    TransformerRecipe,
    alike_at_first,
    make_code_transformer,
    with_conditions,
)
from codebrush.training.tasks.prior import PriorRecipe, PriorTask, make_prior
from codebrush.training.tasks.translator import TranslatorRecipe, TranslatorTask, make_translator
from codebrush.training.tasks.upscaler import UpscalerRecipe, UpscalerTask, make_upscaler
from codebrush.training.tasks.vqgan import VQGANRecipe, VQGANTask, grown, make_vqgan

STAGE_FILE = "stage.json"
MODEL_FOLDER = "model"
Recipe = (
    CLIPRecipe | VQGANRecipe | TransformerRecipe | CaptionerRecipe | UpscalerRecipe | PriorRecipe | TranslatorRecipe
)


@dataclass(frozen=True)
class StagePlan:
    """What a stage does, to the last number. `facts` says what it was trained on.

    `replay` (a general set beside the new one) and `gate` (a set that must not be forgotten) are a CLIP's.
    """

    stage: str
    recipe: Recipe
    loop: LoopConfig
    facts: dict[str, Any] = dataclasses.field(default_factory=dict)
    replay: SourceConfig | None = None
    gate: GateConfig | None = None

    @property
    def image_size(self) -> int:
        """The side of the pictures that the recipe learns from, in pixels; 0 where it leaves that open."""
        return getattr(self.recipe, "target_size", 0) or getattr(self.recipe, "image_size", 0)


@dataclass
class Materials:
    """What stages take from those before them."""

    data: Captioned
    tokenizer: Tokenizer
    clip: CLIP | None = None
    vqgan: VQGAN | None = None
    transformer: CodeTransformer | None = None
    captioner: Captioner | None = None
    upscaler: Upscaler | None = None
    prior: Prior | None = None
    translator: Translator | None = None
    bank: Bank | None = None
    translation: dict[str, Any] | None = None  # what pack.json says of it
    codes: np.ndarray | None = None
    draw: Callable[[nn.Module], Image.Image | None] | None = None  # preview of a code transformer
    replay: Captioned | None = None
    gate: Captioned | None = None
    words: Tokenizer | None = None  # a captioner's vocabulary


def make_network(plan: StagePlan, materials: Materials, start: PretrainedModel | None = None) -> PretrainedModel:
    """The network a stage trains: `start`, or a fresh one drawn from the plan's seed.

    The seed is set in both cases: what the task adds, like a discriminator, is drawn from it too.
    """
    torch.manual_seed(plan.loop.seed)
    if start is not None:
        if isinstance(plan.recipe, CaptionerRecipe) and isinstance(start, Captioner):
            return with_heads(start, plan.recipe)
        if isinstance(plan.recipe, TransformerRecipe) and isinstance(start, CodeTransformer):
            return with_conditions(start, plan.recipe, _needed(materials.clip, "clip"))
        if isinstance(plan.recipe, VQGANRecipe) and isinstance(start, VQGAN):
            return grown(start, plan.recipe)
        return start
    if isinstance(plan.recipe, CLIPRecipe):
        if plan.recipe.lock != "none":
            raise TrainingError(f"recipe.lock: the {plan.recipe.lock} encoder is untrained: name a start with --from")
        return make_clip(plan.recipe, materials.tokenizer)
    if isinstance(plan.recipe, VQGANRecipe):
        return make_vqgan(plan.recipe)
    if isinstance(plan.recipe, UpscalerRecipe):
        return make_upscaler(plan.recipe)
    if isinstance(plan.recipe, TranslatorRecipe):
        return make_translator(plan.recipe, materials.data)
    if isinstance(plan.recipe, PriorRecipe):
        return make_prior(plan.recipe, _needed(materials.clip, "clip"))
    if isinstance(plan.recipe, CaptionerRecipe):
        return make_captioner(plan.recipe, _needed(materials.clip, "clip"), _needed(materials.words, "words"))
    clip, vqgan = _needed(materials.clip, "clip"), _needed(materials.vqgan, "vqgan")
    size = materials.data.pixels.pixels.shape[1]
    transformer = make_code_transformer(plan.recipe, clip, vqgan.codebook_size, vqgan.code_grid(size))
    if plan.recipe.soft_codes:
        alike_at_first(transformer, vqgan.quantizer.vectors.detach())
    return transformer


def make_task(plan: StagePlan, materials: Materials, network: Any) -> Task:
    """The loop's task for a plan."""
    recipe, data = plan.recipe, materials.data
    if isinstance(recipe, CLIPRecipe):
        rows = data if materials.replay is None else Joined(data, materials.replay)
        return CLIPTask(network, recipe, rows, materials.tokenizer)
    if isinstance(recipe, VQGANRecipe):
        return VQGANTask(network, recipe, data, plan.loop.steps, _perceptual(recipe, materials))
    if isinstance(recipe, UpscalerRecipe):
        vqgan = _needed(materials.vqgan, "vqgan") if recipe.reconstructed else None
        return UpscalerTask(network, recipe, data, plan.loop.steps, _perceptual(recipe, materials), vqgan)
    if isinstance(recipe, TranslatorRecipe):
        return TranslatorTask(network, recipe, _needed(materials.clip, "clip"), data)
    if isinstance(recipe, PriorRecipe):
        return PriorTask(network, recipe, _needed(materials.clip, "clip"), data, materials.tokenizer)
    if isinstance(recipe, CaptionerRecipe):
        clip, words = _needed(materials.clip, "clip"), _needed(materials.words, "words")
        return CaptionerTask(network, recipe, clip, data, words)
    return CodeTransformerTask(
        network,
        recipe,
        _needed(materials.clip, "clip"),
        data,
        _needed(materials.codes, "codes"),
        materials.tokenizer,
        materials.draw,
        _needed(materials.vqgan, "vqgan") if recipe.hole_share or recipe.soft_codes else None,
    )


def _perceptual(recipe: VQGANRecipe | UpscalerRecipe, materials: Materials) -> Perceptual | None:
    if not recipe.perceptual:
        return None
    if recipe.vgg:
        return VGGPerceptual(recipe.vgg, recipe.vgg_heads)
    return CLIPPerceptual(_needed(materials.clip, "clip"))


def _needed(part: Any, name: str) -> Any:
    if part is None:
        raise TrainingError(f"this stage needs the {name} of an earlier one: name a folder that holds it")
    return part


def run_stage(
    plan: StagePlan,
    materials: Materials,
    folder: Path,
    *,
    resume: bool = False,
    start: PretrainedModel | None = None,
    saved: Callable[[], None] | None = None,
) -> PretrainedModel:
    """Train to the plan's last step and return the averaged network, also saved in `folder`/model.

    With `resume`, a stage that began here goes on by the plan it began with, on the pictures it began with. Without,
    a folder that already holds a stage is an error, so that nothing is lost. `saved` is called at each checkpoint.
    Where the plan asks for several processes each runs this, and the first writes.
    """
    if begun := has_begun(folder):
        if not resume:
            raise TrainingError(f"{folder} already holds a training run: add --resume, or name another folder")
        plan = read_plan(folder)
        _check_rows(plan, "data_sha256", materials.data, folder)
        if is_done(folder):
            return MODELS[plan.stage].from_pretrained(folder / MODEL_FOLDER)
    materials = with_words(plan, _with_sets(plan, at_own_size(plan, materials, folder.parent / "cache"), folder))
    try:
        network = make_network(plan, materials, start)
        task = make_task(plan, materials, network)
    except ValueError as error:
        raise TrainingError(f"the {plan.stage} cannot be built: {error}") from error
    fabric = launch(plan.loop)
    if not begun and fabric.is_global_zero:  # a plan that cannot be carried out must not stand in the way of a better
        write_plan(replace(plan, facts={**plan.facts, **_fingerprints(materials)}), folder)
    fabric.barrier()
    hooks = make_hooks(plan, materials, folder, writes=fabric.is_global_zero)
    trained = Loop(task, plan.loop, folder, fabric, saved, hooks).run()
    assert isinstance(trained, PretrainedModel)
    if fabric.is_global_zero:
        _save_model(trained, folder, {"clip": materials.tokenizer, "captioner": materials.words}.get(plan.stage))
        if hooks.gate is not None:
            hooks.gate.close()
    fabric.barrier()
    return trained.cpu()


def make_hooks(plan: StagePlan, materials: Materials, folder: Path, writes: bool = True) -> Hooks:
    """What a CLIP's plan adds to the loop: the rows of two sets, a watch over its log, and the gate."""
    recipe, loop, data = plan.recipe, plan.loop, materials.data
    if not isinstance(recipe, CLIPRecipe):
        return Hooks()
    rows, count, gate = None, 0, None
    if materials.replay is not None:
        joined, count = Joined(data, materials.replay), replayed_rows(recipe.replay_share, loop.batch_size)
        rows = lambda step: joined_rows(joined, count, loop.batch_size, loop.seed, step)  # noqa: E731
    if plan.gate is not None and materials.gate is not None:
        gate = Gate(plan.gate, ZeroShot(materials.gate, materials.tokenizer), folder, loop.last, writes)
    watch = Watch(
        loop.batch_size,
        len(data) + len(materials.replay or ()),
        recipe.loss,
        loop.warmup_steps,
        texts=recipe.texts,
    )
    return Hooks(rows, watch.look, gate)


def with_words(plan: StagePlan, materials: Materials) -> Materials:
    """The materials with a vocabulary, made of the pictures' captions and questions, where a captioner has none."""
    if not isinstance(plan.recipe, CaptionerRecipe) or materials.words is not None:
        return materials
    return replace(materials, words=make_words(plan.recipe, materials.data))


def at_own_size(plan: StagePlan, materials: Materials, cache: Path) -> Materials:
    """The materials with the pictures as large as an upscaler is to make them, or as a translator's recipe says."""
    size = plan.image_size if plan.stage in ("upscaler", "translator") else 0
    if size in (0, materials.data.pixels.pixels.shape[1]):
        return materials
    return replace(materials, data=load_captioned(materials.data.source, size, cache))


def _with_sets(plan: StagePlan, materials: Materials, folder: Path) -> Materials:
    """The materials with the plan's other sets, decoded at the size of the first."""
    size = materials.data.pixels.pixels.shape[1]
    sources = {"replay": plan.replay, "gate": plan.gate and plan.gate.source}
    sets = {
        name: load_captioned(source.open(), size, folder.parent / "cache")
        for name, source in sources.items()
        if source is not None
    }
    for name, rows in sets.items():
        _check_rows(plan, f"{name}_sha256", rows, folder)
    return replace(materials, **sets)


def _fingerprints(materials: Materials) -> dict[str, str]:
    sets = {"data": materials.data, "replay": materials.replay, "gate": materials.gate}
    return {f"{name}_sha256": rows.source.fingerprint for name, rows in sets.items() if rows is not None}


def _check_rows(plan: StagePlan, fact: str, rows: Captioned, folder: Path) -> None:
    now = rows.source.fingerprint
    if plan.facts.get(fact, now) != now:
        raise TrainingError(f"{folder} began with other pictures or captions: name those, or another folder")


def _save_model(trained: PretrainedModel, folder: Path, tokenizer: Tokenizer | None) -> None:
    part = folder / f"{MODEL_FOLDER}.part"
    shutil.rmtree(part, ignore_errors=True)
    trained.save_pretrained(part)
    if tokenizer is not None:
        tokenizer.save(part)
    os.replace(part, folder / MODEL_FOLDER)


def is_done(folder: Path) -> bool:
    """Whether a stage has left its model in `folder`."""
    return (folder / MODEL_FOLDER).is_dir()


def has_begun(folder: Path) -> bool:
    """Whether a stage has a plan in `folder`."""
    return (folder / STAGE_FILE).is_file()


def write_plan(plan: StagePlan, folder: Path) -> None:
    """Store the plan as stage.json."""
    folder.mkdir(parents=True, exist_ok=True)
    values = dataclasses.asdict(plan)
    path = folder / STAGE_FILE
    Path(f"{path}.part").write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    os.replace(f"{path}.part", path)


def read_plan(folder: Path) -> StagePlan:
    """The plan that a stage in `folder` began with."""
    from codebrush.training.recipes import plan_from_dict

    path = folder / STAGE_FILE
    try:
        return plan_from_dict(json.loads(path.read_text(encoding="utf-8")), str(path))
    except (OSError, json.JSONDecodeError) as error:
        raise TrainingError(f"{path} cannot be read ({error}): start the stage again in another folder") from error
