"""Writes the pack of all members that were trained, or taken over from the pack that training began from."""

import dataclasses
from pathlib import Path
from typing import Any

import torch

from codebrush.pack.members import usual_painter_of
from codebrush.pack.pack import Pack
from codebrush.pack.writing import PackMembers, write_pack
from codebrush.training.packs.member_training import MemberTraining
from codebrush.training.registry import STAGES
from codebrush.training.run_folder import read_plan
from codebrush.version import __version__


def write_trained(training: MemberTraining, source: Any, figures: dict[str, Any], measured: dict[str, Any]) -> Pack:
    """Write the pack; `figures` are those of its stages, and what was `measured` stands in pack.json, too."""
    request, materials, start = training.request, training.materials, training.start
    for stage in STAGES.values():
        if stage.name not in materials.models and start.keeps(stage):
            materials.models[stage.name] = training.begin_from(stage)  # pyright: ignore[reportArgumentType]
    began, licence = start.facts(), request.licence
    provenance = {
        "source": Path(request.source.source).name,
        "rows": dataclasses.asdict(request.source) | {"source": Path(request.source.source).name},
        "data_sha256": source.fingerprint,
        "seconds": round(training.clock.spent(), 1),
        "torch": torch.__version__,
        "stages": figures,
        "plans": {stage: dataclasses.asdict(read_plan(training.work / stage)) for stage in figures},
        "measured": measured,
        "left_out": training.left_out,
    }
    if began is not None:
        provenance["start"] = {**began, "kept": sorted(start.kept)}
        licence = f"{licence}; begun from {began['pack']}: {began['licence']}"
    return write_pack(
        request.out,
        PackMembers(materials.models, materials.tokenizers),
        name=request.name or request.out.name,
        extras=materials.extras,
        version=__version__,
        licence=licence,
        provenance=provenance,
        painter=usual_painter_of(materials.models, None if start.pack is None else start.pack.info.get("painter")),
    )
