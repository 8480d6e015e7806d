"""A recipe file and the models of earlier stages in, one trained model in a run folder out."""

import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from codebrush.conversion.convert import open_model
from codebrush.conversion.tokenizers import tokenizer_of
from codebrush.data.code_cache import encode_once
from codebrush.errors import UsageError
from codebrush.models.captioner import Captioner
from codebrush.models.clip import CLIP
from codebrush.models.pretrained import PretrainedModel
from codebrush.models.vqgan import VQGAN
from codebrush.pack.pack import PACK_FILE, Pack, local_pack
from codebrush.text.tokenizer import Tokenizer
from codebrush.training.dataset import Captioned, load_captioned
from codebrush.training.engine.forgetting import read_gate
from codebrush.training.engine.loop import is_first
from codebrush.training.packs.pack_training import last_metrics, make_tokenizer, member_folder
from codebrush.training.recipes import read_recipe
from codebrush.training.stages import MODEL_FOLDER, Materials, StagePlan, has_begun, read_plan, run_stage
from codebrush.training.tasks.code_transformer import TransformerRecipe


def train_stage(
    stage: str,
    recipe: str | Path,
    out: Path,
    *,
    source: str | None = None,
    start: Path | None = None,
    clip: Path | None = None,
    vqgan: Path | None = None,
    tokenizer: str | None = None,
    threads: int = 0,
    resume: bool = False,
    draw: Callable[..., Any] | None = None,
) -> dict[str, Any]:
    """Train one stage by its recipe into the run folder `out`; returns its figures, of several processes in the first.

    `clip` and `vqgan` are folders (packs, runs or models) that later stages need; `start` is one to begin from, or
    published weights. `tokenizer` None is wordpiece, or the start's. A run that is resumed keeps its plan, its
    tokenizer and what it began from; other ones that are named raise UsageError.
    """
    began = time.monotonic()
    asked = read_recipe(recipe, source, stage)
    plan = _plan(asked.plan, out, None if start is None else member_folder(start, stage), tokenizer, threads, resume)
    start = Path(plan.facts["from"]) if "from" in plan.facts else None
    clip_folder = None if clip is None else member_folder(clip, "clip")
    materials_clip = None if clip_folder is None else CLIP.from_pretrained(clip_folder)
    materials_vqgan = None if vqgan is None else VQGAN.from_pretrained(member_folder(vqgan, "vqgan"))
    begin = None if start is None else open_model(stage, start)
    plan = _at_size_of(plan, begin)
    opened = asked.source.open()
    size = _picture_size(plan, clip, materials_clip, materials_vqgan)
    cache = out.parent / "cache"
    data = load_captioned(opened, size, cache)
    words = _words(data, begin, start, clip_folder, plan.facts.get("tokenizer") or tokenizer)
    materials = Materials(data, words, materials_clip, materials_vqgan)
    if isinstance(begin, Captioner) and start is not None:
        materials.words = Tokenizer.from_pretrained(start)
    if isinstance(plan.recipe, TransformerRecipe) and materials_vqgan is not None:
        materials.codes = encode_once(materials_vqgan, data.pixels, cache)
        materials.draw = (lambda network: draw(materials, network)) if draw else None
    network = run_stage(plan, materials, out, resume=resume, start=begin)
    seconds = round(time.monotonic() - began, 1)
    if not is_first():
        return {}
    figures = {
        "steps": plan.loop.last,
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "seconds": seconds,
        "skipped": len(data.pixels.skipped),
        "metrics": last_metrics(out),
    }
    if (gate := read_gate(out)) is not None:
        figures |= {"steps": gate["step"], "gate": gate}
    return {"model": str(out / MODEL_FOLDER), "stages": {stage: figures}, "seconds": seconds}


def _picture_size(plan: StagePlan, place: Path | None, clip: CLIP | None, vqgan: VQGAN | None) -> int:
    """The side of the pictures that a stage learns from; `place` is where its CLIP lies."""
    if plan.image_size:
        return plan.image_size
    pack = None if place is None else local_pack(str(place))
    if plan.stage == "translator" and pack is not None and (pack / PACK_FILE).is_file():
        return Pack(pack).image_size
    if plan.stage in ("captioner", "prior", "translator") and clip is not None:
        return clip.image_size
    return vqgan.config.image_size if vqgan is not None else 64


def _words(
    data: Captioned, begin: PretrainedModel | None, start: Path | None, clip_folder: Path | None, kind: str | None
) -> Tokenizer:
    """The tokenizer of the CLIP that training begins from or works with, else a new one of a `kind`."""
    if isinstance(begin, CLIP) and start is not None:
        return tokenizer_of(begin, start)
    return make_tokenizer(kind or "wordpiece", data) if clip_folder is None else Tokenizer.from_pretrained(clip_folder)


def _at_size_of(plan: StagePlan, start: PretrainedModel | None) -> StagePlan:
    """The plan with the picture size of the CLIP that it begins from, which reads no other."""
    if not isinstance(start, CLIP) or plan.recipe.image_size == start.image_size:  # pyright: ignore
        return plan
    size = start.image_size
    warnings.warn(f"pictures are {size} x {size}, as the CLIP of --from reads them", stacklevel=2)
    return replace(plan, recipe=replace(plan.recipe, image_size=size))


def _plan(
    asked: StagePlan, out: Path, start: Path | None, tokenizer: str | None, threads: int, resume: bool
) -> StagePlan:
    """The plan that the run in `out` began with, or the recipe's with what the flags add to it."""
    began_from = None if start is None else str(start.resolve())
    if resume and has_begun(out):
        plan = read_plan(out)
        _check_same("--from", began_from, plan.facts.get("from"), out)
        _check_same("--tokenizer", tokenizer, plan.facts.get("tokenizer", tokenizer), out)
        _check_same("--threads", threads or None, plan.loop.threads, out)
        return plan
    # Never 0 in a stored plan: another number of threads adds up in another order.
    loop = replace(asked.loop, threads=threads or asked.loop.threads or torch.get_num_threads())
    facts = {"tokenizer": tokenizer or "wordpiece", **({"from": began_from} if began_from else {})}
    return replace(asked, loop=loop, facts=facts)


def _check_same(flag: str, now: object, before: object, out: Path) -> None:
    """A UsageError where a flag is given (not None) that the run in `out` did not begin with."""
    if now not in (None, before):
        raise UsageError(f"{flag} is {now} but was {before} when the run in {out} began: leave it out to go on")
