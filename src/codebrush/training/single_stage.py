"""A recipe file and the models of earlier stages in, one trained model in a run folder out."""

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from codebrush.data.codes import encode_once
from codebrush.models.clip import CLIP
from codebrush.models.vqgan import VQGAN
from codebrush.text.tokenizer import Tokenizer
from codebrush.training.captioned import load_captioned
from codebrush.training.code_transformer import TransformerRecipe
from codebrush.training.pack_training import last_metrics, make_tokenizer, member_folder
from codebrush.training.recipes import read_recipe
from codebrush.training.stages import MODEL_FOLDER, MODELS, Materials, has_begun, read_plan, run_stage


def train_stage(
    stage: str,
    recipe: str | Path,
    out: Path,
    *,
    source: str | None = None,
    start: Path | None = None,
    clip: Path | None = None,
    vqgan: Path | None = None,
    tokenizer: str = "wordpiece",
    threads: int = 0,
    resume: bool = False,
    draw: Callable[..., Any] | None = None,
) -> dict[str, Any]:
    """Train one stage by its recipe into the run folder `out`; returns its figures.

    `clip` and `vqgan` are folders (packs, runs or models) that later stages need; `start` is one to begin from.
    A run that is resumed keeps its plan, and what it began from.
    """
    began = time.monotonic()
    asked = read_recipe(recipe, source, stage)
    if resume and has_begun(out):
        plan = read_plan(out)
    else:
        # Never 0 in a stored plan: another number of threads adds up in another order.
        loop = replace(asked.plan.loop, threads=threads or asked.plan.loop.threads or torch.get_num_threads())
        plan = replace(
            asked.plan, loop=loop, facts={"from": str(member_folder(start, stage).resolve())} if start else {}
        )
    start = Path(plan.facts["from"]) if "from" in plan.facts else start
    clip_folder = None if clip is None else member_folder(clip, "clip")
    materials_clip = None if clip_folder is None else CLIP.from_pretrained(clip_folder)
    materials_vqgan = None if vqgan is None else VQGAN.from_pretrained(member_folder(vqgan, "vqgan"))
    opened = asked.source.open()
    size = getattr(plan.recipe, "image_size", 0) or (materials_vqgan.config.image_size if materials_vqgan else 64)
    cache = out.parent / "cache"
    data = load_captioned(opened, size, cache)
    begin = None if start is None else MODELS[stage].from_pretrained(member_folder(start, stage))
    words_from = member_folder(start, "clip") if start is not None and stage == "clip" else clip_folder
    words = make_tokenizer(tokenizer, data) if words_from is None else Tokenizer.from_pretrained(words_from)
    materials = Materials(data, words, materials_clip, materials_vqgan)
    if isinstance(plan.recipe, TransformerRecipe) and materials_vqgan is not None:
        materials.codes = encode_once(materials_vqgan, data.pixels, cache)
        materials.draw = (lambda network: draw(materials, network)) if draw else None
    network = run_stage(plan, materials, out, resume=resume, start=begin)
    seconds = round(time.monotonic() - began, 1)
    figures = {
        "steps": plan.loop.stop_after or plan.loop.steps,
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "seconds": seconds,
        "skipped": len(data.pixels.skipped),
        "metrics": last_metrics(out),
    }
    return {"model": str(out / MODEL_FOLDER), "stages": {stage: figures}, "seconds": seconds}
